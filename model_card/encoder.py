"""The encoder that mteb drives: a `SentenceTransformer`, with or without instructions."""

from __future__ import annotations

from typing import Any

import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer
from torch.utils.data import DataLoader

from dataset_builder.schema import instruct


class InstructEncoder(AbsEncoder):
    r"""Encodes texts for mteb with the instruction of the row, if the task gives one, else that of the task.

    mteb's own instruction wrapper knows one instruction per task. The held-out retrieval task has one per query, in the
    column `instruction`, and the model was trained on `Instruct: {instruction}\nQuery: {query}`.

    Args:
        model: the model.
        name: its name as `organisation/model`; with `revision` it names the folder of its results.
        revision: 40 hex digits.
        use_instructions: False encodes every text bare, for models that were not trained with instructions.
    """

    def __init__(self, model: SentenceTransformer, name: str, revision: str, *, use_instructions: bool) -> None:
        self.model, self.use_instructions = model, use_instructions
        self.mteb_model_meta = model_meta(name, revision, model, use_instructions=use_instructions)

    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray[Any, Any]:
        """Return the embeddings (texts, dim), float32, in the order of `inputs`."""
        texts: list[str] = []
        for batch in inputs:
            bare = batch.get("query", batch["text"])  # mteb appends the row's instruction to `text`, not to `query`
            if not self.use_instructions or prompt_type == PromptType.document:
                texts += bare
            elif "instruction" in batch:
                texts += [instruct(task, text) for task, text in zip(batch["instruction"], bare, strict=True)]
            else:
                task = self.get_task_instruction(task_metadata, prompt_type)
                texts += [instruct(task, text) for text in bare]
        vectors = self.model.encode(texts, convert_to_numpy=True, **kwargs)
        return np.asarray(vectors, dtype=np.float32)


def model_meta(name: str, revision: str, model: SentenceTransformer, *, use_instructions: bool) -> ModelMeta:
    """Return mteb's description of a model; mteb keeps its results under name and revision."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelMeta.create_empty(
        overwrites={
            "name": name,
            "revision": revision,
            "n_parameters": parameters,
            "memory_usage_mb": round(sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20),
            "max_tokens": model.max_seq_length,
            "embed_dim": model.get_embedding_dimension(),
            "framework": ["Sentence Transformers", "PyTorch", "safetensors"],
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": use_instructions,
        }
    )
