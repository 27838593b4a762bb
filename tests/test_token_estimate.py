"""Estimated tokens, against those of the recorded replies and their prompts as `tiktoken` counted them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from dataset_builder.config import PlanArguments
from dataset_builder.languages import LANGUAGES
from dataset_builder.plan import Request, brainstorm_requests, generate_requests
from dataset_builder.recorded_llm import DEFAULT_REPLIES, read_batch_output
from dataset_builder.rendering import render
from dataset_builder.token_estimate import (
    CHARACTERS_PER_TOKEN,
    TOKENS_PER_WORD,
    TOKENS_PER_WORD_ENGLISH,
    reply_tokens,
    reply_words,
    schema_tokens,
)
from embedsmith import RECIPES_DIR

COUNTED = {"brainstorm": (6836, 6870), "generate": (638_738, 997_270)}
"""Tokens of the recorded replies by step: o200k_base, cl100k_base."""
COUNTED_PROMPTS = 5475  # tokens of the 32 brainstorm prompts, cl100k_base


def demo() -> Iterator[Request]:
    """Yield the requests of the demo, whose replies are recorded."""
    recipe = yaml.safe_load((RECIPES_DIR / "demo" / "dataset.yaml").read_text(encoding="utf-8"))
    settings = {name: recipe[name] for name in recipe.keys() & PlanArguments.__dataclass_fields__.keys()}
    plan = PlanArguments(**settings | {"languages": [f"{code}={w}" for code, w in recipe["languages"].items()]})
    yield from brainstorm_requests(plan)
    yield from generate_requests(plan)


@pytest.mark.parametrize("step", COUNTED)
def test_replies_take_about_as_many_tokens_as_estimated(step: str) -> None:
    estimated = zip(*(reply_tokens(request) for request in demo() if request.step == step), strict=True)
    for counted, tokens in zip(COUNTED[step], estimated, strict=True):
        assert sum(tokens) == pytest.approx(counted, rel=0.08)


def test_prompts_take_about_as_many_tokens_as_estimated() -> None:
    texts = [render(request.prompt, request.attributes) for request in demo() if request.step == "brainstorm"]
    assert sum(map(len, texts)) / CHARACTERS_PER_TOKEN == pytest.approx(COUNTED_PROMPTS, rel=0.08)


def test_the_estimated_lengths_are_near_those_of_real_replies() -> None:
    plan = PlanArguments(output_dir="x", num_examples=192, languages=["en", "de"], num_words=[50, 100, 200])
    estimated = sum(reply_words(request) for request in generate_requests(plan)) / 192
    texts = [b["choices"][0]["message"]["content"] for i, b in read_batch_output(DEFAULT_REPLIES) if "-generate-" in i]
    recorded = sum(len(text.split()) for text in texts) / len(texts)
    assert 0.6 < estimated / recorded < 1.67


def test_every_script_has_its_factors() -> None:
    assert set(TOKENS_PER_WORD) == {language.script for language in LANGUAGES.values()}
    assert all(TOKENS_PER_WORD_ENGLISH < low <= high for low, high in TOKENS_PER_WORD.values())


def test_bitext_counts_each_text_in_its_own_language() -> None:
    def tokens(language: str, other: str) -> tuple[float, float]:
        attributes = {"language": language, "positive_language": other, "unit": "sentence"}
        return reply_tokens(Request("id", "generate", "bitext", 0, "prompt", attributes))

    assert tokens("en", "en") == pytest.approx((54 * TOKENS_PER_WORD_ENGLISH,) * 2)
    assert tokens("en", "ka")[1] == pytest.approx(18 * TOKENS_PER_WORD_ENGLISH + 36 * TOKENS_PER_WORD["Geor"][1])
    assert tokens("ka", "en")[1] < tokens("en", "ka")[1]


def test_the_schema_is_some_dozen_tokens() -> None:
    assert all(30 < schema_tokens(request) < 120 for request in demo())
