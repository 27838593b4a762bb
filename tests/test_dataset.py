"""The verb `curate`: a dataset folder that loads as it is, whole or not at all, and the same bytes every time."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import DatasetDict, get_dataset_config_names, load_dataset

from dataset_builder.asking import brainstorm, generate, journal_path
from dataset_builder.config import CurationArguments, PlanArguments
from dataset_builder.dataset import curate
from dataset_builder.errors import EmbedsmithError, InputError, RunError
from dataset_builder.journal import Journal
from dataset_builder.llm_config import LLMArguments
from dataset_builder.schema import BRAINSTORMED, COLUMNS, SUBGROUPS, TASK_COLUMNS
from embedsmith import RECIPES_DIR
from tests.replies import answers, ask_recorded, completion, read_parquet
from tests.runs import folder_bytes

DEMO = yaml.safe_load((RECIPES_DIR / "demo" / "dataset.yaml").read_text(encoding="utf-8"))
SPLIT = CurationArguments(test_size=0.25)


def demo_plan(folder: Path) -> PlanArguments:
    settings = {key: value for key, value in DEMO.items() if key in PlanArguments.__dataclass_fields__}
    languages = [f"{code}={weight}" for code, weight in DEMO["languages"].items()]
    return PlanArguments(**(settings | {"output_dir": str(folder), "languages": languages}))


def small_plan(folder: Path, num_examples: int = 24, **settings: Any) -> PlanArguments:
    return PlanArguments(str(folder), num_examples, examples_per_task=1, tasks_per_brainstorm=8, **settings)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the demo recipe."""
    plan, llm = demo_plan(tmp_path_factory.mktemp("runs") / "demo"), LLMArguments()
    brainstorm(plan, llm)
    generate(plan, llm)
    assert curate(plan, SPLIT) == "1,196 examples kept, 4 replies rejected (duplicate 2, language 2)"
    return plan.run_dir


@pytest.fixture
def run(tmp_path: Path) -> PlanArguments:
    """A small run that is answered and not yet curated."""
    plan = small_plan(tmp_path / "run")
    ask_recorded(plan, answers(plan))
    return plan


def loaded(folder: Path, config: str, cache: Path) -> DatasetDict:
    splits = load_dataset(str(folder), config, cache_dir=str(cache))
    assert isinstance(splits, DatasetDict)
    return splits


def test_the_configs_of_the_demo(demo: Path) -> None:
    assert get_dataset_config_names(str(demo / "dataset")) == [*SUBGROUPS, "tasks"]


@pytest.mark.parametrize("subgroup", SUBGROUPS)
def test_a_subgroup_of_the_demo_loads(demo: Path, tmp_path: Path, subgroup: str) -> None:
    splits = loaded(demo / "dataset", subgroup, tmp_path)
    assert sorted(splits) == ["test", "train"]
    assert sum(split.num_rows for split in splits.values()) == {"short-short": 198, "sts": 198}.get(subgroup, 200)
    for split in splits.values():
        assert tuple(split.column_names) == COLUMNS
        assert {feature.dtype for feature in split.features.values()} == {"string"}
        for row in split:
            assert all(isinstance(value, str) and value for value in row.values())
            assert row["id"].startswith(f"{subgroup}-generate-")
            assert (row["language"] != row["positive_language"]) == (subgroup == "bitext")


def test_the_tasks_of_the_demo_load_and_fit_the_examples(demo: Path, tmp_path: Path) -> None:
    tasks = {row["task_id"]: row for row in loaded(demo / "dataset", "tasks", tmp_path)["train"]}
    assert len(tasks) == 320
    assert all(tuple(row) == TASK_COLUMNS for row in tasks.values())
    seen = dict.fromkeys(tasks, 0)
    for subgroup in BRAINSTORMED:
        for split, rows in loaded(demo / "dataset", subgroup, tmp_path).items():
            for row in rows:
                task = tasks[row["task_id"]]
                assert (task["task"], task["subgroup"], task["split"]) == (row["instruction"], subgroup, split)
                seen[row["task_id"]] += 1
    assert seen == {task_id: row["num_examples"] for task_id, row in tasks.items()}


def test_the_first_config_is_the_default(demo: Path, tmp_path: Path) -> None:
    rows = load_dataset(str(demo / "dataset"), split="train", cache_dir=str(tmp_path))
    assert next(iter(rows))["id"].startswith("short-long-")


def test_curating_again_gives_the_same_bytes(demo: Path) -> None:
    before = folder_bytes(demo)
    curate(demo_plan(demo), SPLIT)
    after = folder_bytes(demo)
    assert {name: after[name] for name in before if not name.startswith("journal")} == {
        name: sha for name, sha in before.items() if not name.startswith("journal")
    }


def test_loading_after_more_examples_gives_the_new_ones(tmp_path: Path) -> None:
    """`datasets` must not take its cached copy of the old folder for the new one."""
    for num_examples in (12, 24):
        plan = small_plan(tmp_path / "run", num_examples, subgroups=["sts"])
        ask_recorded(plan, answers(plan))
        curate(plan, CurationArguments(test_size=0))
        assert loaded(plan.run_dir / "dataset", "sts", tmp_path / "cache")["train"].num_rows == num_examples


