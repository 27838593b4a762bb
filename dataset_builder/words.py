"""The words of a text in any script: to count lengths, to compare n-grams, and as shingles of MinHash.

Most languages part their words by spaces. Han, Kana, Thai, Lao, Khmer and Burmese texts do not; there each character,
with the marks that belong to it, is taken as a word. A dictionary would find the true words, but differently in each
version, and comparing texts needs no more than a division that is the same for both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from zlib import crc32

import numpy as np
import numpy.typing as npt
import regex

CHARACTERS_PER_WORD = {"Han and Kana": 1.7, "Thai, Lao, Khmer and Burmese": 4.5}
"""Characters (without marks) that make a word where no spaces part them: a rule of thumb, see `num_words`."""

_EAST = r"\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}ー"  # the long vowel mark belongs to no script
_SOUTH = r"\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}"
_FROM_THAI_ON = re.compile("[\u0e00-\U0010ffff]")  # Thai comes first of these scripts; seven times as fast as the next
_ANY_UNSPACED = regex.compile(f"[{_EAST}{_SOUTH}]")
_WORD = regex.compile(rf"[{_EAST}{_SOUTH}]\p{{M}}*|[^\s{_EAST}{_SOUTH}]+")
_CHARACTERS = dict(zip(CHARACTERS_PER_WORD, (regex.compile(f"[{_EAST}]"), regex.compile(f"[{_SOUTH}]")), strict=True))
_SPACE_BETWEEN = regex.compile(rf"(?<=[{_EAST}{_SOUTH}]\p{{M}}*) (?=[{_EAST}{_SOUTH}])")

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, with bits all over: 2**64 divided by the golden ratio


def words(text: str) -> list[str]:
    """Return the words of a text that `normalize` has been through (NFKC, no punctuation, single spaces).

    Words are parted by spaces; in scripts written without them each character, with its marks, is a word:

    >>> words("iphone 手机 ok")
    ['iphone', '手', '机', 'ok']
    """
    return _WORD.findall(text) if _has_unspaced(text) else text.split()


def joined(parts: Sequence[str]) -> str:
    """Return words as a text again: with spaces, but none within scripts that are written without them."""
    text = " ".join(parts)
    return _SPACE_BETWEEN.sub("", text) if _has_unspaced(text) else text


def num_words(text: str) -> float:
    """Return the length of a normalised text as one counts it who was asked for "about 100 words".

    In scripts without spaces a character is worth a part of a word: Han and Kana 1/1.7, Thai, Lao, Khmer and Burmese
    1/4.5 (the marks that belong to a character not counted). That is a rule of thumb: the English, Chinese and Thai
    sides of XQuAD come out within 4% of each other, a single text may be a third off.
    """
    if not _has_unspaced(text):
        return float(len(text.split()))
    num_by_script: Counter[str | None] = Counter()
    for first, num in Counter(word[0] for word in _WORD.findall(text)).items():
        num_by_script[_unspaced_script(first)] += num
    return num_by_script[None] + sum(num_by_script[script] / size for script, size in CHARACTERS_PER_WORD.items())


@cache
def _unspaced_script(character: str) -> str | None:
    return next((script for script, characters in _CHARACTERS.items() if characters.match(character)), None)


def ngram_hashes(words: Sequence[str], n: int) -> npt.NDArray[np.uint64]:
    """Return one 64-bit hash for each run of `n` words, the same in every process and on every machine.

    Each word's CRC-32 is spread over 64 bits, and a run is a polynomial of its words modulo 2**64, spread once more.
    Of four billion pairs of words one has the same CRC-32; two runs with such a pair agree if all their other words do.

    Returns:
        (max(0, number of words - n + 1),) hashes, in the order of the text.
    """
    count = len(words) - n + 1
    if count < 1:
        return np.empty(0, np.uint64)
    codes = _spread(np.fromiter(map(crc32, map(str.encode, words)), np.uint64, len(words)) + _BASE)
    hashes = codes[:count].copy()
    for offset in range(1, n):
        hashes *= _BASE
        hashes += codes[offset : offset + count]
    return _spread(hashes)


def _has_unspaced(text: str) -> bool:
    return not text.isascii() and bool(_FROM_THAI_ON.search(text)) and bool(_ANY_UNSPACED.search(text))


def _spread(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Let each bit depend on all bits (the last steps of splitmix64; Steele, Lea and Flood 2014), in place."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
