"""What `training.py` measures: forward and backward passes of one batch, by embedsmith and by its peers.

Each method gets the same weights and the same token ids, prepared as it wants them, and returns a function that adds the
gradients of one batch to the weights and gives the loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, Qwen3Config, Qwen3Model

TEMPERATURE = 0.02
Columns = list[list[Tensor]]
"""Token ids by text, by column: queries, positives, hard negatives."""
Step = Callable[[], Tensor]

MIXES = ("short", "mixed", "long")


def lengths(mix: str, batch: int) -> list[Tensor]:
    """Return the tokens of each text, (batch,) int64, of queries, positives and hard negatives.

    short: everything about 15 to 60 tokens; mixed: queries of about 15 tokens and documents log-normal from 100 to 500;
    long: both sides such documents.
    """
    rng = torch.Generator().manual_seed(0)

    def log_normal(median: float, low: int, high: int) -> Tensor:
        drawn = (torch.randn(batch, generator=rng) * 0.5).exp() * median
        return drawn.long().clamp(low, high)

    short, long = (15.0, 4, 40), (220.0, 100, 500)
    sides = {"short": (short, (35.0, 10, 80)), "mixed": (short, long), "long": (long, long)}[mix]
    return [log_normal(*sides[0]), log_normal(*sides[1]), log_normal(*sides[1])]


def columns(mix: str, batch: int, vocab_size: int, eos: int = 1) -> Columns:
    """Return random token ids that end in the EOS."""
    rng = torch.Generator().manual_seed(1)
    end = torch.tensor([eos])
    return [
        [torch.cat([torch.randint(2, vocab_size, (n - 1,), generator=rng), end]) for n in column.tolist()]
        for column in lengths(mix, batch)
    ]


def save_model(folder: Path, **changes: Any) -> Path:
    """Write a small Qwen3 of random weights, with a tokenizer that nothing is ever read by, and return the folder."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    config = Qwen3Config(
        **{
            "vocab_size": 4_096,
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "max_position_embeddings": 512,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "bos_token_id": None,
            "use_cache": False,
            **changes,
        }
    )
    torch.manual_seed(0)
    Qwen3Model(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2}, "a"))
    make: Any = PreTrainedTokenizerFast
    make(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    return folder


def useful_flops(model: nn.Module, texts: Columns) -> float:
    """Return the floating-point operations that a batch needs, whoever does it.

    Six a weight and token; twelve a layer, hidden unit of the heads, and pair of tokens one of which attends to the other.
    What padding and computing twice add does not count.
    """
    config: Any = model.config
    num_weights = sum(weight.numel() for name, weight in model.named_parameters() if "embed_tokens" not in name)
    sizes = torch.tensor([len(text) for column in texts for text in column], dtype=torch.float64)
    pairs = float((sizes * (sizes + 1) / 2).sum())
    heads = float(config.num_attention_heads * config.head_dim)
    num_layers = float(config.num_hidden_layers)
    return 6.0 * num_weights * float(sizes.sum()) + 12.0 * num_layers * heads * pairs


def padded(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return ids (texts, longest), padded with 0 on the right, and lengths (texts,)."""
    sizes = torch.tensor([len(text) for text in texts])
    return nn.utils.rnn.pad_sequence(texts, batch_first=True), sizes


def embedsmith(folder: Path, texts: Columns, **arguments: Any) -> tuple[nn.Module, Step]:
    """`ContrastiveTrainer.training_step`."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from trainer.config import ContrastiveTrainingArguments
    from trainer.contrastive import ContrastiveTrainer
    from trainer.eos import ensure_eos

    model = AutoModel.from_pretrained(folder)
    columns = ("query", "positive", "negative", "instruction", "language", "positive_language", "subgroup")
    nothing = Dataset.from_dict({name: ["a"] for name in columns})
    args = ContrastiveTrainingArguments("unused", use_cpu=True, temperature=TEMPERATURE, **arguments)
    trainer = ContrastiveTrainer(model, args, nothing, ensure_eos(AutoTokenizer.from_pretrained(folder)))
    trainer.current_gradient_accumulation_steps = 1
    ids, sizes = padded([text for column in texts for text in column])
    num = len(texts[0])
    keys = torch.arange(3 * num).tensor_split(3)
    batch: dict[str, Any] = {
        "input_ids": ids,
        "lengths": sizes,
        "query_keys": keys[0],
        "positive_keys": keys[1],
        "negative_keys": keys[2],
        "known_positives": torch.zeros((0, 2), dtype=torch.int64),
        "symmetric": torch.tensor(False),
    }
    return model, lambda: trainer.training_step(model, dict(batch))


def _sentence_transformer(
    folder: Path, texts: Columns
) -> tuple[SentenceTransformer, nn.Module, list[dict[str, Tensor]]]:
    transformer = Transformer(str(folder))
    model = SentenceTransformer(modules=[transformer, Pooling(256, pooling_mode="lasttoken")], device="cpu").train()
    features = []
    for column in texts:
        ids, sizes = padded(column)
        mask = (torch.arange(ids.shape[1]) < sizes[:, None]).long()
        features.append({"input_ids": ids, "attention_mask": mask})
    inner = next(module for module in model.modules() if isinstance(module, Qwen3Model))
    return model, inner, features


def _loss_of(loss: nn.Module, features: list[dict[str, Tensor]]) -> Step:
    def step() -> Tensor:
        value: Tensor = loss([dict(column) for column in features], torch.zeros(0))
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    return step


def cached_mnrl(folder: Path, texts: Columns, mini_batch_size: int) -> tuple[nn.Module, Step]:
    """sentence-transformers' `CachedMultipleNegativesRankingLoss`."""
    model, inner, features = _sentence_transformer(folder, texts)
    loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=mini_batch_size)
    return inner, _loss_of(loss, features)


def plain_mnrl(folder: Path, texts: Columns) -> tuple[nn.Module, Step]:
    """sentence-transformers' `MultipleNegativesRankingLoss`: the graph of the whole batch."""
    model, inner, features = _sentence_transformer(folder, texts)
    return inner, _loss_of(MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE), features)


def grad_cache(folder: Path, texts: Columns, chunk_size: int) -> tuple[nn.Module, Step]:
    """The loop of the GradCache paper: chunks of consecutive rows, column by column, each computed twice."""
    model = AutoModel.from_pretrained(folder).train()
    chunks = [padded(column[i : i + chunk_size]) for column in texts for i in range(0, len(column), chunk_size)]
    num = len(texts[0])

    def encode(ids: Tensor, sizes: Tensor) -> Tensor:
        mask = (torch.arange(ids.shape[1]) < sizes[:, None]).long()
        hidden: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return functional.normalize(hidden[torch.arange(len(sizes)), sizes - 1], dim=-1)

    def step() -> Tensor:
        with torch.no_grad():
            parts = [encode(*chunk) for chunk in chunks]
        leaf = torch.cat(parts).requires_grad_()
        loss = functional.cross_entropy(leaf[:num] @ leaf[num:].T / TEMPERATURE, torch.arange(num))
        loss.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        for chunk, gradient in zip(chunks, torch.split(leaf.grad, [len(part) for part in parts]), strict=True):
            (encode(*chunk) * gradient).sum().backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return model, step


def matrix_rate(seconds: float = 1.0) -> float:
    """Return the floating-point operations a second of a matrix product of 2,048 squared, float32: the machine's ceiling."""
    one, other = torch.randn(2, 2_048, 2_048)
    one @ other
    start, num = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        one @ other
        num += 1
    return num * 2 * math.prod((2_048, 2_048, 2_048)) / (time.perf_counter() - start)
