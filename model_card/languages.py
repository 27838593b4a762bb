"""Language codes as mteb writes them."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files


@cache
def _iso_639_1_to_3() -> dict[str, str]:
    text = files("mteb.languages").joinpath("iso_639_1_to_3.json").read_text(encoding="utf-8")
    mapping: dict[str, str] = json.loads(text)
    return mapping


def iso_639_3(code: str) -> str:
    """Return the ISO 639-3 code of a BCP-47 language code, by mteb's own table."""
    return _iso_639_1_to_3().get(code, code)
