"""The plan is a stream: what `generate` holds in memory does not grow with the number of examples."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.llm_rudeness import Closing
from tests.llm_server import LLMServer
from tests.test_live_limits import journal, sts

MEASURED = """
import resource, sys
from embedsmith import main
code = main(sys.argv[1:])
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_mb(folder: Path, num_examples: int, num_workers: int) -> float:
    """Run `generate` in a process of its own until its server serves no more; return its largest resident memory."""
    with LLMServer(limits=Closing(300)) as server:
        flags = sts(server, folder, num_examples, max_retries=1, max_attempts=1, num_workers=num_workers)
        command = [sys.executable, "-c", MEASURED, "generate", *map(str, flags)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "stopped answering" in done.stderr
    code, peak_kib = done.stdout.split()
    assert code == "1"
    assert 250 <= journal(folder, "SELECT COUNT(*) FROM replies") <= 300
    assert journal(folder, "SELECT COUNT(*) FROM requests") < 1000  # only what was about to be asked
    return int(peak_kib) / 1024


@pytest.mark.parametrize("num_workers", [1, 2])
def test_memory_does_not_grow_with_the_plan(tmp_path: Path, num_workers: int) -> None:
    """The requests alone are 80 MB if they are held."""
    small, large = (peak_mb(tmp_path / str(num), num, num_workers) for num in (2_000, 200_000))
    assert large - small < 20, f"{small:.0f} MB for 2,000, {large:.0f} MB for 200,000"
