"""GlotLID's place in the language check, played by a tiny fastText model that a local Hub serves."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import fasttext
import pytest

from dataset_builder import glotlid
from dataset_builder.errors import InputError
from dataset_builder.glotlid import GlotLID
from dataset_builder.language_check import load_identifier, wrong_language
from dataset_builder.languages import LANGUAGES
from tests.conftest import HUB
from tests.hub_server import Hub
from tests.replies import SENTENCES

LABELS = {
    "am": "amh_Ethi", "de": "deu_Latn", "en": "eng_Latn", "es": "spa_Latn", "fa": "pes_Arab", "fil": "tgl_Latn",
    "hi": "hin_Deva", "lv": "lvs_Latn", "ms": "zsm_Latn", "no": "nob_Latn", "pt": "por_Latn", "sd": "snd_Arab",
    "sq": "als_Latn", "su": "sun_Latn", "sw": "swh_Latn", "yi": "ydd_Hebr", "zh": "cmn_Hani",
}  # fmt: skip
FOREIGN = "I ni sogoma, i ka kɛnɛ wa? N bɛ taa sugu la ka malo ni jɛgɛ san, o kɔfɛ n bɛ segin so."


@pytest.fixture(scope="module", autouse=True)
def repo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A model trained on the sentences of the tests, where the real one of 1.7 GB would be."""
    folder = tmp_path_factory.mktemp("glotlid")
    examples = [(LABELS[code], SENTENCES[code]) for code in LABELS] + [
        ("bam_Latn", FOREIGN),
        ("zxx_Zzzz", "0 1 2 x y z"),
    ]
    lines = [
        f"__label__{label} {text[start : start + 80]}\n"
        for label, text in examples
        for start in range(0, len(text), 40)
    ]
    train = folder / "train.txt"
    train.write_text("".join(lines * 3), encoding="utf-8")
    model = fasttext.train_supervised(
        str(train), dim=16, minn=1, maxn=4, bucket=20_000, epoch=300, lr=1.0, minCount=1, thread=1, verbose=0
    )
    train.unlink()
    model.save_model(str(folder / "model_v3.bin"))
    HUB.put_folder("model", glotlid.REPO_ID, folder)
    load_identifier.cache_clear()
    yield
    load_identifier.cache_clear()


@pytest.mark.parametrize("code", LABELS)
def test_true_texts_pass_and_others_are_found(code: str) -> None:
    text = SENTENCES[code]
    assert wrong_language(text, code, "glotlid") is None
    assert wrong_language(text * 8, code, "glotlid") is None
    other = "de" if code != "de" else "en"
    assert wrong_language(SENTENCES[other], code, "glotlid") == other
    assert wrong_language(text, other, "glotlid") == {"fil": "tl"}.get(code, code)


def test_a_language_of_none_of_ours_has_its_iso_639_3_code() -> None:
    assert wrong_language(FOREIGN, "sw", "glotlid") == "bam"


def test_members_of_a_macrolanguage_and_line_breaks_count() -> None:
    judge = load_identifier("glotlid")
    assert {"ms", "no", "zh", "fa", "tl", "bam", "zxx"} <= set(judge.labels)
    label, probability = judge.classify(SENTENCES["no"].replace(" ", "\n"))
    assert label == "no"
    assert probability > 0.9
    assert sum(p for _, p in judge.rank(SENTENCES["no"])) == pytest.approx(1, abs=0.05)


def test_all_of_our_languages_have_labels() -> None:
    ours = {"tl" if code == "fil" else code for code in LANGUAGES}
    assert ours <= set(glotlid._LABELS.values())
    assert len(glotlid._LABELS) == sum(
        len(entry.split()) - 1 for entry in glotlid._TABLE.replace("\n", "|").split("|") if entry
    )


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with pytest.raises(InputError, match=r"pip install 'embedsmith\[glotlid\]'"):
        GlotLID.from_hub()


@pytest.mark.parametrize("kind", ["404", "403", "reset"])
def test_a_model_that_cannot_be_fetched_is_refused_in_one_sentence(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub.fail("model_v3.bin", kind, times=20)
    with pytest.raises(InputError, match="`language_identifier` is 'glotlid'") as caught:
        GlotLID.from_hub()
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model_v3.bin"
    path.write_bytes(os.urandom(1000))
    with pytest.raises(InputError, match="no fastText model"):
        GlotLID(str(path))
