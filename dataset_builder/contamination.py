"""Overlap of examples with the test sets of the mteb tasks that the model will be judged on.

    test_sets = TestSets.of_tasks(["STS13", "MTEB(eng, v2)"])
    test_sets.find(words(normalize(text)))  # ('STS13', 'the thirteen words that recur') or None

Two texts overlap if 13 words in a row are the same, case and punctuation aside: by this size GPT-3's training data were
filtered (Brown et al. 2020, appendix C). In scripts without spaces it takes as many characters as make 13 words (23 of
Chinese), for 13 characters of Chinese are less than 8 words, and often a set phrase.

A test text shorter than that has no such run. It counts when the whole text of an example equals it; to stand inside of
a longer text is no overlap. That matters for STS: nine in ten sentences of STS13 have fewer than 13 words, half of them
fewer than 8, and are found as copies only. GPT-3's analysis of its test sets went down to 8 words in a row where their
texts are short, which is `contamination_ngram: 8` here. Texts of fewer than 4 words never count: labels ("positive",
"joy"), names and greetings are no secret of a test set, and everybody writes "Thank you" or "He is dancing".
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from dataset_builder.checks import normalize
from dataset_builder.mteb_texts import tasks_named, texts_of
from dataset_builder.progress import duration
from dataset_builder.words import joined, ngram_hashes, num_words, words

Hashes = npt.NDArray[np.uint64]

MIN_WORDS = 4
"""Test texts of fewer words are not looked for."""
_WHOLE = "\n"  # no word: it parts the hash of a whole short text from those of runs of words
_CHUNK = 1 << 22  # hashes that are gathered before they are sorted


class Overlap(NamedTuple):
    """What an example has in common with a test set: the task, where it was found, the words, the example's id."""

    task: str
    subgroup: str
    column: str
    snippet: str
    id: str


@dataclass(frozen=True)
class TaskCount:
    """What is indexed of a task: texts, texts left out because they are shorter than 4 words, distinct hashes."""

    task: str
    num_texts: int
    num_too_short: int
    num_ngrams: int


