"""Tiny tokenizers and random models in the shape of the families that people fine-tune, built offline and always equal.

A vocabulary is a few hundred entries, hand-made or trained on the sentences below; a model has two layers of 32 units.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertTokenizer,
    Gemma3TextConfig,
    GemmaTokenizer,
    LlamaConfig,
    LlamaTokenizer,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
)

FAMILIES = ("llama2", "llama3", "mistral", "e5-mistral", "qwen3", "qwen3-embedding", "gemma3", "xlm-roberta", "bert")
"""Tokenizers; `e5-mistral` asks for `add_eos_token`, and `qwen3-embedding` has the EOS in its tokenizer.json."""
MODEL_FAMILIES = ("llama2", "mistral", "qwen3", "gemma3", "xlm-roberta", "bert")
"""One tokenizer for each architecture."""

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Given a query, retrieve relevant text about the weather in Berlin.",
    "Instruct: Identify the topic or theme of the given text.\nQuery: a short question about cats",
    "Where do cats sleep? Cats sleep on warm and quiet sofas, says the report of 2024.",
    "Ein schneller brauner Fuchs springt über den faulen Hund.",
    "Retrieve semantically similar text. Retrieve parallel sentences.",
    "It rains in the morning, and the sun shines in the evening.",
)
_LLAMA3_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
_LENGTH = 512  # positions of the models
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HUB_SETTINGS: dict[str, dict[str, Any]] = {  # what the tokenizer_config.json on the Hub says and transformers 5 drops
    "llama2": {"add_bos_token": True, "add_eos_token": False, "legacy": False},
    "llama3": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "mistral": {"add_bos_token": True, "add_eos_token": False, "legacy": False},
    "e5-mistral": {"add_bos_token": True, "add_eos_token": True, "legacy": True},
    "qwen3": {"add_bos_token": False, "errors": "replace", "split_special_tokens": False},
    "qwen3-embedding": {"add_bos_token": False, "errors": "replace", "split_special_tokens": False},
    "gemma3": {"add_bos_token": True, "add_eos_token": False},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Compute on one thread, in test files that import this: models as small as these gain nothing from several, and
    lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def _tokenizer(family: str) -> PreTrainedTokenizerBase:
    build: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
        "llama2": _llama2,
        "llama3": _llama3,
        "mistral": _llama2,
        "e5-mistral": functools.partial(_llama2, add_eos_token=True, pad_token="</s>"),
        "qwen3": _qwen3,
        "qwen3-embedding": functools.partial(_qwen3, eos_in_file=True),
        "gemma3": _gemma3,
        "xlm-roberta": _xlm_roberta,
        "bert": _bert,
    }
    return build[family]()


def tiny_tokenizer(family: str) -> PreTrainedTokenizerBase:
    """Return a new tokenizer of the family, as `AutoTokenizer` would give it before any EOS is ensured."""
    return copy.deepcopy(_tokenizer(family))


def save_tiny_model(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a random model with its tokenizer, so that `AutoModel` and `AutoTokenizer` read it; return the folder."""
    tokenizer = tiny_tokenizer(family)
    tokenizer.model_max_length = _LENGTH
    config = _config(family, tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | _HUB_SETTINGS.get(family, {}), indent=2))
    return folder


def save_tiny_chat_model(folder: Path, seed: int = 0) -> Path:
    """Write a random causal language model with a chat template, so that an inference server runs it."""
    tokenizer = tiny_tokenizer("qwen3")
    tokenizer.chat_template = _CHAT
    tokenizer.model_max_length = 8 * _LENGTH  # a prompt of ours is a few thousand of these small tokens
    config = _config("qwen3", tokenizer)
    config.max_position_embeddings = tokenizer.model_max_length
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _config(family: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": _LENGTH,
        "pad_token_id": tokenizer.pad_token_id if family in ("gemma3", "xlm-roberta", "bert") else None,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.2,  # with 0.02 all texts of such a small model look alike
    }
    grouped: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
    if family in ("llama2", "llama3"):
        return LlamaConfig(**shape, **grouped)
    if family in ("mistral", "e5-mistral"):
        return MistralConfig(**shape, **grouped)
    if family in ("qwen3", "qwen3-embedding"):
        return Qwen3Config(**shape, **grouped)
    if family == "gemma3":
        # one layer of each kind of attention
        kinds = ["sliding_attention", "full_attention"]
        return Gemma3TextConfig(**shape, **grouped, query_pre_attn_scalar=8, sliding_window=16, layer_types=kinds)
    shape |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if family == "xlm-roberta":
        return XLMRobertaConfig(**shape | {"max_position_embeddings": _LENGTH + 2, "type_vocab_size": 1})
    return BertConfig(**shape)


