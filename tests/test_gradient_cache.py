"""Gradients of any chunking against those of the plain full batch, and what a model is spared."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, ModernBertConfig, ModernBertModel

from tests.tiny_datasets import example
from tests.tiny_models import (
    one_thread,  # noqa: F401  autouse
    save_tiny_model,
)
from trainer.collator import ContrastiveCollator, known_positives
from trainer.encoding import EosEncoder, eos_embeddings
from trainer.eos import ensure_eos
from trainer.gradient_cache import GradientCache, cut_into_chunks
from trainer.loss import Texts, contrastive_loss

# peft 0.21 asks for it on each PeftModel, transformers 5.23 has renamed it
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

DECODERS = ("qwen3", "llama2", "llama3", "mistral", "gemma3")
ENCODERS = ("xlm-roberta", "bert")
CHUNKINGS = {"one text": (1, 0), "small": (60, 0), "half kept": (60, 300), "all kept": (60, 10**9), "one": (10**9, 0)}
"""chunk_tokens and kept_tokens."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    base, made = tmp_path_factory.mktemp("models"), {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny_model(family, base / family)
        return made[family]

    return of


def _batch(folder: Path, num_negatives: int, subgroup: str = "short-long", num: int = 12) -> dict[str, Tensor]:
    rows: list[dict[str, Any]] = [example(subgroup, i) for i in range(num)]
    for i, row in enumerate(rows):
        row["negative"] = [example(subgroup, 100 * i + j)["negative"] for j in range(num_negatives)]
    rows[1]["positive"], rows[3]["query"] = rows[0]["positive"], rows[2]["query"]  # what the masks are for
    tokenizer = ensure_eos(AutoTokenizer.from_pretrained(folder))
    return ContrastiveCollator(tokenizer, 48, known_positives(_Columns(rows)))(rows)


def _with_more(more: int, num_chunks: int, num_kept: int) -> tuple[int, int]:
    return num_chunks + more, num_kept


class _Columns:
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __getitem__(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]


def _loss(embeddings: Tensor, batch: dict[str, Tensor]) -> Tensor:
    num = len(batch["query_keys"])
    queries, positives, negatives = embeddings.tensor_split([num, 2 * num])
    keys = {name: batch[name] for name in ("query_keys", "positive_keys", "negative_keys", "known_positives")}
    texts = Texts(queries, positives, negatives, symmetric=bool(batch["symmetric"]), **keys)
    return contrastive_loss(texts, temperature=0.05).loss


