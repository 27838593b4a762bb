"""The verb `evaluate`: mteb's own scores, nothing judged twice, nobody given another's scores."""

from __future__ import annotations

import json
import multiprocessing
import warnings
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
import torch
from mteb.cache import ResultCache
from sentence_transformers import SentenceTransformer

from dataset_builder.errors import InputError
from dataset_builder.schema import instruct
from model_card.batches import TokenBatches, token_batches
from model_card.encoder import TaskInstructEncoder, model_meta
from model_card.evaluation import official_tasks
from model_card.instructions import read_instructions
from model_card.scores import read_evaluation, read_told, results_folder
from tests.hub_server import Hub
from tests.judged import EVALUATE
from tests.mteb_toys import TASKS, put_toys
from tests.runs import embedsmith, folder_bytes
from trainer.base_model import PACKAGED, resolve_base_model

BM25 = "mteb/baseline-bm25s"


def results(run: Path, key: str) -> Path:
    summary = json.loads((run / "evaluation.json").read_text())
    model = next(model for model in summary["models"] if model["key"] == key)
    return results_folder(run, model["name"], model["revision"])


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformer:
    return SentenceTransformer(resolve_base_model(PACKAGED).path)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "STS16"])
def test_the_base_gets_the_scores_that_mteb_gives_it(judged_once: Path, minilm: SentenceTransformer, task: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mteb's own code
        theirs = mteb.evaluate(minilm, mteb.get_task(task), cache=None, show_progress_bar=False).task_results[0]
    ours = ResultCache(judged_once).load_task_result(task, *_identity(judged_once, "base"))
    assert ours is not None
    assert ours.get_score() == pytest.approx(theirs.get_score(), abs=1e-5)


def _identity(run: Path, key: str) -> tuple[str, str]:
    folder = results(run, key)
    return folder.parent.name.replace("__", "/"), folder.name


def test_results_lie_in_the_layout_of_the_results_repository(judged_once: Path) -> None:
    folder = results(judged_once, "trained")
    assert {path.stem for path in folder.glob("*.json")} >= {"STS12", "MBPPRetrieval", "model_meta"}
    meta = json.loads((folder / "model_meta.json").read_text())
    assert folder.parent.name == meta["name"].replace("/", "__")
    assert folder.name == meta["revision"]
    assert (folder / "run_settings.jsonl").is_file()


def test_bm25_is_judged_on_retrieval_alone(judged_once: Path) -> None:
    names = {path.stem for path in results(judged_once, BM25).glob("*.json")} - {"model_meta"}
    assert names == {"HeldOutRetrieval", "MBPPRetrieval"}


def test_each_task_is_told_its_instruction(judged_once: Path) -> None:
    told = read_told(results(judged_once, "trained"))
    assert told["STS12"] == "Retrieve semantically similar text."
    assert (
        told["MBPPRetrieval"] == read_instructions(None)["Retrieval"]
    )  # neither our file nor mteb has one for the task
    assert not (results(judged_once, "base") / "instructions.jsonl").exists()


def test_instructions_stand_before_queries_and_before_both_sides_of_symmetric_tasks() -> None:
    seen: list[tuple[str, str]] = []

    class Model:
        def encode(self, texts: list[str], *, prompt: str | None = None, **kwargs: Any) -> np.ndarray[Any, Any]:
            seen.extend((prompt or "", text) for text in texts)
            return np.zeros((len(texts), 2))

    model: Any = Model()
    meta: Any = None
    encoder = TaskInstructEncoder(model, meta, read_instructions(None))
    for name, kind in (("SciFact", "query"), ("SciFact", "document"), ("STS12", None)):
        task = mteb.get_task(name)
        texts: Any = _Texts(["a"])
        rows: Any = torch.utils.data.DataLoader(texts, collate_fn=lambda batch: {"text": batch})
        encoder.encode(
            rows,
            task_metadata=task.metadata,
            hf_split="test",
            hf_subset="default",
            prompt_type=mteb.types.PromptType(kind) if kind else None,
        )
    claim = "Given a scientific claim, retrieve documents that support or refute the claim"
    assert seen == [(instruct(claim, ""), "a"), ("", "a"), (instruct("Retrieve semantically similar text.", ""), "a")]


class _Texts(list[str]):
    features = ("text",)


def test_what_is_judged_is_not_judged_again(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = folder_bytes(judged / "results")
    assert embedsmith("evaluate", "--output_dir", judged, *EVALUATE, "--reference_models", "bm25") == 0
    assert "nothing to do" in capsys.readouterr().err
    assert folder_bytes(judged / "results") == before
    assert embedsmith("evaluate", "--output_dir", judged, "--tasks", "STS16") == 0
    tasks = {score.task for score in read_evaluation(judged).scores}
    assert {"STS12", "STS16", "HeldOutSTS"} <= tasks  # what was judged before still counts
    assert (judged / "evaluation.json").read_text().count(BM25) == 2


def test_another_instruction_is_another_result(judged: Path, tmp_path: Path) -> None:
    before = read_evaluation(judged)
    other = tmp_path / "instructions.yaml"
    other.write_text("STS12: Find the text that rhymes with the given one.\n")
    assert embedsmith("evaluate", "--output_dir", judged, "--tasks", "STS12", "--task_instructions", other) == 0
    after = read_evaluation(judged)
    assert read_told(results(judged, "trained"))["STS12"].startswith("Find the text that rhymes")
    assert _score(after, "STS12", "trained") != _score(before, "STS12", "trained")
    assert _score(after, "STS12", "base") == _score(before, "STS12", "base")


def _score(evaluation: Any, task: str, key: str) -> float:
    return float(next(score.values[key] for score in evaluation.scores if score.task == task and score.subset is None))


def test_a_model_with_other_weights_is_not_given_the_scores_of_this_one(judged: Path) -> None:
    train = ("--config", "demo", "--output_dir", judged, "--max_seq_length", 64, "--max_steps", 3, "--overwrite")
    assert embedsmith("train", *train, "--subgroups", "short-long", "sts", "bitext") == 0
    old = results(judged, "trained")
    assert embedsmith("evaluate", "--output_dir", judged, "--tasks", "STS12") == 0
    new = results(judged, "trained")
    assert old != new
    assert {score.task for score in read_evaluation(judged).of(held_out=False)} == {"STS12"}


def test_a_task_that_fails_costs_no_other_and_is_tried_again(
    judged: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embedsmith("evaluate", "--output_dir", judged, "--tasks", "STS15", "STS12", "STS16") == 1
    error = capsys.readouterr().err
    assert "3 of 18 results are missing, the others are there" in error
    assert "STS15" in error
    put_toys(hub, tmp_path / "toys", "STS15")
    assert embedsmith("evaluate", "--output_dir", judged, "--tasks", "STS15", "STS12", "STS16") == 0
    assert "evaluate 3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tasks", "STS31"), "Did you mean 'STS17'?"),
        (("--benchmarks", "MTEB(eng, v3)"), "Did you mean 'MTEB(eng, v2)'?"),
        (("--tasks", "STS12", "--eval_languages", "klingon"), "which mteb does not know"),
        (("--no_held_out",), "nothing to judge"),
        (("--reference_models", "nobody/nothing"), "neither a folder nor a model"),
        (("--task_instructions", "nowhere.yaml"), "cannot be read as YAML"),
        (("--eval_batch_tokens", "0"), "at least 1"),
        (("--eval_devices", "gpu"), "such as cuda:1"),
    ],
)
def test_bad_input_is_one_sentence(
    judged_once: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    before = folder_bytes(judged_once)
    assert embedsmith("evaluate", "--output_dir", judged_once, *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert folder_bytes(judged_once) == before


def test_a_model_without_its_eos_is_refused(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = judged / "model" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["post_processor"] = None
    path.write_text(json.dumps(tokenizer))
    assert embedsmith("evaluate", "--output_dir", judged, "--tasks", "STS12") == 2
    assert "does not end every text in its EOS" in capsys.readouterr().err


def test_an_unreadable_instruction_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("- a list\n")
    with pytest.raises(InputError, match="must map names"):
        read_instructions(str(path))


def test_a_task_of_two_benchmarks_is_judged_once_with_all_its_languages() -> None:
    one, other = official_tasks([], ["MTEB(eng, v2)"]), official_tasks([], ["MTEB(Multilingual, v2)"])
    both = {task.metadata.name: task for task in official_tasks([], ["MTEB(eng, v2)", "MTEB(Multilingual, v2)"])}
    assert len(both) < len(one) + len(other)
    name = next(iter({task.metadata.name for task in one} & {task.metadata.name for task in other}))
    found = [set(task.hf_subsets) for tasks in (one, other) for task in tasks if task.metadata.name == name]
    assert set(both[name].hf_subsets) == set.union(*found)


def test_batches_hold_about_as_many_tokens_and_every_text_once() -> None:
    lengths = [5, 100, 7, 30, 30, 2, 300, 64]
    batches = list(token_batches(lengths, 128))
    assert sorted(place for batch in batches for place in batch) == list(range(8))
    assert batches[0] == [6]  # longer by itself
    assert all(max(lengths[i] for i in batch) * len(batch) <= 128 for batch in batches[1:])


def test_encoding_in_token_batches_changes_no_vector(minilm: SentenceTransformer) -> None:
    texts = ["", "one", "two words " * 30, "drei Wörter hier", "x " * 400]
    counted: list[int] = []
    ours = TokenBatches(minilm, 256, counted.append)
    for prompt in (None, "Query: "):
        found = ours.encode(texts, prompt=prompt)
        assert found.dtype == np.float32
        assert np.abs(found - minilm.encode(texts, prompt=prompt)).max() < 1e-6
    assert sum(counted) == 10
    assert ours.encode(texts, convert_to_tensor=True).shape == (5, 384)
    assert len(ours.encode([])) == 0


def test_several_devices_give_the_scores_of_one(judged: Path) -> None:
    """Two of the one kind that is here; each is a process of sentence-transformers."""
    before = [_score(read_evaluation(judged), "STS12", key) for key in ("base", "trained")]
    for path in judged.glob("results/*/*/STS12.json"):
        path.unlink()
    flags = ("--output_dir", judged, "--no_held_out", "--tasks", "STS12", "--eval_devices", "cpu", "cpu")
    assert embedsmith("evaluate", *flags) == 0
    after = [_score(read_evaluation(judged), "STS12", key) for key in ("base", "trained")]
    assert after == pytest.approx(before, abs=1e-6)
    assert multiprocessing.active_children() == []


def test_the_meta_names_the_model(minilm: SentenceTransformer) -> None:
    meta = model_meta("local/x", "0" * 40, minilm, use_instructions=False)
    assert (meta.name, meta.embed_dim, meta.max_tokens) == ("local/x", 384, 256)
