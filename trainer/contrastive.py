"""`ContrastiveTrainer`: a `transformers.Trainer` whose loss is InfoNCE on EOS embeddings, over the batch of all processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate.utils import DistributedType, extract_model_from_parallel
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from dataset_builder.errors import RunError
from trainer.batches import ContrastiveBatchSampler
from trainer.budget import Budget, budget
from trainer.collator import ContrastiveCollator, known_positives
from trainer.config import ContrastiveTrainingArguments
from trainer.encoding import EosEncoder
from trainer.gather import agree, gathered_texts, no_sync
from trainer.gradient_cache import GradientCache, embed
from trainer.loss import InfoNCE, contrastive_loss
from trainer.meter import Meter


class BatchLoader(DataLoader[Any]):
    """A `DataLoader` that tells its batch sampler the epoch, as `Trainer` does with its own."""

    batch_sampler: ContrastiveBatchSampler

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.batch_sampler.set_epoch(epoch)


class ContrastiveTrainer(Trainer):
    """Trains the `PreTrainedModel` or `PeftModel` itself with InfoNCE over in-batch and hard negatives.

    Candidates of a query are all positives and all hard negatives of the global batch, that of all processes; duplicates
    of its positive and other false negatives are masked (`trainer.loss.FalseNegatives`). In symmetric batches positives are
    queries too. Every batch holds one subgroup. Gradients are those of the whole batch, to rounding, however it is
    spread over chunks and processes (`trainer.gradient_cache`).

    Args:
        model: a model whose output has `last_hidden_state`.
        args: the training arguments.
        train_dataset: rows of `trainer.data.load_examples`.
        processing_class: a tokenizer that keeps the EOS contract.
        eval_dataset: held-out rows, if any.
        callbacks: as in `Trainer`.
    """

    args: ContrastiveTrainingArguments
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
        model.config.use_cache = False  # type: ignore[union-attr]  # keys and values of past tokens are of no use here
        super().__init__(
            model=model,
            args=args,
            data_collator=ContrastiveCollator(processing_class, args.max_seq_length, known_positives(train_dataset)),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        self.meter = Meter(model, self.args)
        self._encoder: EosEncoder | None = None
        self._budgeted: Budget | None = None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this process's part of batches of one subgroup each, in an order that follows from (seed, epoch)."""
        return self._batches(self.train_dataset, self.args.train_batch_size, shuffle=True)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return this process's part of the held-out rows, in batches of one subgroup each."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._batches(rows, self.args.eval_batch_size, shuffle=False)

    def _batches(self, dataset: Any, batch_size: int, *, shuffle: bool) -> DataLoader[Any]:
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        sampler = ContrastiveBatchSampler(
            dataset,
            batch_size * self.args.world_size,
            seed,
            shuffle=shuffle,
            weights=self.args.weights if shuffle else None,
            rank=self.args.process_index,
            world_size=self.args.world_size,
        )
        return BatchLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Add the gradients of one batch to the weights and return its loss, a float32 scalar.

        Raises:
            RunError: if the loss is not finite.
        """
        model.train()
        if callable(train := getattr(self.optimizer, "train", None)):  # schedule-free optimizers
            train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            cache = GradientCache(
                self._encode(model),
                inputs["input_ids"],
                inputs["lengths"],
                **self._budget(model)._asdict(),
                agree=partial(agree, self.accelerator),
                no_sync=partial(no_sync, self.accelerator, model),
            )
            result, _ = self._loss(cache.embeddings, inputs)
            result.loss.backward()  # type: ignore[no-untyped-call]
            # each process has the gradient with respect to its own texts, and the mean over processes will be taken
            cache.backward(self.args.world_size / self.current_gradient_accumulation_steps, self._backward)
        self.meter.add(result, inputs["lengths"], cache.num_padded)
        return result.loss.detach() / self.current_gradient_accumulation_steps

    def _backward(self, loss: Tensor) -> None:
        # DeepSpeed would divide by the number of accumulation steps again
        is_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if is_deepspeed else {}))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the InfoNCE loss of a batch of `ContrastiveCollator`, a float32 scalar: the mean over its queries.

        It holds the graph of the whole batch if gradients are enabled; `training_step` gives the same gradients without.

        Raises:
            RunError: if the loss is not finite.
        """
        embeddings = embed(
            self._encode(model), inputs["input_ids"], inputs["lengths"], self._budget(model).chunk_tokens
        )
        result, num_queries = self._loss(embeddings, inputs)
        outputs = {"result": result, "num_queries": num_queries}
        return (result.loss, outputs) if return_outputs else result.loss

    def _encode(self, model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        if self._encoder is None:
            self._encoder = EosEncoder(extract_model_from_parallel(self.model))
        return partial(self._encoder, model)

    def _budget(self, model: nn.Module) -> Budget:
        if self._budgeted is None:
            # Adam's two states of each trained weight, and its gradient
            trained = sum(3 * weight.nbytes for weight in model.parameters() if weight.requires_grad)
            with no_sync(self.accelerator, model):
                self._budgeted = budget(
                    self._encode(model), self.args.device, self.args.chunk_tokens, self.args.kept_tokens, trained
                )
        return self._budgeted

    def _loss(self, embeddings: Tensor, inputs: dict[str, Any]) -> tuple[InfoNCE, int]:
        """Return loss and figures of the batch of all processes, and its number of queries."""
        texts = gathered_texts(self.accelerator, embeddings, inputs)
        result = contrastive_loss(texts, temperature=self.args.temperature, dims=self.args.matryoshka_dims)
        if not torch.isfinite(result.loss):
            raise RunError(
                f"The loss is {result.loss.item()} at step {self.state.global_step}; lower --learning_rate, or train in "
                "float32 or bfloat16 if this is float16."
            )
        return result, len(texts.query_keys)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, None, None]:
        """Return the loss of a held-out batch; there are no predictions to gather."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        self.meter.add_held_out(outputs["result"], outputs["num_queries"])
        return loss.detach(), None, None

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return loss and figures of held-out rows: means over the rows, where the base class has means over batches."""
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        metrics = {**(output.metrics or {}), **self.meter.held_out(metric_key_prefix)}
        return output._replace(metrics=metrics)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the figures of `Meter` since the last log."""
        if "loss" in logs:
            logs |= self.meter.training()
        super().log(logs, start_time)
