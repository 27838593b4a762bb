"""`ContrastiveTrainer`: a `transformers.Trainer` whose loss is InfoNCE on EOS embeddings."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from dataset_builder.errors import RunError
from trainer.config import ContrastiveTrainingArguments
from trainer.data import ContrastiveCollator, SubgroupBatchSampler
from trainer.loss import InfoNCE, false_negatives, info_nce


def eos_embeddings(last_hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the last layer's hidden state at the EOS, the last token of each text (paper, section 3.2).

    Args:
        last_hidden_state: (texts, length, dim).
        attention_mask: (texts, length), 1 on tokens, 0 on padding; the padding may stand on either side.

    Returns:
        (texts, dim), in the dtype of the hidden state.
    """
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = (attention_mask * positions).argmax(dim=1)
    return last_hidden_state[torch.arange(len(last), device=last.device), last]


CHUNK_TOKENS = {"cpu": 2_048, "cuda": 65_536}
"""Padded tokens in one forward pass: few enough to waste little on padding, many enough to keep the device busy."""


def embed(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the EOS embeddings (texts, dim), not normalised, in the order of the texts.

    The texts are sorted by length and encoded in chunks of about equal size, each padded only to its own longest text.

    Args:
        model: a model whose output has `last_hidden_state`.
        input_ids: (texts, length), padded on the right.
        attention_mask: (texts, length), 1 on tokens, 0 on padding.
    """
    lengths, order = attention_mask.sum(dim=1).sort(descending=True, stable=True)
    vectors, start = [], 0
    while start < len(order):
        length = int(lengths[start])
        rows = order[start : start + max(1, CHUNK_TOKENS.get(input_ids.device.type, 65_536) // length)]
        mask = attention_mask[rows, :length]
        hidden = model(input_ids=input_ids[rows, :length], attention_mask=mask).last_hidden_state
        vectors.append(eos_embeddings(hidden, mask))
        start += len(rows)
    return torch.cat(vectors)[order.argsort()]


class ContrastiveTrainer(Trainer):
    """Trains the `PreTrainedModel` or `PeftModel` itself with InfoNCE over in-batch and hard negatives.

    Candidates of a query are all positives and all hard negatives of its batch; duplicates of its positive and other
    false negatives are masked (`trainer.loss.false_negatives`). In symmetric batches positives are queries too. Every
    batch holds one subgroup.

    Args:
        model: a model whose output has `last_hidden_state`.
        args: the training arguments.
        train_dataset: rows of `trainer.data.load_examples`.
        processing_class: a tokenizer that keeps the EOS contract.
        eval_dataset: held-out rows, if any.
        callbacks: as in `Trainer`.
    """

    loss_is_scaled_for_ga = False  # compute_loss returns a mean over the batch

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: ContrastiveTrainingArguments,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        eval_dataset: Dataset | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            data_collator=ContrastiveCollator(processing_class, args.max_seq_length),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        self.temperature = args.temperature
        self._metrics: dict[str, list[Tensor]] = defaultdict(list)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return batches of one subgroup each, in an order that follows from (seed, epoch)."""
        return self._batches(self.train_dataset, self.args.train_batch_size, shuffle=True)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the held-out rows in batches of one subgroup each."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._batches(rows, self.args.eval_batch_size, shuffle=False)

    def _batches(self, dataset: Any, batch_size: int, *, shuffle: bool) -> DataLoader[Any]:
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=SubgroupBatchSampler(dataset["subgroup"], batch_size, seed, shuffle=shuffle),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the InfoNCE loss of a batch of `ContrastiveCollator`, a float32 scalar: the mean over its queries.

        Raises:
            RunError: if the loss is not finite.
        """
        result = self._info_nce(model, inputs)
        if not torch.isfinite(result.loss):
            raise RunError(
                f"The loss is {result.loss.item()} at step {self.state.global_step}; lower --learning_rate, or train in "
                "float32 or bfloat16 if this is float16."
            )
        if model.training:
            for name in ("recall_at_1", "positive_similarity", "negative_similarity"):
                self._metrics[name].append(getattr(result, name))
        return (result.loss, {}) if return_outputs else result.loss

    def _info_nce(self, model: nn.Module, inputs: dict[str, Any]) -> InfoNCE:
        columns = [name for name in ("query", "positive", "negative") if f"{name}_input_ids" in inputs]
        # {column: (texts, dim)}
        vectors = {c: embed(model, inputs[f"{c}_input_ids"], inputs[f"{c}_attention_mask"]) for c in columns}
        queries, positives = vectors["query"], vectors["positive"]
        negatives = [vectors["negative"]] if "negative" in vectors else []
        query_keys, positive_keys, candidate_keys = (
            inputs[name] for name in ("query_keys", "positive_keys", "candidate_keys")
        )
        masked = false_negatives(query_keys, positive_keys, candidate_keys)
        # (batch + negatives, dim): every positive, then every hard negative
        forth = info_nce(queries, torch.cat([positives, *negatives]), temperature=self.temperature, masked=masked)
        if not inputs["symmetric"]:
            return forth
        back_keys = torch.cat([query_keys, candidate_keys[len(query_keys) :]])
        masked = false_negatives(positive_keys, query_keys, back_keys)
        # (batch + negatives, dim): every query, then every hard negative
        back = info_nce(positives, torch.cat([queries, *negatives]), temperature=self.temperature, masked=masked)
        return InfoNCE(*((one + other) / 2 for one, other in zip(forth, back, strict=True)))

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, None, None]:
        """Return the loss of a held-out batch; there are no predictions to gather."""
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the means since the last log of recall@1 and of the positive and negative similarity."""
        if "loss" in logs:
            logs |= {name: torch.stack(values).mean().item() for name, values in self._metrics.items()}
            self._metrics.clear()
        super().log(logs, start_time)
