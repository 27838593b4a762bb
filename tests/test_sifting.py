"""The verb `curate` in pieces and processes, on gaps, faults and planted repetitions: always the same bytes."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset_builder import dataset
from dataset_builder.config import CurationArguments, PlanArguments
from dataset_builder.curation import SCHEMA, Judged, judge
from dataset_builder.dataset import curate
from dataset_builder.journal import Entry
from dataset_builder.plan import generate_requests
from dataset_builder.sifting import Example, Piece, judged_pieces, sift
from tests.replies import Body, answer, answers, completion, fill_journal, read_parquet
from tests.runs import folder_bytes
from tests.test_contamination import LONG, REPOS, SHORT, put

STS13, CONTAMINATED = REPOS[0], CurationArguments(test_size=0.25, contamination_tasks=["STS13"])


def told(body: Body) -> dict[str, Any]:
    """Return the JSON in a reply."""
    content: dict[str, Any] = json.loads(body["choices"][0]["message"]["content"])
    return content


def faulty(plan: PlanArguments) -> dict[str, Body]:
    """Return replies: some missing, some unusable, some nearly those to another request, two with a test sentence."""
    replies, last = answers(plan), dict[str, dict[str, Any]]()
    ids = [id_ for id_ in replies if "-generate-" in id_]
    for number, id_ in enumerate(ids):
        kind = id_.split("-generate-")[0]
        if number % 11 == 3:
            del replies[id_]
        elif number % 11 == 5:
            replies[id_] = completion("No.")
        elif number % 11 == 7:
            repeated = {key: text + " 17" * (number % 2) for key, text in last[kind].items()}
            replies[id_] = completion(json.dumps(repeated))
        else:
            last[kind] = told(replies[id_])
    for id_, text in zip(
        [id_ for id_ in ids if id_.startswith("sts") and id_ in replies][-2:], (LONG, SHORT), strict=True
    ):
        replies[id_] = completion(json.dumps(told(answer_to(plan, id_)) | {"S2": text}))
    return replies


def answer_to(plan: PlanArguments, id_: str) -> Body:
    return answer(next(request for request in generate_requests(plan) if request.id == id_))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PlanArguments:
    """A run of 100 examples, faulty ones among them, and a test set to keep away from."""
    folder = tmp_path_factory.mktemp("runs")
    put(folder, *STS13)
    plan = PlanArguments(
        str(folder / "run"), 100, subgroups=["short-short", "sts=3"], languages=["en"], examples_per_task=1
    )
    fill_journal(plan, faulty(plan))
    return plan


@pytest.fixture
def curated(run: PlanArguments) -> PlanArguments:
    """The run curated by one process, in a single piece a subgroup."""
    curate(run, CONTAMINATED)
    return run


def result(plan: PlanArguments) -> dict[str, str]:
    names = ("dataset", "rejected", "contamination.md")
    return {name: sha for name, sha in folder_bytes(plan.run_dir).items() if name.split("/")[0] in names}


@pytest.mark.parametrize(("piece", "num_proc"), [(9, 2), (7, 1), (1, 1)])
def test_pieces_and_processes_change_no_byte(
    curated: PlanArguments, monkeypatch: pytest.MonkeyPatch, piece: int, num_proc: int
) -> None:
    expected = result(curated)
    assert len(expected) >= 9
    monkeypatch.setattr(dataset, "PIECE", piece)
    text = curate(curated, CurationArguments(**(vars(CONTAMINATED) | {"num_proc": num_proc})))
    assert result(curated) == expected
    assert "requests unanswered so far" in text
    assert not list(curated.run_dir.glob("*.partial"))


def test_faults_are_rejected_and_counted(curated: PlanArguments) -> None:
    rejected = read_parquet(*(curated.run_dir / "rejected").glob("*.parquet"))
    reasons = {row["reason"] for row in rejected}
    assert reasons == {"json", "duplicate", "contamination"}
    how = {row["detail"].rsplit(" that of ")[0] for row in rejected if row["reason"] == "duplicate"}
    assert how == {"query or positive equals", "query or positive is nearly"}
    rows = read_parquet(*(curated.run_dir / "dataset").glob("s*/*.parquet"))
    assert len(rows) + len(rejected) + 9 == 100
    assert "\n9 planned requests have no reply yet.\n" in (curated.run_dir / "dataset" / "README.md").read_text()


def test_copies_of_test_sentences_are_rejected_and_reported(curated: PlanArguments) -> None:
    rejected = read_parquet(*(curated.run_dir / "rejected").glob("*.parquet"))
    found = {row["id"]: row["detail"] for row in rejected if row["reason"] == "contamination"}
    assert len(found) == 2
    assert all(detail.startswith("positive has of STS13: '") for detail in found.values())
    assert not found.keys() & {row["id"] for row in read_parquet(*(curated.run_dir / "dataset").glob("s*/*.parquet"))}
    report = (curated.run_dir / "contamination.md").read_text()
    assert "2 were rejected" in report
    assert "| STS13 | 2 |" in report
    card = (curated.run_dir / "dataset" / "README.md").read_text()
    assert "compared with the test sets of STS13; an example that shares 13 words in a row" in card
    assert "was rejected (examples by task: STS13 2)." in card
    assert "| contamination | 2 | overlaps with the test set of an evaluation task |" in card


def test_a_report_of_an_earlier_curation_is_removed(curated: PlanArguments) -> None:
    report = curated.run_dir / "contamination.md"
    assert report.is_file()
    curate(curated, CurationArguments(test_size=0.25))
    assert not report.exists()
    card = (curated.run_dir / "dataset" / "README.md").read_text()
    assert "not compared with the test sets of any evaluation task" in card


def test_requests_that_were_never_planned_count_as_unanswered(run: PlanArguments) -> None:
    pieces = [
        Piece(run.run_dir / "journal.sqlite", run.identity(), "sts", start, start + 30, CurationArguments(), None)
        for start in (15, 45, 75)
    ]
    judged = list(judged_pieces(pieces, 1))
    assert [piece.rows.num_rows + len(piece.rejected) + piece.num_unanswered for piece in judged] == [30] * 3
    assert judged[2].rows.num_rows == 0
    assert judged[2].num_unanswered == 30


def entries(num: int) -> list[Entry]:
    plan = PlanArguments("unused", num, subgroups=["sts"], languages=["en"])
    return [Entry(request, "task", answer(request)) for request in generate_requests(plan)]


def test_the_waiting_rows_are_removed_even_after_an_error(tmp_path: Path) -> None:
    arguments = CurationArguments()

    def failing() -> Iterator[Judged]:
        yield judge(entries(3), "sts", arguments, None)
        raise RuntimeError("no disk")

    items = sift(failing(), "sts", arguments, {}, tmp_path)
    assert isinstance(next(items), Judged)
    assert [path.name for path in tmp_path.iterdir()] == ["sts.waiting.arrow"]
    with pytest.raises(RuntimeError, match="no disk"):
        next(items)
    assert list(tmp_path.iterdir()) == []
    items = sift(iter([judge(entries(3), "sts", arguments, None)]), "sts", arguments, {}, tmp_path)
    with contextlib.closing(items):
        assert isinstance(next(items), Judged)
        assert isinstance(next(items), Example)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("threshold", [0.8, 1.0])
def test_pieces_without_rows(tmp_path: Path, threshold: float) -> None:
    arguments = CurationArguments(near_duplicate_threshold=threshold)
    empty = [judge([], "sts", arguments, None) for _ in range(2)]
    assert empty[0].rows.schema == SCHEMA
    assert list(sift(iter(empty), "sts", arguments, {}, tmp_path)) == empty
    assert list(sift(iter([]), "sts", arguments, {}, tmp_path)) == []
    full = judge(entries(3), "sts", arguments, None)
    kept = list(sift(iter([empty[0], full, empty[1]]), "sts", arguments, {}, tmp_path))
    assert [item.row["id"] for item in kept if isinstance(item, Example)] == full.rows.column("id").to_pylist()
    assert np.array_equal(
        full.num_words["query"], [item.num_words["query"] for item in kept if isinstance(item, Example)]
    )


def test_tasks_that_nearly_repeat_each_other_go_to_the_same_split(tmp_path: Path) -> None:
    plan = PlanArguments(str(tmp_path / "run"), 120, subgroups=["short-short"], languages=["en"], examples_per_task=1)
    rng, replies = random.Random(0), answers(plan)
    for id_ in [id_ for id_ in replies if "-brainstorm-" in id_]:
        singles = [" ".join(str(rng.randrange(10**6)) for _ in range(15)) for _ in range(10)]
        tasks = [f"Find the fitting line for {single}{more}" for more in (".", " now.") for single in singles]
        replies[id_] = completion(json.dumps({"tasks": tasks}))
    fill_journal(plan, replies)
    curate(plan, CurationArguments(test_size=0.5))
    rows = read_parquet(*(plan.run_dir / "dataset" / "tasks").glob("*.parquet"))
    splits = {row["task"].removesuffix(" now.").removesuffix("."): set[str]() for row in rows}
    for row in rows:
        splits[row["task"].removesuffix(" now.").removesuffix(".")].add(row["split"])
    assert len(rows) == 2 * len(splits) == 120
    assert {tuple(split) for split in splits.values()} == {("test",), ("train",)}
    card = (plan.run_dir / "dataset" / "README.md").read_text()
    assert "and the 60 tasks that nearly repeat an earlier one go where that one goes." in card
