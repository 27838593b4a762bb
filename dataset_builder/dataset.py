"""Writes the dataset folder: the Hub dataset repo exactly as it is pushed, with one config per subgroup and `tasks`."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from datasets.utils.logging import disable_progress_bar

from dataset_builder.asking import journal_path
from dataset_builder.card import dataset_card, with_repo
from dataset_builder.config import CurationArguments, DatasetHubArguments, PlanArguments
from dataset_builder.curation import Curated, Row, curate_entries, rejected_brainstorms, superseded_rows, task_rows
from dataset_builder.errors import InputError, RunError
from dataset_builder.journal import Entry, Journal
from dataset_builder.plan import num_brainstorms, num_examples_by_subgroup
from dataset_builder.progress import counts
from dataset_builder.publish import publish_with_card
from dataset_builder.schema import COLUMNS, TASK_COLUMNS
from dataset_builder.tasks import read_tasks

FEATURES = Features({name: Value("string") for name in COLUMNS})
TASK_FEATURES = Features({name: Value("int64" if name == "num_examples" else "string") for name in TASK_COLUMNS})
REJECTED_COLUMNS = ("id", "subgroup", "reason", "detail", "task", "prompt", "attributes", "reply")
REJECTED_FEATURES = Features({name: Value("string") for name in REJECTED_COLUMNS})


def curate(plan: PlanArguments, arguments: CurationArguments) -> str:
    """Write `<output_dir>/dataset` and `<output_dir>/rejected` from the journal; return a sentence on what was kept.

    Both folders appear whole or not at all.

    Raises:
        InputError: if there is no journal of this plan, or it has no replies.
        RunError: if no reply became an example.
    """
    with Journal(journal_path(plan), plan.identity(), write=False) as journal:
        curated = curate_entries(_all(journal.entries, "generate", num_examples_by_subgroup(plan)), arguments)
        tasks = read_tasks(plan, journal)
        num_kept = sum(1 for _ in curated.rows())
        beyond = journal.num_answered("generate") - num_kept - len(curated.rejected)
        curated.tasks = task_rows(_with_tasks(journal, plan, tasks.lists), curated)
        curated.rejected += rejected_brainstorms(_all(journal.entries, "brainstorm", num_brainstorms(plan)))
        superseded = superseded_rows(_all(journal.superseded, "brainstorm", num_brainstorms(plan)))
        superseded += superseded_rows(_all(journal.superseded, "generate", num_examples_by_subgroup(plan)))
    reasons = counts(Counter(row["reason"] for row in curated.rejected))
    if not num_kept:
        if not curated.rejected:
            raise InputError(f"The journal {journal_path(plan)} has no replies; run `embedsmith generate` first.")
        _replace_folder(
            plan.run_dir / "rejected", lambda folder: _write_rejected(folder, [*curated.rejected, *superseded])
        )
        raise RunError(
            f"None of {len(curated.rejected):,} replies became an example ({reasons}); each is in "
            f"{plan.run_dir / 'rejected'} with its reason. Another --llm_model may do better."
        )
    _replace_folder(plan.run_dir / "rejected", lambda folder: _write_rejected(folder, [*curated.rejected, *superseded]))
    _replace_folder(plan.run_dir / "dataset", lambda folder: _write_dataset(folder, curated, plan, arguments))
    text = f"{num_kept:,} examples kept"
    text += f", {len(curated.rejected):,} replies rejected ({reasons})" if curated.rejected else ", none rejected"
    if beyond:
        print(
            f"curate: the journal has {beyond:,} more replies, beyond num_examples {plan.num_examples:,}",
            file=sys.stderr,
        )
    if curated.num_unanswered:
        text += f", {curated.num_unanswered.total():,} requests unanswered so far"
    return text


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


def _with_tasks(
    journal: Journal, plan: PlanArguments, lists: dict[Any, list[list[str]]]
) -> Iterator[tuple[Entry, list[str]]]:
    for entry in _all(journal.entries, "brainstorm", num_brainstorms(plan)):
        yield entry, lists[entry.request.subgroup][entry.request.index]


def _all(read: Any, step: str, nums: dict[Any, int]) -> Iterator[Entry]:
    for subgroup, num in nums.items():
        yield from read(step, subgroup, 0, num)


def _replace_folder(folder: Path, write: Any) -> None:
    """Write a folder beside its place and move it there when it is complete."""
    partial, old = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_dataset(folder: Path, curated: Curated, plan: PlanArguments, arguments: CurationArguments) -> None:
    for subgroup, splits in curated.examples.items():
        for split, rows in splits.items():
            if rows:
                _write_hashed_parquet(folder / subgroup / f"{split}-00000-of-00001.parquet", rows, FEATURES)
    if curated.tasks:
        _write_hashed_parquet(folder / "tasks" / "train-00000-of-00001.parquet", curated.tasks, TASK_FEATURES)
    recipe = plan.settings() | {"num_examples": plan.num_examples, "test_size": arguments.test_size}
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(dataset_card(folder, curated, recipe, arguments, plan.run_dir), encoding="utf-8")


def _write_rejected(folder: Path, rows: list[Row]) -> None:
    _write_parquet(folder / "train-00000-of-00001.parquet", rows, REJECTED_FEATURES)


def _write_hashed_parquet(path: Path, rows: list[Row], features: Features) -> None:
    """Write a parquet file whose name ends in a digest of its content.

    `datasets` caches a local folder by its name and the `configs` of its README alone, not by the files' content or
    time: only because the README names the digests, another run or a later one is not taken for the cached one.
    """
    _write_parquet(path, rows, features)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    path.rename(path.with_stem(f"{path.stem}-{digest}"))


def _write_parquet(path: Path, rows: list[Row], features: Features) -> None:
    disable_progress_bar()
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in features}
    Dataset.from_dict(columns, features=features).to_parquet(path)
