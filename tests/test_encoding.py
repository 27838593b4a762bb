"""What a model is spared on the way to an EOS embedding, and that it is the same embedding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests.test_gradient_cache import (
    DECODERS,
    ENCODERS,
    folder,  # noqa: F401
)
from tests.tiny_models import (
    one_thread,  # noqa: F401  autouse
)
from trainer.encoding import EosEncoder, eos_embeddings
from trainer.eos import ensure_eos
from trainer.gradient_cache import embed


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_what_the_probe_finds(folder: Callable[[str], Path], family: str) -> None:
    encoder = EosEncoder(AutoModel.from_pretrained(folder(family)).train())
    assert encoder.needs_mask == (family in ENCODERS)
    assert (encoder.last_layer is not None) == (family in DECODERS and family != "gemma3")


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
@pytest.mark.parametrize("chunk_tokens", [1, 60, 10_000])
def test_an_embedding_is_that_of_the_text_alone(folder: Callable[[str], Path], family: str, chunk_tokens: int) -> None:
    model = AutoModel.from_pretrained(folder(family)).eval()
    tokenizer = ensure_eos(AutoTokenizer.from_pretrained(folder(family)))
    texts = ["cats", "where do cats sleep in the morning, and why?", "", "cats sleep", "it rains in Berlin", "cats"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    encode = partial(EosEncoder(model), model)
    together = embed(encode, batch["input_ids"], batch["attention_mask"].sum(dim=1), chunk_tokens)
    alone = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1] for text in texts]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_sliding_windows_are_kept_to(folder: Callable[[str], Path]) -> None:
    model = AutoModel.from_pretrained(folder("mistral"), sliding_window=6).eval()
    encoder = EosEncoder(model)
    assert encoder.last_layer is not None
    ids, lengths = torch.randint(5, 60, (3, 30)), torch.tensor([30, 20, 4])
    mask = (torch.arange(30) < lengths[:, None]).long()
    expected = eos_embeddings(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask)
    torch.testing.assert_close(encoder(model, ids, lengths), expected, atol=1e-4, rtol=1e-4)
    without = AutoModel.from_pretrained(folder("mistral"), sliding_window=None).eval()
    assert not torch.allclose(encoder(without, ids, lengths), expected, atol=1e-2)


def test_a_layer_that_is_built_otherwise_is_left_alone(folder: Callable[[str], Path]) -> None:
    """It has the names of Llama's layer but adds something: the probe notices."""
    model = AutoModel.from_pretrained(folder("llama2"))
    layer = model.layers[-1]
    forward = type(layer).forward
    layer.forward = lambda hidden_states, **kwargs: forward(layer, hidden_states, **kwargs) + torch.eye(32)[0]
    assert EosEncoder(model).last_layer is None


# Pooling


@pytest.mark.parametrize("side", ["right", "left"])
def test_eos_embeddings(side: str) -> None:
    hidden = torch.randn(3, 5, 4)
    lengths = [5, 2, 1]
    rows = [[1] * n + [0] * (5 - n) if side == "right" else [0] * (5 - n) + [1] * n for n in lengths]
    last = [n - 1 for n in lengths] if side == "right" else [4, 4, 4]
    pooled = eos_embeddings(hidden, torch.tensor(rows))
    assert torch.equal(pooled, torch.stack([hidden[i, position] for i, position in enumerate(last)]))


def test_eos_embeddings_keep_the_dtype() -> None:
    assert eos_embeddings(torch.ones(1, 2, 4, dtype=torch.bfloat16), torch.tensor([[1, 0]])).dtype == torch.bfloat16
