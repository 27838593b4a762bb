"""How many tokens a request takes, estimated before it is asked: good for a budget, not for a bill.

The figures were counted on the recorded replies of the demo and its prompts, with two vocabularies of the `tiktoken`
library: o200k_base (GPT-4o and later; other vocabularies of 2024 and after are near to it) and cl100k_base (GPT-4,
GPT-3.5-Turbo). Outside the Latin script the older one takes up to five times as many, so both are told.
"""

from __future__ import annotations

import json

from dataset_builder.completion import response_format
from dataset_builder.languages import LANGUAGES
from dataset_builder.plan import Request

CHARACTERS_PER_TOKEN = 4.5
"""Of the English prompts, with either vocabulary."""
TOKENS_PER_WORD_ENGLISH = 1.5
"""Completion tokens per word asked for, with either vocabulary; the JSON around the texts is counted in."""
TOKENS_PER_WORD: dict[str, tuple[float, float]] = {
    "Latn": (2.0, 2.4),
    "Arab": (2.0, 4.4),
    "Armn": (2.4, 11.7),
    "Beng": (2.3, 7.1),
    "Cyrl": (2.3, 3.5),
    "Deva": (2.2, 6.1),
    "Ethi": (8.4, 11.1),
    "Geor": (2.5, 11.4),
    "Grek": (2.6, 5.5),
    "Hans": (1.9, 2.7),
    "Hebr": (2.2, 5.1),
    "Jpan": (2.3, 3.1),
    "Kore": (2.6, 3.9),
    "Taml": (2.9, 10.8),
    "Telu": (2.7, 10.5),
    "Thai": (2.2, 4.6),
    # Not in the recording, so rougher: from one sentence in each, scaled by the scripts above.
    "Gujr": (2.5, 10.0),
    "Guru": (3.0, 10.0),
    "Khmr": (4.0, 11.0),
    "Knda": (2.5, 11.0),
    "Laoo": (12.0, 13.0),
    "Mlym": (3.0, 12.0),
    "Mymr": (5.0, 18.0),
    "Orya": (6.0, 14.0),
    "Sinh": (4.0, 13.0),
}
"""The same by ISO 15924 script, of languages other than English: (o200k_base, cl100k_base). A script in the recording has 10
replies or more there."""
_WORDS_PER_TASK, _WORDS_LONG, _WORDS_SHORT = 14, 330, 14
_WORDS_BY_UNIT = {"phrase": 8, "sentence": 18, "passage": 60}


def reply_words(request: Request) -> float:
    """Return about how many words a reply to a request has, from the lengths that its attributes ask for."""
    attributes = request.attributes
    if request.step == "brainstorm":
        return _WORDS_PER_TASK * float(attributes["num_tasks"])
    num_texts = 2 + attributes.get("hard_negative", True)
    match request.subgroup:
        case "short-long":
            return _WORDS_SHORT + 2.0 * float(attributes["num_words"])
        case "long-short":
            return float(attributes["num_words"]) + _WORDS_SHORT
        case "short-short":
            return float(_WORDS_SHORT * num_texts)
        case "long-long":
            return float(_WORDS_LONG * num_texts)
        case _:
            return 3.0 * _WORDS_BY_UNIT[attributes["unit"]]


def reply_tokens(request: Request) -> tuple[float, float]:
    """Return about how many tokens a reply takes with (o200k_base, cl100k_base)."""
    words, language = reply_words(request), request.attributes.get("language", "en")
    other = request.attributes.get("positive_language", language)  # bitext: one text in the first, two in the second
    (low, high), (other_low, other_high) = _tokens_per_word(language), _tokens_per_word(other)
    return words * (low + 2 * other_low) / 3, words * (high + 2 * other_high) / 3


def _tokens_per_word(language: str) -> tuple[float, float]:
    if language == "en":
        return TOKENS_PER_WORD_ENGLISH, TOKENS_PER_WORD_ENGLISH
    return TOKENS_PER_WORD[LANGUAGES[language].script]


def schema_tokens(request: Request) -> float:
    """Return about how many tokens the JSON schema has that is sent along with a request as its `response_format`."""
    return len(json.dumps(response_format(request, "json_schema"))) / CHARACTERS_PER_TOKEN
