"""The held-out examples as mteb tasks: retrieval for the asymmetric subgroups, STS for `sts`, bitext mining for `bitext`.

They are subclasses of mteb's own abstract tasks, run by `mteb.evaluate`, and their results lie in mteb's own layout.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from datasets import Dataset, concatenate_datasets
from mteb.abstasks import AbsTask, AbsTaskBitextMining, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

from dataset_builder.errors import InputError
from dataset_builder.languages import LANGUAGES
from dataset_builder.schema import BRAINSTORMED, FIXED_INSTRUCTIONS, Subgroup
from model_card.languages import iso_639_3
from trainer.data import dataset_subgroups, load_split, negatives_of


def language_script(code: str) -> str:
    """Return mteb's name of a language, such as 'deu-Latn', for a BCP-47 code."""
    if code not in LANGUAGES:
        raise InputError(
            f"The dataset has the language '{code}', which is none of the {len(LANGUAGES)} that are known."
        )
    return f"{iso_639_3(code)}-{LANGUAGES[code].script}"


def held_out_tasks(dataset_name: str, revision: str | None, digest: str) -> list[AbsTask]:
    """Return the tasks for which the dataset's test split has examples.

    Args:
        dataset_name: folder or Hub id.
        revision: commit, tag or branch of a Hub dataset.
        digest: 40 hex digits that name this state of the data; mteb writes them into the results.

    Raises:
        InputError: if the dataset has no test split at all.
    """
    load = partial(load_split, dataset_name, "test", revision=revision)
    known = dataset_subgroups(dataset_name, revision)
    kept = {subgroup: rows for subgroup in known if (rows := load(subgroup=subgroup)) is not None}
    asymmetric: dict[Subgroup, Dataset] = {
        subgroup: rows for subgroup, rows in kept.items() if subgroup in BRAINSTORMED
    }
    tasks: list[AbsTask] = []
    if asymmetric:
        languages: Any = {subgroup: _languages(rows) for subgroup, rows in asymmetric.items()}
        tasks.append(_task(HeldOutRetrieval, asymmetric, digest, "Retrieval", "ndcg_at_10", languages))
    if "sts" in kept and "attributes" in kept["sts"].column_names:  # the similarities that were asked for stand there
        tasks.append(_task(HeldOutSTS, kept["sts"], digest, "STS", "cosine_spearman", _languages(kept["sts"])))
    if "bitext" in kept:
        languages = _languages(kept["bitext"])
        tasks.append(_task(HeldOutBitextMining, kept["bitext"], digest, "BitextMining", "f1", languages))
    if not tasks:
        raise InputError(
            f"The dataset {dataset_name} has no test split, so there is nothing to judge on; run `embedsmith curate` with "
            "--test_size above 0."
        )
    return tasks


def _task(base: Any, rows: Any, digest: str, type_: str, main_score: str, languages: Any) -> AbsTask:
    """Return an instance of a task class for these rows; mteb wants the metadata on the class."""
    data: Any = {"path": "embedsmith/held-out", "revision": digest}
    metadata = TaskMetadata(
        name=base.__name__,
        dataset=data,
        description=base.__doc__,
        type=type_,  # type: ignore[arg-type]  # one of mteb's literals
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=languages,
        main_score=main_score,
        prompt={"STS": FIXED_INSTRUCTIONS["sts"], "BitextMining": FIXED_INSTRUCTIONS["bitext"]}.get(type_),
    )
    task: AbsTask = type(base.__name__, (base,), {"metadata": metadata, "__doc__": base.__doc__})()
    task.rows = rows  # type: ignore[attr-defined]
    return task


def _languages(rows: Dataset) -> list[str]:
    return sorted({language_script(code) for column in ("language", "positive_language") for code in rows[column]})


class HeldOutTask:
    """What our held-out tasks have in common: `has_instructions` is False for models that take queries bare."""

    has_instructions = True


