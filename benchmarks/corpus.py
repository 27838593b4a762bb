"""What a corpus looks like in numbers: lengths, variety of words, languages, by subgroup and by language.

    python benchmarks/corpus.py RUN

RUN is a run folder with `dataset/` and `rejected/`, as `embedsmith curate` leaves them. Words are counted as curation counts
them. The type-token ratio is that of windows of 200 words in a row, the mean over all windows of a group, so that it does not
depend on how much text there is. The identifier (py3langid) is asked for its first guess on each text; near relatives count as
agreement, as in curation. Texts of under 30 letters are not asked about.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import py3langid
import pyarrow.parquet as pq

from dataset_builder.checks import normalize
from dataset_builder.language_check import _LABELS, _RELATIVES, _SAME, MIN_LETTERS
from dataset_builder.schema import SUBGROUPS, TEXT_COLUMNS
from dataset_builder.words import num_words, words

WINDOW = 200


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of all parquet files of a folder, each with the name of its config."""
    found = []
    for path in sorted((run / name).rglob("*.parquet")):
        found += [{**row, "config": path.parent.name} for row in pq.read_table(path).to_pylist()]
    return found


def texts(row: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield column, language and text."""
    for column in TEXT_COLUMNS:
        if row[column]:
            yield column, row["language" if column == "query" else "positive_language"], row[column]


def type_token_ratio(found: Iterable[str]) -> float | None:
    """Return the share of different words in windows of `WINDOW` words, the mean over the windows; None for too few words."""
    tokens = [word for text in found for word in words(normalize(text))]
    windows = [tokens[i : i + WINDOW] for i in range(0, len(tokens) - WINDOW + 1, WINDOW)]
    return statistics.mean(len(set(window)) / WINDOW for window in windows) if windows else None


def agrees(text: str, language: str) -> bool | None:
    """Tell whether the identifier's first guess is the language or one that passes for it; None where it cannot be asked."""
    label = _LABELS.get(language, language).split("-")[0]
    if sum(map(str.isalpha, text)) < MIN_LETTERS:
        return None
    guess, _ = py3langid.classify(text)
    relatives = next((group for group in _RELATIVES if label in group), {label})
    return guess == label or guess in _SAME.get(language, set()) or guess in relatives


def nearer_negatives(found: list[dict[str, Any]]) -> float | None:
    """Return the share of rows whose hard negative shares more of its wording with the query than the positive does.

    Wording is the set of runs of four characters, shared by Jaccard similarity. At 1 a model could learn that what looks least
    alike is right; at 0, that words are enough.
    """
    nearer = []
    for row in found:
        if row["negative"]:
            query, positive, negative = (_runs(row[column]) for column in TEXT_COLUMNS)
            nearer.append(_jaccard(query, positive) < _jaccard(query, negative))
    return statistics.mean(nearer) if nearer else None


def _runs(text: str) -> set[str]:
    return {text.lower()[i : i + 4] for i in range(len(text) - 3)}


def _jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / max(1, len(one | other))


def table(name: str, groups: dict[str, list[dict[str, Any]]]) -> None:
    """Print a line for each group of rows."""
    print(
        f"\n| {name} | examples | words: query | positive | negative | type-token ratio | negative nearer in wording |\n"
        "|---|---:|---:|---:|---:|---:|---:|"
    )
    for key, found in groups.items():
        lengths: dict[str, list[float]] = defaultdict(list)
        for row in found:
            for column, language, text in texts(row):
                if name == "subgroup" or language == key:
                    lengths[column].append(num_words(normalize(text)))
        means = [f"{statistics.mean(lengths[c]):.0f}" if lengths[c] else "–" for c in TEXT_COLUMNS]
        own = [t for row in found for _, lang, t in texts(row) if name == "subgroup" or lang == key]
        ratio = type_token_ratio(own)
        share = nearer_negatives(found)
        last = f"{f'{ratio:.2f}' if ratio else '–'} | {'–' if share is None else f'{share:.0%}'}"
        print(f"| {key} | {len(found)} | {' | '.join(means)} | {last} |")


def main() -> None:
    """Print the tables."""
    run = Path(sys.argv[1])
    kept, rejected = [r for r in rows(run, "dataset") if r["config"] in SUBGROUPS], rows(run, "rejected")
    table(
        "subgroup",
        {s: [r for r in kept if r["config"] == s] for s in SUBGROUPS if any(r["config"] == s for r in kept)},
    )
    by_language = Counter(lang for row in kept for lang in {row["language"], row["positive_language"]})
    table(
        "language",
        {c: [r for r in kept if c in (r["language"], r["positive_language"])] for c, _ in by_language.most_common()},
    )
    answers = [(lang, agrees(text, lang)) for row in kept for _, lang, text in texts(row)]
    asked = [answer for _, answer in answers if answer is not None]
    reasons = Counter(row["reason"] for row in rejected)
    total = len(kept) + len(rejected)
    print(f"\nkept: {len(kept)} of {total} ({len(kept) / total:.1%}); rejected: {dict(reasons)}")
    print(f"near duplicates: {reasons['duplicate'] / total:.1%}")
    print(f"the identifier agrees on {sum(asked) / len(asked):.1%} of {len(asked)} texts; the others: ", end="")
    print(dict(Counter(lang for lang, answer in answers if answer is False).most_common()))


if __name__ == "__main__":
    main()
