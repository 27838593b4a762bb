"""In which script is a text? Counts letters by script, and takes samples of long texts."""

from __future__ import annotations

from functools import cache

import regex

from dataset_builder.languages import FURTHER_SCRIPTS, LANGUAGES

CJK_WEIGHT = 2.5  # a character of these scripts says as much as several letters

_UNICODE = {"Hans": ("Hani", "Bopo"), "Jpan": ("Hani", "Hira", "Kana"), "Kore": ("Hang",)}  # Unicode's names of scripts
_CJK = ("Hani", "Bopo", "Hira", "Kana", "Hang")
_BEFORE_CJK = "\u2fff"
_LETTERS_AND_MARKS = regex.compile(r"[\p{L}\p{M}]+")


@cache
def letters_in(*scripts: str) -> regex.Pattern[str]:
    """Return a pattern for runs of letters in Unicode scripts (ISO 15924 codes), or in any script if none is given."""
    names = "".join(rf"\p{{Script={script}}}" for script in scripts)
    return regex.compile(rf"(?V1)[\p{{L}}&&[{names}]]+" if scripts else r"\p{L}+")


def count_letters(text: str, *scripts: str) -> int:
    """Return the number of letters of `text` that are in the scripts, or in any script if none is given."""
    return sum(map(len, letters_in(*scripts).findall(text)))


def evidence(text: str) -> float:
    """Return how many letters `text` has to judge by, where one CJK character counts as several."""
    num_cjk = count_letters(text, *_CJK) if max(text, default="") > _BEFORE_CJK else 0
    return count_letters(text) + (CJK_WEIGHT - 1) * num_cjk


def share_of_letters(text: str) -> float:
    """Return the share of letters, with the marks upon them, in the characters of `text` but spaces."""
    return sum(map(len, _LETTERS_AND_MARKS.findall(text))) / max(1, sum(map(len, text.split())))


@cache
def main_scripts(code: str) -> tuple[str, ...]:
    """Return the Unicode scripts that the texts of a language are mostly written in."""
    script = LANGUAGES[code].script
    return _UNICODE.get(script, (script,))


def share_in_its_script(text: str, code: str, *, further: bool = True) -> float:
    """Return the share of the letters of `text` that a script of the language has, with or without its further ones.

    A CJK character of such a script counts as several letters. A text without letters has share 1.
    """
    scripts = main_scripts(code) + (FURTHER_SCRIPTS.get(code, ()) if further else ())
    own, letters = count_letters(text, *scripts), count_letters(text)
    weighted = own * CJK_WEIGHT if scripts[0] in _CJK else own
    return weighted / (weighted + letters - own) if letters else 1.0


def most_common_script(text: str) -> str:
    """Return the ISO 15924 code of the script that most letters of `text` are in, of those of the 93 languages."""
    scripts = {script for code in LANGUAGES for script in main_scripts(code)}
    return max(sorted(scripts), key=lambda script: count_letters(text, script))


def halves(text: str) -> tuple[str, str]:
    """Return the first and the second half of `text`, cut at a space if there is one nearby."""
    middle = len(text) // 2
    space = text.find(" ", middle, middle + 50)
    cut = middle if space < 0 else space
    return text[:cut], text[cut:]


def sample(text: str, size: int) -> str:
    """Return the beginning of `text` and a part behind its middle, `size` bytes of UTF-8 or a little less in all."""
    num_bytes = len(text.encode("utf-8", "surrogatepass"))
    if num_bytes <= size:
        return text
    width, middle = len(text) * size // num_bytes // 2, len(text) * 5 // 8
    return text[:width] + " " + text[middle : middle + width]
