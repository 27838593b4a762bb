"""datatrove's executors make the dataset that one machine makes, also when a worker is killed on the way."""

from __future__ import annotations

from pathlib import Path

from tests.llm_server import LLMServer
from tests.processes import children, started, wait_until
from tests.replies import recorded_texts
from tests.runs import embedsmith, folder_bytes

RECORDED = recorded_texts()
RUDE = {"429": 0.1, "500": 0.1, "truncated": 0.1, "chatty": 0.1, "drop": 0.05, "cut": 0.05}
SIZE = ["--config", "demo", "--num_examples", "120"]


def serve(**settings: object) -> LLMServer:
    """The recorded replies, served as the settings say."""
    return LLMServer(lambda id_, _: RECORDED[id_], model="claude", usage=False, **settings)  # type: ignore[arg-type]


def asks(server: LLMServer, run: Path, *more: str) -> list[str]:
    """Flags that ask a server."""
    live = ["--llm", "live", "--llm_model", "claude", "--base_url", server.base_url]
    return [*SIZE, "--output_dir", str(run), *live, *more]


def dataset(run: Path) -> dict[str, str]:
    """The bytes of a run's dataset and rejected replies; the folder's own path stands in the card."""
    files = {
        f"{name}/{file}": digest
        for name in ("dataset", "rejected")
        for file, digest in folder_bytes(run / name).items()
    }
    del files["dataset/README.md"]
    return files


def test_processes_make_the_dataset_of_one(tmp_path: Path, one_machine: dict[str, str]) -> None:
    by_tasks = ["--executor", "local", "--num_tasks", "3", "--num_tasks_at_once", "2"]
    with serve(rude=RUDE, max_rude=1) as server:
        for verb in ("brainstorm", "generate"):
            assert embedsmith(verb, *asks(server, tmp_path, *by_tasks)) == 0
    assert embedsmith("curate", *SIZE, "--output_dir", tmp_path, *by_tasks) == 0
    ours = dataset(tmp_path)
    assert {name for name in ours if name.startswith("dataset")} == {n for n in one_machine if n.startswith("dataset")}
    assert not any((tmp_path / "scale").iterdir()), "what is in the journal need not lie in files too"


def test_a_ray_worker_is_killed_on_the_way(tmp_path: Path, one_machine: dict[str, str]) -> None:
    by_tasks = ["--executor", "ray", "--num_tasks", "2"]
    with serve(latency_s=0.5) as server:
        flags = asks(server, tmp_path, "--max_concurrency", "4")
        assert embedsmith("brainstorm", *flags) == 0
        with started("generate", *flags, *by_tasks) as process:
            replies = tmp_path / "scale" / "generate" / "replies"
            wait_until(lambda: sum(file.stat().st_size > 0 for file in replies.glob("*.jsonl")) == 2)
            tasks = [child for child in children(process) if "RankWorker.run_for_rank" in child.name()]
            workers = [task for task in tasks if task.parent() not in tasks]  # each asks in a process of its own
            assert (len(workers), len(tasks)) == (2, 4)
            workers[0].kill()
            _, told = process.communicate(timeout=120)
            assert process.returncode == 0, told
        twice = {id_ for id_, num in server.answered.items() if num > 1}
        assert len(server.answered) == 4 + 120
        assert len(twice) <= 2 * 4, "only what was in flight, or had just arrived, is paid twice"
    assert curated_by(tmp_path, by_tasks) == one_machine


def curated_by(run: Path, flags: list[str]) -> dict[str, str]:
    """Curate in a process of its own: Ray asks the network for the address of this machine, which tests do not allow."""
    with started("curate", *SIZE, "--output_dir", run, *flags) as process:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
        assert "Traceback" not in told
    return dataset(run)
