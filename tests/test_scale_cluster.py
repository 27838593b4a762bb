"""What surrounds the tasks: Slurm, engines of their own, keys, refusals, and a driver that is killed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

from dataset_builder.llm_config import LLMArguments
from dataset_builder.plan import Request, generate_requests
from dataset_builder.scale_blocks import Ask, ReadRequests, request_line, whole_lines
from dataset_builder.scale_config import ScaleArguments
from embedsmith import VERBS, parse
from tests.processes import alive, children, started, wait_until
from tests.runs import embedsmith
from tests.test_scale import SIZE, asks, dataset, serve

SLURM = {
    "sbatch": 'echo "$@" > $SLURM_HOME/submitted-$(ls $SLURM_HOME | wc -l); eval cp '
    '"\\${$#}" $SLURM_HOME/script-$(ls $SLURM_HOME | wc -l); echo Submitted batch job 7',
    "squeue": "cat $SLURM_HOME/queue",
    "scontrol": "hostname",
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; [ "$1" = 1 ] && shift; done; exec "$@"',
}
"""A cluster of one machine: `sbatch` keeps the script, and the test runs it when it likes."""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where that cluster keeps what it is given."""
    home, commands = tmp_path / "slurm", tmp_path / "bin"
    home.mkdir()
    commands.mkdir()
    for name, command in SLURM.items():
        (commands / name).write_text(f"#!/bin/bash\n{command}\n")
        (commands / name).chmod(0o755)
    (home / "queue").write_text("")
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_HOME", str(home))
    return home


def test_slurm_is_given_a_job_and_asked_for_its_replies(
    tmp_path: Path, slurm: Path, one_machine: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    by_tasks = ["--executor", "slurm", "--num_tasks", "2", "--slurm_partition", "short", "--slurm_args", "account=me"]
    with serve() as server:
        flags = asks(server, run)
        assert embedsmith("brainstorm", *flags) == 0
        assert embedsmith("generate", *flags, *by_tasks) == 0
        assert "a Slurm job asks; run the same command again" in capsys.readouterr().out
        run_job(slurm, ("partition=short", "account=me", "array=0-1%2"), ranks=[0])
        (slurm / "queue").write_text("7 running")
        assert embedsmith("generate", *flags, *by_tasks) == 0
        assert "Slurm job 7 runs, 60 replies so far" in capsys.readouterr().err
        run_job(slurm, (), ranks=[1])
        (slurm / "queue").write_text("")
        assert embedsmith("generate", *flags, *by_tasks) == 0
        assert "120 of 120 replies usable" in capsys.readouterr().out
        assert set(server.answered.values()) == {1}
    clear(slurm)
    assert embedsmith("curate", *SIZE, "--output_dir", run, *by_tasks) == 0
    assert not (run / "dataset").exists()
    run_job(slurm, (), ranks=[0, 1])
    assert embedsmith("curate", *SIZE, "--output_dir", run, *by_tasks) == 0
    assert dataset(run) == one_machine


def run_job(slurm: Path, told: tuple[str, ...], ranks: list[int]) -> None:
    """Run array tasks of the first script that was submitted, which holds what was `told`."""
    script = min(slurm.glob("script-*"), key=lambda path: path.stat().st_mtime_ns)
    text = script.read_text()
    assert all(f"#SBATCH --{flag}\n" in text for flag in told), text
    for rank in ranks:
        task = {"SLURM_ARRAY_TASK_ID": str(rank), "RUN_OFFSET": "0", "SLURM_NODELIST": "here"}
        done = subprocess.run(["bash", script], env={**os.environ, **task}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def clear(slurm: Path) -> None:
    """Forget the scripts."""
    for path in [*slurm.glob("script-*"), *slurm.glob("submitted-*")]:
        path.unlink()


def test_a_task_starts_its_own_engine(tmp_path: Path) -> None:
    requests = planned(tmp_path, num=12)
    scale = ScaleArguments(
        "local", llm_server="custom", llm_server_args=[f"server_script={Path(__file__).parent}/engine.py"]
    )
    llm = LLMArguments(llm="live", llm_model=["claude"])
    assert list(Ask(llm, scale, tmp_path).run(ReadRequests(tmp_path / "requests").run())) == []
    assert len(list(whole_lines(tmp_path / "00000.jsonl"))) == len(requests)


def planned(folder: Path, num: int) -> list[Request]:
    """Write the first requests of sts and bitext, which need no brainstormed tasks, for one task to ask."""
    plan = parse("generate", VERBS["generate"].types, [*SIZE, "--output_dir", str(folder)])[0]
    requests = [request for request in generate_requests(plan) if request.subgroup in ("sts", "bitext")][:num]
    (folder / "requests").mkdir()
    (folder / "requests" / "00000.jsonl").write_text("".join(request_line((request, "Same.")) for request in requests))
    return requests


def test_a_task_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    requests = planned(tmp_path, num=12)
    with serve() as server:
        llm = LLMArguments(llm="live", llm_model=["claude"], base_url=[server.base_url])
        ask, path = Ask(llm, ScaleArguments("local"), tmp_path), tmp_path / "00000.jsonl"
        list(ask.run(ReadRequests(tmp_path / "requests").run()))
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:5]) + lines[5][:20])
        list(ask.run(ReadRequests(tmp_path / "requests").run()))
        assert len(list(whole_lines(path))) == len(requests)
        assert sum(server.answered.values()) == len(requests) + 7


