"""The clients that `generation.py` compares: how each is installed and started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CLIENTS_DIR = Path(__file__).parent / "clients"
VENVS_DIR = Path(os.environ.get("EMBEDSMITH_BENCHMARK_VENVS", ROOT / "benchmarks" / ".venvs"))


class NotRunError(Exception):
    """A client could not be installed or did not do its work: its row says why instead of a number."""


@dataclass(frozen=True)
class Run:
    """One task for a client: so many requests to that endpoint, with an empty folder to write into."""

    base_url: str
    num_requests: int
    concurrency: int
    output_dir: Path


@dataclass(frozen=True)
class Client:
    """A client: `package` is what its version is told of; `requirements` go into a virtual environment of its own."""

    label: str
    package: str
    command: Callable[[Run], list[str]]
    requirements: tuple[str, ...] = ()


def _embedsmith(num_workers: int) -> Callable[[Run], list[str]]:
    def command(run: Run) -> list[str]:
        flags = {
            "output_dir": run.output_dir,
            "num_examples": run.num_requests,
            "subgroups": "sts",
            "languages": "en",
            "llm": "live",
            "llm_model": "gpt-4o-mini",
            "base_url": run.base_url,
            "max_concurrency": run.concurrency,
            "num_workers": num_workers,
        }
        pairs = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        return [sys.executable, "-m", "embedsmith", "generate", *pairs]

    return command


def _script(name: str, *more: str, venv: str | None = None) -> Callable[[Run], list[str]]:
    def command(run: Run) -> list[str]:
        python = sys.executable if venv is None else str(VENVS_DIR / venv / "bin" / "python")
        flags = ["--base_url", run.base_url, "--num_requests", str(run.num_requests)]
        flags += ["--concurrency", str(run.concurrency), "--output_dir", str(run.output_dir)]
        return [python, str(CLIENTS_DIR / name), *flags, *more]

    return command


CLIENTS = {
    "embedsmith": Client("embedsmith", "embedsmith", _embedsmith(1)),
    "embedsmith-2": Client("embedsmith, 2 workers", "embedsmith", _embedsmith(2)),
    "openai-aiohttp": Client(
        "bare `openai` {version}, aiohttp transport", "openai", _script("openai_client.py", "--transport", "aiohttp")
    ),
    "openai": Client(
        "bare `openai` {version}, default transport", "openai", _script("openai_client.py", "--transport", "default")
    ),
    "curator": Client(
        "curator {version}",
        "bespokelabs-curator",
        _script("curator_client.py", venv="curator"),
        ("bespokelabs-curator==0.1.*",),
    ),
    "distilabel": Client(
        "distilabel {version}",
        "distilabel",
        _script("distilabel_client.py", venv="distilabel"),
        ("distilabel[openai]==1.5.*", "requests"),  # it imports requests without asking for it
    ),
}


def install(name: str) -> str:
    """Make the virtual environment of a client if it needs one and has none; return its label, with the version.

    Raises:
        NotRunError: if it cannot be installed.
    """
    client, python = CLIENTS[name], Path(sys.executable)
    if client.requirements:
        python = VENVS_DIR / name / "bin" / "python"
        if not python.exists() or _version(python, client.package) is None:
            print(f"installing {' '.join(client.requirements)}", file=sys.stderr)
            _checked([sys.executable, "-m", "venv", str(VENVS_DIR / name)])
            _checked([str(python), "-m", "pip", "install", "--quiet", *client.requirements])
    return client.label.format(version=_version(python, client.package) if "{version}" in client.label else "")


def _version(python: Path, package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return _checked([str(python), "-c", f"import importlib.metadata as m; print(m.version({package!r}))"]).strip()
    except NotRunError:
        return None


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a client: no network but this machine, no caches outside `home`, quiet libraries."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "OPENAI_", "PYTHON"))}
    return kept | {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }


def last_words(text: str) -> str:
    """Return the last line of a program's output that says something, shortened for a table cell."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" │╰╯─\t")]
    return lines[-1].replace("|", "/")[:200] if lines else "it said nothing"


def _checked(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotRunError(f"not installed: {last_words(done.stderr)}")
    return done.stdout
