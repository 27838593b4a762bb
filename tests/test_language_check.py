"""The language check on real sentences: correct texts pass, texts in another language are found."""

from __future__ import annotations

import pytest

from dataset_builder.language_check import wrong_language
from tests.replies import SENTENCES

UNKNOWN_TO_THE_JUDGE = {"sd", "su", "yi"}
ORDINARY = [
    ("de", "Wie installiere ich Python 3.12 mit Homebrew auf macOS Sonoma?"),
    ("fr", "Best of Netflix, Amazon Prime Video et Disney Plus : notre top ten"),
    ("zh", "如何用 Python pandas 读取 Excel 文件并保存为 CSV"),
    ("zh", "人人生而自由，在尊嚴和權利上一律平等。"),
    ("ko", "Visual Studio Code에서 Git 브랜치 병합하기"),
    ("sr", "Vlada Republike Srbije usvojila je danas predlog zakona o visokom obrazovanju."),
    ("no", "Korleis bakar ein godt brød heime utan maskin i ein enkel omn?"),
    ("uz", "Барча одамлар эркин, қадр-қиммат ва ҳуқуқларда тенг бўлиб туғиладилар."),
    ("ku", "هەموو مرۆڤەکان بە ئازادی و بە یەکسانی لە کەرامەت و ماف لەدایک دەبن"),
    ("pl", "jak zalozyc dzialalnosc gospodarcza przez internet krok po kroku"),
    ("hi", "Mujhe kal subah jaldi uthna hai kyunki train chhe baje hai aur station door hai."),
    ("fy", "Hoe kinne jo thús sels brea bakke sûnder masine yn de oven?"),
    ("xh", "Ndifuna ukuthenga imoto entsha kodwa andinamali eyaneleyo ngoku."),
    ("he", "שִׁיר לְיַלְדָּה קְטַנָּה שֶׁהָלְכָה לַגַּן וּמָצְאָה פֶּרַח אָדֹם עַל יַד הַשַּׁעַר"),
    ("el", "Ὁ πατέρας μου ἐργαζόταν στὸ λιμάνι κάθε μέρα ἀπὸ τὸ πρωὶ ὣς τὸ βράδυ"),
    ("en", "def f(x): return x + 1  # a comment; import numpy as np; print(np.arange(10))"),
    ("en", "12.5 % < 3,400 km² (2019–2024) → ±0.5 °C; 100 × 200 = 20,000 €"),
    ("ja", "3日"),
]


@pytest.mark.parametrize("code", SENTENCES)
def test_a_correct_text_passes_at_any_length(code: str) -> None:
    text = SENTENCES[code]
    for part in (text, text * 5, text[:60], text[:30], text.split(".")[0], text.split(",")[-1]):
        assert wrong_language(part, code) is None, part


@pytest.mark.parametrize(("code", "text"), ORDINARY, ids=[f"{code}-{n}" for n, (code, _) in enumerate(ORDINARY)])
def test_an_ordinary_text_passes(code: str, text: str) -> None:
    assert wrong_language(text, code) is None


@pytest.mark.parametrize("code", sorted(set(SENTENCES) - UNKNOWN_TO_THE_JUDGE - {"en"}))
def test_another_language_than_english_is_found(code: str) -> None:
    assert wrong_language(SENTENCES[code], "en") is not None
    assert wrong_language(SENTENCES["en"], code) == "en"


@pytest.mark.parametrize(
    ("asked", "given"),
    [("fr", "es"), ("de", "nl"), ("hu", "fi"), ("hi", "ur"), ("th", "lo"), ("ja", "ko"), ("sw", "so")],
)
def test_two_languages_of_a_region_are_told_apart(asked: str, given: str) -> None:
    assert wrong_language(SENTENCES[given], asked) == given
    assert wrong_language(SENTENCES[asked], given) == asked


@pytest.mark.parametrize("code", sorted(UNKNOWN_TO_THE_JUDGE))
def test_a_language_that_the_judge_does_not_know_is_never_rejected(code: str) -> None:
    assert wrong_language(SENTENCES[code], code) is None


@pytest.mark.parametrize("text", ["", "?!", "42", "OK", "Rindfleisch", "😀" * 50, "x" * 500])
def test_a_text_without_evidence_is_never_rejected(text: str) -> None:
    assert wrong_language(text, "th") is None