def test_two_runs_are_not_mixed_up(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        plan = small_plan(tmp_path / name, 12, subgroups=["sts"], seed=seed)
        ask_recorded(plan, answers(plan))
        curate(plan, CurationArguments(test_size=0))
        (file,) = (plan.run_dir / "dataset" / "sts").glob("train-*.parquet")
        rows = loaded(plan.run_dir / "dataset", "sts", tmp_path / "cache")["train"]
        assert list(rows["id"]) == [row["id"] for row in read_parquet(file)]


def test_without_a_test_split_there_is_none(run: PlanArguments, tmp_path: Path) -> None:
    curate(run, CurationArguments(test_size=0))
    dataset = run.run_dir / "dataset"
    assert not list(dataset.rglob("test-*"))
    for config in (*SUBGROUPS, "tasks"):
        assert list(loaded(dataset, config, tmp_path / "cache")) == ["train"]


def test_a_subgroup_without_train_examples_still_loads(run: PlanArguments, tmp_path: Path) -> None:
    curate(run, CurationArguments(test_size=0.9))
    counts = {s: {k: v.num_rows for k, v in loaded(run.run_dir / "dataset", s, tmp_path).items()} for s in SUBGROUPS}
    assert all(sum(count.values()) == 4 for count in counts.values())
    assert any(list(count) == ["test"] for count in counts.values())


def test_a_subgroup_without_examples_has_no_config(tmp_path: Path) -> None:
    plan = small_plan(tmp_path / "run")
    replies = {id_: completion("No.") if id_.startswith("sts-") else body for id_, body in answers(plan).items()}
    ask_recorded(plan, replies)
    assert curate(plan, SPLIT) == "20 examples kept, 4 replies rejected (json 4)"
    configs = get_dataset_config_names(str(plan.run_dir / "dataset"))
    assert configs == [*(subgroup for subgroup in SUBGROUPS if subgroup != "sts"), "tasks"]
    rejected = read_parquet(*(plan.run_dir / "rejected").glob("*.parquet"))
    assert [(row["subgroup"], row["reason"], row["reply"]) for row in rejected] == [("sts", "json", "No.")] * 4


def test_a_dataset_of_symmetric_subgroups_has_no_tasks(tmp_path: Path) -> None:
    plan = small_plan(tmp_path / "run", 8, subgroups=["sts", "bitext"])
    ask_recorded(plan, answers(plan))
    curate(plan, SPLIT)
    assert get_dataset_config_names(str(plan.run_dir / "dataset")) == ["sts", "bitext"]


def test_negatives_that_were_not_asked_for_are_null(tmp_path: Path) -> None:
    plan = small_plan(tmp_path / "run", 6, subgroups=["long-long"], hard_negatives=False)
    ask_recorded(plan, answers(plan))
    curate(plan, CurationArguments(test_size=0))
    rows = loaded(plan.run_dir / "dataset", "long-long", tmp_path / "cache")["train"]
    assert list(rows["negative"]) == [None] * 6
    assert rows.features["negative"].dtype == "string"


def test_a_shorter_plan_curates_the_first_replies_only(run: PlanArguments) -> None:
    assert curate(small_plan(run.run_dir, 7), SPLIT) == "7 examples kept, none rejected"
    assert (
        curate(small_plan(run.run_dir, 36), SPLIT) == "24 examples kept, none rejected, 12 requests unanswered so far"
    )


def test_no_journal_and_no_replies(tmp_path: Path) -> None:
    plan = small_plan(tmp_path / "run", subgroups=["sts", "long-long"])
    with pytest.raises(InputError, match="no journal"):
        curate(plan, SPLIT)
    assert not plan.run_dir.exists()
    plan.run_dir.mkdir()
    (plan.run_dir / "replies.jsonl").touch()
    with pytest.raises(InputError):
        brainstorm(plan, LLMArguments(recorded_replies=str(plan.run_dir / "replies.jsonl")))
    with pytest.raises(InputError, match="no journal"):  # what was refused left none behind
        curate(plan, SPLIT)
    with Journal(journal_path(plan), plan.identity(), write=True):
        pass
    with pytest.raises(EmbedsmithError, match="no replies"):
        curate(plan, SPLIT)
    assert not (plan.run_dir / "dataset").exists()


def test_when_nothing_is_kept_all_is_in_rejected(tmp_path: Path) -> None:
    plan = small_plan(tmp_path / "run", 4, subgroups=["sts"])
    with pytest.raises(RunError, match="No reply could be used"):
        ask_recorded(plan, dict.fromkeys(answers(plan), completion("No.")))
    with pytest.raises(RunError, match="None of 4 replies became an example"):
        curate(plan, SPLIT)
    assert len(read_parquet(*(plan.run_dir / "rejected").glob("*.parquet"))) == 4
    assert not (plan.run_dir / "dataset").exists()


@contextmanager
def full_disk(max_bytes: int) -> Iterator[None]:
    """Let no file grow beyond `max_bytes`: what a full disk does, in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("curated_before", [False, True])
def test_a_full_disk_leaves_nothing_half_written(demo: Path, tmp_path: Path, curated_before: bool) -> None:
    plan = demo_plan(tmp_path / "run")
    shutil.copytree(demo, plan.run_dir)
    dataset = plan.run_dir / "dataset"
    if not curated_before:
        shutil.rmtree(dataset)
    before = folder_bytes(dataset)
    with full_disk(60_000), pytest.raises((OSError, RunError)):  # the first file that does not fit is in short-long
        curate(plan, CurationArguments(test_size=0, check_language=False))
    assert folder_bytes(dataset) == before
    curate(plan, SPLIT)
    assert {path.name for path in plan.run_dir.iterdir()} >= {"dataset", "rejected"}
    assert not list(plan.run_dir.glob("*.partial"))
    assert folder_bytes(dataset).keys() == folder_bytes(demo / "dataset").keys()
