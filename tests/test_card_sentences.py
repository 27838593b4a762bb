"""The sentences of the dataset card in every combination of settings, on counts made by hand."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from dataset_builder.card import dataset_card
from dataset_builder.composition import Composition
from dataset_builder.config import CurationArguments, PlanArguments
from dataset_builder.contamination import Overlap
from dataset_builder.curation import REASONS
from dataset_builder.dataset import curate
from dataset_builder.schema import BRAINSTORMED, SUBGROUPS, Subgroup
from tests.hub_server import Hub
from tests.replies import answers, fill_journal
from tests.runs import embedsmith

ROW = {
    "instruction": "Find it.", "query": "q", "positive": "p", "negative": None, "language": "en",
    "positive_language": "de", "model": "llm", "prompt": "sts/generate/item",
}  # fmt: skip


def composed(counts: dict[Subgroup, tuple[int, int]]) -> Composition:
    """Return the composition of a corpus with so many train and test examples."""
    composition = Composition()
    for subgroup, nums in counts.items():
        for split, num in zip(("train", "test"), nums, strict=True):
            for n in range(num):
                row = ROW | {"id": f"{subgroup}-{split}-{n}", "task_id": f"{subgroup}-{split}"}
                composition.add(row, subgroup, split, {"query": 1, "positive": 1, "negative": 0})
    return composition


def card(folder: Path, composition: Composition, num_tasks: int, **settings: Any) -> str:
    for subgroup, split in composition.examples:
        (folder / subgroup).mkdir(exist_ok=True)
        (folder / subgroup / f"{split}-00000-of-00001-abc.parquet").touch()
    text = dataset_card(folder, composition, num_tasks, {"seed": 0}, CurationArguments(**settings), Path("runs/x"))
    return text.split("\n---\n", 1)[1]


MIXED: dict[Subgroup, tuple[int, int]] = {"short-long": (3, 1), "sts": (2, 1)}


@pytest.mark.parametrize(
    ("counts", "num_tasks", "repeated", "expected"),
    [
        ({"sts": (3, 0)}, 0, 0, []),
        ({"sts": (3, 1)}, 0, 0, ["`sts`, which has one fixed task, is split by example."]),
        (
            {"sts": (3, 1), "bitext": (1, 0)},
            0,
            0,
            ["`sts` and `bitext`, which have one fixed task each, are split by example."],
        ),
        ({"short-long": (3, 0)}, 1, 0, ["The config `tasks` lists the one brainstormed task, with or without examples."]),
        ({"short-long": (3, 0)}, 2, 1, ["The config `tasks` lists all 2 brainstormed tasks, with or without examples."]),
        (
            {"short-long": (3, 1)},
            1200,
            1,
            [
                "The config `tasks` lists all 1,200 brainstormed tasks, with or without examples.",
                "Train and test are split by task: no task of one is in the other, and the 1 task that nearly repeats an "
                "earlier one goes where that one goes.",
            ],
        ),
        (
            MIXED,
            9,
            0,
            [
                "The config `tasks` lists all 9 brainstormed tasks, with or without examples.",
                "Train and test are split by task: no task of one is in the other.",
                "`sts`, which has one fixed task, is split by example.",
            ],
        ),
    ],
)  # fmt: skip
def test_the_paragraph_on_tasks_and_splits(
    tmp_path: Path, counts: dict[Subgroup, tuple[int, int]], num_tasks: int, repeated: int, expected: list[str]
) -> None:
    composition = composed(counts)
    composition.num_repeated_tasks = repeated
    text = card(tmp_path, composition, num_tasks)
    between = text[text.rindex("|\n", 0, text.index("| column |")) + 2 : text.index("| column |")]
    assert [line for line in between.splitlines() if line] == expected


def test_the_first_sentence(tmp_path: Path) -> None:
    text = card(tmp_path, composed({"sts": (1, 0)}), 0)
    assert (
        "\n1 synthetic example (1 train, 0 test) for training text embedding models, in 2 languages and 1 script, "
        in text
    )
    assert "it wrote each example for a fixed task, with" in text
    assert "it first brainstormed tasks, then wrote each example for one task, with" in card(
        tmp_path, composed(MIXED), 9
    )


def test_what_was_checked(tmp_path: Path) -> None:
    off = {"check_language": False, "max_length_factor": 0, "near_duplicate_threshold": 1}
    (line,) = re.findall("^What was checked: .*$", card(tmp_path, composed({"sts": (1, 1)}), 0, **off), re.MULTILINE)
    assert line == (
        "What was checked: JSON and keys; copies between the texts, labels given away, phrases in which an LLM speaks of its "
        "order; exact duplicates of queries and positives within a subgroup."
    )
    on = {"consistency_model": "me/model", "consistency_top_k": 7, "max_length_factor": 2.5}
    text = card(tmp_path, composed({"long-short": (1, 1)}), 1, **on)
    (line,) = re.findall("^What was checked: .*$", text, re.MULTILINE)
    for part in (
        "; language and script of every text (by `py3langid`; a language that it does not know is never rejected for it); ",
        "; lengths missed by more than a factor of 2.5; ",
        "; near duplicates (Jaccard similarity of single words and pairs of words, estimated by MinHash, of 0.8 or more) of "
        "queries and positives within a subgroup (the labels of `long-short` may recur); consistency: `me/model` must find",
    ):
        assert part in line
    assert line.endswith("the positive among its 7 nearest in the subgroup, and nearer than the hard negative.")


def test_contamination(tmp_path: Path) -> None:
    composition = composed(MIXED)
    assert "not compared with the test sets of any evaluation task." in card(tmp_path, composition, 1)
    tasks = {"contamination_tasks": ["STS13", "ArguAna"]}
    text = card(tmp_path, composition, 1, **tasks, contamination_ngram=8)
    assert (
        "compared with the test sets of STS13, ArguAna; an example that shares 8 words in a row with one of them"
        in text
    )
    assert "repeats a shorter test text whole, was rejected (none was found)." in text
    composition.overlaps = [
        Overlap(task, "sts", "query", "x", str(n)) for n, task in enumerate(["STS13", "A", "STS13"])
    ]
    assert "was rejected (examples by task: STS13 2, A 1)." in card(tmp_path, composition, 1, **tasks)


@pytest.mark.parametrize("num", [1, 2])
def test_what_is_missing_and_what_was_rejected(tmp_path: Path, num: int) -> None:
    composition = composed(MIXED)
    composition.num_unanswered = num
    composition.rejected = Counter({("sts", "json"): num})
    text = card(tmp_path, composition, 1)
    reply, request = ("reply", "request has") if num == 1 else ("replies", "requests have")
    assert f"\nThe replies come without token counts.\n{num} planned {request} no reply yet.\n\n" in text
    assert f"\n\n{num} {reply} became no example:\n\n| reason |" in text
    assert f"| json | {num} | {REASONS['json']} |\n\nWhat was checked" in text


COMBINATIONS: list[Any] = list(
    itertools.product(
        ({"sts": (1, 0)}, {"short-long": (1, 1)}, MIXED, dict.fromkeys(SUBGROUPS, (1, 1))),
        (0, 3), ([], ["STS13"]), (None, "me/model"), (None, 1_000), ("", "A note."),
    )
)  # fmt: skip


@pytest.mark.parametrize("num", [8, pytest.param(len(COMBINATIONS), marks=pytest.mark.slow)])
def test_a_combination_is_tidy(tmp_path: Path, num: int) -> None:
    chosen = random.Random(num).sample(COMBINATIONS, num)
    for number, (counts, num_other, tasks, model, tokens, note) in enumerate(chosen):
        composition = composed(counts)
        composition.num_unanswered = composition.num_repeated_tasks = num_other
        composition.rejected = Counter({("sts", "json"): num_other}) if num_other else Counter()
        composition.prompt_tokens = composition.completion_tokens = tokens
        (folder := tmp_path / str(number)).mkdir()
        text = card(
            folder,
            composition,
            5 * any(subgroup in BRAINSTORMED for subgroup in counts),
            contamination_tasks=tasks,
            consistency_model=model,
            dataset_note=note,
        )
        text = text.split("## Citation")[0]
        assert "\n\n\n" not in text
        assert not re.search(r"(?m) $|\S  \w|\(\)|\bNone\b| [.,;]|\.\.$|;\.|\b0 tasks|\b1 \w+s (?:have|are)\b", text)
        for line in text.splitlines():
            assert (
                not line
                or line[0] in "#|-`!}{@*"
                or line.startswith(("  ", "from", "examples", "print", "seed"))
                or line[-1] in ".:"
            ), line


def test_the_plots_are_named_in_the_card_and_pushed(tmp_path: Path, hub: Hub) -> None:
    plan = PlanArguments(str(tmp_path / "run"), 8, subgroups=["sts"], languages=["en"])
    fill_journal(plan, answers(plan))
    curate(plan, CurationArguments())
    folder = plan.run_dir / "dataset"
    named = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (folder / "README.md").read_text())
    assert named == ["plots/languages.png", "plots/lengths.png"]
    assert sorted(named) == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in named)
    assert embedsmith("push-dataset", "--output_dir", plan.run_dir, "--hub_dataset_id", "tester/with-plots") == 0
    assert set(named) <= set(HfApi().list_repo_files("tester/with-plots", repo_type="dataset"))