def test_a_killed_driver_takes_its_tasks_along_and_loses_no_reply(tmp_path: Path) -> None:
    with serve(latency_s=0.2) as server:
        flags = asks(server, tmp_path, "--max_concurrency", "4")
        assert embedsmith("brainstorm", *flags) == 0
        by_tasks = ["--executor", "local", "--num_tasks", "2", "--num_tasks_at_once", "2"]
        with started("generate", *flags, *by_tasks) as process:
            replies = tmp_path / "scale" / "generate" / "replies"
            wait_until(lambda: sum(file.stat().st_size > 0 for file in replies.glob("*.jsonl")) == 2)
            tasks = children(process)
            process.kill()
            process.wait()
            assert alive(tasks, within_s=5) == []
        assert embedsmith("generate", *flags, *by_tasks) == 0
        assert len(server.answered) == 4 + 120
        assert sum(num - 1 for num in server.answered.values()) <= 2 * 2 * 4
    assert embedsmith("curate", *SIZE, "--output_dir", tmp_path) == 0


def test_a_failed_task_is_told_and_no_key_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THE_KEY", "sk-this-is-secret")
    by_tasks = ["--executor", "local", "--num_tasks", "2", "--num_tasks_at_once", "2", "--api_key_env", "THE_KEY"]
    with serve(key="sk-this-is-secret") as server:
        flags = asks(server, tmp_path, *by_tasks)
        assert embedsmith("brainstorm", *flags) == 0
        assert embedsmith("generate", *flags, "--llm_model", "other") == 1
        told = capfd.readouterr()
        assert "ended early, the first one with: " in told.err
        assert "'other'" in told.err
        written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert b"task_00000" in written or (tmp_path / "scale" / "generate" / "logs" / "logs").is_dir()
        assert b"sk-this-is-secret" not in written
        assert "sk-this-is-secret" not in told.err + told.out
        assert embedsmith("generate", *flags) == 0


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--executor", "local"], "give --llm live"),
        (["--executor", "slurm"], "--slurm_partition"),
        (["--executor", "slurm", "--slurm_partition", "x", "--llm", "live", "--llm_model", "m"], "there is no sbatch"),
        (["--llm_server", "vllm"], "give --executor"),
        (["--num_tasks", "0"], "must be above 0"),
        (["--executor", "cloud"], "invalid choice"),
    ],
)
def test_what_cannot_run_is_told_in_a_sentence(
    tmp_path: Path, flags: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    assert embedsmith("brainstorm", *SIZE, "--output_dir", tmp_path, *flags) == 2
    assert told in capsys.readouterr().err


def test_without_datatrove_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    flags = ["--executor", "local", "--llm", "live", "--llm_model", "m", "--base_url", "http://127.0.0.1:9/v1"]
    assert embedsmith("brainstorm", *SIZE, "--output_dir", tmp_path, *flags) == 2
    assert "embedsmith[scale]" in capsys.readouterr().err
