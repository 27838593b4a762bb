"""The card's usage example, and what it prints with this model."""

from __future__ import annotations

from dataset_builder.schema import instruct
from model_card.batches import TokenBatches
from trainer.export import INSTRUCTIONS

QUERY = "how long does it take to walk to the moon"
DOCUMENTS = (
    "Light needs a little over a second for the 384,000 km. On foot, at 5 km an hour without rest, it would be nine years.",
    "The moon walk was made famous on a stage in Pasadena in 1983, and it takes weeks of practice.",
)


def printed(model: TokenBatches) -> dict[str, str]:
    """Return what the card's two examples print, by the library that they use."""
    texts = [instruct(INSTRUCTIONS["query"], QUERY), *DOCUMENTS]
    # (1 + documents, dim), unit length
    vectors = model.encode(texts, prompt="", convert_to_tensor=True, normalize_embeddings=True).float().cpu()
    return {
        "sentence_transformers": str(vectors[:1] @ vectors[1:].T),
        "transformers": str(vectors[:2] @ vectors[:2].T),
    }
