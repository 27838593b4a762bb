"""Card, MTEB.md and report: what stands in them is what the files say, and what people wrote is kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResultEntry, ModelCard, parse_eval_result_entries
from mteb.cache import ResultCache

from model_card import submission
from model_card.card import card_data, context, model_card, render, repo_of, with_repo
from model_card.config import EvaluationArguments, ModelHubArguments
from model_card.eval_results import eval_results_files
from model_card.parts import parts
from model_card.published import WELL_KNOWN, fetch_published, read_published
from model_card.scores import Evaluation, Score, read_evaluation
from model_card.summary import Mean, by_language, by_type
from tests.runs import embedsmith, folder_bytes

GOLD = Path(__file__).parent / "gold"


def score(
    task: str, kind: str, subset: str | None = None, languages: tuple[str, ...] = ("eng",), **values: float
) -> Score:
    return Score(task, subset, kind, "main", False, None, languages, f"mteb/{task.lower()}", "a" * 40, values)


def toy_evaluation() -> Evaluation:
    held_out = Score(
        "HeldOutSTS", None, "STS", "cosine_spearman", True, 12, ("eng",), "embedsmith/held-out", "d" * 40, {}
    )
    models = [("base", "Base, as published"), ("base_eos", "Base, EOS pooling, untrained"), ("trained", "trained")]
    return Evaluation(
        dataset_revision="d" * 40,
        num_training_examples=100,
        mteb="2.26.0",
        models=[{"key": key, "label": label, "name": f"org/{key}", "revision": "b" * 40} for key, label in models],
        scores=[
            score("STS12", "STS", base=0.8, base_eos=0.6, trained=0.7),
            score("STS13", "STS", base=0.5, base_eos=0.6, trained=0.65),
            score("XQuAD", "Retrieval", languages=("eng", "deu"), base=0.9, base_eos=0.5, trained=0.4),
            score("XQuAD", "Retrieval", "en", base=0.95, base_eos=0.6, trained=0.5),
            score("XQuAD", "Retrieval", "de", ("deu",), base=0.85, base_eos=0.4, trained=0.3),
            Score(**{**vars(held_out), "values": {"base": 0.1, "base_eos": -0.2, "trained": 0.3}}),
        ],
        usage={"sentence_transformers": "tensor([[0.5000, 0.2500]])", "transformers": "tensor([[1.0000, 0.5000]])"},
        neighbours={},
    )


RECORD: dict[str, Any] = {
    "base_model": {"name": "org/base", "revision": "b" * 40, "is_hub_id": True},
    "dataset": {
        "name": "org/corpus",
        "revision": "c" * 40,
        "is_hub_id": True,
        "num_examples": 100,
        "examples": {"short-long": {"en": 60, "de": 5}, "sts": {"en": 30, "zh": 5}},
    },
    "arguments": {"learning_rate": 1e-4, "max_seq_length": 512, "temperature": 0.02},
    "num_steps": 50,
    "training_seconds": 3600.0,
    "hardware": {"device": "NVIDIA H100", "num_devices": 8, "cpu_cores": 16},
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    "log_history": [],
}
FACTS = {"dim": 384, "num_parameters": 22_713_216, "is_adapter": False}


def toy_files(run: Path) -> dict[str, str]:
    arguments = EvaluationArguments(output_dir=str(run), model_title="A toy", model_note="Not meant for use.")
    evaluation = toy_evaluation()
    values = context(arguments, RECORD, evaluation, FACTS, "org/toy")
    data = card_data(arguments, RECORD, evaluation, is_adapter=False)
    return {"card.md": model_card(data, values, None, "README.md"), "mteb.md": render("mteb.md", values)}


@pytest.mark.parametrize("name", ["card.md", "mteb.md"])
def test_gold_files(tmp_path: Path, name: str) -> None:
    text = toy_files(tmp_path)[name]
    if os.environ.get("EMBEDSMITH_UPDATE_GOLD"):
        (GOLD / name).write_text(text)
    assert text == (GOLD / name).read_text()


def test_the_gold_file_of_the_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        submission,
        "model_facts",
        lambda folder: {**FACTS, "num_embedding_parameters": 11_720_448, "num_bytes": 90 << 20},
    )
    instructions = tmp_path / "instructions.yaml"
    instructions.write_text('STS12: Say "the same" in other words.\n')
    arguments = EvaluationArguments(output_dir=str(tmp_path), task_instructions=str(instructions))
    hub = ModelHubArguments(hub_model_id="My-Org/toy.v1")
    values = submission._meta_values(arguments, hub, tmp_path, RECORD, "f" * 40, "2026-11-01")
    text = render("model_meta.py.jinja", values)
    if os.environ.get("EMBEDSMITH_UPDATE_GOLD"):
        (GOLD / "model_meta.txt").write_text(text)
    assert text == (GOLD / "model_meta.txt").read_text()
    path = tmp_path / "toy_models.py"
    path.write_text(text)
    assert submission.load_meta(path, "My-Org/toy.v1").name == "My-Org/toy.v1"


def test_the_yaml_is_read_by_the_hubs_own_classes(judged_once: Path) -> None:
    card = ModelCard.load(judged_once / "model" / "README.md")
    assert card.data.library_name == "sentence-transformers"
    assert card.data.base_model_relation == "finetune"
    results = card.data.eval_results or []
    names = {result.dataset_name: result.metric_value for result in results if not result.dataset_config}
    evaluation = read_evaluation(judged_once)
    for found in evaluation.scores:
        if found.subset is None:
            assert names[found.task if found.held_out else f"MTEB {found.task}"] == round(found.values["trained"], 5)
    entries: list[EvalResultEntry] = []
    for path in sorted((judged_once / "model" / ".eval_results").glob("*.yaml")):
        entries += parse_eval_result_entries(yaml.safe_load(path.read_text()))
    by_id = {entry.task_id: entry for entry in entries}
    expected = next(s.values["trained"] for s in evaluation.scores if s.task == "STS12")
    assert by_id["STS12"].value == round(expected * 100, 5)
    assert by_id["STS12_default_test"].dataset_id == "mteb/sts12-sts"


def test_the_entries_are_those_that_mteb_writes(judged_once: Path) -> None:
    evaluation = read_evaluation(judged_once)
    trained = next(model for model in evaluation.models if model["key"] == "trained")
    for name, text in eval_results_files(judged_once, evaluation).items():
        task = name.removesuffix(".yaml")
        result = ResultCache(judged_once).load_task_result(task, trained["name"], trained["revision"])
        assert result is not None
        theirs = yaml.safe_load(result._to_hf_benchmark_result().to_yaml())
        ours = yaml.safe_load(text)
        assert [(e["dataset"], e["value"]) for e in ours] == [(e["dataset"], e["value"]) for e in theirs]


def test_the_usage_block_prints_what_the_card_says(judged_once: Path, tmp_path: Path) -> None:
    card = (judged_once / "model" / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        said = re.findall(r"[\d.]+", "".join(line for line in block.splitlines() if line.startswith("# ")))
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        printed = re.findall(r"[\d.]+", done.stdout)
        assert len(said) == len(printed) > 1
        assert [float(x) for x in printed] == pytest.approx([float(x) for x in said], abs=2e-4)


def test_check_agrees_and_tells_what_does_not(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--output_dir", judged, "--model_title", "Toy")
    assert embedsmith("report", *where, "--check") == 1  # the copy lies elsewhere, and the examples name the folder
    assert embedsmith("report", *where) == 0
    assert embedsmith("report", *where, "--check") == 0
    path = next((judged / "results").glob("local__*/*/STS12.json"))
    result = json.loads(path.read_text())
    result["scores"]["test"][0]["main_score"] += 0.01
    path.write_text(json.dumps(result))
    capsys.readouterr()
    assert embedsmith("report", *where, "--check") == 1
    error = capsys.readouterr().err
    assert "model/.eval_results/STS12.yaml, model/MTEB.md, model/README.md, report.html does not agree" in error


def test_what_people_wrote_into_the_card_is_kept(judged: Path) -> None:
    card = judged / "model" / "README.md"
    text = card.read_text()
    text = text.replace("library_name:", "thumbnail: logo.png\nlibrary_name:")
    text = text.replace("## Limits\n", "## Who made it\n\nWe did, in Tartu.\n\n## Limits\n")
    text = text.replace("dimensions | 384", "dimensions | 999")  # in a part of ours
    text = re.sub(r"<!-- embedsmith:lineage -->.*<!-- /embedsmith:lineage -->\n", "", text, flags=re.DOTALL)
    card.write_text(text)
    assert embedsmith("report", "--output_dir", judged, "--model_title", "Toy") == 0
    after = card.read_text()
    assert "We did, in Tartu." in after
    assert "thumbnail: logo.png" in after
    assert "dimensions | 384" in after
    assert "embedsmith:lineage" not in after
    assert embedsmith("report", "--output_dir", judged, "--model_title", "Toy", "--check") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "# All mine\n", "no part between our markers"),
        (lambda text: text.replace("<!-- /embedsmith:usage -->", ""), "without `<!-- /embedsmith:usage -->`"),
        (lambda text: text.replace("license: apache-2.0", "license: [apache"), "cannot be read"),
    ],
)
def test_a_card_that_cannot_be_merged_is_one_sentence(
    judged: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    card = judged / "model" / "README.md"
    card.write_text(change(card.read_text()))
    before = folder_bytes(judged)
    assert embedsmith("report", "--output_dir", judged) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert folder_bytes(judged) == before


def test_results_of_another_model_are_refused(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = judged / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "relu"}))
    assert embedsmith("report", "--output_dir", judged) == 2
    assert "are of another model" in capsys.readouterr().err


def test_scores_that_are_gone_leave_no_file_behind(judged: Path) -> None:
    summary = json.loads((judged / "evaluation.json").read_text())
    summary["tasks"] = [task for task in summary["tasks"] if task["held_out"]]
    (judged / "evaluation.json").write_text(json.dumps(summary))
    assert embedsmith("report", "--output_dir", judged) == 0
    assert not (judged / "model" / "MTEB.md").exists()
    assert not list((judged / "model" / ".eval_results").glob("*.yaml"))


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]


def test_the_page_needs_nothing_but_itself(judged_once: Path) -> None:
    page = _Page()
    page.feed((judged_once / "report.html").read_text())
    assert len(page.links) >= 4
    assert all(link.startswith("data:image/png;base64,") for link in page.links)


def test_means_and_intervals() -> None:
    assert Mean.of([0.5]) == Mean(0.5, None, None)
    assert Mean.of([0.2, 0.4, 0.6, 0.8]) == Mean(0.5, None, None)
    mean = Mean.of([0.0, 1.0] * 50)
    assert mean.value == 0.5
    # the standard error of the mean is 0.5 / sqrt(100) = 0.05
    assert mean.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02)
    assert mean.high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)
    assert Mean.of([0.3, 0.4, 0.9, 0.1, 0.2]) == Mean.of([0.3, 0.4, 0.9, 0.1, 0.2])


def test_groups_by_type_and_language() -> None:
    groups = {group.name: group for group in by_type(toy_evaluation())}
    assert list(groups) == ["Retrieval", "STS", "all tasks"]
    assert groups["all tasks"].means["trained"].value == pytest.approx((0.7 + 0.65 + 0.4) / 3)
    assert groups["STS"].gain is not None
    assert groups["STS"].gain.value == pytest.approx((0.1 + 0.05) / 2)
    languages = {group.name: group for group in by_language(toy_evaluation())}
    assert languages["eng"].num_tasks == 3
    assert languages["deu"].means["trained"].value == pytest.approx(0.3)


def test_published_scores_come_from_mtebs_own_cache(
    judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_published(judged)["why"] == "mteb's results repository could not be reached (ConnectionError)"
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))
    source = next((judged / "results").glob("sentence-transformers__*/*"))
    target = tmp_path / "mteb" / "remote" / "results" / "BAAI__bge-m3" / ("e" * 40)
    shutil.copytree(source, target)
    meta = json.loads((target / "model_meta.json").read_text()) | {"name": "BAAI/bge-m3", "revision": "e" * 40}
    (target / "model_meta.json").write_text(json.dumps(meta))
    said = fetch_published(judged, WELL_KNOWN, {"STS12": ["default"], "MBPPRetrieval": ["other"]})
    assert said == "published scores of 1 model on the judged tasks"
    found = read_published(judged)["models"]["BAAI/bge-m3"]
    expected = next(s.values["base"] for s in read_evaluation(judged).scores if s.task == "STS12")
    assert found["scores"] == {"STS12": pytest.approx(expected)}  # MBPPRetrieval was judged on another subset
    assert embedsmith("report", "--output_dir", judged) == 0
    assert "BAAI/bge-m3" in (judged / "model" / "MTEB.md").read_text()


def test_the_repo_of_the_examples() -> None:
    card = 'model = SentenceTransformer("runs/demo/model")\nAutoModel.from_pretrained("runs/demo/model")\n'
    assert repo_of(card) is None
    pushed = with_repo(card, "me/model")
    assert repo_of(pushed) == "me/model"
    assert "runs" not in pushed


def test_every_part_of_the_card_has_a_name(judged_once: Path) -> None:
    found = parts((judged_once / "model" / "README.md").read_text())
    assert set(found) == {"summary", "usage", "results", "training", "lineage", "limits"}
    assert all(text.strip() for text in found.values())
