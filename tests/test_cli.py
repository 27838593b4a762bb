"""The command line: recipes as saved flags, and bad input as one sentence with exit code 2."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dataset_builder.recorded_llm import DEFAULT_REPLIES
from embedsmith import recipe_flags
from tests.runs import embedsmith


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must be refused as bad input and return its one sentence."""
    assert embedsmith(*arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    return output.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("generat",), ("'generat' is no verb", "Did you mean 'generate'?")),
        (("demo", "--config", "x"), ("only flag is --output_dir",)),
        (("curate",), ("--output_dir",)),
        (("curate", "--config", "demmo"), ("'demmo'", "no dataset.yaml", "demo")),
        (("curate", "--config=demmo"), ("'demmo'", "no dataset.yaml")),
        (("curate", "--config", "demo", "--config", "demo"), ("given 2 times",)),
        (("brainstorm", "--config=demo", "--llm", "live", "--base_url", "http://x.org"), ("`llm_model` is not given",)),
        (("brainstorm", "--config", "demo", "--max_cost_usd", "nan"), ("`max_cost_usd` is nan",)),
        (("curate", "--config", "demo", "--num_exampels", 3), ("'--num_exampels'", "Did you mean 'num_examples'?")),
        (("curate", "--config", "demo", "--num_examples", "many"), ("--num_examples", "many")),
        (("curate", "--config", "demo", "--num_examples", 0), ("`num_examples` is 0", "above 0")),
        (("curate", "--config", "demo", "--subgroups", "shortlong"), ("'shortlong'", "Did you mean 'short-long'?")),
        (("curate", "--config", "demo", "--languages", "en", "German"), ("'German'", "Did you mean 'de' (German)?")),
        (("curate", "--config", "demo", "--languages", "en", "qq"), ("'qq'", "BCP-47")),
        (("curate", "--config", "demo", "--languages", "en=-1", "de"), ("'en=-1'", "above 0")),
        (("curate", "--config", "demo", "--languages", "en"), ("bitext needs two languages",)),
        (("curate", "--config", "demo", "--test_size", 2), ("`test_size` is 2.0", "share")),
        (("brainstorm", "--config", "demo", "--llm", "psychic"), ("psychic", "recorded")),
        (("brainstorm", "--config", "demo", "--recorded_replies", "no.jsonl"), ("no.jsonl", "no file")),
        (("train", "--config", "demo", "--temperature", 0), ("`temperature` is 0.0",)),
        (("train", "--config", "demo", "--lora_r", 3.7), ("--lora_r", "3.7")),
        (("train", "--config", "demo", "--dataset_name", "nowhere"), ("'nowhere'", "neither a dataset folder")),
        (("train", "--output_dir", "x", "--dataset_name", "x"), ("`model_name_or_path` is not given",)),
        (("evaluate", "--output_dir", "nowhere"), ("no model in nowhere/model",)),
        (("report", "--output_dir", "nowhere"), ("no model in nowhere/model",)),
        (("push-model", "--output_dir", "nowhere"), ("no model in nowhere/model",)),
        (("push-dataset", "--output_dir", "nowhere"), ("no dataset in nowhere/dataset",)),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_bad_input_is_one_clear_sentence(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    parts: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    error = fails(capsys, *arguments)
    for part in parts:
        assert part in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("recipe", "part"),
    [
        ("output_dir: x\nnum_exampels: 3\n", "unknown key 'num_exampels'. Did you mean 'num_examples'?"),
        ("- a\n- b\n", "holds a list"),
        ("a: [1\n", "is no YAML"),
        ("output_dir: x\nsubgroups: [shortlong]\n", "known subgroups are"),
        ("output_dir: x\nlanguages: {en: much, de: 1}\n", "'en=much'"),
    ],
)
def test_bad_recipes(capsys: pytest.CaptureFixture[str], tmp_path: Path, recipe: str, part: str) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text(recipe)
    assert part in fails(capsys, "curate", "--config", path)


def test_a_recipe_is_a_saved_command_line(tmp_path: Path) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text("a: 1\nb: [x, y]\nc: {en: 2, de: 1}\nd:\ne: -0.5\n")
    flags = recipe_flags(path, [f"--{name}" for name in "abcde"])
    assert flags == ["--a=1", "--b", "x", "y", "--c", "en=2", "de=1", "--e=-0.5"]


def test_typed_flags_win_over_the_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert embedsmith("brainstorm", "--config", "demo", "--output_dir", tmp_path) == 0
    assert "32 of 32" in capsys.readouterr().out
    assert embedsmith("brainstorm", "--config", "demo", "--output_dir", tmp_path / "b", "--num_examples", 48) == 0
    assert "4 of 4" in capsys.readouterr().out


def test_a_longer_plan_keeps_what_is_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ("--config", "demo", "--output_dir", tmp_path)
    assert embedsmith("brainstorm", *flags, "--num_examples", 48) == 0
    assert embedsmith("generate", *flags, "--num_examples", 48) == 0
    assert embedsmith("brainstorm", *flags) == 0
    assert embedsmith("generate", *flags) == 0
    assert "generate 1,200/1,200" in capsys.readouterr().err


def test_generate_needs_tasks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "run `embedsmith brainstorm` first" in fails(
        capsys, "generate", "--config", "demo", "--output_dir", tmp_path
    )


def test_a_journal_of_another_plan_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ("--config", "demo", "--output_dir", tmp_path)
    assert embedsmith("brainstorm", *flags) == 0
    capsys.readouterr()
    assert "there `seed` is 0, here 7" in fails(capsys, "brainstorm", *flags, "--seed", 7)


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to have a header of 100 bytes" * 4])
def test_a_foreign_or_empty_journal_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "journal.sqlite").write_bytes(content)
    error = fails(capsys, "curate", "--config", "demo", "--output_dir", tmp_path)
    assert "journal" in error
    assert (tmp_path / "journal.sqlite").read_bytes() == content


def test_a_recorded_file_that_lacks_a_reply_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = gzip.decompress(DEFAULT_REPLIES.read_bytes()).splitlines(keepends=True)
    missing = json.loads(lines[-1])["custom_id"]
    short = tmp_path / "short.jsonl"
    short.write_bytes(b"".join(lines[:-1]))
    flags = ("--config", "demo", "--output_dir", tmp_path / "run", "--recorded_replies", short)
    assert embedsmith("brainstorm", *flags) == 0
    capsys.readouterr()
    error = fails(capsys, "generate", *flags)
    assert missing in error
    assert "no reply to 1 of the 1,200 requests" in error
    assert "no replies" in fails(capsys, "curate", *flags)
    assert not (tmp_path / "run" / "dataset").exists()


def test_help_is_instant_and_imports_no_stage() -> None:
    code = (
        "import sys, embedsmith; embedsmith.main(['--help']); "
        "heavy = {'torch', 'transformers', 'datasets', 'mteb', 'openai'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: embedsmith VERB" in done.stdout
