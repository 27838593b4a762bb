"""What lies in a run's `dataset/` and `rejected/`: counts over all of it, and a sample, without holding any text in memory."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataset_builder.dataset import REJECTED_COLUMNS
from dataset_builder.errors import InputError
from dataset_builder.languages import LANGUAGES
from dataset_builder.schema import COLUMNS, SUBGROUPS, TEXT_COLUMNS

KEPT = "kept"
"""The outcome of an example; that of a rejected reply is its reason."""
CHARACTERS_PER_WORD = {"Hans": 1.5, "Jpan": 2.0, "Thai": 4.0, "Laoo": 4.0, "Khmr": 5.0, "Mymr": 5.0}
"""Rule of thumb for the scripts that write no spaces between words."""
LONGEST = 5000
"""Words in the last bin of the histograms."""
_BATCH = 1000  # rows in memory at a time

Stratum = tuple[str, str | None, str]  # subgroup, language, outcome


class Source(NamedTuple):
    """One parquet file; rejected replies have no split, and each row names its subgroup."""

    path: Path
    subgroup: str | None
    split: str | None


@dataclass
class Survey:
    """What the first reading finds in the whole corpus; `outcomes` is by (subgroup, outcome), `words` by (subgroup, text).

    `strata` and `hashes` have one element per example, in the order of the files.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    languages: Counter[tuple[str, bool]] = field(default_factory=Counter)  # by code and whether kept
    scripts: Counter[tuple[str, bool]] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    tasks: set[str] = field(default_factory=set)
    words: dict[tuple[str, str], NDArray[np.int64]] = field(default_factory=dict)  # histograms of lengths
    strata: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))

    @property
    def num_kept(self) -> int:
        """Examples in the dataset."""
        return self.splits.total()


def sample(strata: NDArray[np.int64], hashes: NDArray[np.uint64], num: int) -> NDArray[np.bool_]:
    """Return which examples to take: `num` of them, at least one of every stratum, the rest in proportion.

    Within a stratum those with the smallest hashes are taken. Are there more strata than `num`, the largest have one each.

    Args:
        strata: (examples,) the number of each example's stratum, from 0 without gaps.
        hashes: (examples,) of the ids.
        num: how many to take; all, if there are no more.
    """
    if len(strata) <= num:
        return np.ones(len(strata), np.bool_)
    counts = np.bincount(strata)
    quotas = np.zeros(len(counts), np.int64)
    quotas[np.argsort(-counts, kind="stable")[:num]] = 1
    if len(counts) < num:
        shares = (num - len(counts)) * (counts - 1) / (len(strata) - len(counts))
        quotas += shares.astype(np.int64)
        left = num - quotas.sum()
        quotas[np.argsort(-(shares % 1), kind="stable")[:left]] += 1
    order = np.lexsort((hashes, strata))
    starts = np.cumsum(counts) - counts
    chosen = np.zeros(len(strata), np.bool_)
    chosen[order] = np.arange(len(strata)) - starts[strata[order]] < quotas[strata[order]]
    return chosen


def parquet_sources(run_dir: Path) -> list[Source]:
    """Return the files that `curate` wrote: examples by subgroup and split, then rejected replies.

    Raises:
        InputError: if there are none.
    """
    sources = [
        Source(path, subgroup, split)
        for subgroup in SUBGROUPS
        for split in ("train", "test")
        for path in sorted((run_dir / "dataset" / subgroup).glob(f"{split}-*.parquet"))
    ]
    sources += [Source(path, None, None) for path in sorted((run_dir / "rejected").glob("*.parquet"))]
    if not sources:
        raise InputError(f"There is no dataset in {run_dir / 'dataset'}; run `embedsmith curate` first.")
    return sources


