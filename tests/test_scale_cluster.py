"""What surrounds the tasks: engines of their own, keys, refusals, limits, and processes that are killed."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from dataset_builder import dataset as dataset_verbs
from dataset_builder.errors import RunError
from dataset_builder.llm_config import LLMArguments
from dataset_builder.plan import Request, generate_requests
from dataset_builder.scale import request_line, whole_lines
from dataset_builder.scale_blocks import Ask, ReadRequests
from dataset_builder.scale_config import ScaleArguments
from embedsmith import VERBS, parse
from tests.llm_server import LLMServer
from tests.processes import alive, children, committed, started, wait_until
from tests.replies import read_parquet
from tests.runs import embedsmith
from tests.test_scale import RECORDED, SIZE, asks, serve


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
    (folder / "requests" / "00000.jsonl").write_text(
        "".join(request_line((request, "Same."), 0) for request in requests)
    )
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
        assert embedsmith("generate", *flags) == 0  # without an executor: what tasks were told counts all the same
        assert len(server.answered) == 4 + 120
        assert sum(num - 1 for num in server.answered.values()) <= 2 * 4, "only what was in flight, or had just arrived"
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
        assert "of the tasks ended early, the first one with: " in told.err
        assert "'other'" in told.err
        written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert b"Traceback" in written, "datatrove's logs are among what was read"
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


def test_a_task_that_is_killed_ends_the_run_with_one_sentence(tmp_path: Path) -> None:
    with serve(latency_s=0.3) as server:
        flags = asks(server, tmp_path, "--max_concurrency", "4")
        assert embedsmith("brainstorm", *flags) == 0
        with started("generate", *flags, "--executor", "local", "--num_tasks", "2") as process:
            replies = tmp_path / "scale" / "generate" / "replies"
            wait_until(lambda: any(file.stat().st_size for file in replies.glob("*.jsonl")))
            next(task for task in children(process) if "spawn_main" in " ".join(task.cmdline())).kill()
            _, told = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "A process that works on a task was ended from outside" in told
        assert "Traceback" not in told
        assert embedsmith("generate", *flags) == 0


def test_an_engine_ends_with_its_task(tmp_path: Path) -> None:
    """The driver is killed, so its task ends at once, and must not leave an engine on the GPU."""
    planned(tmp_path, num=12)
    engine = f"server_script={Path(__file__).parent}/engine.py"
    code = f"""
from tests.test_scale_cluster import *
from dataset_builder.scale_config import prepare_datatrove
prepare_datatrove()
from dataset_builder.scale_executors import run
if __name__ == "__main__":
    scale = ScaleArguments("local", llm_server="custom", llm_server_args=[{engine!r}, "slow"])
    llm, folder = LLMArguments(llm="live", llm_model=["claude"], max_concurrency=1), Path({str(tmp_path)!r})
    run([ReadRequests(folder / "requests"), Ask(llm, scale, folder)], folder, 1, scale)
"""
    script = tmp_path / "driver.py"
    script.write_text(code)
    root = Path(__file__).parent.parent
    with subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": str(root)}) as driver:
        wait_until(lambda: (tmp_path / "00000.jsonl").is_file() and (tmp_path / "00000.jsonl").stat().st_size > 0)
        processes = psutil.Process(driver.pid).children(recursive=True)
        assert any("engine.py" in " ".join(process.cmdline()) for process in processes)
        driver.kill()
        assert alive(processes, within_s=10) == []


def test_the_cost_limit_and_the_stop_at_refusals_hold_for_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_tasks = ["--executor", "local", "--num_tasks", "2", "--max_concurrency", "4"]
    prices = ["--input_price", "0", "--output_price", "1000000", "--max_cost_usd", "60"]  # a dollar a reply
    with serve_priced() as server:
        flags = asks(server, tmp_path, *by_tasks)
        assert embedsmith("brainstorm", *flags) == 0
        for _ in range(3):
            assert embedsmith("generate", *flags, *prices) == 1
            assert "Stopped at max_cost_usd 60.0" in capsys.readouterr().err
        assert 60 <= server.answered.total() - 4 <= 60 + 2 * 4
    with serve(refuse=lambda _: True) as server:
        flags = asks(server, tmp_path, *by_tasks)
        assert embedsmith("generate", *flags) == 1
        assert "refused the first 20 requests" in capsys.readouterr().err
        assert server.asked.total() < 2 * 30


def serve_priced() -> LLMServer:
    """The recorded replies, each of one token."""
    usage = {"prompt_tokens": 0, "completion_tokens": 1}
    return LLMServer(lambda id_, _: RECORDED[id_], model="claude", usage=usage)


def test_a_paid_reply_is_committed_whatever_the_attempts(tmp_path: Path) -> None:
    """Two unusable attempts are in the journal; a task then was told one more, and a usable one."""
    run, replies = tmp_path, tmp_path / "scale" / "generate" / "replies"
    with serve(rude={"truncated": 1.0}, max_rude=2) as server:
        flags = asks(server, run, "--num_examples", "6")
        assert embedsmith("brainstorm", *flags, "--max_attempts", "9") == 0
        assert embedsmith("generate", *flags, "--max_attempts", "2") == 1
    id_ = next(id_ for id_ in RECORDED if id_.startswith("sts-generate-000000"))
    bodies = ["{", *["nonsense"] * 600, RECORDED[id_]]
    replies.mkdir(parents=True)
    choice = {"index": 0, "finish_reason": "stop"}
    lines = [{"choices": [choice | {"message": {"role": "assistant", "content": body}}]} for body in bodies]
    rows = [{"custom_id": id_, "response": {"status_code": 200, "body": body}, "error": None} for body in lines]
    (replies / "00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serve() as server:
        assert embedsmith("generate", *asks(server, run, "--num_examples", "6"), "--max_attempts", "2") == 0
    assert id_ in committed(run / "journal.sqlite")
    assert not (run / "scale" / "generate").exists()


def test_what_was_judged_before_counts_for_the_same_replies_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_tasks = ["--executor", "local", "--num_tasks", "1"]

    def fails(self: object) -> None:
        raise RunError("The disk is full.")

    for model in ("one", "other"):
        (tmp_path / "journal.sqlite").unlink(missing_ok=True)
        with LLMServer(lambda id_, _: RECORDED[id_], model=model) as server:
            flags = [*asks(server, tmp_path), "--llm_model", model, "--num_examples", "24"]
            for verb in ("brainstorm", "generate"):
                assert embedsmith(verb, *flags) == 0
        with monkeypatch.context() as patch:
            patch.setattr(dataset_verbs._Curation, "write", fails)
            assert embedsmith("curate", *flags, *by_tasks) == 1
        assert list((tmp_path / "scale").glob("curate-*/*.pickle")), "what was judged is kept for the next start"
    assert embedsmith("curate", *flags, *by_tasks) == 0
    rows = read_parquet(*(tmp_path / "dataset").glob("s*/*.parquet"))
    assert {row["model"] for row in rows} == {"other"}
    assert not list((tmp_path / "scale").glob("curate-*"))


def test_a_journal_that_somebody_reads_is_not_judged_by_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*SIZE, "--num_examples", "24", "--output_dir", tmp_path]
    for verb in ("brainstorm", "generate"):
        assert embedsmith(verb, *flags) == 0
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM requests").fetchone()
        assert embedsmith("generate", *flags, "--num_examples", "30") == 0
        capsys.readouterr()
        assert embedsmith("curate", *flags, "--executor", "local") == 1
        assert "is being read by another process" in capsys.readouterr().err
    assert embedsmith("curate", *flags, "--executor", "local", "--num_tasks", "1") == 0
