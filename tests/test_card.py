"""The dataset card: valid YAML for the Hub, and no number that is not in the files beside it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard

from dataset_builder.card import size_category, with_repo
from dataset_builder.config import CurationArguments, PlanArguments
from dataset_builder.curation import REASONS
from dataset_builder.dataset import curate
from dataset_builder.languages import LANGUAGES
from dataset_builder.schema import SUBGROUPS
from tests.replies import Body, answers, ask_recorded, completion, read_parquet

TITLE, NOTE = 'Title: with a "colon", a #hash & 三', "Made by **nobody**: see {{ this }} | that."
CURATION = CurationArguments(test_size=0.3, dataset_title=TITLE, dataset_note=NOTE, dataset_license="cc0-1.0")


def replies_with_faults(plan: PlanArguments) -> dict[str, Body]:
    """Return replies with usage, two models, some of them unusable or duplicates, one with Markdown in it."""
    replies = answers(plan)
    for number, (id_, body) in enumerate(replies.items()):
        body |= {"model": f"model-{number % 2}", "usage": {"prompt_tokens": 1000 + number, "completion_tokens": 300}}
        if "-generate-" in id_ and number % 7 == 0:
            replies[id_] = body | {"choices": completion(["No.", None, "{}"][number % 3])["choices"]}
    texts = {"S1": "a | b\n---\n# {{ c }} <b>", "S2": "two `x` | y", "S3": "three"}
    replies[next(id_ for id_ in replies if id_.startswith("sts-generate-000000"))] |= completion(json.dumps(texts))
    return replies


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder of 120 requests, some of whose replies were rejected."""
    plan = PlanArguments(
        str(tmp_path_factory.mktemp("runs") / "run"), 120, languages=["en=3", "no", "zh", "fil"], examples_per_task=1
    )
    ask_recorded(plan, replies_with_faults(plan), input_price=[2.0], output_price=[10.0])
    curate(plan, CURATION)
    return plan.run_dir / "dataset"


@pytest.fixture(scope="module")
def card(folder: Path) -> DatasetCard:
    loaded: DatasetCard = DatasetCard.load(folder / "README.md")
    return loaded


