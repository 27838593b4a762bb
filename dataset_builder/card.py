"""The dataset card: made from the curated rows and the recipe alone, so that no number in it is typed by hand."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData

from dataset_builder.config import CurationArguments
from dataset_builder.curation import REASONS, Curated, Row
from dataset_builder.languages import LANGUAGES
from dataset_builder.schema import SUBGROUPS, Subgroup

TEMPLATE = Path(__file__).parent / "dataset_card.md"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))

DESCRIPTIONS: dict[Subgroup, str] = {
    "short-long": "a short query and the document that answers it (retrieval)",
    "long-short": "a long text and its label (classification)",
    "short-short": "two short texts that match under the task",
    "long-long": "two long documents that match under the task",
    "sts": "two texts of nearly the same meaning (semantic textual similarity)",
    "bitext": "a text and its translation",
}


def size_category(num_rows: int) -> str:
    """Return the Hub's name for a number of rows."""
    return next((name for limit, name in _SIZES if num_rows < limit), "10M<n<100M")


def card_data(folder: Path, curated: Curated, arguments: CurationArguments) -> DatasetCardData:
    """Return the card's YAML; its `configs` are read from the parquet files that lie in `folder`."""
    names = sorted({path.parent.name for path in folder.glob("*/*.parquet")})
    configs: list[dict[str, Any]] = []
    for name in (*(s for s in SUBGROUPS if s in names), *(["tasks"] if "tasks" in names else [])):
        files = [(s, p.name) for s in ("train", "test") for p in sorted((folder / name).glob(f"{s}-*.parquet"))]
        configs.append(
            {"config_name": name, "data_files": [{"split": s, "path": f"{name}/{file}"} for s, file in files]}
        )
    configs[0]["default"] = True
    codes = sorted({code for row in curated.rows() for code in (row["language"], row["positive_language"])})
    return DatasetCardData(
        language=codes,
        license=arguments.dataset_license,
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"],
        multilinguality=["multilingual", "translation"] if "bitext" in names else ["multilingual"],
        size_categories=[size_category(sum(1 for _ in curated.rows()))],
        source_datasets=["original"],
        task_categories=["sentence-similarity", "text-retrieval", "text-classification"],
        pretty_name=arguments.dataset_title,
        tags=["synthetic", "embedsmith", "text-embeddings", "sentence-transformers"],
        configs=configs,
    )


def dataset_card(
    folder: Path, curated: Curated, recipe: dict[str, Any], arguments: CurationArguments, run_dir: Path
) -> str:
    """Return the README.md of the dataset folder.

    Args:
        folder: the dataset folder, with its parquet files written.
        curated: what lies in them, and what was rejected.
        recipe: the settings that the plan follows from.
        arguments: licence, title and note.
        run_dir: the run folder; its dataset is what the loading example loads until the dataset is pushed.
    """
    rows = list(curated.rows())
    card = DatasetCard.from_template(
        card_data(folder, curated, arguments),
        template_path=str(TEMPLATE),
        title=arguments.dataset_title,
        note=arguments.dataset_note,
        repo=(run_dir / "dataset").as_posix(),
        num_rows=len(rows),
        num_by_split={name: sum(len(s[name]) for s in curated.examples.values()) for name in ("train", "test")},
        first=next((s, split) for split in ("train", "test") for s, rows_ in curated.examples.items() if rows_[split]),
        composition=[
            {
                "subgroup": subgroup,
                "description": DESCRIPTIONS[subgroup],
                "train": len(splits["train"]),
                "test": len(splits["test"]),
                "tasks": len({row["task_id"] for s in splits.values() for row in s}),
                "rejected": sum(row["subgroup"] == subgroup for row in curated.rejected),
            }
            for subgroup, splits in curated.examples.items()
        ],
        languages=_languages(rows),
        scripts=len({LANGUAGES[code].script for code, *_ in _languages(rows)}),
        reasons=[(r, n, REASONS[r]) for r, n in _by_count(row["reason"] for row in curated.rejected)],
        models=_by_count(row["model"] for row in rows),
        prompts=_by_count(row["prompt"] for row in rows),
        curated=curated,
        recipe=yaml.safe_dump(recipe, default_flow_style=None, sort_keys=True, width=110).strip(),
        samples=_samples(curated),
    )
    return str(card).rstrip() + "\n"


def with_repo(card: str, repo: str) -> str:
    """Return the card with `repo` in its loading examples."""
    return re.sub(r'load_dataset\("[^"]*"', f'load_dataset("{repo}"', card)


def _languages(rows: list[Row]) -> list[tuple[str, str, str, int]]:
    """(code, name, script, number of examples with a text in it), the most frequent first."""
    counter = Counter(code for row in rows for code in {row["language"], row["positive_language"]})
    return [
        (code, LANGUAGES[code].name, LANGUAGES[code].script, n)
        for code, n in sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    ]


def _by_count(values: Any) -> list[tuple[str, int]]:
    return sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))


def _samples(curated: Curated) -> list[tuple[Subgroup, dict[str, str]]]:
    """Of each subgroup the English example with the shortest texts (else the shortest of all), long texts cut."""
    samples = []
    names = ("instruction", "query", "positive", "negative")
    for subgroup, splits in curated.examples.items():
        rows = [row for name in ("train", "test") for row in splits[name]]
        if rows:
            row = min(
                rows, key=lambda row: (row["language"] != "en", sum(len(row[name] or "") for name in names), row["id"])
            )
            samples.append((subgroup, {name: _shortened(row[name]) for name in names if row[name]}))
    return samples


def _shortened(text: str, limit: int = 280) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= limit else text[: limit - 1].rsplit(" ", 1)[0] + " …"
