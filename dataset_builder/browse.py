"""The verb `browse`: one self-contained page to look through the corpus of a run, kept and rejected.

The parquet files are read twice, in batches: first what is counted and sampled by, then the texts of the sample. So
memory holds a few numbers per example of the corpus, however large it is, and the texts of the page alone.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from dataset_builder.config import BrowseArguments, CurationArguments, PlanArguments
from dataset_builder.curation import REASONS
from dataset_builder.languages import LANGUAGES
from dataset_builder.schema import SUBGROUPS, TEXT_COLUMNS
from dataset_builder.survey import (
    KEPT,
    LONGEST,
    Source,
    Survey,
    batches,
    parquet_sources,
    read_survey,
    sample,
    script_of,
)

PAGE = "browse.html"
RTL_SCRIPTS = ("Arab", "Hebr")
_CUTS = (2000, 1700, 1450, 1250, 1050, 900, 750, 650, 550, 450, 400, 350, 300)  # characters of a text
_DATA_BYTES = 9_600_000  # of JSON; the longest cut with which it stays below is taken
_CUT_COLUMNS = ("task", *TEXT_COLUMNS, "detail", "reply")
_SHUFFLE = np.uint64(0x9E3779B97F4A7C15)  # of the large strata the smallest hashes are here; this spreads them again


class Bar(NamedTuple):
    """One bar of a chart: what it is called and filtered by, and how many of it were kept and rejected."""

    value: str
    label: str
    kept: int
    rejected: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.kept + self.rejected


def browse(plan: PlanArguments, curation: CurationArguments, arguments: BrowseArguments) -> str:
    """Write `<output_dir>/browse.html` from `dataset/` and `rejected/`; return its path.

    Raises:
        InputError: if there is neither folder, or a file in them is not as `curate` writes it.
    """
    sources = parquet_sources(plan.run_dir)
    survey = read_survey(sources)
    chosen = sample(survey.strata, survey.hashes, arguments.max_examples)
    rows = _page_rows(sources, chosen)
    mixed = np.argsort(survey.hashes[chosen] * _SHUFFLE, kind="stable")  # so that the first results are of all kinds
    rows = [rows[i] for i in mixed]
    page = plan.run_dir / PAGE
    page.write_text(_page(curation.dataset_title, survey, rows), encoding="utf-8")
    print(
        f"browse: {len(rows):,} of {len(survey.strata):,} replies on the page, {page.stat().st_size / 1e6:.1f} MB",
        file=sys.stderr,
    )
    return str(page)


def _page_rows(sources: list[Source], chosen: NDArray[np.bool_]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    start = 0
    for source in sources:
        for batch in batches(source):
            mask = pa.array(chosen[start : start + len(batch)])
            rows += [_page_row(source, row) for row in batch.filter(mask).to_pylist()]
            start += len(batch)
    return rows


def _page_row(source: Source, row: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows of an example or a rejected reply; `lengths` are those of texts before cutting."""
    attributes = json.loads(row["attributes"])
    languages = row if source.subgroup else attributes
    shown = {
        "subgroup": source.subgroup or row["subgroup"],
        "split": source.split,
        "outcome": row.get("reason", KEPT),
        "language": languages.get("language"),
        "positive_language": languages.get("positive_language", languages.get("language")),
        "task": row.get("instruction", row.get("task")),
        "attributes": {k: v for k, v in attributes.items() if k not in ("language", "positive_language")},
    }
    shown |= {name: row.get(name) for name in ("id", "model", "prompt", *TEXT_COLUMNS, "detail", "reply")}
    shown["lengths"] = {name: len(shown[name]) for name in _CUT_COLUMNS if shown[name]}
    return {k: v[: _CUTS[0]] if k in _CUT_COLUMNS and v else v for k, v in shown.items() if v is not None}


def _cut(row: dict[str, Any], limit: int) -> dict[str, Any]:
    """Return a row with its texts cut at `limit` characters; `lengths` then has the cut ones alone."""
    lengths = {name: length for name, length in row["lengths"].items() if length > limit}
    return row | {name: row[name][:limit] for name in lengths} | {"lengths": lengths}


def _data(survey: Survey, rows: list[dict[str, Any]]) -> tuple[str, int]:
    """Return the JSON for the page, safe inside a script element, and the length at which texts are cut."""
    codes = sorted({code for code, _ in survey.languages})
    languages = {
        code: {
            "name": LANGUAGES[code].name if code in LANGUAGES else code,
            "script": script_of(code),
            "tag": "zh-Hans" if code == "zh" else code,
            "dir": "rtl" if script_of(code) in RTL_SCRIPTS else "auto",
        }
        for code in codes
    }
    text, limit = "", 0
    for limit in _CUTS:
        data = {"total": len(survey.strata), "languages": languages, "reasons": REASONS}
        data["rows"] = [_cut(row, limit) for row in rows]
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        if len(text.encode()) <= _DATA_BYTES:
            break
    return text, limit


def _bars(counter: Counter[tuple[str, bool]], labels: dict[str, str]) -> list[Bar]:
    bars = [Bar(v, labels.get(v, v), counter[v, True], counter[v, False]) for v in {value for value, _ in counter}]
    return sorted(bars, key=lambda bar: (-bar.total, bar.value))


def _quantiles(bins: NDArray[np.int64]) -> list[tuple[int, float]]:
    """Return the 10th, 50th and 90th percentile of a histogram, each with its place in % of a logarithmic axis to 1,000."""
    values = np.searchsorted(np.cumsum(bins), np.array([0.1, 0.5, 0.9]) * bins.sum())
    return [(int(v), min(100.0, 100 * math.log10(max(v, 1)) / 3)) for v in values]


def _page(title: str, survey: Survey, rows: list[dict[str, Any]]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    data, limit = _data(survey, rows)
    subgroups: Counter[tuple[str, bool]] = Counter()
    reasons: Counter[tuple[str, bool]] = Counter()
    for (subgroup, outcome), count in survey.outcomes.items():
        subgroups[subgroup, outcome == KEPT] += count
        if outcome != KEPT:
            reasons[outcome, False] += count
    words = {s: {n: survey.words[s, n] for n in TEXT_COLUMNS if (s, n) in survey.words} for s in SUBGROUPS}
    return environment.get_template("browse.html.jinja").render(
        title=title,
        survey=survey,
        num_shown=len(rows),
        num_replies=len(survey.strata),
        num_strata_shown=len({(row["subgroup"], row.get("language"), row["outcome"]) for row in rows}),
        num_strata=int(survey.strata.max(initial=-1)) + 1,
        num_words=sum(int(bins @ np.arange(LONGEST + 1)) for bins in survey.words.values()),
        subgroups=sorted(_bars(subgroups, {}), key=lambda bar: SUBGROUPS.index(bar.value)),
        languages=_bars(survey.languages, {code: language.name for code, language in LANGUAGES.items()}),
        scripts=_bars(survey.scripts, {}),
        reasons=_bars(reasons, {}),
        lengths={s: {n: _quantiles(b) for n, b in by.items() if b.any()} for s, by in words.items() if by},
        limit=limit,
        longest=_CUTS[0],
        data=data,
    )
