"""The EOS contract, for each family of tokenizers: whole, truncated, padded, saved and reloaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dataset_builder.errors import InputError
from tests.tiny_models import FAMILIES, save_tiny_model, tiny_tokenizer
from trainer.eos import check_eos, embedding_eos, ensure_eos

TEXTS = (
    "a",
    "The quick brown fox",
    "  two  spaces\n",
    "日本語の文",
    "Instruct: Identify the topic.\nQuery: cats 🐈",
    "sleep " * 200,
)
EOS = {
    "llama2": "</s>",
    "llama3": "<|end_of_text|>",
    "mistral": "</s>",
    "e5-mistral": "</s>",
    "qwen3": "<|endoftext|>",
    "qwen3-embedding": "<|endoftext|>",
    "gemma3": "<eos>",
    "xlm-roberta": "</s>",
    "bert": "[SEP]",
}
LEADING = {
    "llama2": ["<s>"],
    "llama3": ["<|begin_of_text|>"],
    "mistral": ["<s>"],
    "e5-mistral": ["<s>"],
    "qwen3": [],
    "qwen3-embedding": [],
    "gemma3": ["<bos>"],
    "xlm-roberta": ["<s>"],
    "bert": ["[CLS]"],
}


class Case(NamedTuple):
    """A family's tokenizer as the Hub has it, with the EOS ensured, and that one saved and loaded again."""

    family: str
    original: PreTrainedTokenizerBase
    ensured: PreTrainedTokenizerBase
    reloaded: PreTrainedTokenizerBase
    backend: Tokenizer
    """The bare library on the saved tokenizer.json."""


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = save_tiny_model(request.param, tmp_path_factory.mktemp(request.param))
    original, ensured = AutoTokenizer.from_pretrained(folder), ensure_eos(AutoTokenizer.from_pretrained(folder))
    ensured.save_pretrained(folder)  # beside the config.json, whose model_type has a say in the class
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_padding()
    backend.no_truncation()
    return Case(request.param, original, ensured, AutoTokenizer.from_pretrained(folder), backend)


def _bare(case: Case, text: str) -> list[int]:
    return list(case.original(text, add_special_tokens=False, verbose=False)["input_ids"])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("which", ["ensured", "reloaded"])
def test_plain(case: Case, which: str, text: str) -> None:
    tokenizer = getattr(case, which)
    leading = tokenizer.convert_tokens_to_ids(LEADING[case.family])
    ids = tokenizer(text, verbose=False)["input_ids"]
    assert ids == [*leading, *_bare(case, text), tokenizer.convert_tokens_to_ids(EOS[case.family])]
    assert tokenizer.eos_token == EOS[case.family]


@pytest.mark.parametrize("max_length", [2, 3, 16, 64])
@pytest.mark.parametrize("which", ["ensured", "reloaded"])
def test_truncated(case: Case, which: str, max_length: int) -> None:
    tokenizer = getattr(case, which)
    leading = tokenizer.convert_tokens_to_ids(LEADING[case.family])
    ids = tokenizer(TEXTS[-1], truncation=True, max_length=max_length)["input_ids"]
    kept = _bare(case, TEXTS[-1])[: max_length - len(leading) - 1]
    assert ids == [*leading, *kept, tokenizer.eos_token_id]
    assert len(ids) == max_length


@pytest.mark.parametrize("which", ["ensured", "reloaded"])
def test_truncated_on_the_left(case: Case, which: str) -> None:
    tokenizer = getattr(case, which)
    tokenizer.truncation_side = "left"
    ids = tokenizer(TEXTS[-1], truncation=True, max_length=16)["input_ids"]
    tokenizer.truncation_side = "right"
    leading = tokenizer.convert_tokens_to_ids(LEADING[case.family])
    kept = _bare(case, TEXTS[-1])[-(15 - len(leading)) :]
    assert ids == [*leading, *kept, tokenizer.eos_token_id]


@pytest.mark.parametrize("which", ["ensured", "reloaded"])
def test_padding_stands_on_the_right(case: Case, which: str) -> None:
    tokenizer = getattr(case, which)
    batch = tokenizer(list(TEXTS), padding=True, truncation=True, max_length=32)
    for ids, mask, text in zip(batch["input_ids"], batch["attention_mask"], TEXTS, strict=True):
        alone = tokenizer(text, truncation=True, max_length=32)["input_ids"]
        num_padding = 32 - len(alone)
        assert mask == [1] * len(alone) + [0] * num_padding
        assert ids == alone + [tokenizer.pad_token_id] * num_padding


