"""What is judged: the base as published, the base with EOS pooling, the trained model, and any references beside them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mteb
from huggingface_hub import HfApi, snapshot_download
from mteb.models.model_meta import ModelMeta
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from dataset_builder.errors import InputError
from model_card.config import EvaluationArguments
from trainer.base_model import PACKAGED, BaseModel, model_digest, resolve_base_model
from trainer.eos import check_eos, ensure_eos
from trainer.record import RECORD

BM25 = "mteb/baseline-bm25s"
BM25_TYPES = ("Retrieval", "Reranking")
"""The types of tasks that ranking by words can do."""


@dataclass(frozen=True)
class Candidate:
    """One model, or state of a model, that is judged.

    Attributes:
        key: 'base', 'base_eos', 'trained', or the name of a reference.
        label: its name for people.
        name: as `organisation/model`; with `revision`, what mteb keeps its results under.
        revision: a commit, or 40 digits of a digest over the files.
        use_instructions: whether queries carry the instruction of their task in our format.
        load: returns the model, or what mteb's registry makes of it.
        is_registered: whether `load` returns an encoder of mteb's registry, with its own prompts.
        types: the task types that it can do; None for all.
    """

    key: str
    label: str
    name: str
    revision: str
    use_instructions: bool
    load: Callable[[], Any]
    is_registered: bool = False
    types: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Trained:
    """The model that the card is about: its files, what mteb calls it, and what `embedsmith train` wrote down."""

    folder: Path
    name: str
    revision: str
    record: dict[str, Any]


def read_trained(arguments: EvaluationArguments) -> Trained:
    """Find the trained model, a folder or a published one.

    Raises:
        InputError: if there is no model, or not one of ours.
    """
    given = arguments.model_name_or_path
    if given and not Path(given).exists() and "/" in given.strip("./"):
        base = resolve_base_model(given)
        folder = Path(snapshot_download(base.name, revision=base.revision))
        return Trained(folder, base.name, base.revision, read_record(folder))
    folder = arguments.model_dir
    record = read_record(folder)
    return Trained(folder, f"local/{arguments.run_dir.resolve().name}", model_digest(folder), record)


def read_record(model_dir: Path) -> dict[str, Any]:
    """Return what `embedsmith train` wrote down about a model.

    Raises:
        InputError: if the folder is no model, or not one of ours.
    """
    if not (model_dir / "config.json").is_file() and not (model_dir / "adapter_config.json").is_file():
        raise InputError(f"There is no model in {model_dir}; run `embedsmith train` first.")
    try:
        record: dict[str, Any] = json.loads((model_dir / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    if not (isinstance(record, dict) and {"arguments", "base_model", "dataset", "log_history"} <= record.keys()):
        raise InputError(
            f"{model_dir} has no readable {RECORD}, so it was not made by `embedsmith train`; base model and training "
            "data of the card are read from it. Train the model with embedsmith first."
        )
    return record


def load_trained(folder: Path) -> SentenceTransformer:
    """Load the trained model as its users do.

    Raises:
        InputError: if its tokenizer does not end every text in exactly one EOS.
    """
    model = SentenceTransformer(str(folder))
    try:
        check_eos(model.tokenizer)
    except InputError as error:
        raise InputError(
            f"The tokenizer in {folder} does not end every text in its EOS, where the embedding is taken ({error}); "
            "export the model again by `embedsmith train --overwrite`."
        ) from None
    return model


def candidates(arguments: EvaluationArguments, trained: Trained) -> list[Candidate]:
    """Return what is to be judged: the states of the model from its record, then the references.

    Raises:
        InputError: if the base model or a reference cannot be found.
    """
    base = _base(arguments, trained.record)
    short = base.name.split("/")[-1]
    found = []
    if _is_sentence_transformer(base):
        found.append(published(base, f"{short}, as published"))
    length = int(trained.record["arguments"]["max_seq_length"])
    eos_name, label = f"baseline/{short}-eos", f"{short}, EOS pooling, untrained"
    found += [
        Candidate("base_eos", label, eos_name, base.revision, True, lambda: _with_eos_pooling(base, length)),
        Candidate("trained", "trained", trained.name, trained.revision, True, lambda: load_trained(trained.folder)),
    ]
    return found + [_reference(name) for name in arguments.reference_models or []]


def published(base: BaseModel, label: str, key: str = "base") -> Candidate:
    """The model as its authors published it, by mteb's own implementation of it if there is one for this revision."""
    if base.is_hub_id and (meta := _registered(base.name)) and meta.revision == base.revision:
        return Candidate(key, label, base.name, base.revision, False, meta.load_model, is_registered=True)
    pinned = base.revision if base.is_hub_id else None
    name = base.name if "/" in base.name else f"local/{base.name}"
    return Candidate(key, label, name, base.revision, False, lambda: SentenceTransformer(base.path, revision=pinned))


def _reference(name: str) -> Candidate:
    if name in ("bm25", BM25):
        meta = mteb.get_model_meta(BM25)
        _require_bm25()
        return Candidate(
            BM25, "BM25", BM25, str(meta.revision), False, meta.load_model, is_registered=True, types=BM25_TYPES
        )
    known = None if Path(name).is_dir() or name == PACKAGED else _registered(name)
    if known is not None:
        label = name.rsplit("/", maxsplit=1)[-1]
        return Candidate(name, label, name, str(known.revision), False, known.load_model, is_registered=True)
    base = resolve_base_model(name)
    if not _is_sentence_transformer(base):
        raise InputError(
            f"`reference_models` has '{name}', which has no modules.json and is not known to mteb, so how its embeddings are "
            "taken is not written anywhere; give a sentence-transformers model, a model of mteb's registry, or bm25."
        )
    return published(base, base.name.split("/")[-1], base.name)


def _require_bm25() -> None:
    try:
        import bm25s  # type: ignore[import-untyped]  # noqa: F401
        import Stemmer  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        raise InputError(
            "`reference_models` has bm25, whose package is not installed; `pip install 'embedsmith[bm25]'`, or leave it out."
        ) from None


def _registered(name: str) -> ModelMeta | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            meta = mteb.get_model_meta(name, fetch_from_hf=False)
    except (KeyError, ValueError):
        return None
    return meta if meta.loader is not None else None


def _base(arguments: EvaluationArguments, record: dict[str, Any]) -> BaseModel:
    if arguments.base_model_name_or_path:
        return resolve_base_model(arguments.base_model_name_or_path)
    theirs = record["base_model"]
    if theirs["is_hub_id"]:
        return resolve_base_model(theirs["name"], theirs["revision"])
    packaged = resolve_base_model(PACKAGED) if theirs["name"].endswith("all-MiniLM-L6-v2") else None
    if packaged and packaged.revision == theirs["revision"]:
        return packaged
    raise InputError(
        f"The model was trained from '{theirs['name']}', a folder whose place is not recorded; say where it is with "
        "--base_model_name_or_path."
    )


def _is_sentence_transformer(base: BaseModel) -> bool:
    if base.is_hub_id:
        return HfApi().file_exists(base.name, "modules.json", revision=base.revision)
    return (Path(base.path) / "modules.json").is_file()


def _with_eos_pooling(base: BaseModel, max_seq_length: int) -> SentenceTransformer:
    pinned = {"revision": base.revision} if base.is_hub_id else {}
    transformer = Transformer(
        base.path, max_seq_length=max_seq_length, model_kwargs=pinned, processor_kwargs=pinned, config_kwargs=pinned
    )
    assert transformer.tokenizer is not None  # text models have one
    ensure_eos(transformer.tokenizer)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], similarity_fn_name="cosine")
