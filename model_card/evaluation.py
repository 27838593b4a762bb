"""The verb `evaluate`: base and trained model judged by `mteb.evaluate` on the held-out examples.

Three states are compared: the base as published, the base with EOS pooling (where training starts from), and the trained
model. Results lie in `<output_dir>/results` in the layout of the leaderboard's results repository; what is there for this
model and this data is not judged again. `<output_dir>/evaluation.json` names the states and shows a few neighbours.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mteb
import transformers
from huggingface_hub import HfApi
from mteb.abstasks import AbsTask
from mteb.cache import ResultCache
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from dataset_builder.errors import InputError
from dataset_builder.progress import duration
from model_card.config import EvaluationArguments
from model_card.encoder import InstructEncoder
from model_card.neighbours import nearest
from model_card.scores import EVALUATION, results_folder, revision_of_result
from model_card.tasks import all_rows, held_out_tasks, num_queries
from trainer.base_model import PACKAGED, BaseModel, model_digest, resolve_base_model
from trainer.data import dataset_revision, dataset_subgroups
from trainer.eos import ensure_eos
from trainer.record import RECORD


@dataclass(frozen=True)
class Candidate:
    """One state of a model that is judged. `key` is 'base', 'base_eos' or 'trained'."""

    key: str
    label: str
    name: str
    revision: str
    use_instructions: bool
    load: Callable[[], SentenceTransformer]


def evaluate(arguments: EvaluationArguments) -> str:
    """Judge what is not judged yet and return a sentence on where the results are.

    Raises:
        InputError: if model or dataset are missing, or the model folder was not made by `embedsmith train`.
    """
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    record = read_record(arguments.model_dir)
    dataset_subgroups(arguments.dataset, arguments.dataset_revision)  # is it there at all?
    digest = dataset_revision(arguments.dataset, arguments.dataset_revision)
    tasks = held_out_tasks(arguments.dataset, arguments.dataset_revision, digest)
    cache = ResultCache(arguments.run_dir)
    rows = all_rows(tasks)
    summary: dict[str, Any] = {
        "dataset_revision": digest,
        "num_training_examples": record["dataset"]["num_examples"],
        "tasks": [_describe(task) for task in tasks],
        "models": [],
    }
    num_run = 0
    for candidate in candidates(arguments, record):
        judge = _Judge(candidate, cache, arguments.eval_batch_size)
        num_judged = sum(judge.judge(task, digest) for task in tasks)
        num_run += num_judged
        judged: dict[str, Any] = {"key": candidate.key, "label": candidate.label, "name": candidate.name}
        judged |= {"revision": candidate.revision, "use_instructions": candidate.use_instructions}
        path = judge.folder / "neighbours.jsonl"
        if candidate.key != "base" and (num_judged or not path.is_file()):
            found = nearest(judge.encoder, rows)
            path.write_text("".join(json.dumps(n, ensure_ascii=False) + "\n" for n in found), encoding="utf-8")
        summary["models"].append(judged)
    (arguments.run_dir / EVALUATION).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if not num_run:
        print("evaluate: nothing to do, all results are there", file=sys.stderr)
    return f"{arguments.run_dir / 'results'}: {len(summary['models'])} models on {len(tasks)} held-out tasks"


def read_record(model_dir: Path) -> dict[str, Any]:
    """Return what `embedsmith train` wrote down about a model.

    Raises:
        InputError: if the folder is no model, or not one of ours.
    """
    if not (model_dir / "config.json").is_file():
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


def candidates(arguments: EvaluationArguments, record: dict[str, Any]) -> list[Candidate]:
    """Return the states to judge, from the model's record."""
    base = _base(arguments, record)
    short = base.name.split("/")[-1]
    found = []
    if _is_sentence_transformer(base):
        found.append(
            Candidate("base", f"{short}, as published", base.name, base.revision, False, lambda: _published(base))
        )
    length = int(record["arguments"]["max_seq_length"])
    eos_name = f"baseline/{short}-eos"
    label = f"{short}, EOS pooling, untrained"
    found.append(Candidate("base_eos", label, eos_name, base.revision, True, lambda: _with_eos_pooling(base, length)))
    folder = arguments.model_dir
    name = f"local/{arguments.run_dir.resolve().name}"
    found.append(
        Candidate("trained", "trained", name, model_digest(folder), True, lambda: SentenceTransformer(str(folder)))
    )
    return found


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


def _published(base: BaseModel) -> SentenceTransformer:
    return SentenceTransformer(base.path, revision=base.revision if base.is_hub_id else None)


def _with_eos_pooling(base: BaseModel, max_seq_length: int) -> SentenceTransformer:
    pinned = {"revision": base.revision} if base.is_hub_id else {}
    transformer = Transformer(
        base.path, max_seq_length=max_seq_length, model_kwargs=pinned, processor_kwargs=pinned, config_kwargs=pinned
    )
    assert transformer.tokenizer is not None  # text models have one
    ensure_eos(transformer.tokenizer)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], similarity_fn_name="cosine")


def _describe(task: Any) -> dict[str, Any]:
    metadata = task.metadata
    described = {"name": metadata.name, "type": metadata.type, "main_score": metadata.main_score}
    return described | {"num_queries": num_queries(task)}


class _Judge:
    """Runs mteb for one candidate; the model is loaded only if something is left to judge."""

    def __init__(self, candidate: Candidate, cache: ResultCache, batch_size: int) -> None:
        self.candidate, self.cache, self.batch_size = candidate, cache, batch_size
        self._encoder: InstructEncoder | None = None

    @property
    def encoder(self) -> InstructEncoder:
        """The loaded model."""
        if self._encoder is None:
            c = self.candidate
            self._encoder = InstructEncoder(c.load(), c.name, c.revision, use_instructions=c.use_instructions)
        return self._encoder

    @property
    def folder(self) -> Path:
        """Where the candidate's results lie."""
        return results_folder(self.cache.cache_path, self.candidate.name, self.candidate.revision)

    def judge(self, task: AbsTask, digest: str) -> bool:
        """Judge one task unless its result for this model and this data is there; tell whether it was judged."""
        if revision_of_result(self.folder / f"{task.metadata.name}.json") == digest:
            return False
        started = time.monotonic()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="To copy construct from a tensor")  # raised by mteb's own code
            result = mteb.evaluate(
                self.encoder,  # type: ignore[arg-type]  # the protocol asks for a constructor of its own too
                task,
                cache=self.cache,
                overwrite_strategy="always",  # mteb's own rule would keep a result of other data
                encode_kwargs={"batch_size": self.batch_size, "show_progress_bar": False},
                show_progress_bar=False,
                co2_tracker=False,
            )
        score = result.task_results[0].get_score()
        print(
            f"evaluate {self.candidate.label} | {task.metadata.name} {task.metadata.main_score} {score:.4f} | "
            f"{duration(time.monotonic() - started)}",
            file=sys.stderr,
            flush=True,
        )
        return True
