"""The live path against a real inference server: `transformers serve`, with a model that talks gibberish."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.replies import read_parquet
from tests.runs import embedsmith
from tests.tiny_models import save_tiny_chat_model

NUM_EXAMPLES = 4


@contextlib.contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """Serve a model with the server of the transformers package; yield what to give as `base_url`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    main = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", main, "serve", str(model), "--port", str(port), "--host", "127.0.0.1"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("w") as stream:
        server = subprocess.Popen(
            [*command, "--device", "cpu"], env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()
            server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as response:
            assert response.status == 200
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.mark.slow
def test_gibberish_of_a_real_server_is_rejected_with_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny_chat_model(tmp_path / "model")
    flags = ["--output_dir", tmp_path / "run", "--subgroups", "sts", "--num_examples", NUM_EXAMPLES]
    with serving(model, tmp_path / "server.log") as base_url:
        asking = [*flags, "--llm", "live", "--base_url", base_url, "--llm_model", model, "--max_completion_tokens", 32]
        assert embedsmith("generate", *asking, "--max_attempts", 1) == 1
    error = capsys.readouterr().err
    assert f"No reply could be used: 0 of {NUM_EXAMPLES} replies usable" in error
    assert "The first reason: " in error
    assert "unanswered" not in error  # nor was any refused: the server takes our way of asking
    assert embedsmith("curate", *flags) == 1
    assert f"None of {NUM_EXAMPLES} replies became an example" in capsys.readouterr().err
    rejected = read_parquet(tmp_path / "run" / "rejected")
    assert len(rejected) == NUM_EXAMPLES
    assert {row["reason"] for row in rejected} <= {"length", "json"}
    assert all(row["reply"] for row in rejected)
    assert not (tmp_path / "run" / "dataset").exists()
