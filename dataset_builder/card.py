"""The dataset card: made from the counts of the curated rows and the recipe alone, so that no number in it is typed by hand."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData

from dataset_builder.checks import Row
from dataset_builder.composition import Composition
from dataset_builder.config import CurationArguments
from dataset_builder.curation import REASONS
from dataset_builder.languages import LANGUAGES
from dataset_builder.plots import plot_languages, plot_lengths
from dataset_builder.schema import SUBGROUPS, SYMMETRIC, Subgroup

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


def card_data(folder: Path, composition: Composition, arguments: CurationArguments) -> DatasetCardData:
    """Return the card's YAML; its `configs` are read from the parquet files that lie in `folder`."""
    names = sorted({path.parent.name for path in folder.glob("*/*.parquet")})
    configs: list[dict[str, Any]] = []
    for name in (*(s for s in SUBGROUPS if s in names), *(["tasks"] if "tasks" in names else [])):
        paths = {
            s: [f"{name}/{p.name}" for p in sorted((folder / name).glob(f"{s}-*.parquet"))] for s in ("train", "test")
        }
        data_files = [
            {"split": s, "path": found[0] if len(found) == 1 else found} for s, found in paths.items() if found
        ]
        configs.append({"config_name": name, "data_files": data_files})
    configs[0]["default"] = True
    return DatasetCardData(
        language=sorted(composition.languages),
        license=arguments.dataset_license,
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"],
        multilinguality=["multilingual", "translation"] if "bitext" in names else ["multilingual"],
        size_categories=[size_category(composition.num_kept)],
        source_datasets=["original"],
        task_categories=["sentence-similarity", "text-retrieval", "text-classification"],
        pretty_name=arguments.dataset_title,
        tags=["synthetic", "embedsmith", "text-embeddings", "sentence-transformers"],
        configs=configs,
    )


def dataset_card(
    folder: Path,
    composition: Composition,
    num_tasks: int,
    recipe: dict[str, Any],
    arguments: CurationArguments,
    run_dir: Path,
) -> str:
    """Return the README.md of the dataset folder, and draw its plots into `folder/plots`.

    Args:
        folder: the dataset folder, with its parquet files written.
        composition: what lies in them, and what was rejected.
        num_tasks: distinct brainstormed tasks.
        recipe: the settings that the plan and the curation follow from.
        arguments: licence, title, note, and which checks were on.
        run_dir: the run folder; its dataset is what the loading example loads until the dataset is pushed.
    """
    subgroups: list[Subgroup] = [s for s in SUBGROUPS if s in composition.tasks_of or composition.num_rejected(s)]
    (folder / "plots").mkdir(exist_ok=True)
    plot_languages(composition.languages, folder / "plots" / "languages.png")
    plot_lengths(composition.lengths, folder / "plots" / "lengths.png")
    card = DatasetCard.from_template(
        card_data(folder, composition, arguments),
        template_path=str(TEMPLATE),
        title=arguments.dataset_title,
        note=arguments.dataset_note,
        repo=(run_dir / "dataset").as_posix(),
        num_rows=composition.num_kept,
        num_tasks=num_tasks,
        symmetric=[f"`{s}`" for s in SYMMETRIC if s in composition.tasks_of],
        num_by_split={name: composition.num_by_split(name) for name in ("train", "test")},
        first=next((s, split) for split in ("train", "test") for s in SUBGROUPS if composition.examples[s, split]),
        composition=[
            {
                "subgroup": subgroup,
                "description": DESCRIPTIONS[subgroup],
                "train": composition.examples[subgroup, "train"],
                "test": composition.examples[subgroup, "test"],
                "tasks": len(composition.tasks_of.get(subgroup, ())),
                "rejected": composition.num_rejected(subgroup),
            }
            for subgroup in subgroups
        ],
        languages=_languages(composition.languages),
        scripts=len({LANGUAGES[code].script for code in composition.languages}),
        reasons=[(r, n, REASONS[r]) for r, n in _by_count(composition.reasons)],
        models=_by_count(composition.models),
        prompts=_by_count(composition.prompts),
        curated=composition,
        arguments=arguments,
        overlaps=_by_count(Counter(overlap.task for overlap in composition.overlaps)),
        recipe=yaml.safe_dump(recipe, default_flow_style=None, sort_keys=True, width=110).strip(),
        samples=[(s, _sample(composition.samples[s])) for s in SUBGROUPS if s in composition.samples],
    )
    return str(card).rstrip() + "\n"


def with_repo(card: str, repo: str) -> str:
    """Return the card with `repo` in its loading examples."""
    return re.sub(r'load_dataset\("[^"]*"', f'load_dataset("{repo}"', card)


def _languages(counter: Counter[str]) -> list[tuple[str, str, str, int]]:
    """(code, name, script, number of examples with a text in it), the most frequent first."""
    return [(code, LANGUAGES[code].name, LANGUAGES[code].script, n) for code, n in _by_count(counter)]


def _by_count(counter: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


def _sample(row: Row) -> dict[str, str]:
    """The texts of an example, long ones cut."""
    return {name: _shortened(row[name]) for name in ("instruction", "query", "positive", "negative") if row[name]}


def _shortened(text: str, limit: int = 280) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    if len(text) <= limit:
        return text
    cut = text[: limit - 1]
    end = cut.rfind(" ")
    return (cut[:end] if end > limit - 40 else cut) + " …"  # no word is cut, but in scripts without spaces
