"""The texts of mteb's test sets, out of the unmodified tasks."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dataset_builder.errors import InputError, suggestion

_NO_TEXT = re.compile(
    r"(.*[_-])?(id|ids|idx|index|labels?|label_text|lang|languages?|ur[li]|scores?|split)", re.IGNORECASE
)
"""Columns that hold strings, but no texts."""
_JUDGEMENTS = ("relevant_docs", "top_ranked")  # of retrieval tasks: ids alone


def tasks_named(names: Iterable[str]) -> dict[str, list[Any]]:
    """Return mteb's tasks of these names, or of the benchmarks of these names, by their names.

    A task that two benchmarks take with different languages or splits is there in all its variants.

    Raises:
        InputError: if mteb has neither a task nor a benchmark of such a name.
    """
    found: dict[str, list[Any]] = {}
    for name in names:
        for task in tasks_called(name, "contamination_tasks"):
            for part in task.tasks if task.is_aggregate else [task]:
                same = found.setdefault(part.metadata.name, [])
                if all((part.hf_subsets, part.eval_splits) != (one.hf_subsets, one.eval_splits) for one in same):
                    same.append(part)
    return found


def tasks_called(name: str, flag: str) -> list[Any]:
    """Return mteb's task of this name, or the tasks of the benchmark of this name.

    Raises:
        InputError: if mteb has neither; the sentence names the `flag` that the name was given for.
    """
    import mteb

    try:
        return [mteb.get_task(name)]
    except KeyError:
        pass
    try:
        return list(mteb.get_benchmark(name).tasks)
    except KeyError:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that some tasks are in beta
            tasks = mteb.get_tasks(exclude_superseded=False, exclude_private=False)
        known = [*(task.metadata.name for task in tasks), *(benchmark.name for benchmark in mteb.get_benchmarks())]
        raise InputError(
            f"`{flag}` has '{name}'; it takes names of mteb tasks or benchmarks, such as STS13 or "
            f"'MTEB(eng, v2)'.{suggestion(name, known)}"
        ) from None


def texts_of(name: str, tasks: Iterable[Any]) -> Iterator[str]:
    """Yield all strings of the evaluation splits of a task's variants, whatever its type; ids and labels left out.

    Raises:
        InputError: if the data cannot be loaded.
    """
    for task in tasks:
        try:
            task.load_data()
            if hasattr(task, "convert_v1_dataset_format_to_v2"):  # as mteb does before it evaluates
                task.convert_v1_dataset_format_to_v2(num_proc=None)
        except Exception as error:  # whatever a task's own code and the Hub's clients raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(
                f"`contamination_tasks` has '{name}', whose data cannot be loaded ({reason}); its test set must be within "
                "reach, so see to the Hub and the token, or leave this task out."
            ) from error
        yield from _strings(task.dataset, frozenset(task.eval_splits), getattr(task, "label_column_name", ""))
        task.unload_data()


def _strings(data: Any, splits: frozenset[str], label: str) -> Iterator[str]:
    """Yield the strings in mteb's nesting of subsets, splits, datasets and rows; of the splits only `splits`.

    Args:
        data: a dataset as arrow, which is read batch by batch; or a mapping, a list or a string.
        splits: names of the evaluation splits; empty once they are chosen.
        label: the column that is no text for this task.
    """
    from datasets import Dataset

    if isinstance(data, str):
        yield data
    elif isinstance(data, Dataset):
        columns = [name for name, kind in data.features.items() if name != label and _holds_text(name, kind)]
        batches: Any = data.select_columns(columns).with_format("arrow").iter(256) if columns else ()
        for table in batches:
            for column in table.columns:
                yield from _strings(column.to_pylist(), frozenset(), label)
    elif isinstance(data, Mapping):
        chosen = [key for key in data if key in splits]
        for key in chosen or data:
            holds_rows = isinstance(data[key], Dataset | Mapping)  # then the key may be a language, such as 'id'
            if key not in _JUDGEMENTS and (holds_rows or not _NO_TEXT.fullmatch(str(key))):
                yield from _strings(data[key], frozenset() if chosen else splits, label)
    elif isinstance(data, Sequence) and not isinstance(data, bytes):  # datasets' `Column` is one, too
        for value in data:
            yield from _strings(value, splits, label)


def _holds_text(column: str, kind: Any) -> bool:
    """Tell whether a column of a dataset has texts in it, alone or in lists and structs."""
    if _NO_TEXT.fullmatch(column):
        return False
    if isinstance(kind, dict):
        return any(_holds_text(name, part) for name, part in kind.items())
    if hasattr(kind, "feature"):  # a list
        return _holds_text("", kind.feature)
    return getattr(kind, "dtype", None) in ("string", "large_string")
