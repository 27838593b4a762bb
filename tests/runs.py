"""Helpers that run verbs of the command line in this process, and look at what they leave."""

from __future__ import annotations

import hashlib
from pathlib import Path

from embedsmith import main


def embedsmith(*arguments: object) -> int:
    """Run the command line and return the exit code."""
    return main([str(argument) for argument in arguments])


def folder_bytes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by its relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
