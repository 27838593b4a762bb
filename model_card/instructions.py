"""What a model is told of an evaluation task, from one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import yaml
from mteb.abstasks.task_metadata import TaskType

from dataset_builder.errors import InputError

DEFAULTS = Path(__file__).parent / "instructions.yaml"
TYPES: tuple[str, ...] = get_args(TaskType)


def read_instructions(path: str | None) -> dict[str, str]:
    """Return the instructions by name of task or of task type: those of `path` before our own.

    Raises:
        InputError: if the file cannot be read or is no mapping of names to sentences.
    """
    return _read(DEFAULTS) | (_read(Path(path)) if path else {})


def _read(path: Path) -> dict[str, str]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"`task_instructions` is '{path}', which cannot be read as YAML: {reason}.") from None
    if not isinstance(found, dict) or not all(isinstance(text, str) and text.strip() for text in found.values()):
        raise InputError(
            f"`task_instructions` is '{path}', which must map names of mteb's tasks or task types to one sentence each."
        )
    return {str(name): text.strip() for name, text in found.items()}