def _plain(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the full batch in one padded forward pass, with a mask and every token through every layer."""
    model.zero_grad()
    ids = batch["input_ids"]
    mask = (torch.arange(ids.shape[1]) < batch["lengths"][:, None]).long()
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    _loss(eos_embeddings(hidden, mask), batch).backward()  # type: ignore[no-untyped-call]
    return _gradients(model)


def _cached(model: nn.Module, batch: dict[str, Tensor], chunk_tokens: int, kept_tokens: int) -> dict[str, Tensor]:
    model.zero_grad()
    cache = GradientCache(
        partial(EosEncoder(model), model),
        batch["input_ids"],
        batch["lengths"],
        chunk_tokens=chunk_tokens,
        kept_tokens=kept_tokens,
    )
    _loss(cache.embeddings, batch).backward()  # type: ignore[no-untyped-call]
    cache.backward()
    return _gradients(model)


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def _largest_error(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference of any gradient, relative to the norm of all of them."""
    assert one.keys() == other.keys()
    norm = torch.stack([gradient.norm() for gradient in one.values()]).norm()
    assert norm > 1e-3
    return max(float((one[name] - other[name]).norm() / norm) for name in one)


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize("num_negatives", [0, 1, 3])
@pytest.mark.parametrize("subgroup", ["short-long", "sts"])
def test_any_chunking_equals_the_full_batch(
    folder: Callable[[str], Path], chunking: str, num_negatives: int, subgroup: str
) -> None:
    model = AutoModel.from_pretrained(folder("qwen3")).double()
    batch = _batch(folder("qwen3"), num_negatives, subgroup)
    plain = _plain(model, batch)
    assert _largest_error(plain, _cached(model, batch, *CHUNKINGS[chunking])) <= 1e-8
    single = model.float()
    assert _largest_error(_plain(single, batch), _cached(single, batch, *CHUNKINGS[chunking])) <= 1e-6


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_every_family(folder: Callable[[str], Path], family: str) -> None:
    model = AutoModel.from_pretrained(folder(family)).double()
    batch = _batch(folder(family), 1)
    plain = _plain(model, batch)
    # Gemma 3 computes its norms in float32 even here
    limit = 1e-6 if family == "gemma3" else 1e-8
    for chunking in ("small", "half kept"):
        assert _largest_error(plain, _cached(model, batch, *CHUNKINGS[chunking])) <= limit


def test_modernbert(folder: Callable[[str], Path]) -> None:
    """It alternates layers that see everything with layers that see a window, here a narrow one."""
    tokenizer = AutoTokenizer.from_pretrained(folder("bert"))
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        local_attention=8,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    model = ModernBertModel(config).double()
    assert EosEncoder(model).needs_mask
    batch = _batch(folder("bert"), 1)
    assert _largest_error(_plain(model, batch), _cached(model, batch, *CHUNKINGS["half kept"])) <= 1e-6


@pytest.mark.parametrize("family", ["qwen3", "bert"])
def test_lora(folder: Callable[[str], Path], family: str) -> None:
    torch.manual_seed(0)
    config = LoraConfig(task_type="FEATURE_EXTRACTION", target_modules="all-linear", r=4, init_lora_weights=False)
    model = get_peft_model(AutoModel.from_pretrained(folder(family)), config).double()
    batch = _batch(folder(family), 1)
    plain = _plain(model, batch)
    assert all("lora_" in name for name in plain)
    assert _largest_error(plain, _cached(model, batch, *CHUNKINGS["half kept"])) <= 1e-8


@pytest.mark.parametrize("kept_tokens", [0, 300])
def test_dropout_is_the_same_when_a_chunk_is_computed_again(folder: Callable[[str], Path], kept_tokens: int) -> None:
    """Computed twice equals kept; and with one chunk, the full batch that draws the same random numbers."""
    torch.manual_seed(0)
    config = LoraConfig(task_type="FEATURE_EXTRACTION", target_modules="all-linear", r=4, lora_dropout=0.3)
    config.init_lora_weights = False
    model = get_peft_model(AutoModel.from_pretrained(folder("qwen3")), config).double().train()
    batch = _batch(folder("qwen3"), 3)
    found, states = [], []
    for kept in (10**9, kept_tokens):
        torch.manual_seed(1)
        found.append(_cached(model, batch, 60, kept))
        states.append(torch.get_rng_state())
    assert _largest_error(*found) <= 1e-12
    assert torch.equal(*states)  # the steps that follow draw the same numbers, too
    torch.manual_seed(2)
    other = _cached(model, batch, 60, kept_tokens)
    assert _largest_error(found[0], other) > 1e-3  # dropout does something

    in_order = batch["lengths"].argsort(descending=True, stable=True)
    encoder = EosEncoder(model)
    torch.manual_seed(1)
    model.zero_grad()
    embeddings = encoder(model, batch["input_ids"][in_order], batch["lengths"][in_order])[in_order.argsort()]
    _loss(embeddings, batch).backward()  # type: ignore[no-untyped-call]
    full = _gradients(model)
    torch.manual_seed(1)
    assert _largest_error(full, _cached(model, batch, 10**9, 0)) <= 1e-8


def test_half_precision(folder: Callable[[str], Path]) -> None:
    model = AutoModel.from_pretrained(folder("qwen3"), dtype=torch.bfloat16)
    batch = _batch(folder("qwen3"), 1)
    assert _largest_error(_plain(model, batch), _cached(model, batch, *CHUNKINGS["half kept"])) <= 0.1


# Chunks


def test_chunks_hardly_pad() -> None:
    lengths = (torch.randn(400, generator=torch.Generator().manual_seed(0)).exp() * 60).long().clamp(2, 500)
    chunks = cut_into_chunks(lengths, 2_048)
    assert sorted(torch.cat(chunks).tolist()) == list(range(400))
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in chunks)
    assert padded <= 1.1 * int(lengths.sum())
    for rows in chunks:
        assert lengths[rows[0]] == lengths[rows].max()
        assert len(rows) * int(lengths[rows[0]]) <= 2_048


def test_a_text_longer_than_a_chunk_stands_alone() -> None:
    assert [rows.tolist() for rows in cut_into_chunks(torch.tensor([3, 50, 4]), 10)] == [[1], [2, 0]]
    assert cut_into_chunks(torch.zeros(0, dtype=torch.int64), 10) == []


def test_graphs_are_kept_up_to_the_budget() -> None:
    """The number of forward passes with and without a graph."""
    calls: list[bool] = []
    layer = nn.Embedding(50, 4)

    def encode(ids: Tensor, lengths: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return layer(ids).sum(dim=1)  # type: ignore[no-any-return]

    ids = torch.randint(0, 50, (10, 5))
    for kept, expected in (
        (0, [False] * 5 + [True] * 5),
        (20, [False] * 3 + [True] * 2 + [True] * 3),
        (99, [True] * 5),
    ):
        calls.clear()
        cache = GradientCache(encode, ids, torch.full((10,), 5), chunk_tokens=10, kept_tokens=kept)
        assert cache.num_padded == 50
        cache.embeddings.grad = torch.ones_like(cache.embeddings)
        cache.backward()
        assert calls == expected


def test_idle_chunks_change_nothing() -> None:
    """A process with fewer chunks than others, and one without any text."""
    layer = nn.Embedding(50, 4)

    def encode(ids: Tensor, lengths: Tensor) -> Tensor:
        return layer(ids).sum(dim=1)  # type: ignore[no-any-return]

    for ids in (torch.randint(0, 50, (10, 5)), torch.zeros((0, 1), dtype=torch.int64)):
        gradients = []
        for more in (0, 3):
            layer.zero_grad()
            lengths = torch.full((len(ids),), 5)
            if not len(ids) and not more:
                continue
            cache = GradientCache(
                encode,
                ids,
                lengths,
                chunk_tokens=10,
                kept_tokens=20,
                agree=partial(_with_more, more),
            )
            assert cache.embeddings.shape == (len(ids), 4)
            cache.embeddings.grad = torch.ones_like(cache.embeddings)
            cache.backward()
            assert layer.weight.grad is not None
            gradients.append(layer.weight.grad.clone())
        assert all(torch.equal(one, gradients[0]) for one in gradients)
        assert bool(gradients[0].any()) == bool(len(ids))
