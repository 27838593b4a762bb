"""The 93 languages: codes, names, weights, and scripts against real text."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

import pytest

from dataset_builder.errors import InputError
from dataset_builder.languages import LANGUAGES, check_language
from tests.replies import SENTENCES

UNICODE_NAMES = {
    "Arab": "ARABIC", "Armn": "ARMENIAN", "Beng": "BENGALI", "Cyrl": "CYRILLIC", "Deva": "DEVANAGARI",
    "Ethi": "ETHIOPIC", "Geor": "GEORGIAN", "Grek": "GREEK", "Gujr": "GUJARATI", "Guru": "GURMUKHI", "Hans": "CJK",
    "Hebr": "HEBREW", "Jpan": "HIRAGANA", "Khmr": "KHMER", "Knda": "KANNADA", "Kore": "HANGUL", "Laoo": "LAO",
    "Latn": "LATIN", "Mlym": "MALAYALAM", "Mymr": "MYANMAR", "Orya": "ORIYA", "Sinh": "SINHALA", "Taml": "TAMIL",
    "Telu": "TELUGU", "Thai": "THAI",
}  # fmt: skip


def test_there_are_93_in_the_order_of_their_codes() -> None:
    assert len(LANGUAGES) == 93
    assert list(LANGUAGES) == sorted(LANGUAGES)
    assert all(code == language.code for code, language in LANGUAGES.items())
    assert len({language.name for language in LANGUAGES.values()}) == 93


@pytest.mark.parametrize("code", LANGUAGES)
def test_codes_are_the_shortest_bcp_47_codes_without_a_script(code: str) -> None:
    assert re.fullmatch("[a-z]{2,3}", code)


def test_weights_are_the_shares_of_the_paper() -> None:
    weights = {code: language.weight for code, language in LANGUAGES.items()}
    assert sum(weights.values()) == pytest.approx(100)
    assert weights["en"] == 43.1
    by_weight = Counter(weights.values())
    assert by_weight[2.9] == 13
    assert sorted(by_weight.values()) == [1, 13, 79]
    assert min(weights.values()) == pytest.approx(0.24, abs=0.01)


@pytest.mark.parametrize("code", LANGUAGES)
def test_script_is_the_one_that_the_language_is_written_in(code: str) -> None:
    scripts = Counter(unicodedata.name(char).split()[0] for char in SENTENCES[code] if char.isalpha())
    assert UNICODE_NAMES[LANGUAGES[code].script] == scripts.most_common(1)[0][0]


def test_check_language_returns_the_language() -> None:
    german = check_language("de")
    assert (german.name, german.script, german.weight) == ("German", "Latn", 2.9)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("German", "Did you mean 'de' (German)?"),
        ("western frisian", "Did you mean 'fy' (Western Frisian)?"),
        ("EN", "Did you mean 'en'?"),
        ("no_", "Did you mean 'no'?"),
    ],
)
def test_an_unknown_language_is_refused_with_a_suggestion(given: str, hint: str) -> None:
    with pytest.raises(InputError, match=re.escape(hint)) as caught:
        check_language(given)
    assert f"'{given}'" in str(caught.value)


@pytest.mark.parametrize("given", ["", "Klingon", "qqq"])
def test_an_unknown_language_is_refused_without_a_far_fetched_suggestion(given: str) -> None:
    with pytest.raises(InputError, match="BCP-47") as caught:
        check_language(given)
    assert "Did you mean" not in str(caught.value)
