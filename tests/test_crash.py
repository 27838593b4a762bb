"""Killed with SIGKILL at random moments, `generate` loses nothing that was committed and asks for none of it again."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.llm_server import LLMServer
from tests.processes import alive, children, committed, started
from tests.replies import recorded_texts
from tests.runs import embedsmith, folder_bytes

RECORDED = recorded_texts()
NUM_EXAMPLES = 192
DEMO = ["--config", "demo", "--num_examples", str(NUM_EXAMPLES)]
RUDE = {"429": 0.1, "500": 0.1, "truncated": 0.1, "chatty": 0.1, "drop": 0.05, "cut": 0.05, "slow": 0.05}


def reply(request_id: str, prompt: str) -> str:
    return RECORDED[request_id]


def generate_killed(server: LLMServer, flags: list[str], after: int) -> bool:
    """Run `generate` in a process of its own and kill it once `after` more requests arrived; tell whether it was killed."""
    target = server.asked.total() + after
    with started("generate", *flags) as process:
        while process.poll() is None and server.asked.total() < target:
            time.sleep(0.005)
        if process.poll() is not None:
            return False
        workers = children(process)
        time.sleep(random.Random(after).uniform(0, 0.05))
        process.kill()
        process.wait()
        assert alive(workers, within_s=3) == []
    return True


MANY = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("num_kills", "num_workers"),
    [(3, 1), (2, 2), pytest.param(25, 1, marks=MANY), pytest.param(25, 2, marks=MANY)],
)
def test_kill_9_loses_nothing_and_pays_nothing_twice(tmp_path: Path, num_kills: int, num_workers: int) -> None:
    rng = random.Random(num_kills)
    with LLMServer(reply, rude=RUDE, model="claude", usage=False, latency_s=0.02) as server:
        flags = [*DEMO, "--output_dir", str(tmp_path / "run"), "--llm", "live", "--llm_model", "claude"]
        flags += ["--base_url", server.base_url, "--max_concurrency", "24", "--num_workers", str(num_workers)]
        assert embedsmith("brainstorm", *flags) == 0
        num_killed = 0
        for _ in range(num_kills):
            kept = committed(tmp_path / "run" / "journal.sqlite")
            asked = {id_: server.asked[id_] for id_ in kept}
            num_killed += generate_killed(server, flags, after=rng.randint(1, 2 * NUM_EXAMPLES // num_kills))
            assert kept <= committed(tmp_path / "run" / "journal.sqlite"), "a committed reply was lost"
            assert asked == {id_: server.asked[id_] for id_ in kept}, "a committed reply was asked for again"
        assert num_killed >= num_kills // 2
        assert embedsmith("generate", *flags) == 0
        assert embedsmith("curate", *flags) == 0
    for verb in ("brainstorm", "generate", "curate"):
        assert embedsmith(verb, *DEMO, "--output_dir", tmp_path / "recorded") == 0
    ours, theirs = folder_bytes(tmp_path / "run" / "dataset"), folder_bytes(tmp_path / "recorded" / "dataset")
    del ours["README.md"], theirs["README.md"]  # the folder's own path stands in its loading example
    assert ours == theirs
