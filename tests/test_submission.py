"""The verb `submit`: mteb's own code loads what it writes, and what it writes is of the model that was judged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import mteb
import numpy as np
import pytest
from huggingface_hub import HfApi
from mteb.cache import ResultCache
from mteb.models.model_implementations import MODEL_REGISTRY
from sentence_transformers import SentenceTransformer

from model_card.scores import read_evaluation
from model_card.submission import load_meta, meta_problems, results_problems
from tests.hub_server import Hub
from tests.runs import embedsmith

MODEL = "acme/Toy-Model.v1"


@pytest.fixture(scope="module")
def run(judged_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, which the push changes."""
    return Path(shutil.copytree(judged_once, tmp_path_factory.mktemp("submitted") / "run"))


@pytest.fixture(scope="module")
def submitted(run: Path) -> Path:
    """Push and submit; return the submission folder."""
    where = ("--output_dir", run, "--hub_model_id", MODEL)
    assert embedsmith("push-model", *where) == 0
    assert embedsmith("submit", *where, "--training_code_url", "https://example.org/code") == 0
    return run / "submission"


def module(submitted: Path) -> Path:
    return next(submitted.rglob("*_models.py"))


def test_mteb_knows_the_model_after_the_import(submitted: Path) -> None:
    MODEL_REGISTRY.pop(MODEL, None)
    meta = load_meta(module(submitted), MODEL)
    assert mteb.get_model_meta(MODEL) == meta
    assert meta.use_instructions
    assert meta.training_datasets == set()
    assert meta.adapted_from == "sentence-transformers/all-MiniLM-L6-v2"
    assert meta.n_embedding_parameters == 30522 * 384
    assert "eng-Latn" in (meta.languages or [])
    assert meta_problems(meta) == []


def test_mteb_loads_the_results(submitted: Path, run: Path) -> None:
    meta = load_meta(module(submitted), MODEL)
    found = ResultCache(submitted).load_results(models=[MODEL], tasks=["STS12", "MBPPRetrieval"], include_remote=False)
    scores = {result.task_name: result.get_score() for result in found.model_results[0].task_results}
    expected = {s.task: s.values["trained"] for s in read_evaluation(run).of(held_out=False) if not s.subset}
    assert scores == {name: pytest.approx(expected[name]) for name in ("STS12", "MBPPRetrieval")}
    assert found.model_results[0].model_revision == meta.revision


def test_the_published_model_gets_the_submitted_score(submitted: Path, run: Path) -> None:
    meta = load_meta(module(submitted), MODEL)
    result = mteb.evaluate(meta, mteb.get_task("STS12"), cache=None, show_progress_bar=False).task_results[0]
    expected = next(s.values["trained"] for s in read_evaluation(run).scores if s.task == "STS12")
    assert result.get_score() == pytest.approx(expected, abs=1e-6)


def test_the_published_model_gives_the_vectors_of_the_judged_one(submitted: Path, run: Path) -> None:
    sha = str(HfApi().model_info(MODEL).sha)
    published = SentenceTransformer(MODEL, revision=sha)
    local = SentenceTransformer(str(run / "model"))
    texts = [f"Text number {i} is about {'words ' * (i % 30)}" for i in range(100)]
    assert published.prompts == local.prompts
    for prompt in set(local.prompts.values()):  # several names have the same one
        difference = published.encode(texts, prompt=prompt) - local.encode(texts, prompt=prompt)
        assert np.abs(difference).max() < 1e-6, prompt


