"""How fast texts are encoded for an evaluation: batches of about as many tokens, against batches of as many texts.

    python benchmarks/encoding.py

Both call the same `SentenceTransformer`, in turn and in one process: its own `encode` with its default of 32 texts a batch and
with 128, and `TokenBatches`, which `evaluate` uses. Prose in 17 languages, cut to lengths of three kinds; the vectors are
compared, too. Prints a table of texts per second, medians of the rounds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

from model_card.batches import TokenBatches
from trainer.base_model import PACKAGED, resolve_base_model
from trainer.eos import ensure_eos

PARAGRAPHS = Path(__file__).parent.parent / "tests" / "paragraphs.tsv"
MIXES = {"short": (3, 20, 1000), "mixed": (3, 250, 300), "long": (120, 250, 120)}
"""{kind: (fewest words, most words, number of texts)}; `mixed` has the logarithm of the length even between the two."""


def texts(kind: str) -> list[str]:
    """Return texts of a kind, always the same."""
    words = PARAGRAPHS.read_text(encoding="utf-8").split()
    chance, (low, high, num) = random.Random(0), MIXES[kind]
    found = []
    for _ in range(num):
        length = round(low * (high / low) ** chance.random()) if kind == "mixed" else chance.randint(low, high)
        start = chance.randrange(len(words) - length)
        found.append(" ".join(words[start : start + length]))
    return found


def decoder() -> SentenceTransformer:
    """Return a random Qwen3 of 30 million parameters with EOS pooling, as `embedsmith train` exports them."""
    torch.manual_seed(0)
    tokenizer = ensure_eos(AutoTokenizer.from_pretrained(resolve_base_model(PACKAGED).path))
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
    )
    with tempfile.TemporaryDirectory() as folder:
        Qwen3Model(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder, max_seq_length=512)
    return SentenceTransformer(modules=[transformer, Pooling(512, pooling_mode="lasttoken"), Normalize()])


def measure(model: SentenceTransformer, found: list[str], rounds: int) -> dict[str, float]:
    """Return texts per second of each way, the median of the rounds."""
    ways: dict[str, Callable[[], Any]] = {
        "32 texts": lambda: model.encode(found, batch_size=32, show_progress_bar=False),
        "128 texts": lambda: model.encode(found, batch_size=128, show_progress_bar=False),
        "tokens": lambda: TokenBatches(model).encode(found),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        vectors = {}
        for name, way in ways.items():
            start = time.perf_counter()
            vectors[name] = way()
            seconds[name].append(time.perf_counter() - start)
        assert np.abs(vectors["tokens"] - vectors["32 texts"]).max() < 1e-4
    return {name: len(found) / statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    models = {
        "all-MiniLM-L6-v2": SentenceTransformer(resolve_base_model(PACKAGED).path),
        "a decoder of 30 M": decoder(),
    }
    print("| model | texts | `encode`, 32 texts | `encode`, 128 texts | `evaluate` | against the better |")
    print("|---|---|---:|---:|---:|---:|")
    for label, model in models.items():
        for kind in MIXES:
            speed = measure(model, texts(kind), rounds)
            ratio = speed["tokens"] / max(speed["32 texts"], speed["128 texts"])
            cells = " | ".join(f"{speed[name]:,.0f}/s" for name in ("32 texts", "128 texts", "tokens"))
            print(f"| {label} | {kind} | {cells} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