class HeldOutRetrieval(HeldOutTask, AbsTaskRetrieval):
    """One subset per subgroup, whose corpus is the documents and hard negatives of its held-out examples."""

    rows: dict[Subgroup, Dataset]

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Build queries, corpus and relevance from the rows; texts that occur twice are one document."""
        if self.data_loaded:
            return
        self.dataset = {}
        for subgroup, rows in self.rows.items():
            negatives = [text for negative in rows["negative"] for text in negatives_of({"negative": negative}) if text]
            texts = [*(text for text in rows["positive"] if text), *negatives]
            ids = {text: f"{subgroup}-d{number}" for number, text in enumerate(dict.fromkeys(texts))}
            corpus = Dataset.from_dict({"id": list(ids.values()), "text": list(ids), "title": [""] * len(ids)})
            queries = {
                "id": [f"{subgroup}-q{number}" for number in range(len(rows))],
                "text": list(rows["query"]),
            }
            if self.has_instructions:
                queries["instruction"] = list(rows["instruction"])
            relevant = {q: {ids[text]: 1} for q, text in zip(queries["id"], rows["positive"], strict=True)}
            split = {
                "corpus": corpus,
                "queries": Dataset.from_dict(queries),
                "relevant_docs": relevant,
                "top_ranked": None,
            }
            self.dataset[subgroup] = {"test": split}  # type: ignore[dict-item]  # a TypedDict
        self.data_loaded = True


class HeldOutSTS(HeldOutTask, AbsTaskSTS):
    """The pairs (query, positive) and (query, negative) with the similarity that was asked for."""

    min_score, max_score = 1, 5
    rows: Any  # a datasets.Dataset, whose stubs do not know how it is iterated

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Build the scored pairs from the rows."""
        pairs: dict[str, list[Any]] = {"sentence1": [], "sentence2": [], "score": []}
        for row in self.rows:
            attributes = json.loads(row.get("attributes") or "{}")
            negatives = negatives_of(row)
            low = negatives[0] if len(negatives) == 1 else None  # of several, none is the one that was asked for
            for text, score in ((row["positive"], "high_score"), (low, "low_score")):
                if text and score in attributes:
                    pairs["sentence1"].append(row["query"])
                    pairs["sentence2"].append(text)
                    pairs["score"].append(float(attributes[score]))
        self.dataset: Any = {"test": Dataset.from_dict(pairs)}
        self.data_loaded = True


class HeldOutBitextMining(HeldOutTask, AbsTaskBitextMining):
    """Finding each query's translation among all of them."""

    rows: Any  # a datasets.Dataset, whose stubs do not know how it is iterated

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Build the parallel texts from the rows."""
        columns = {"sentence1": list(self.rows["query"]), "sentence2": list(self.rows["positive"])}
        self.dataset: Any = {"test": Dataset.from_dict(columns)}
        self.data_loaded = True


def num_queries(task: Any) -> dict[str, int]:
    """Return how many held-out examples a task of this module judges, by mteb subset."""
    if isinstance(task, HeldOutRetrieval):
        return {str(subgroup): len(rows) for subgroup, rows in task.rows.items()}
    return {"default": len(task.rows)}


def num_characters(task: Any) -> float:
    """Return about how many characters a task has to be encoded, from mteb's statistics of it; for the ETA alone."""
    if isinstance(task, HeldOutTask):
        held: Any = task
        groups = held.rows.values() if isinstance(task, HeldOutRetrieval) else [held.rows]
        return sum(len(text or "") for rows in groups for name in ("query", "positive") for text in rows[name])
    stats = task.metadata.descriptive_stats or {}
    splits = [stats[split] for split in task.eval_splits if isinstance(stats.get(split), dict)]
    found = [part for split in splits for part in _parts(split, task.hf_subsets)]
    return float(sum(map(_characters, found))) or 1e5


def _parts(split: dict[str, Any], subsets: list[str]) -> list[dict[str, Any]]:
    by_subset = split.get("hf_subset_descriptive_stats") or {}
    return [by_subset[name] for name in subsets if name in by_subset] or [split]


def _characters(stats: Any) -> int:
    """Return the characters that a nesting of mteb's statistics counts."""
    if not isinstance(stats, dict):
        return 0
    own = stats.get("number_of_characters") or stats.get("total_text_length")
    return int(own) if own else sum(map(_characters, stats.values()))


def all_rows(tasks: list[AbsTask]) -> Dataset:
    """Return the asymmetric held-out rows of the retrieval task, by subgroup, for showing neighbours."""
    for task in tasks:
        if isinstance(task, HeldOutRetrieval):
            return concatenate_datasets([task.rows[subgroup] for subgroup in task.rows])
    return Dataset.from_dict({})
