"""The test environment: no network but this machine, an empty home of Hugging Face, and one local Hub per test run.

`HF_ENDPOINT` and the Xet switch are read when huggingface_hub and datasets are imported, so all of this happens before.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import Hub

HOME = Path(tempfile.mkdtemp(prefix="embedsmith-tests-"))
HUB = Hub.start(HOME / "hub", tokens={"hf_writer": "tester", "hf_reader": None})

for name in [name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE_", "OPENAI_", "MTEB_", "WANDB_"))]:
    del os.environ[name]
os.environ |= {
    "HF_HOME": str(HOME / "hf"),
    "HF_ENDPOINT": HUB.url,
    "HF_TOKEN": "hf_writer",
    "HF_HUB_DISABLE_XET": "1",  # the local Hub has no Xet
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MTEB_CACHE": str(HOME / "mteb"),
    "TOKENIZERS_PARALLELISM": "false",
    "MPLCONFIGDIR": str(HOME / "matplotlib"),
    "NO_PROXY": "127.0.0.1,localhost",
}

_connect = socket.socket.connect


def _connect_here_only(self: socket.socket, address: Any) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"tests reach no network, not even {address}")
    _connect(self, address)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (pytest-xdist), let those that share an expensive fixture run in the same one, longest first."""
    for item in items:
        is_judged = "judged_once" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("judged" if is_judged else item.path.stem))
    items.sort(key=lambda item: "judged_once" not in getattr(item, "fixturenames", ()))


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Let nothing but this machine be reached."""
    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", _connect_here_only)
    yield
    patch.undo()
    HUB.stop()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """The local Hub, without faults; repos of other tests may be there."""
    HUB.reset()
    yield HUB
    HUB.reset()


@pytest.fixture(scope="session")
def judged_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo's corpus with MiniLM trained for one step, judged on held-out examples and on toy tasks of mteb."""
    from tests.judged import judged_run

    return judged_run(HUB, tmp_path_factory.mktemp("judged"))


@pytest.fixture
def judged(judged_once: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed at will."""
    return Path(shutil.copytree(judged_once, tmp_path / "run"))


@pytest.fixture(scope="session")
def one_machine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one machine makes of the recorded replies, for those to compare with who spread the work."""
    from tests.runs import embedsmith
    from tests.test_scale import SIZE, dataset

    run = tmp_path_factory.mktemp("one")
    for verb in ("brainstorm", "generate", "curate"):
        assert embedsmith(verb, *SIZE, "--output_dir", run) == 0
    return dataset(run)
