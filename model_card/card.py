"""The model card: made from the model's record, mteb's results and the dataset alone. No number in it is typed by hand."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dataset_builder.languages import LANGUAGES
from dataset_builder.progress import duration
from dataset_builder.schema import SYMMETRIC
from model_card.config import EvaluationArguments
from model_card.scores import Evaluation
from trainer.curves import CURVES
from trainer.export import INSTRUCTIONS

TEMPLATE = Path(__file__).parent / "model_card.md"


def card_data(arguments: EvaluationArguments, record: dict[str, Any], evaluation: Evaluation) -> ModelCardData:
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
        base_model_relation="finetune" if has_hub_base else None,
        datasets=datasets or None,
        tags=["sentence-transformers", "feature-extraction", "text-embeddings", "synthetic", "embedsmith"],
        eval_results=_eval_results(evaluation),
    )


def _eval_results(evaluation: Evaluation) -> list[EvalResult]:
    types = {"HeldOutRetrieval": "retrieval", "HeldOutSTS": "sts", "HeldOutBitextMining": "bitext-mining"}
    return [
        EvalResult(
            task_type=types.get(score.task, "other"),
            dataset_type="held-out",
            dataset_name=score.task,
            dataset_split="test",
            dataset_config=score.subset,
            dataset_revision=evaluation.dataset_revision,
            metric_type=score.metric,
            metric_value=round(score.values["trained"], 5),
        )
        for score in evaluation.scores
    ]


def title(arguments: EvaluationArguments, record: dict[str, Any]) -> str:
    """Return the given title, or one made from the name of the base model."""
    return arguments.model_title or f"{record['base_model']['name'].split('/')[-1]}-embedsmith"


def languages(record: dict[str, Any]) -> Counter[str]:
    """Return the number of training examples by language of the query."""
    counter: Counter[str] = Counter()
    for by_language in record["dataset"]["examples"].values():
        counter.update(by_language)
    return counter


def model_card(
    arguments: EvaluationArguments, record: dict[str, Any], evaluation: Evaluation, model: dict[str, Any]
) -> str:
    """Return the README.md of the model folder.

    Args:
        arguments: titles, licence, and where the model lies.
        record: what `embedsmith train` wrote down.
        evaluation: what `embedsmith evaluate` found.
        model: `dim` and `num_parameters`, read from the model's files.
    """
    counter = languages(record)
    card = ModelCard.from_template(
        card_data(arguments, record, evaluation),
        template_path=str(TEMPLATE),
        title=title(arguments, record),
        note=arguments.model_note,
        repo=arguments.model_dir.as_posix(),
        base=record["base_model"],
        dataset=record["dataset"],
        dataset_name=arguments.hub_dataset_id or record["dataset"]["name"],
        composition={subgroup: sum(n.values()) for subgroup, n in record["dataset"]["examples"].items()},
        languages=[(code, LANGUAGES[code].name, n) for code, n in sorted(counter.items(), key=lambda i: (-i[1], i[0]))],
        settings=sorted(record["arguments"].items()),
        record=record,
        time=duration(record["training_seconds"]),
        evaluation=evaluation,
        instructions=INSTRUCTIONS,
        symmetric=SYMMETRIC,
        curves=CURVES,
        max_seq_length=record["arguments"]["max_seq_length"],
        **model,
    )
    return str(card).rstrip() + "\n"


def with_repo(card: str, repo: str) -> str:
    """Return the card with `repo` in its usage examples."""
    return re.sub(r'((?:SentenceTransformer|from_pretrained)\()"[^"]*"', rf'\g<1>"{repo}"', card)