@dataclass(frozen=True)
class TestSets:
    """An index of the n-grams of test sets.

    Attributes:
        hashes: (n-grams,) sorted and distinct.
        tasks: (n-grams,) the place in `counts` of the task that each comes from: the first one given that has it.
        counts: what there is of each task.
        ngram: words in a row that make an overlap.
    """

    hashes: Hashes
    tasks: npt.NDArray[np.uint16]
    counts: tuple[TaskCount, ...]
    ngram: int

    @classmethod
    def of_tasks(cls, names: Sequence[str], ngram: int = 13) -> Self:
        """Load the evaluation splits of mteb tasks, or of all tasks of mteb benchmarks, and index all their texts.

        The texts pass through in batches; what stays is the hashes: 10 bytes for each distinct n-gram, three times as
        much while they are sorted. Prints a line a task to stderr.

        Raises:
            InputError: if a name is unknown, or the data of a task cannot be loaded.
        """
        found = tasks_named(names)
        return cls.of_texts(((name, texts_of(name, tasks)) for name, tasks in found.items()), ngram, len(found))

    @classmethod
    def of_texts(cls, texts: Iterable[tuple[str, Iterable[str]]], ngram: int = 13, total: int | None = None) -> Self:
        """Index (task name, its texts) for each task; `total` tells the progress lines how many there will be."""
        counts: list[TaskCount] = []
        by_task: list[Hashes] = []
        for number, (task, strings) in enumerate(texts, 1):
            start = time.monotonic()
            count, hashes = _indexed(task, strings, ngram)
            counts.append(count)
            by_task.append(hashes)
            if total:
                took = duration(time.monotonic() - start)
                print(
                    f"test sets {number:,}/{total:,} | {task} | {count.num_texts:,} texts | "
                    f"{count.num_ngrams:,} n-grams | {took}",
                    file=sys.stderr,
                    flush=True,
                )
        together = np.concatenate([np.empty(0, np.uint64), *by_task])
        hashes, first = np.unique(together, return_index=True)
        tasks = np.repeat(np.arange(len(by_task), dtype=np.uint16), [len(part) for part in by_task])
        return cls(hashes, tasks[first], tuple(counts), ngram)

    def save(self, folder: Path) -> None:
        """Write the index into a folder: two .npy files and index.json."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "hashes.npy", self.hashes)
        np.save(folder / "tasks.npy", self.tasks)
        index = {"ngram": self.ngram, "counts": [asdict(count) for count in self.counts]}
        (folder / "index.json").write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, mmap: bool = True) -> Self:
        """Read what `save` wrote. Mapped into memory it is shared by all processes that load it (pickled, it is copied)."""
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        mode: Any = "r" if mmap else None
        hashes, tasks = (np.load(folder / f"{name}.npy", mmap_mode=mode) for name in ("hashes", "tasks"))
        return cls(hashes, tasks, tuple(TaskCount(**count) for count in index["counts"]), index["ngram"])

    def find(self, words: Sequence[str]) -> tuple[str, str] | None:
        """Return the task that the words of a text overlap with first, and the overlapping words; None: with none."""
        length = num_words(" ".join(words[: 5 * self.ngram]))  # no word is worth less than a fifth of one
        if length < MIN_WORDS and length < self.ngram:
            return None
        if length < self.ngram:
            at = self._places(_whole_hash(words))
            return (self._task(int(at[0])), joined(words)) if at[0] >= 0 else None
        at = self._places(ngram_hashes(words, self.ngram))  # (number of words - ngram + 1,)
        hits = np.flatnonzero(at >= 0)
        ends = np.flatnonzero(np.diff(hits) > 1)
        for run in np.split(hits, ends + 1) if len(hits) else ():
            for start in run.tolist():
                span = self._span(words[start : run[-1] + self.ngram])
                if 3 * len(set(span)) >= len(span) > 0:  # the bars of a table or a row of zeros are no leak
                    return self._task(int(at[start])), joined(span)
        return None

    def _places(self, hashes: Hashes) -> npt.NDArray[np.intp]:
        """Return where the hashes are in the index, -1 for those that are not."""
        if not len(self.hashes):
            return np.full(len(hashes), -1)
        at = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[at] == hashes, at, -1)

    def _task(self, place: int) -> str:
        return self.counts[int(self.tasks[place])].task

    def _span(self, overlapping: Sequence[str]) -> Sequence[str]:
        """Return as many of the first words in a row as are worth `ngram` words, none if all of them are too few."""
        for size in range(self.ngram, len(overlapping) + 1):
            if num_words(" ".join(overlapping[:size])) >= self.ngram:
                return overlapping[:size]
        return ()


def report(overlaps: Iterable[Overlap], test_sets: TestSets, num_samples: int = 3) -> str:
    """Return the Markdown report on a dataset: a table of the tasks, in the order they were given, with what was rejected.

    Args:
        overlaps: one for each rejected example, in any order.
        test_sets: what the examples were compared with.
        num_samples: how many different snippets are shown of a task.
    """
    by_task: dict[str, list[Overlap]] = {count.task: [] for count in test_sets.counts}
    for overlap in sorted(overlaps, key=lambda one: (one.subgroup, one.column, one.snippet, one.id)):
        by_task[overlap.task].append(overlap)
    num_texts = sum(count.num_texts for count in test_sets.counts)
    num_rejected = len({overlap.id for found in by_task.values() for overlap in found})
    lines = [
        f"All examples were compared with {num_texts:,} test texts of mteb ({len(by_task):,} "
        f"{'task' if len(by_task) == 1 else 'tasks'}). {num_rejected:,} {'was' if num_rejected == 1 else 'were'} rejected: "
        f"{test_sets.ngram} words in a row are those of a test text, or a whole text is that of a shorter one (of "
        f"{MIN_WORDS} words at least). Case and punctuation do not count.",
        "",
        "| task | test texts | n-grams | examples rejected | for instance |",
        "|---|---:|---:|---:|---|",
    ]
    for count in test_sets.counts:
        first: dict[str, Overlap] = {}
        for overlap in by_task[count.task]:
            first.setdefault(overlap.snippet, overlap)
        shown = [f"“{_escaped(one.snippet)}” ({one.subgroup}, {one.column})" for one in first.values()][:num_samples]
        texts = f"{count.num_texts:,}" if count.num_texts else "none"
        num = len({overlap.id for overlap in by_task[count.task]})
        lines.append(f"| {_escaped(count.task)} | {texts} | {count.num_ngrams:,} | {num:,} | {'<br>'.join(shown)} |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return re.sub(r"([\\|`<>~$^*_\[\]])", r"\\\1", text)


def _whole_hash(words: Sequence[str]) -> Hashes:
    return ngram_hashes([_WHOLE, *words], len(words) + 1)


def _indexed(task: str, texts: Iterable[str], ngram: int) -> tuple[TaskCount, Hashes]:
    """Return the counts of a task, and the sorted, distinct hashes of its texts."""
    num_texts, num_too_short, num_new = 0, 0, 0
    hashes, new = np.empty(0, np.uint64), list[Hashes]()
    for text in texts:
        normal = normalize(text)
        length = num_words(normal)
        if length < min(MIN_WORDS, ngram):
            num_too_short += 1
            continue
        num_texts += 1
        parts = words(normal)
        new.append(ngram_hashes(parts, ngram) if length >= ngram else _whole_hash(parts))
        num_new += len(new[-1])
        if num_new > max(_CHUNK, len(hashes)):
            hashes, new, num_new = np.unique(np.concatenate([hashes, *new])), [], 0
    hashes = np.unique(np.concatenate([hashes, *new]))
    return TaskCount(task, num_texts, num_too_short, len(hashes)), hashes
