"""The whole of embedsmith on recorded replies with a tiny decoder, pushed to a local Hub and used as its users do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from huggingface_hub import DatasetCard, HfApi, ModelCard
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from dataset_builder.schema import COLUMNS, SUBGROUPS
from tests.hub_server import Hub
from tests.runs import embedsmith, folder_bytes
from tests.tiny_models import save_tiny_model

DATASET, MODEL = "tester/demo-dataset", "tester/demo-model"


def verbs(run: Path, base: Path) -> list[tuple[object, ...]]:
    where = ("--output_dir", run)
    dataset = ("--config", "demo", "--num_examples", 192, *where)
    tiny = ("--model_name_or_path", base, "--max_seq_length", 48, "--num_train_epochs", 1)
    return [
        ("brainstorm", *dataset),
        ("generate", *dataset),
        ("curate", *dataset),
        ("train", "--config", "demo", *where, *tiny),
        ("evaluate", *where, "--base_model_name_or_path", base),
        ("report", *where),
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny-qwen3"
    save_tiny_model("qwen3", folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    for verb in verbs(folder, base):
        assert embedsmith(*verb) == 0, verb
    return folder


@pytest.fixture(scope="module")
def pushed(run: Path) -> dict[str, str]:
    """Push dataset and model; return their commits."""
    assert embedsmith("push-dataset", "--output_dir", run, "--hub_dataset_id", DATASET) == 0
    assert embedsmith("push-model", "--output_dir", run, "--hub_model_id", MODEL) == 0
    api = HfApi()
    shas = {"dataset": api.dataset_info(DATASET).sha, "model": api.model_info(MODEL).sha}
    return {name: str(sha) for name, sha in shas.items()}


def texts() -> list[str]:
    words = ["Häuser", "river", "東京", "حديقة", "मौसम", "quickly", "7.5", "—", "nothing", "Θάλασσα"]
    return [" ".join(words[(i * j) % 10] for j in range(1, 2 + i * 2)) for i in range(50)]


def same_vectors(model: Any, tokenizer: Any, sentence_transformer: SentenceTransformer) -> float:
    """Return the least cosine between AutoModel's EOS embeddings and SentenceTransformer's vectors of 50 texts."""
    batch = tokenizer(texts(), padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    last = batch["attention_mask"].sum(dim=1) - 1
    ours = torch.nn.functional.normalize(hidden[torch.arange(50), last], dim=-1)
    theirs = torch.from_numpy(sentence_transformer.encode(texts()))
    return float((ours * theirs).sum(dim=-1).min())


def test_the_folders_work_by_themselves(run: Path) -> None:
    for subgroup in SUBGROUPS:
        splits = load_dataset(str(run / "dataset"), subgroup)
        assert set(splits) == {"train", "test"}
        assert tuple(splits["train"].column_names) == COLUMNS
    model = AutoModel.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert same_vectors(model, tokenizer, SentenceTransformer(str(run / "model"))) >= 0.99999
    assert (run / "report.html").stat().st_size > 10_000


def test_no_task_is_in_both_splits(run: Path) -> None:
    for subgroup in SUBGROUPS[:4]:
        splits = load_dataset(str(run / "dataset"), subgroup)
        assert not set(splits["train"]["task_id"]) & set(splits["test"]["task_id"])


def test_every_verb_can_be_run_again(run: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = folder_bytes(run)
    for verb in verbs(run, base):
        assert embedsmith(*verb) == 0
    messages = capsys.readouterr().err
    for said in (
        "brainstorm: nothing to ask",
        "generate: nothing to ask",
        "train: nothing to do",
        "evaluate: nothing to do",
    ):
        assert said in messages
    after = folder_bytes(run)
    journal = {"journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"}
    assert {p: d for p, d in after.items() if p not in journal} == {p: d for p, d in before.items() if p not in journal}


def test_users_load_the_dataset(pushed: dict[str, str], run: Path) -> None:
    for subgroup in SUBGROUPS:
        rows = load_dataset(DATASET, subgroup, split="train")
        assert rows.to_list() == load_dataset(str(run / "dataset"), subgroup, split="train").to_list()
        streamed = load_dataset(DATASET, subgroup, split="train", streaming=True)
        assert list(streamed) == rows.to_list()
        pinned = load_dataset(DATASET, subgroup, split="test", revision=pushed["dataset"])
        assert len(pinned) > 0
    assert set(load_dataset(DATASET, "tasks", split="train").column_names) >= {"task_id", "task", "subgroup"}


def test_users_load_the_model(pushed: dict[str, str]) -> None:
    model, tokenizer = AutoModel.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)
    pinned = SentenceTransformer(MODEL, revision=pushed["model"])
    assert same_vectors(model, tokenizer, pinned) >= 0.99999
    assert str(pinned.prompts["query"]).startswith("Instruct: ")


def test_users_read_the_cards(pushed: dict[str, str], run: Path) -> None:
    dataset = DatasetCard.load(DATASET)
    assert [config["config_name"] for config in dataset.data.configs] == [*SUBGROUPS, "tasks"]
    assert dataset.data.to_dict()["tags"][0] == "synthetic"
    assert f'load_dataset("{DATASET}"' in dataset.text
    model = ModelCard.load(MODEL)
    assert model.data.library_name == "sentence-transformers"
    assert model.data.pipeline_tag == "sentence-similarity"
    assert f'SentenceTransformer("{MODEL}")' in model.text
    metrics = {(r.dataset_name, r.dataset_config): r.metric_value for r in model.data.eval_results}
    results = json.loads(next(run.glob("results/local__*/*/HeldOutSTS.json")).read_text())
    assert metrics["HeldOutSTS", None] == round(results["scores"]["test"][0]["main_score"], 5)


def test_the_code_of_both_cards_runs_as_it_stands(pushed: dict[str, str], tmp_path: Path) -> None:
    cards = [DatasetCard.load(DATASET).text, ModelCard.load(MODEL).text]
    blocks = [block for card in cards for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL)]
    assert len(blocks) == 3
    # as a stranger: no token, nothing in the cache
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    del environment["HF_TOKEN"]
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def test_a_push_is_one_commit_and_the_same_push_is_none(hub: Hub, pushed: dict[str, str], run: Path) -> None:
    for repo_type, repo in (("dataset", DATASET), ("model", MODEL)):
        assert len(hub.commits(repo_type, repo)) == 2  # the Hub's first one, and ours
    assert embedsmith("push-dataset", "--output_dir", run, "--hub_dataset_id", DATASET) == 0
    assert embedsmith("push-model", "--output_dir", run, "--hub_model_id", MODEL) == 0
    assert HfApi().dataset_info(DATASET).sha == pushed["dataset"]
    assert HfApi().model_info(MODEL).sha == pushed["model"]


@pytest.mark.parametrize("kind", ["500", "503", "429", "412", "409", "reset", "cut", "lost"])
def test_a_failing_hub_gets_one_commit_all_the_same(hub: Hub, run: Path, kind: str) -> None:
    repo = f"tester/fault-{kind}"
    hub.fail("POST .*/commit/", kind, times=2)
    assert embedsmith("push-dataset", "--output_dir", run, "--hub_dataset_id", repo) == 0
    assert len(hub.commits("dataset", repo)) == 2


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        ("hf_wrong", "tester/x", "does not accept the token"),
        ("hf_reader", "tester/x", "may not write"),
        (None, "a b", "no name"),
    ],
)
def test_a_refused_push_is_one_sentence(
    hub: Hub,
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    repo: str,
    message: str,
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    before = folder_bytes(run)
    assert embedsmith("push-dataset", "--output_dir", run, "--hub_dataset_id", repo) == 2
    assert folder_bytes(run) == before  # the card does not name a repo that there is not
    error = capsys.readouterr().err
    assert message in error
    assert token is None or token not in error


def test_a_dry_run_changes_nothing(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = folder_bytes(run)
    assert embedsmith("push-model", "--output_dir", run, "--hub_model_id", "tester/dry", "--dry_run") == 0
    assert "new      model.safetensors" in capsys.readouterr().err
    assert not HfApi().repo_exists("tester/dry")
    assert folder_bytes(run) == before


def test_nothing_published_names_this_machine(run: Path, base: Path) -> None:
    secrets = [str(run), str(base), str(Path.home()), "hf_writer"]
    for folder in ("dataset", "model"):
        for path in (run / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".png", ".safetensors", ".md"):
                content = path.read_bytes().decode("utf-8", "replace")
                assert not [secret for secret in secrets if secret in content], path
