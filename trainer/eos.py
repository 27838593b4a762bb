"""The EOS contract: every encoded text ends in exactly one EOS, whose last hidden state is the embedding.

The EOS is made part of the tokenizer's post-processor. There it survives truncation, saving and reloading, and is right for
every later user of `AutoTokenizer` without a line of theirs. Text-appended EOS is cut by truncation, and `add_eos_token`
is ignored by, or drops the BOS in, recent versions of transformers.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerBase

from dataset_builder.errors import InputError

_PROBES = ("a", "The quick brown fox jumps over the lazy dog.", "日本語の文", "word " * 700)


def embedding_eos(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the token that plays the EOS.

    Chat-tuned Qwen models name `<|im_end|>` as EOS, while Qwen's embedding models end texts in `<|endoftext|>`. Encoders of
    the BERT family have no EOS; their separator ends every text.

    Raises:
        InputError: if the tokenizer has neither.
    """
    chat_eos, text_eos = "<|im_end|>", "<|endoftext|>"
    if tokenizer.eos_token == chat_eos and text_eos in tokenizer.get_vocab():
        return text_eos
    token = tokenizer.eos_token or getattr(tokenizer, "sep_token", None)
    if token is None:
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path} has neither an EOS nor a separator token; the embedding is taken at "
            "the EOS, so choose a model whose tokenizer has one."
        )
    return str(token)


def ensure_eos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make the tokenizer end every text in exactly one EOS, in place, and return it.

    The special tokens that the tokenizer puts before a text stay. Padding goes to the right; a tokenizer without a
    padding token pads with the EOS, which the attention mask tells from the real one.

    Raises:
        InputError: if the tokenizer has no EOS or is no fast tokenizer, or if the contract does not hold afterwards.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path} is no fast tokenizer; the EOS is set in its post-processor, so "
            "choose a model that has a tokenizer.json."
        )
    eos = embedding_eos(tokenizer)
    tokenizer.eos_token = eos
    if tokenizer.pad_token is None:
        tokenizer.pad_token = eos
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"  # some classes save only the latter
    if not _ends_in_one(tokenizer("a")["input_ids"], tokenizer.eos_token_id):
        leading = _leading_tokens(tokenizer)
        names: list[str] = [*leading, eos]
        template = processors.TemplateProcessing(
            single=[*leading, "$A", eos],
            pair=[*leading, "$A", eos, "$B:1", f"{eos}:1"],
            special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in dict.fromkeys(names)],
        )
        byte_level = _byte_level(backend)
        backend.post_processor = processors.Sequence([byte_level, template]) if byte_level else template
        for key in ("add_bos_token", "add_eos_token"):  # a reload would rebuild another template from these
            tokenizer.init_kwargs.pop(key, None)
    check_eos(tokenizer)
    return tokenizer


def check_eos(tokenizer: PreTrainedTokenizerBase, max_length: int = 16) -> None:
    """Check that texts end in exactly one EOS, whole and truncated.

    Raises:
        InputError: if one does not.
    """
    eos = tokenizer.eos_token_id
    for text in _PROBES:
        for arguments in ({}, {"truncation": True, "max_length": max_length}):
            ids = tokenizer(text, verbose=False, **arguments)["input_ids"]
            if not _ends_in_one(ids, eos):
                raise InputError(
                    f"The tokenizer {tokenizer.name_or_path} ends {text[:20]!r} in the ids {ids[-3:]}, not in exactly one "
                    f"EOS ({eos}); the embedding is taken there. Its post-processor cannot be used; choose another model."
                )


def _ends_in_one(ids: Any, eos: Any) -> bool:
    return len(ids) > 1 and ids[-1] == eos and ids[-2] != eos


def _leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    with_special, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(with_special) - len(bare) + 1):
        if with_special[start : start + len(bare)] == bare:
            return [str(token) for token in tokenizer.convert_ids_to_tokens(with_special[:start])]
    return []


def _byte_level(backend: Tokenizer) -> processors.ByteLevel | None:
    """The ByteLevel step of the post-processor (it trims the offsets of spaces), if there is one."""
    post_processor = json.loads(backend.to_str())["post_processor"] or {}
    for step in [post_processor, *post_processor.get("processors", [])]:
        if step.get("type") == "ByteLevel":
            return processors.ByteLevel(trim_offsets=step.get("trim_offsets", True))
    return None
