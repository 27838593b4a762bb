"""What every client script is given: the same prompts, and the same flags."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

MODEL = "gpt-4o-mini"
"""A name that the clients' price and tokenizer tables know, so that none logs an unknown model for every reply."""

_PROMPT = """Task {number}. Write three texts in English, each a paragraph, for judging how similar two texts are in meaning. \
Similarity runs from 1 (nothing in common) to 5 (the same meaning).

Reply with one JSON object and nothing else, no comment before or after it. Its keys, all with string values:
- "S1": a paragraph
- "S2": a paragraph whose similarity to S1 is 4.5
- "S3": a paragraph whose similarity to S1 is 2.5

What to keep in mind:
- The texts take college level education to understand and may be about anything: a trade, a place, a custom, a device, a \
quarrel, a discovery, a recipe, a journey, a law, a season.
- S1 and S2 avoid each other's words and sentence structure where the score allows it; S3 takes up words of S1 but says \
something else.
- No text comments on the others or on the scores, and none of them could be made from another by swapping a word.
- Choose a situation that such exercises seldom use, and give it the names, numbers and circumstances that make it \
particular: somebody who was there should recognise it, and somebody who was not should be able to picture it.
"""


def prompts(num_requests: int) -> Iterator[str]:
    """Yield different prompts of about 1.2 KB each."""
    for number in range(num_requests):
        yield _PROMPT.format(number=number)


def arguments() -> argparse.ArgumentParser:
    """Return a parser of the flags that every client takes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base_url", required=True)
    parser.add_argument("--num_requests", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--output_dir", required=True, help="An empty folder, for whatever the client writes.")
    return parser