def rows(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return read_parquet(*sorted(folder.glob(pattern)))


def examples(folder: Path) -> list[dict[str, Any]]:
    return [row for subgroup in SUBGROUPS for row in rows(folder, f"{subgroup}/*.parquet")]


def table(text: str, header: str) -> list[list[str]]:
    """Return the cells of the Markdown table that begins with `header`."""
    lines = text[text.index(f"| {header} |") :].split("\n\n", maxsplit=1)[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_seven_configs_name_all_files_once(folder: Path, card: DatasetCard) -> None:
    configs = card.data.get("configs")
    assert [config["config_name"] for config in configs] == [*SUBGROUPS, "tasks"]
    assert [config.get("default", False) for config in configs] == [True] + [False] * 6
    named = [path for config in configs for files in config["data_files"] for path in folder.glob(files["path"])]
    assert sorted(named) == sorted(folder.rglob("*.parquet"))
    for config in configs:
        for files in config["data_files"]:
            assert files["path"].startswith(f"{config['config_name']}/{files['split']}-")


def test_the_metadata(folder: Path, card: DatasetCard) -> None:
    data = vars(card.data)
    assert data["pretty_name"] == TITLE
    assert data["license"] == "cc0-1.0"
    assert data["language"] == ["en", "fil", "no", "zh"]  # "no" is a string, not False
    assert data["size_categories"] == ["n<1K"]
    assert "translation" in data["multilinguality"]
    assert {"synthetic", "embedsmith"} <= set(data["tags"])
    assert f"\n# {TITLE}\n" in card.text
    assert NOTE in card.text


def test_the_number_of_examples_is_that_of_the_files(folder: Path, card: DatasetCard) -> None:
    sentence = re.search(r"^([\d,]+) synthetic .* in (\d+) languages and (\d+) scripts", card.text, re.MULTILINE)
    assert sentence
    assert [number(group) for group in sentence.groups()] == [len(examples(folder)), 4, 2]


def test_the_composition_is_that_of_the_files(folder: Path, card: DatasetCard) -> None:
    _, _, *lines = table(card.text, "config")
    assert [line[0].strip("`") for line in lines] == list(SUBGROUPS)
    rejected = Counter(row["subgroup"] for row in rows(folder.parent, "rejected/*.parquet"))
    for name, _, *numbers in lines:
        subgroup = name.strip("`")
        splits = [rows(folder, f"{subgroup}/{split}-*.parquet") for split in ("train", "test")]
        tasks = {row["task_id"] for split in splits for row in split}
        assert [number(n) for n in numbers] == [len(splits[0]), len(splits[1]), len(tasks), rejected[subgroup]]
    tasks_sentence = re.search(r"lists all ([\d,]+) brainstormed tasks", card.text)
    assert tasks_sentence
    assert number(tasks_sentence[1]) == len(rows(folder, "tasks/*.parquet"))


def test_the_rejections_are_those_of_the_files(folder: Path, card: DatasetCard) -> None:
    _, _, *lines = table(card.text, "reason")
    counts = Counter(row["reason"] for row in rows(folder.parent, "rejected/*.parquet"))
    assert len(counts) >= 3
    assert [(reason, number(n), meaning) for reason, n, meaning in lines] == [
        (reason, n, REASONS[reason]) for reason, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    assert f"\n{counts.total()} replies became no example:\n" in card.text


def test_languages_models_and_prompts_are_those_of_the_files(folder: Path, card: DatasetCard) -> None:
    languages = Counter(code for row in examples(folder) for code in {row["language"], row["positive_language"]})
    for code, n in languages.items():
        assert f"{LANGUAGES[code].name} (`{code}`, {LANGUAGES[code].script}) {n}" in card.text
    for column, pattern in (("model", "`{}` ({} example{})"), ("prompt", "`{}` ({})")):
        for value, n in Counter(row[column] for row in examples(folder)).items():
            assert pattern.format(value, n, "s" * (n > 1)) in card.text


def test_tokens_and_cost_are_those_of_the_replies(folder: Path, card: DatasetCard) -> None:
    replies = [json.loads(line) for line in (folder.parent / "replies.jsonl").read_text().splitlines()]
    usages = [reply["response"]["body"]["usage"] for reply in replies if "-generate-" in reply["custom_id"]]
    prompt, completion_ = (sum(usage[f"{name}_tokens"] for usage in usages) for name in ("prompt", "completion"))
    cost = (2 * prompt + 10 * completion_) / 1e6
    assert f"took {prompt:,} prompt tokens and {completion_:,} completion tokens, US$ {cost:,.2f};" in card.text


def test_the_recipe_is_that_of_recipe_json(folder: Path, card: DatasetCard) -> None:
    block = re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)
    assert block
    recipe = json.loads((folder / "recipe.json").read_text())
    assert yaml.safe_load(block[1]) == recipe
    assert (recipe["num_examples"], recipe["test_size"], recipe["languages"]["no"]) == (120, 0.3, 1.0)


def test_samples_cannot_break_the_tables(card: DatasetCard) -> None:
    samples = card.text[card.text.index("### One example of each") : card.text.index("## How it was made")]
    assert [subgroup for subgroup in SUBGROUPS if f"**{subgroup}**" in samples] == list(SUBGROUPS)
    assert r"| query | a \| b --- # {{ c }} <b> |" in samples
    for line in samples.splitlines():
        assert not line.startswith("|") or len(re.findall(r"(?<!\\)\|", line)) == 3
    assert max(map(len, samples.splitlines())) < 320


def loading_example(text: str) -> tuple[str, str, str]:
    match = re.search(r'load_dataset\("([^"]*)", "([^"]*)", split="(\w+)"\)', text)
    assert match
    return match[1], match[2], match[3]


def test_the_loading_example_loads_what_is_there(folder: Path, card: DatasetCard) -> None:
    repo, config, split = loading_example(card.text)
    assert Path(repo) == folder
    assert list((folder / config).glob(f"{split}-*.parquet"))


@pytest.mark.parametrize("left_out", ["all", "train"])
def test_the_loading_example_leaves_out_what_is_not_there(tmp_path: Path, left_out: str) -> None:
    """Here the first subgroup is rejected as a whole, or its only task is in the test split."""
    plan = PlanArguments(str(tmp_path / "run"), 66, subgroups=["short-long", "sts"], examples_per_task=99)
    replies = answers(plan)
    if left_out == "all":
        replies |= {id_: completion("No.") for id_ in replies if id_.startswith("short-long-generate-")}
    ask_recorded(plan, replies)
    curate(plan, CurationArguments(test_size=0.9))
    folder = plan.run_dir / "dataset"
    assert not list((folder / "short-long").glob("train-*"))
    assert list((folder / "sts").glob("train-*"))
    _, config, split = loading_example((folder / "README.md").read_text())
    assert list((folder / config).glob(f"{split}-*.parquet"))


def test_replies_without_usage_cost_nothing_that_is_known(tmp_path: Path) -> None:
    plan = PlanArguments(str(tmp_path / "run"), 8, subgroups=["sts"])
    ask_recorded(plan, answers(plan))
    curate(plan, CurationArguments(test_size=0))
    text = (plan.run_dir / "dataset" / "README.md").read_text()
    assert "The replies come without token counts." in text
    assert "Every reply became an example." in text
    assert "US$" not in text


@pytest.mark.parametrize(
    ("num_rows", "name"),
    [
        (1, "n<1K"), (999, "n<1K"), (1_000, "1K<n<10K"), (9_999, "1K<n<10K"), (10_000, "10K<n<100K"),
        (500_000, "100K<n<1M"), (1_000_000, "1M<n<10M"), (10_000_000, "10M<n<100M"),
    ],
)  # fmt: skip
def test_size_categories(num_rows: int, name: str) -> None:
    assert size_category(num_rows) == name


def test_with_repo_changes_nothing_but_the_loading_example(card: DatasetCard) -> None:
    pushed = with_repo(card.text, "me/my-data")
    assert loading_example(pushed)[0] == "me/my-data"
    assert with_repo(pushed, loading_example(card.text)[0]) == card.text
    changed = [line for old, line in zip(card.text.splitlines(), pushed.splitlines(), strict=True) if old != line]
    assert len(changed) == 1
