"""The encoders that mteb drives: its own wrappers around a model that is loaded once."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from mteb.models.abs_encoder import AbsEncoder, PromptSource
from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from torch.utils.data import DataLoader

from dataset_builder.schema import instruct
from model_card.batches import TokenBatches

TEMPLATE = instruct("{instruction}", "")
PROMPT_PRIORITY = (
    PromptSource.CUSTOM_PROMPT,  # by the task's name in the YAML file
    PromptSource.DEFAULT_TASK_PROMPT,  # in the task's own metadata
    PromptSource.TASK_TYPE_PROMPT,  # by its type in the YAML file
    PromptSource.ENCODE_TYPE_PROMPT,
)


class TaskInstructEncoder(InstructSentenceTransformerModel):
    """mteb's own wrapper of instruction models, around a model that is loaded already.

    The instruction stands before both sides of symmetric tasks, and before the queries of retrieval and reranking.

    Args:
        model: the model.
        meta: mteb keeps the results under its name and revision.
        instructions: by name of task or of task type.
    """

    def __init__(self, model: TokenBatches, meta: ModelMeta, instructions: dict[str, str]) -> None:
        self.model = model  # mteb's own constructor would load it again, and only from a folder or the Hub
        self.mteb_model_meta = meta
        self.instruction_template = TEMPLATE
        self.apply_instruction_to_passages = False
        self.prompts_dict, self.prompt_priority = instructions, PROMPT_PRIORITY
        self.fps = self.max_frames = self.num_frames = self.target_sampling_rate = self.max_samples = None
        self.min_frames = 1


def plain_encoder(model: TokenBatches, meta: ModelMeta) -> SentenceTransformerEncoderWrapper:
    """Return mteb's own wrapper of sentence-transformers models, which uses the prompts of the model's repo."""
    logging.getLogger("mteb").setLevel(logging.ERROR)  # prompts that mteb has no use for
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = SentenceTransformerEncoderWrapper(model.model)
    encoder.model = model  # it encodes, which is all that is asked of it
    encoder.mteb_model_meta = meta
    return encoder


class RowInstructEncoder(AbsEncoder):
    """Encodes texts of our held-out tasks with the instruction of the row, if the task gives one, else that of the task.

    mteb's own instruction wrapper knows one instruction per task. The held-out retrieval task has one per query, in the
    column `instruction`, as the model was trained.

    Args:
        model: the model.
        meta: mteb keeps the results under its name and revision.
        prefix: what stands before a text, made of its instruction; None for models without instructions, whose own prompts
            for queries and documents are used where they have any.
    """

    def __init__(self, model: TokenBatches, meta: ModelMeta, prefix: Callable[[str], str] | None) -> None:
        self.model, self.mteb_model_meta, self.prefix = model, meta, prefix

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
            if self.prefix is None:
                own = self.model.prompts.get(prompt_type.value if prompt_type else "", "") or ""
                texts += [own + text for text in bare]
            elif prompt_type == PromptType.document:
                texts += bare
            else:
                task = self.get_instruction(task_metadata, prompt_type) if "instruction" not in batch else ""
                rows = batch.get("instruction", [task] * len(bare))
                texts += [self.prefix(instruction) + text for instruction, text in zip(rows, bare, strict=True)]
        vectors = self.model.encode(texts, prompt="", convert_to_numpy=True, **kwargs)
        return np.asarray(vectors, dtype=np.float32)


def model_meta(name: str, revision: str, model: Any, *, use_instructions: bool) -> ModelMeta:
    """Return mteb's description of a model; mteb keeps its results under name and revision.

    Args:
        name: as `organisation/model`.
        revision: 40 hex digits.
        model: the loaded `SentenceTransformer`.
        use_instructions: whether queries carry an instruction.
    """
    return ModelMeta.create_empty(
        overwrites={
            "name": name,
            "revision": revision,
            "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "memory_usage_mb": round(sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20),
            "max_tokens": model.max_seq_length,
            "embed_dim": model.get_embedding_dimension(),
            "framework": ["Sentence Transformers", "PyTorch", "safetensors"],
            "similarity_fn_name": ScoringFunction.from_str(model.similarity_fn_name or "cosine"),
            "use_instructions": use_instructions,
        }
    )
