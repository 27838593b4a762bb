"""The model card and MTEB.md, made from the model's record, mteb's results and the dataset; no number is typed by hand."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dataset_builder.errors import InputError
from dataset_builder.languages import LANGUAGES
from dataset_builder.progress import duration
from dataset_builder.schema import SYMMETRIC
from model_card.config import EvaluationArguments
from model_card.eval_results import model_index
from model_card.lineage import contamination, lineage, read_provenance, read_recipe, training_data
from model_card.parts import merged
from model_card.published import read_published
from model_card.scores import Evaluation, read_told, results_folder
from model_card.summary import Mean, by_language, by_type
from model_card.usage import DOCUMENTS, QUERY
from trainer.curves import CURVES
from trainer.export import INSTRUCTIONS

FOLDER = Path(__file__).parent
MTEB_MD = "MTEB.md"
NUM_LANGUAGES = 40
"""Languages in MTEB.md's table; results/ has all of them."""


def title(arguments: EvaluationArguments, record: dict[str, Any]) -> str:
    """Return the given title, or one made from the name of the base model."""
    return arguments.model_title or f"{record['base_model']['name'].split('/')[-1]}-embedsmith"


def languages(record: dict[str, Any]) -> Counter[str]:
    """Return the number of training examples by language of the query."""
    counter: Counter[str] = Counter()
    for found in record["dataset"]["examples"].values():
        counter.update(found)
    return counter


def format_mean(mean: Mean | None, form: str = "%.3f") -> str:
    """Return a mean with its interval, as in `0.612 (0.55 to 0.67)`."""
    if mean is None:
        return "–"
    text = form % mean.value
    if mean.low is None or mean.high is None:
        return text
    short = form.replace(".3f", ".2f")
    return f"{text} ({short % mean.low} to {short % mean.high})"


def context(
    arguments: EvaluationArguments, record: dict[str, Any], evaluation: Evaluation, model: dict[str, Any], repo: str
) -> dict[str, Any]:
    """Return everything that card, MTEB.md and report are made from.

    Args:
        arguments: titles, licence, and where the model lies.
        record: what `embedsmith train` wrote down.
        evaluation: what `embedsmith evaluate` found.
        model: `dim` and `num_parameters`, read from the model's files.
        repo: what the usage examples load.
    """
    counter = languages(record)
    folder = training_data(arguments.run_dir, record)
    recipe, groups, of_languages = read_recipe(folder), by_type(evaluation), by_language(evaluation)
    mteb_scores, trained = evaluation.of(held_out=False), _trained(evaluation)
    tasks = [score for score in mteb_scores if score.subset is None]
    told = read_told(results_folder(arguments.run_dir, trained["name"], trained["revision"]))
    return model | {
        "title": title(arguments, record),
        "note": arguments.model_note,
        "repo": repo,
        "base": record["base_model"],
        "dataset": record["dataset"],
        "dataset_name": arguments.hub_dataset_id or record["dataset"]["name"],
        "languages": [
            (code, LANGUAGES[code].name, n) for code, n in sorted(counter.items(), key=lambda i: (-i[1], i[0]))
        ],
        "rare": sum(n < 10 for n in counter.values()),
        "settings": sorted(record["arguments"].items()),
        "record": record,
        "time": duration(record["training_seconds"]),
        "evaluation": evaluation,
        "types": groups,
        "has_intervals": any(mean.low is not None for group in groups for mean in group.means.values()),
        "by_language": of_languages[:NUM_LANGUAGES],
        "languages_hidden": max(0, len(of_languages) - NUM_LANGUAGES),
        "mteb_scores": mteb_scores,
        "mteb_models": evaluation.models_of(held_out=False),
        "held_out": evaluation.of(held_out=True),
        "held_out_models": evaluation.models_of(held_out=True),
        "losses": [s.task for s in tasks if s.values["trained"] < s.values.get("base", float("-inf"))],
        "num_tasks": len(tasks),
        "told": [(score.task, told[score.task]) for score in tasks if score.task in told],
        "published": read_published(arguments.run_dir),
        "contamination": contamination(recipe, [score.task for score in tasks], is_known=folder is not None),
        "provenance": read_provenance(folder),
        "lineage": lineage(record, evaluation, folder, arguments.hub_dataset_id or record["dataset"]["name"]),
        "mean": format_mean,
        "instructions": INSTRUCTIONS,
        "symmetric": SYMMETRIC,
        "curves": CURVES,
        "query": QUERY,
        "documents": DOCUMENTS,
        "max_seq_length": record["arguments"]["max_seq_length"],
    }


def _trained(evaluation: Evaluation) -> dict[str, Any]:
    return next(model for model in evaluation.models if model["key"] == "trained")


def render(template: str, values: dict[str, Any], **more: Any) -> str:
    """Return a template of this folder filled with `values`; a name that they lack is an error."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        autoescape=template.endswith(".html.jinja"),
        trim_blocks=template.endswith(".jinja"),
        lstrip_blocks=template.endswith(".jinja"),
    )
    environment.filters["quoted"] = lambda text: json.dumps(text, ensure_ascii=False)
    return environment.get_template(template).render(**values, **more).rstrip() + "\n"


def card_data(
    arguments: EvaluationArguments, record: dict[str, Any], evaluation: Evaluation, *, is_adapter: bool
) -> ModelCardData:
    """Return the card's YAML, with the scores as `model-index`."""
    base, dataset = record["base_model"], record["dataset"]
    datasets = [arguments.hub_dataset_id] if arguments.hub_dataset_id else [dataset["name"]] * dataset["is_hub_id"]
    has_hub_base = "/" in base["name"]
    return ModelCardData(
        model_name=title(arguments, record),
        language=sorted(languages(record)),
        license=arguments.model_license,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        base_model=base["name"] if has_hub_base else None,
        base_model_relation=("adapter" if is_adapter else "finetune") if has_hub_base else None,
        datasets=datasets or None,
        tags=["sentence-transformers", "feature-extraction", "text-embeddings", "mteb", "synthetic", "embedsmith"],
        eval_results=model_index(evaluation),
    )


def model_card(data: ModelCardData, values: dict[str, Any], existing: str | None, path: str) -> str:
    """Return the README.md of the model folder.

    Args:
        data: the card's YAML.
        values: `context`.
        existing: the card that is there, written by people in part, which is kept; None if there is none.
        path: where it is, for errors.

    Raises:
        InputError: if the existing card has none of our markers.
    """
    fresh = ModelCard(render("model_card.md", values, card_data=data))
    if existing is None:
        return str(fresh).rstrip() + "\n"
    try:
        theirs = ModelCard(existing, ignore_metadata_errors=True)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"The YAML at the top of {path} cannot be read ({reason}); put it right, or move the file away to have it written "
            "anew."
        ) from None
    old: Any = theirs.data
    ours: Any = data
    theirs.data = ModelCardData(**old.to_dict() | ours.to_dict(), ignore_metadata_errors=True)
    theirs.text = merged(theirs.text, fresh.text, path)
    return str(theirs).rstrip() + "\n"


def with_repo(card: str, repo: str) -> str:
    """Return the card with `repo` in its usage examples."""
    return re.sub(r'((?:SentenceTransformer|from_pretrained)\()"[^"]*"', rf'\g<1>"{repo}"', card)


def repo_of(card: str) -> str | None:
    """Return the Hub repo that the usage examples of a card name; None if they name a folder."""
    found = re.search(r'SentenceTransformer\("([\w.-]+/[\w.-]+)"', card)
    return found[1] if found and not Path(found[1]).exists() else None