def _train(model: Any, pre_tokenizer: Any, special_tokens: list[str], **arguments: Any) -> tuple[dict[str, int], Any]:
    """Train a BPE on the sentences; return vocabulary and merges."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special_tokens, show_progress=False, **arguments)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return tokenizer.get_vocab(), [(left, right) for left, right in merges]


@functools.cache
def _byte_fallback(special_tokens: tuple[str, ...]) -> tuple[dict[str, int], Any]:
    """SentencePiece's BPE: words begin in ▁, and unknown characters fall apart into bytes."""
    return _train(
        models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"),
        pre_tokenizers.Metaspace(prepend_scheme="always"),
        [*special_tokens, *(f"<0x{byte:02X}>" for byte in range(256))],
    )


def _llama2(**arguments: Any) -> PreTrainedTokenizerBase:
    vocabulary, merges = _byte_fallback(("<unk>", "<s>", "</s>"))
    return LlamaTokenizer(vocabulary, merges, **{"add_bos_token": True, "add_eos_token": False} | arguments)


def _gemma3() -> PreTrainedTokenizerBase:
    vocabulary, merges = _byte_fallback(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"))
    return GemmaTokenizer(vocabulary, merges, add_bos_token=True, add_eos_token=False)


@functools.cache
def _byte_level() -> tuple[dict[str, int], Any]:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _train(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), [], initial_alphabet=sorted(alphabet))


def _llama3() -> PreTrainedTokenizerBase:
    backend = tokenizers.Tokenizer(models.BPE(*_byte_level(), ignore_merges=True))
    words = pre_tokenizers.Split(Regex(_LLAMA3_WORDS), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    bos = "<|begin_of_text|>"
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    kind: Any = PreTrainedTokenizerFast  # untyped
    tokenizer: PreTrainedTokenizerBase = kind(tokenizer_object=backend, bos_token=bos, eos_token="<|end_of_text|>")
    return tokenizer


def _qwen3(*, eos_in_file: bool = False) -> PreTrainedTokenizerBase:
    eos = "<|endoftext|>" if eos_in_file else "<|im_end|>"
    tokenizer = Qwen2Tokenizer(
        *_byte_level(), eos_token=eos, pad_token="<|endoftext|>", extra_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    byte_level = processors.ByteLevel(trim_offsets=False)
    template = processors.TemplateProcessing(
        single="$A <|endoftext|>",
        pair="$A <|endoftext|> $B:1 <|endoftext|>:1",
        special_tokens=[("<|endoftext|>", tokenizer.convert_tokens_to_ids("<|endoftext|>"))],
    )
    steps = processors.Sequence([byte_level, template])
    tokenizer.backend_tokenizer.post_processor = steps if eos_in_file else byte_level
    return tokenizer


def _words() -> list[str]:
    """Return the words of the sentences, each once, in order."""
    return list(dict.fromkeys(word for sentence in SENTENCES for word in sentence.replace(".", " ").split()))


def _characters() -> list[str]:
    return sorted({character for sentence in SENTENCES for character in sentence if not character.isspace()})


def _xlm_roberta() -> PreTrainedTokenizerBase:
    pieces = ["▁", *_characters(), *(f"▁{word}" for word in _words())]
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    scored = [(piece, -float(i % 7 + (10 if len(piece) == 1 else 3))) for i, piece in enumerate(pieces)]
    return XLMRobertaTokenizer([*special, *scored, ("<mask>", 0.0)])


def _bert() -> PreTrainedTokenizerBase:
    characters = sorted({character.lower() for character in _characters()})
    words = [word.lower() for word in _words()]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    entries = dict.fromkeys([*special, *characters, *(f"##{character}" for character in characters), *words])
    return BertTokenizer({entry: i for i, entry in enumerate(entries)})