def test_mteb_finds_name_and_commit_of_the_model_by_itself(submitted: Path) -> None:
    known = MODEL_REGISTRY.pop(MODEL, None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of mteb's own code
            meta = mteb.get_model(MODEL).mteb_model_meta
    finally:
        if known is not None:
            MODEL_REGISTRY[MODEL] = known
    assert (meta.name, meta.revision) == (MODEL, HfApi().model_info(MODEL).sha)


def test_the_published_model_can_be_judged_and_submitted_from_the_hub(
    submitted: Path, run: Path, tmp_path: Path
) -> None:
    where = ("--output_dir", tmp_path, "--model_name_or_path", MODEL)
    assert embedsmith("evaluate", *where, "--no_held_out", "--tasks", "STS12") == 0
    sha = HfApi().model_info(MODEL).sha
    assert (tmp_path / "results" / "acme__Toy-Model.v1" / str(sha) / "STS12.json").is_file()
    ours = {s.task: s.values["trained"] for s in read_evaluation(run).scores}
    theirs = {s.task: s.values["trained"] for s in read_evaluation(tmp_path).scores}
    assert theirs == {"STS12": pytest.approx(ours["STS12"], abs=1e-6)}
    assert embedsmith("submit", *where, "--hub_model_id", MODEL) == 0
    assert list((tmp_path / "submission" / "results").rglob("STS12.json"))


def test_nothing_but_mtebs_own_tasks_is_submitted(submitted: Path) -> None:
    folder = next((submitted / "results").glob("acme__Toy-Model.v1/*"))
    names = {path.name for path in folder.iterdir()}
    assert not [name for name in names if name.startswith("HeldOut")]
    assert {"STS12.json", "model_meta.json", "run_settings.jsonl"} <= names
    assert "HeldOut" not in (folder / "run_settings.jsonl").read_text()
    assert "instructions.jsonl" not in names


def test_the_file_has_the_form_that_mtebs_checks_ask_for(submitted: Path) -> None:
    for command in (("check", "--isolated"), ("format", "--isolated", "--check")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, str(module(submitted))],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_mock_tasks_of_mteb_pass(submitted: Path) -> None:
    report = (submitted / "mteb" / "mteb_mock_run_results.md").read_text()
    assert report.startswith(f"# MTEB Mock-Run Results for `{MODEL}`")
    passed = [line for line in report.splitlines() if line.startswith("| Mock") and "| text |" in line]
    assert len(passed) >= 25
    assert all("✓" in line for line in passed)


def test_nothing_of_this_machine_is_in_it(submitted: Path, run: Path) -> None:
    for path in submitted.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not [word for word in (str(run), str(Path.home()), "hf_writer", "local/") if word in text], path


def test_results_that_mteb_would_refuse_are_told(submitted: Path) -> None:
    meta = load_meta(module(submitted), MODEL)
    folder = next((submitted / "results").glob("*/*"))
    settings = folder / "run_settings.jsonl"
    text = settings.read_text()
    try:
        settings.write_text("\n".join(line for line in text.splitlines() if "STS12" not in line) + "\n")
        assert any("STS12/test/default has no line" in problem for problem in results_problems(folder, meta))
        old = [json.loads(line) for line in text.splitlines()]
        for row in old:
            row["version"]["mteb"] = "2.13.0"
        settings.write_text("\n".join(map(json.dumps, old)) + "\n")
        assert any("before 2.14" in problem for problem in results_problems(folder, meta))
    finally:
        settings.write_text(text)
    assert results_problems(folder, meta) == []
    wrong = meta.model_copy(update={"revision": "main", "adapted_from": MODEL, "license": None})
    assert len(meta_problems(wrong)) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--hub_model_id", "toy"), "is not given as name/model"),
        (("--hub_model_id", "acme/never-pushed"), "push-model` first"),
    ],
)
def test_bad_input_is_one_sentence(
    submitted: Path, run: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert embedsmith("submit", "--output_dir", run, *flags) == 2
    assert message in capsys.readouterr().err
    assert module(submitted).is_file()


def test_another_model_than_the_judged_one_is_refused(
    hub: Hub, judged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--output_dir", judged, "--hub_model_id", "acme/other-model")
    assert embedsmith("push-model", *where) == 0
    config = judged / "model" / "config.json"
    changed = json.loads(config.read_text()) | {"hidden_act": "relu"}
    config.write_text(json.dumps(changed))
    assert embedsmith("submit", *where) == 2
    assert "is another model than the one that was judged (config.json differ" in capsys.readouterr().err


def test_held_out_scores_alone_are_no_submission(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((judged / "evaluation.json").read_text())
    summary["tasks"] = [task for task in summary["tasks"] if task["held_out"]]
    (judged / "evaluation.json").write_text(json.dumps(summary))
    assert embedsmith("submit", "--output_dir", judged, "--hub_model_id", MODEL) == 2
    assert "which no leaderboard takes" in capsys.readouterr().err