@pytest.mark.parametrize("text", TEXTS)
def test_the_bare_library_agrees(case: Case, text: str) -> None:
    assert case.backend.encode(text).ids == case.ensured(text, verbose=False)["input_ids"]


def test_padding_token(case: Case) -> None:
    assert case.ensured.pad_token == (case.original.pad_token or case.ensured.eos_token)
    assert case.reloaded.pad_token == case.ensured.pad_token


def test_no_token_is_added(case: Case) -> None:
    assert case.ensured.get_vocab() == case.reloaded.get_vocab() == case.original.get_vocab()


def test_offsets_are_kept(case: Case) -> None:
    text = "The quick brown fox"
    before = case.original(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    after = case.ensured(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    assert after == before


@pytest.mark.parametrize("family", FAMILIES)
def test_ensuring_twice_changes_nothing(family: str) -> None:
    once = ensure_eos(tiny_tokenizer(family))
    state = once.backend_tokenizer.to_str()
    twice = ensure_eos(once)
    assert twice is once
    assert twice.backend_tokenizer.to_str() == state


@pytest.mark.parametrize("family", FAMILIES)
def test_embedding_eos(family: str) -> None:
    assert embedding_eos(tiny_tokenizer(family)) == EOS[family]


def test_tokenizer_without_eos_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    kind: Any = PreTrainedTokenizerFast  # untyped
    tokenizer = kind(tokenizer_object=backend, unk_token="<unk>")
    tokenizer.name_or_path = "some/model"
    with pytest.raises(InputError, match=r"some/model has neither an EOS nor a separator token; .*choose a model"):
        ensure_eos(tokenizer)


def test_slow_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match=r"is no fast tokenizer; .*tokenizer\.json"):
        ensure_eos(ByT5Tokenizer())


@pytest.mark.parametrize("family", ["llama2", "llama3", "mistral", "qwen3", "gemma3"])
def test_check_refuses_a_tokenizer_without_the_contract(family: str) -> None:
    with pytest.raises(InputError, match=r"not in exactly one EOS"):
        check_eos(tiny_tokenizer(family))


def test_check_refuses_two_eos() -> None:
    tokenizer = ensure_eos(tiny_tokenizer("qwen3"))
    eos = tokenizer.eos_token
    template = f"$A {eos} {eos}"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair=f"{template} $B", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    with pytest.raises(InputError, match=r"not in exactly one EOS"):
        check_eos(tokenizer)


_IN_A_FRESH_PROCESS = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer
texts, found = json.load(sys.stdin), {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = {"plain": [tokenizer(text, verbose=False)["input_ids"] for text in texts]}
    for side in ("right", "left"):
        tokenizer.truncation_side = tokenizer.padding_side = side
        ids["truncated " + side] = tokenizer(texts, truncation=True, max_length=8)["input_ids"]
        padded = tokenizer(texts, padding=True, truncation=True, max_length=8)
        ids["padded " + side] = [
            [token for token, is_token in zip(*row) if is_token]
            for row in zip(padded["input_ids"], padded["attention_mask"])
        ]
    found[folder.name] = ids | {"eos": tokenizer.eos_token_id}
print(json.dumps(found))
"""


def test_in_a_fresh_process(tmp_path: Path) -> None:
    """A later user, without a line of theirs: families by plain, truncated and padded on either side."""
    ensured = {}
    for family in FAMILIES:
        folder = save_tiny_model(family, tmp_path / family)
        ensured[family] = ensure_eos(AutoTokenizer.from_pretrained(folder))
        ensured[family].save_pretrained(folder)
    command = [sys.executable, "-W", "error", "-c", _IN_A_FRESH_PROCESS, str(tmp_path)]
    done = subprocess.run(command, input=json.dumps(TEXTS), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(FAMILIES)
    for family, tokenizer in ensured.items():
        ids = found[family]
        assert ids["plain"] == [tokenizer(text, verbose=False)["input_ids"] for text in TEXTS]
        assert ids["eos"] == tokenizer.eos_token_id
        for how in ("plain", "truncated right", "truncated left", "padded right", "padded left"):
            for row in ids[how]:
                assert row[-1] == ids["eos"], (family, how)
                assert row.count(ids["eos"]) == 1, (family, how)
                assert tokenizer.convert_ids_to_tokens(row[: len(LEADING[family])]) == LEADING[family], (family, how)
                assert how == "plain" or len(row) <= 8
