"""What makes a row no good example, judged by the row alone."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import regex

from dataset_builder.boilerplate import find_boilerplate
from dataset_builder.config import CurationArguments
from dataset_builder.language_check import wrong_language
from dataset_builder.parsing import Rejection
from dataset_builder.schema import TEXT_COLUMNS, Subgroup
from dataset_builder.words import num_words, words

Row = dict[str, Any]

# what is neither letter, mark, number nor symbol, but for the sign of a number
_DROPPED = regex.compile(r"(?:[^\p{L}\p{M}\p{N}\p{S}-]|-(?!\d)|(?<=[\p{L}\p{N}])-)+")
_SHORT_TEXT = 200  # letters; shorter texts are also judged together with the others in their language
_MIN_LONG_LONG = 300  # words that the prompts of long-long ask for at least (paper, table 10)
_FEW = 5  # words: "a word or a few words"
_QUERY_LENGTHS = {"less than 5 words": (1, 5), "5 to 15 words": (5, 15), "at least 10 words": (10, None)}

_SIGN = re.compile(r"-(?<![a-z0-9]-)(?=[0-9])")
_ASCII = "".join(chr(c) if unicodedata.category(chr(c))[0] in "LNS" else " " for c in range(128)).replace("\x01", " ")
_ASCII_TABLE = _ASCII[:1] + "-" + _ASCII[2:]  # U+0001 stands for the sign of a number


def normalize(text: str) -> str:
    """Return `text` without case, punctuation and spacing, for comparing.

    Marks stay (without its vowel signs a Hindi word is another one), and so do symbols and the sign of a number.
    """
    if text.isascii():  # the same, ten times faster
        text = text.lower().replace("\x01", " ")
        return " ".join((_SIGN.sub("\x01", text) if "-" in text else text).translate(_ASCII_TABLE).split())
    return str(_DROPPED.sub(" ", unicodedata.normalize("NFKC", text).casefold())).strip()


@dataclass(frozen=True)
class Normal:
    """A text as it is compared, and its words."""

    raw: str
    text: str

    @cached_property
    def words(self) -> list[str]:
        """The words of the normalized text; in scripts without spaces, its characters."""
        return words(self.text)


def normals(row: Mapping[str, Any]) -> dict[str, Normal]:
    """Return the texts of a row as they are compared, by column."""
    return {name: Normal(row[name], normalize(row[name])) for name in TEXT_COLUMNS if row[name] is not None}


def check_row(
    row: Row, texts: dict[str, Normal], subgroup: Subgroup, attributes: Mapping[str, Any], arguments: CurationArguments
) -> Rejection | None:
    """Return why a row by itself is no good example, or None; the cheap checks come first.

    Args:
        row: the example under the dataset's column names.
        texts: its texts as `normals` returns them.
        subgroup: what kind of example it is.
        attributes: what its request asked for.
        arguments: which checks are on, and how strict.
    """
    for name, text in texts.items():
        if not text.text:
            return Rejection("empty", f"{name} has no letters")
    rejection = _boilerplate(texts, subgroup) or _copies({name: text.text for name, text in texts.items()}, subgroup)
    return (
        rejection
        or (_length(texts, subgroup, attributes, arguments.max_length_factor) if arguments.max_length_factor else None)
        or (_language(row, arguments.language_identifier) if arguments.check_language else None)
    )


def _boilerplate(texts: Mapping[str, Normal], subgroup: Subgroup) -> Rejection | None:
    for name, text in texts.items():
        if phrase := find_boilerplate(text.raw, subgroup):
            return Rejection("boilerplate", f"{name} has '{phrase}'")
    return None


def _copies(texts: dict[str, str], subgroup: Subgroup) -> Rejection | None:
    pairs = [("positive", "query"), ("negative", "query"), ("negative", "positive")]
    for one, other in ((one, other) for one, other in pairs if one in texts):
        if texts[one] == texts[other]:
            return Rejection("copy", f"{one} equals {other}")
    for name in ("positive", "negative"):
        if name not in texts:
            continue
        if subgroup == "long-short":
            edge = "" if _has_no_spaces(texts[name]) else " "
            if edge + texts[name] + edge in edge + texts["query"] + edge:
                return Rejection("leak", f"{name} label '{texts[name][:60]}' stands in the text")
        elif len(texts["query"]) >= 30 and texts["query"] in texts[name]:
            return Rejection("copy", f"{name} holds the whole query")
    return None


def _has_no_spaces(label: str) -> bool:
    """Tell whether a label of two letters or more is in a script that writes no spaces between words."""
    names = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
    return len(label) > 1 and all(unicodedata.name(c, "").startswith(names) for c in label if c != " ")


def asked_lengths(subgroup: Subgroup, attributes: Mapping[str, Any]) -> Iterator[tuple[str, float, float | None]]:
    """Yield (column, fewest words, most words) of the lengths that a request asked for; None: no upper limit."""
    if subgroup == "short-long":
        yield ("query", *_QUERY_LENGTHS.get(attributes.get("query_length", ""), (1, None)))
    asked = attributes.get("num_words")
    if asked and subgroup in ("short-long", "long-short"):
        for name in ("positive", "negative") if subgroup == "short-long" else ("query",):
            yield name, asked, asked
    if subgroup == "long-short":
        yield from (("positive", 1, _FEW), ("negative", 1, _FEW))
    if subgroup == "long-long":
        for name in TEXT_COLUMNS:
            yield name, _MIN_LONG_LONG, None


def _length(
    texts: Mapping[str, Normal], subgroup: Subgroup, attributes: Mapping[str, Any], factor: float
) -> Rejection | None:
    for name, fewest, most in asked_lengths(subgroup, attributes):
        if name not in texts:
            continue
        num = num_words(texts[name].text)
        if num < fewest / factor or (most is not None and num > most * factor):
            asked = (
                f"at least {fewest}" if most is None else f"{fewest} to {most}" if fewest != most else f"about {most}"
            )
            return Rejection("num_words", f"{name} has {num:.0f} words, asked for {asked}")
    return None


def _language(row: Row, identifier: str) -> Rejection | None:
    together: dict[str, list[str]] = {}
    for name in TEXT_COLUMNS:
        if row[name] is not None:
            code = row["language"] if name == "query" else row["positive_language"]
            if label := wrong_language(row[name], code, identifier):
                return Rejection("language", f"asked for {code}, is {label}")
            if len(row[name]) < _SHORT_TEXT:
                together.setdefault(code, []).append(row[name])
    for code, parts in together.items():
        if len(parts) > 1 and (label := wrong_language("\n".join(parts), code, identifier)):
            return Rejection("language", f"asked for {code}, is {label}")
    return None