def batches(source: Source) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file, at most some thousands at a time.

    Raises:
        InputError: if the file is not as `curate` writes it.
    """
    needed = COLUMNS if source.subgroup else REJECTED_COLUMNS
    try:
        with pq.ParquetFile(source.path) as file:
            names = file.schema_arrow.names
            if missing := [name for name in needed if name not in names]:
                raise InputError(f"{source.path} has no column '{missing[0]}'; run `embedsmith curate` again.")
            optional = ["model"] if "model" in names and "model" not in needed else []
            yield from file.iter_batches(batch_size=_BATCH, columns=[*needed, *optional], use_threads=False)
    except pa.ArrowInvalid as error:
        text = " ".join(str(error).split())
        raise InputError(f"{source.path} cannot be read ({text}); run `embedsmith curate` again.") from None


def read_survey(sources: list[Source]) -> Survey:
    """Read all files once and return what is in them.

    Raises:
        InputError: if a file is not as `curate` writes it, or none has a row.
    """
    survey, hashes, strata = Survey(), [], []
    numbers: dict[Stratum, int] = {}
    for source in sources:
        for batch in batches(source):
            for id_, stratum, codes in _facts(source, batch):
                hashes.append(int.from_bytes(hashlib.blake2b(id_.encode(), digest_size=8).digest()))
                strata.append(numbers.setdefault(stratum, len(numbers)))
                subgroup, _, outcome = stratum
                survey.outcomes[subgroup, outcome] += 1
                survey.languages.update((code, outcome == KEPT) for code in codes)
                survey.scripts.update((script, outcome == KEPT) for script in {script_of(code) for code in codes})
            if source.subgroup and source.split:
                survey.splits[source.split] += len(batch)
                survey.tasks.update(batch["task_id"].to_pylist())
                _count_words(survey, source.subgroup, batch)
    if not hashes:
        raise InputError(
            f"{sources[0].path.parent} holds no replies; run `embedsmith generate` and `embedsmith curate`."
        )
    survey.hashes, survey.strata = np.array(hashes, np.uint64), np.array(strata, np.int64)
    return survey


def _facts(source: Source, batch: pa.RecordBatch) -> Iterator[tuple[str, Stratum, set[str]]]:
    """Id, stratum and languages of each row."""
    if source.subgroup:
        columns = (batch[name].to_pylist() for name in ("id", "language", "positive_language"))
        for id_, language, positive_language in zip(*columns, strict=True):
            yield id_, (source.subgroup, language, KEPT), {language, positive_language}
        return
    columns = (batch[name].to_pylist() for name in ("id", "subgroup", "reason", "attributes"))
    for id_, subgroup, reason, attributes in zip(*columns, strict=True):
        asked = json.loads(attributes)  # of a brainstorm request they name no language
        codes = {asked[name] for name in ("language", "positive_language") if name in asked}
        yield id_, (subgroup, asked.get("language"), reason), codes


def _count_words(survey: Survey, subgroup: str, batch: pa.RecordBatch) -> None:
    for name in TEXT_COLUMNS:
        codes = batch["language" if name == "query" else "positive_language"].to_pylist()
        per_word = np.array([CHARACTERS_PER_WORD.get(script_of(code), 0.0) for code in codes])
        texts = pc.fill_null(batch[name], "")
        trimmed = pc.call_function("utf8_trim_whitespace", [texts])
        spaced = pc.call_function(
            "list_value_length", [pc.call_function("utf8_split_whitespace", [trimmed])]
        ).to_numpy()
        lengths = pc.call_function("utf8_length", [texts]).to_numpy()
        words = np.where(per_word > 0, np.ceil(lengths / np.maximum(per_word, 1.0)), spaced).astype(np.int64)
        bins = np.bincount(np.minimum(words[lengths > 0], LONGEST), minlength=LONGEST + 1)
        survey.words[subgroup, name] = survey.words.get((subgroup, name), 0) + bins


def script_of(code: str) -> str:
    """Return the ISO 15924 script of a language; "Zzzz" of an unknown one."""
    return LANGUAGES[code].script if code in LANGUAGES else "Zzzz"
