"""The verbs `curate` and `push-dataset`: the Hub dataset repo exactly as it is pushed, one config per subgroup and `tasks`."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import yaml
from datasets import Features, Value
from filelock import FileLock, Timeout

from dataset_builder.asking import journal_path
from dataset_builder.card import dataset_card, with_repo
from dataset_builder.checks import Row, normalize
from dataset_builder.composition import Composition
from dataset_builder.config import CurationArguments, DatasetHubArguments, PlanArguments
from dataset_builder.consistency import load_model
from dataset_builder.contamination import TestSets, report
from dataset_builder.curation import Judged, model_name, rejected_brainstorms, superseded_rows, task_id
from dataset_builder.duplicates import first_of_kind
from dataset_builder.errors import InputError, RunError
from dataset_builder.journal import Entry, Journal
from dataset_builder.parquet import ParquetShards, replace_folder
from dataset_builder.plan import num_brainstorms, num_examples_by_subgroup
from dataset_builder.progress import Steps, counts
from dataset_builder.publish import publish_with_card
from dataset_builder.scale_config import HERE, ScaleArguments
from dataset_builder.schema import COLUMNS, TASK_COLUMNS, Step, Subgroup
from dataset_builder.sifting import PIECE, Example, Piece, judged_pieces, sift
from dataset_builder.tasks import Tasks, read_tasks
from dataset_builder.words import words

FEATURES = Features({name: Value("string") for name in COLUMNS})
TASK_FEATURES = Features({name: Value("int64" if name == "num_examples" else "string") for name in TASK_COLUMNS})
PROVENANCE = "provenance.yaml"
"""File in the run folder: digest of the journal that the dataset was made from, and what its replies took."""
REJECTED_COLUMNS = ("id", "subgroup", "reason", "detail", "task", "prompt", "attributes", "model", "reply")
REJECTED_FEATURES = Features({name: Value("string") for name in REJECTED_COLUMNS})


def curate(plan: PlanArguments, arguments: CurationArguments, scale: ScaleArguments = HERE) -> str:
    """Write `<output_dir>/dataset` and `<output_dir>/rejected` from the journal; return a sentence on what was kept.

    Both folders appear whole or not at all. With an executor its tasks judge the replies; what depends on other replies,
    and the writing, is done here, so that the same bytes come out.

    Raises:
        InputError: if there is no journal of this plan, or it has no replies, or a setting cannot be used.
        RunError: if no reply became an example.
    """
    with _read_journal(plan, scale) as journal, _alone(plan.run_dir):
        tasks, num_answered = read_tasks(plan, journal), journal.num_answered("generate")
        work = plan.run_dir / "curation.partial"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            curation = _Curation(plan, arguments, scale, journal, tasks, work)
            if not curation.judge():
                return "a Slurm job judges the replies; run the same command again when it has ended"
            curation.write()
            composition = curation.composition
            beyond = num_answered - composition.num_kept - composition.num_generated_rejected
            text = _finish(plan, arguments, curation, work, max(beyond, 0))
            for judged in (plan.run_dir / "scale").glob("curate-*"):
                shutil.rmtree(judged, ignore_errors=True)
            return text
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _read_journal(plan: PlanArguments, scale: ScaleArguments) -> Iterator[Journal]:
    """The journal to read; with an executor, whole in its one file and kept from writers, as tasks elsewhere need it."""
    path, identity = journal_path(plan), plan.identity()
    if any(file.stat().st_size for file in (plan.run_dir / "scale" / "generate" / "replies").glob("*.jsonl")):
        print("curate: tasks were told replies that are not in the journal; `generate` commits them", file=sys.stderr)
    with ExitStack() as stack:
        if scale.executor and path.is_file():
            stack.enter_context(Journal(path, identity, write=True)).fold()
        yield stack.enter_context(Journal(path, identity, write=False))


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    lock = FileLock(run / "curation.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{run} is being curated by another process; wait for it, or use another --output_dir."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _finish(plan: PlanArguments, arguments: CurationArguments, curation: _Curation, work: Path, beyond: int) -> str:
    composition, run = curation.composition, plan.run_dir
    num_rejected, reasons = composition.rejected.total(), counts(composition.reasons)
    if not composition.num_kept and not num_rejected:
        raise InputError(f"The journal {journal_path(plan)} has no replies; run `embedsmith generate` first.")
    if not composition.num_kept:
        replace_folder(run / "rejected", work / "rejected")
        raise RunError(
            f"None of {num_rejected:,} replies became an example ({reasons}); each is in {run / 'rejected'} with its "
            "reason. Another --llm_model may do better."
        )
    folder = work / "dataset"
    recipe = plan.settings() | {"num_examples": plan.num_examples} | arguments.settings()
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _write_provenance(work / PROVENANCE, curation)
    card = dataset_card(folder, composition, curation.num_tasks, recipe, arguments, run)
    (folder / "README.md").write_text(card, encoding="utf-8")
    overlaps = run / "contamination.md"
    if curation.test_sets is not None:
        (work / overlaps.name).write_text(report(composition.overlaps, curation.test_sets), encoding="utf-8")
    overlaps.unlink(missing_ok=True)  # it may tell of an earlier curation
    for name in ("rejected", "dataset"):
        replace_folder(run / name, work / name)
    (work / PROVENANCE).replace(run / PROVENANCE)
    if curation.test_sets is not None:
        (work / overlaps.name).replace(overlaps)
        print(f"curate: overlaps with test sets are in {overlaps}", file=sys.stderr)
    text = f"{composition.num_kept:,} examples kept"
    text += f", {num_rejected:,} replies rejected ({reasons})" if num_rejected else ", none rejected"
    if beyond:
        print(
            f"curate: the journal has {beyond:,} more replies, beyond num_examples {plan.num_examples:,}",
            file=sys.stderr,
        )
    if composition.num_unanswered:
        text += f", {composition.num_unanswered:,} requests unanswered so far"
    return text


def _write_provenance(path: Path, curation: _Curation) -> None:
    """Write which replies the dataset was made from, and what all of them took; model cards take it from there.

    It is no part of the dataset folder, which does not depend on how, and at what cost, its replies came.
    """
    spent = curation.journal.spent()
    provenance = {
        "journal_sha256": curation.journal.digest(),
        "num_replies": spent.num_replies,
        "prompt_tokens": spent.prompt_tokens or None,
        "completion_tokens": spent.completion_tokens or None,
        "cost_usd": spent.cost_usd,
        "models": dict(sorted(curation.composition.models.items())),
        "embedsmith": version("embedsmith"),
    }
    path.write_text(yaml.safe_dump(provenance, sort_keys=False), encoding="utf-8")


def push_dataset(plan: PlanArguments, arguments: DatasetHubArguments) -> str:
    """Publish `<output_dir>/dataset` in one commit, read it back, and return its URL.

    Raises:
        InputError: if there is no dataset folder or no `hub_dataset_id`, or if the Hub refuses it.
    """
    folder = plan.run_dir / "dataset"
    if not (folder / "README.md").is_file():
        raise InputError(f"There is no dataset in {folder}; run `embedsmith curate` first.")
    if not arguments.hub_dataset_id:
        raise InputError("`hub_dataset_id` is not given; say where to push, as in --hub_dataset_id name/dataset.")
    return publish_with_card(
        folder, arguments.hub_dataset_id, "dataset", arguments, with_repo, message="Add dataset made with embedsmith"
    )


@dataclass
class _Curation:
    """Writes the parquet files of both folders below `work`, and counts what passes by."""

    plan: PlanArguments
    arguments: CurationArguments
    scale: ScaleArguments
    journal: Journal
    tasks: Tasks
    work: Path

    def __post_init__(self) -> None:
        self.composition, self.num_tasks = Composition(), 0
        self.num_requests = num_examples_by_subgroup(self.plan)
        self.test_sets: TestSets | None = None
        self.judged = self.work
        if self.scale.executor:  # what was judged before counts, if nothing has changed that judging depends on
            identity, settings = self.plan.identity(), asdict(self.arguments)
            state = [identity, self.plan.num_examples, settings, self.journal.digest(), version("embedsmith")]
            digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:12]
            self.judged = self.plan.run_dir / "scale" / f"curate-{digest}"

    def judge(self) -> bool:
        """Prepare all that judging needs, and have the tasks of an executor judge; return whether that is over."""
        if self.arguments.consistency_model:
            load_model(self.arguments.consistency_model)  # what cannot be loaded is told before hours of work
        if self.arguments.contamination_tasks:
            self.test_sets = TestSets.of_tasks(self.arguments.contamination_tasks, self.arguments.contamination_ngram)
            if not (path := self.judged / "test_sets").exists():  # tasks may be reading them
                self.test_sets.save(path)
        if not self.scale.executor:
            return True
        from dataset_builder.scale import judge_by_tasks

        pieces = [piece for subgroup, num in self.num_requests.items() for piece in self._pieces(subgroup, num)]
        return judge_by_tasks(pieces, self.judged, self.scale)

    def _pieces(self, subgroup: Subgroup, num: int) -> list[Piece]:
        test_sets = (self.judged / "test_sets").absolute() if self.test_sets is not None else None
        settings = self.arguments, test_sets, bool(self.scale.executor)
        path, identity = self.journal.path.absolute(), self.plan.identity()
        return [
            Piece(path, identity, subgroup, start, min(start + PIECE, num), *settings) for start in range(0, num, PIECE)
        ]

    def _judged(self, subgroup: Subgroup, num: int) -> Generator[Judged, None, None]:
        pieces = self._pieces(subgroup, num)
        if not self.scale.executor:
            return judged_pieces(pieces, self.arguments.num_proc)
        from dataset_builder.scale import read_judged

        return read_judged(self.judged, pieces)

    def write(self) -> None:
        """Write all of them."""
        num_requests = self.num_requests
        self.steps = Steps("curate", sum(num_requests.values()))
        kinds = self._kinds()
        self.composition.num_repeated_tasks = len(kinds)
        with ParquetShards(self.work / "rejected" / "train", REJECTED_FEATURES, even_if_empty=True) as rejected:
            for subgroup, num in num_requests.items():
                self._write_subgroup(subgroup, num, kinds, rejected)
            brainstorms = rejected_brainstorms(self._entries("brainstorm", num_brainstorms(self.plan)))
            self.composition.num_generated_rejected = self.composition.rejected.total()
            self.composition.add_rejected(brainstorms)
            rejected.extend(brainstorms)
            for step, nums in (("brainstorm", num_brainstorms(self.plan)), ("generate", num_requests)):
                rejected.extend(superseded_rows(self._entries(step, nums, superseded=True)))  # type: ignore[arg-type]
        self._write_tasks()
        shutil.rmtree(self.work / "test_sets", ignore_errors=True)

    def _write_subgroup(self, subgroup: Subgroup, num: int, kinds: Mapping[str, str], rejected: ParquetShards) -> None:
        folder = self.work / "dataset" / subgroup
        with ExitStack() as stack:
            writers = {s: stack.enter_context(ParquetShards(folder / s, FEATURES)) for s in ("train", "test")}
            judged = stack.enter_context(closing(self._judged(subgroup, num)))
            for item in stack.enter_context(closing(sift(judged, subgroup, self.arguments, kinds, self.work))):
                if isinstance(item, Judged):
                    self.composition.add_judged(item)
                    self.composition.add_rejected(item.rejected)
                    rejected.extend(item.rejected)
                    self.steps.add(item.rows.num_rows + len(item.rejected) + item.num_unanswered)
                elif isinstance(item, Example):
                    self.composition.add(item.row, subgroup, item.split, item.num_words)
                    writers[item.split].add(item.row)
                else:
                    self.composition.add_rejected([item])
                    rejected.add(item)

    def _kinds(self) -> dict[str, str]:
        """{task id: id of the task that it nearly repeats}."""
        kinds: dict[str, str] = {}
        for subgroup, lists in self.tasks.lists.items():
            texts = {task_id(subgroup, task): task for tasks in lists for task in tasks}
            ids = list(texts)
            split = [words(normalize(text)) for text in texts.values()]
            for id_, first in zip(ids, first_of_kind(split, self.arguments.near_duplicate_threshold), strict=True):
                if ids[first] != id_:
                    kinds[id_] = ids[first]
        return kinds

    def _entries(self, step: Step, nums: Mapping[Subgroup, int], *, superseded: bool = False) -> Iterator[Entry]:
        read = self.journal.superseded if superseded else self.journal.entries
        for subgroup, num in nums.items():
            for start in range(0, num, PIECE):
                yield from read(step, subgroup, start, min(start + PIECE, num))

    def _write_tasks(self) -> None:
        """One row per distinct brainstormed task, with the split and the number of its examples."""
        composition, seen = self.composition, set[str]()
        with ParquetShards(self.work / "dataset" / "tasks" / "train", TASK_FEATURES) as writer:
            for entry in self._entries("brainstorm", num_brainstorms(self.plan)):
                subgroup = entry.request.subgroup
                for task in self.tasks.lists[subgroup][entry.request.index]:
                    id_ = task_id(subgroup, task)
                    if id_ in seen:
                        continue
                    seen.add(id_)
                    row: Row = {"task_id": id_, "subgroup": subgroup, "task": task}
                    row |= {"split": composition.task_split.get(id_), "num_examples": composition.used_tasks[id_]}
                    writer.add(row | {"model": model_name(entry), "prompt": entry.request.prompt})
        self.num_tasks = writer.num_rows
