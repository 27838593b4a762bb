"""Words, lengths and n-gram hashes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from dataset_builder.checks import normalize
from dataset_builder.words import CHARACTERS_PER_WORD, joined, ngram_hashes, num_words, words

TEXTS = {
    "en": ("The quick, brown fox!", ["the", "quick", "brown", "fox"]),
    "de": ("Größe zählt -5 °C", ["grösse", "zählt", "-5", "°c"]),
    "hi": ("हिन्दी में लिखो।", ["हिन्दी", "में", "लिखो"]),
    "ko": ("한국어 문장입니다.", ["한국어", "문장입니다"]),
    "zh": ("我的iPhone 15手机。", ["我", "的", "iphone", "15", "手", "机"]),
    "ja": ("コーヒーを飲む人々", ["コ", "ー", "ヒ", "ー", "を", "飲", "む", "人", "々"]),
    "th": ("ที่นี่ดี", ["ที่", "นี่", "ดี"]),
    "km": ("ភាសាខ្មែរ", ["ភា", "សា", "ខ្", "មែ", "រ"]),
    "lo": ("ພາສາລາວ", ["ພ", "າ", "ສ", "າ", "ລ", "າ", "ວ"]),
    "my": ("မြန်မာ", ["မြ", "န်", "မာ"]),
}


@pytest.mark.parametrize("code", TEXTS)
def test_words_of_a_script(code: str) -> None:
    text, expected = TEXTS[code]
    assert words(normalize(text)) == expected
    assert words(joined(expected)) == expected


def test_no_text_has_no_words() -> None:
    assert words("") == []
    assert num_words("") == 0
    assert joined([]) == ""


def test_joined_has_spaces_only_where_a_script_has_them() -> None:
    assert joined(["我", "的", "iphone", "15", "手", "机"]) == "我的 iphone 15 手机"
    assert joined(["ที่", "นี่"]) == "ที่นี่"
    assert joined(["한국어", "문장"]) == "한국어 문장"


def test_a_character_without_spaces_is_a_part_of_a_word() -> None:
    assert num_words("the quick brown fox") == 4
    assert num_words("größe €") == 2
    east, south = CHARACTERS_PER_WORD.values()
    assert num_words("手机" * 17) == pytest.approx(34 / east)
    assert num_words("iphone 手机") == pytest.approx(1 + 2 / east)
    assert num_words("ที่นี่") == pytest.approx(2 / south)


def test_translations_have_about_the_same_length() -> None:
    english = "the committee will meet again next month to discuss the budget of the new railway line"
    chinese = "委员会将于下个月再次开会讨论新铁路线的预算"
    thai = "คณะกรรมการจะประชุมอีกครั้งในเดือนหน้าเพื่อหารือเกี่ยวกับงบประมาณของเส้นทางรถไฟสายใหม่"
    for text in (chinese, thai):
        assert 0.6 < num_words(text) / num_words(english) < 1.6


def test_one_hash_for_each_run_of_words() -> None:
    parts = [*"abcdeabc"]
    hashes = ngram_hashes(parts, 3)
    assert hashes.dtype == np.uint64
    assert hashes.shape == (6,)
    assert hashes[0] == hashes[5] == ngram_hashes(["a", "b", "c"], 3)[0]
    assert len(set(hashes.tolist())) == 5
    assert ngram_hashes(parts, 9).shape == ngram_hashes([], 1).shape == (0,)
    assert ngram_hashes(["b", "a"], 2)[0] != ngram_hashes(["a", "b"], 2)[0]
    assert ngram_hashes(["a", "b"], 2)[0] != ngram_hashes(["ab"], 1)[0]


def test_hashes_do_not_collide() -> None:
    parts = [str(number) for number in range(100_000)]
    assert len(np.unique(ngram_hashes(parts, 2))) == 99_999
    assert len(np.unique(ngram_hashes([*parts, *reversed(parts)], 13))) == 200_000 - 12
    bits = np.unpackbits(ngram_hashes(parts, 1).view(np.uint8))
    assert 0.499 < bits.mean() < 0.501


def test_hashes_are_the_same_in_every_process() -> None:
    code = "from dataset_builder.words import ngram_hashes; print(*ngram_hashes(['größe', '手', 'c'], 2))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {"327994582298030549 15142002111528643336\n"}
