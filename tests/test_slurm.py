"""Slurm, played by four scripts: a job is submitted, waited for, and its replies taken when the verb is run again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.runs import embedsmith
from tests.test_scale import SIZE, asks, dataset, serve

SLURM = {
    "sbatch": 'eval cp "\\${$#}" $SLURM_HOME/script-$(ls $SLURM_HOME | wc -l); echo Submitted batch job 7',
    "squeue": "grep -q error $SLURM_HOME/queue && cat $SLURM_HOME/queue >&2 && exit 1; cat $SLURM_HOME/queue",
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
        run_job(slurm, ("partition=short", "account=me", "array=0-1%2", "mem-per-cpu=2048M"), ranks=[0])
        (slurm / "queue").write_text("7")
        assert embedsmith("generate", *flags, *by_tasks) == 0
        assert "Slurm job 7 asks, 60 replies so far" in capsys.readouterr().err
        run_job(slurm, (), ranks=[1])
        (slurm / "queue").write_text("")
        assert embedsmith("generate", *flags, *by_tasks) == 0
        assert "120 of 120 replies usable" in capsys.readouterr().out
        assert set(server.answered.values()) == {1}
    clear(slurm)
    assert embedsmith("curate", *SIZE, "--output_dir", run, *by_tasks) == 0
    assert not (run / "dataset").exists()
    (slurm / "queue").write_text("7")
    assert embedsmith("generate", *flags, "--num_examples", "130") == 0, "nobody writes what a job judges"
    assert "Slurm job 7 works in" in capsys.readouterr().err
    (slurm / "queue").write_text("")
    run_job(slurm, (), ranks=[0, 1])
    assert embedsmith("curate", *SIZE, "--output_dir", run, *by_tasks) == 0
    assert dataset(run) == one_machine


def test_when_slurm_does_not_answer_nothing_is_removed_and_a_failed_job_is_told(
    tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    by_tasks = ["--executor", "slurm", "--num_tasks", "1", "--slurm_partition", "short"]
    with serve() as server:
        flags = asks(server, run)
        assert embedsmith("brainstorm", *flags) == 0
        assert embedsmith("generate", *flags, *by_tasks, "--llm_model", "other") == 0
        with pytest.raises(AssertionError, match="does not exist"):
            run_job(slurm, (), ranks=[0])
        before = sorted((run / "scale").rglob("*"))
        (slurm / "queue").write_text("slurm_load_jobs error: Unable to contact slurm controller")
        capsys.readouterr()
        for more in ([], by_tasks):
            assert embedsmith("generate", *flags, *more) == 1
            assert "squeue cannot tell whether jobs 7 still run (slurm_load_jobs error" in capsys.readouterr().err
        assert sorted((run / "scale").rglob("*")) == before
        (slurm / "queue").write_text("slurm_load_jobs error: Invalid job id specified")
        assert embedsmith("generate", *flags) == 1
        assert "1 of the tasks ended early, the first one with: " in capsys.readouterr().err
        assert embedsmith("generate", *flags) == 0
    assert len(list(slurm.glob("script-*"))) == 1


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
    for path in slurm.glob("script-*"):
        path.unlink()
