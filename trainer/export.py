"""Export: one folder that `AutoModel`, `AutoTokenizer` and `SentenceTransformer` read, and that gives the same vectors in each.

LoRA adapters are merged into the weights, or exported by themselves; a merge that changes the vectors is refused.
Safetensors only, no remote code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from sentence_transformers import __version__ as sentence_transformers_version
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from dataset_builder.errors import RunError
from dataset_builder.schema import FIXED_INSTRUCTIONS, instruct
from trainer.encoding import eos_embeddings
from trainer.eos import check_eos

MIN_COSINE = 0.99999
"""Least cosine similarity between a text's vectors before and after merging, and after reloading (float32)."""

_RETRIEVAL = "Given a query, retrieve relevant text."
_CLASSIFICATION = "Identify the category of the given text."
_MATCHING = "Retrieve text that matches the given text."
_STS, _BITEXT = FIXED_INSTRUCTIONS["sts"], FIXED_INSTRUCTIONS["bitext"]
INSTRUCTIONS = {
    "query": _RETRIEVAL,
    "short-long": _RETRIEVAL,
    "long-short": _CLASSIFICATION,
    "short-short": _MATCHING,
    "long-long": _MATCHING,
    "sts": _STS,
    "bitext": _BITEXT,
    **dict.fromkeys(("Retrieval-query", "Reranking-query", "InstructionRetrieval-query"), _RETRIEVAL),
    **dict.fromkeys(("Classification", "MultilabelClassification"), _CLASSIFICATION),
    "Clustering": "Identify the topic or theme of the given text.",
    **dict.fromkeys(("PairClassification", "STS", "Summarization"), _STS),
    "BitextMining": _BITEXT,
}
"""Instructions behind the prompt names of the exported model: sentence-transformers' own, our subgroups, mteb's task types."""


def prompts() -> dict[str, str]:
    """Return the prompts of the exported model by name; documents get none."""
    return {name: instruct(instruction, "") for name, instruction in INSTRUCTIONS.items()} | {"document": ""}


@torch.no_grad()
def vectors(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> Tensor:
    """Return the normalised EOS embeddings (texts, dim) in float32, on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    encoded = tokenizer(
        texts, padding=True, padding_side="right", truncation=True, max_length=max_length, return_tensors="pt"
    ).to(device)
    # as any later user computes them: with a mask, and every token through every layer
    hidden = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).last_hidden_state
    return functional.normalize(eos_embeddings(hidden, encoded["attention_mask"]).float(), dim=-1).cpu()


def export_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    max_seq_length: int,
    probes: list[str],
    merge: bool = True,
) -> None:
    """Write the model folder and check it by loading it again.

    Args:
        model: the trained `PreTrainedModel` or `PeftModel`; adapters are merged in place.
        tokenizer: one that keeps the EOS contract.
        folder: an empty folder.
        max_seq_length: longest text in tokens that the exported model reads, its EOS included.
        probes: texts whose vectors must not change.
        merge: False exports adapters by themselves, to be loaded with their base model, which is named in them.

    Raises:
        RunError: if merging or reloading changes the vectors or the token ids.
    """
    check_eos(tokenizer)
    dim, dtype = model.config.get_text_config().hidden_size, model.dtype
    before = vectors(model, tokenizer, probes, max_seq_length)
    if merge and isinstance(model, PeftModel):
        model = model.merge_and_unload(safe_merge=True)
        _require_equal(before, vectors(model, tokenizer, probes, max_seq_length), dtype, "merging the adapters")
    _save_tokenizer(tokenizer, folder, max_seq_length)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's own card; ours is made by the verb `report`
    _write_sentence_transformers(folder, dim)
    reloaded = AutoModel.from_pretrained(folder, dtype=dtype)
    its_tokenizer = AutoTokenizer.from_pretrained(folder)
    check_eos(its_tokenizer)
    if its_tokenizer(probes, verbose=False)["input_ids"] != tokenizer(probes, verbose=False)["input_ids"]:
        raise RunError(f"The tokenizer saved to {folder} gives other token ids than the one in training; not exported.")
    _require_equal(before, vectors(reloaded, its_tokenizer, probes, max_seq_length), dtype, "saving the model")


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, max_seq_length: int) -> None:
    tokenizer.model_max_length = max_seq_length
    # what the base's last user set, and where it was loaded from
    for key in ("max_length", "stride", "truncation_strategy", "is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    backend: Any = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    tokenizer.save_pretrained(folder)
    _make_plain(folder / "tokenizer_config.json")


def _make_plain(path: Path) -> None:
    """Let the saved tokenizer be read from tokenizer.json alone, by every version of transformers.

    A model's own class would rebuild its post-processor, and lose the EOS, in versions that know the class otherwise.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):  # they stand in tokenizer.json; older versions want a dict
        del config["extra_special_tokens"]
    _write_json(path, config)


def _require_equal(before: Tensor, after: Tensor, dtype: torch.dtype, what: str) -> None:
    least = (before * after).sum(dim=-1).min().item()
    limit = MIN_COSINE if dtype == torch.float32 else 0.999  # bf16 and fp16 round the merged weights
    if not least >= limit:
        raise RunError(
            f"After {what} a text's vector has cosine {least:.6f} with what it was; the model is not exported."
        )


def _write_sentence_transformers(folder: Path, dim: int) -> None:
    """Write the files that make the folder a `SentenceTransformer`: last-token pooling, then normalisation."""
    pooling, normalize = Pooling(dim, pooling_mode="lasttoken"), Normalize()
    parts: list[tuple[str, type]] = [("", Transformer), ("1_Pooling", Pooling), ("2_Normalize", Normalize)]
    for module, path in ((pooling, "1_Pooling"), (normalize, "2_Normalize")):
        (folder / path).mkdir()
        module.save(str(folder / path))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"{kind.__module__}.{kind.__name__}"}
        for i, (path, kind) in enumerate(parts)
    ]
    _write_json(folder / "modules.json", modules)
    _write_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {"sentence_transformers": sentence_transformers_version},
            "model_type": "SentenceTransformer",
            "prompts": prompts(),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    _write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        },
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
