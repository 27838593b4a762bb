"""The verb `report`: model card, curves and a page to look at, made from the files of the run, offline."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from safetensors import safe_open

from dataset_builder.errors import InputError
from dataset_builder.progress import duration
from model_card.card import languages, model_card, title
from model_card.config import EvaluationArguments
from model_card.evaluation import read_record
from model_card.plots import score_bars
from model_card.scores import Evaluation, read_evaluation
from trainer.base_model import model_digest
from trainer.curves import CURVES, training_curves

REPORT = "report.html"


def report(arguments: EvaluationArguments) -> str:
    """Write the model card into the model folder and `report.html` into the run folder; return the path of the page.

    Raises:
        InputError: if model or results are missing, or the results are of another model than the one in the folder.
    """
    record = read_record(arguments.model_dir)
    evaluation = read_evaluation(arguments.run_dir)
    judged = next(model["revision"] for model in evaluation.models if model["key"] == "trained")
    if judged != model_digest(arguments.model_dir):
        raise InputError(
            f"The results in {arguments.run_dir} are of another model ({judged[:12]}) than the one in "
            f"{arguments.model_dir}; run `embedsmith evaluate` again."
        )
    curves = training_curves(record["log_history"])
    (arguments.model_dir / CURVES).write_bytes(curves)
    card = model_card(arguments, record, evaluation, _facts(arguments.model_dir))
    (arguments.model_dir / "README.md").write_text(card, encoding="utf-8")
    page = arguments.run_dir / REPORT
    page.write_text(_page(arguments, record, evaluation, curves), encoding="utf-8")
    return str(page)


def _facts(model_dir: Path) -> dict[str, Any]:
    """Dimension and number of parameters, from the headers of the weights."""
    config = json.loads((model_dir / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    num_parameters = 0
    for path in sorted(model_dir.glob("*.safetensors")):
        with safe_open(path, framework="np") as weights:
            for name in weights.keys():  # noqa: SIM118  not a dictionary
                size = 1
                for length in weights.get_slice(name).get_shape():
                    size *= length
                num_parameters += size
    return {"dim": config["embedding_dimension"], "num_parameters": num_parameters}


def _page(arguments: EvaluationArguments, record: dict[str, Any], evaluation: Evaluation, curves: bytes) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    before, after = evaluation.neighbours.get("base_eos", []), evaluation.neighbours.get("trained", [])
    return environment.get_template("report.html.jinja").render(
        title=title(arguments, record),
        record=record,
        evaluation=evaluation,
        languages=languages(record),
        time=duration(record["training_seconds"]),
        has_sts=any(score.task == "HeldOutSTS" for score in evaluation.scores),
        pairs=list(zip(before, after, strict=True)),
        bars=_data_uri(score_bars(evaluation)),
        curves=_data_uri(curves),
    )


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def summary_table(evaluation: Evaluation) -> str:
    """Return the scores as a table for a terminal."""
    short = {"base": "as published", "base_eos": "EOS, untrained", "trained": "trained"}
    heads = ["held-out task", "metric", "queries", *(short[model["key"]] for model in evaluation.models)]
    rows = [
        [
            f"  {score.subset}" if score.subset else score.task.removeprefix("HeldOut"),
            score.metric,
            str(score.num_queries),
            *(f"{score.values[model['key']]:.3f}" for model in evaluation.models),
        ]
        for score in evaluation.scores
    ]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = []
    for row in [heads, *rows]:
        names, numbers = row[:2], row[2:]
        cells = [c.ljust(w) for c, w in zip(names, widths, strict=False)]
        lines.append("  ".join(cells + [c.rjust(w) for c, w in zip(numbers, widths[2:], strict=True)]))
    base = evaluation.models[0]["label"].split(",")[0]
    has_published = any(model["key"] == "base" for model in evaluation.models)
    note = f"EOS, untrained: {base} with the pooling and instructions of the trained model, where training started from"
    if has_published:
        note = f"as published: {base} with its own pooling\n{note}"
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], note])


def summary_neighbours(evaluation: Evaluation, width: int = 96) -> str:
    """Return the example queries with their nearest documents before and after training, for a terminal."""
    before, after = evaluation.neighbours.get("base_eos", []), evaluation.neighbours.get("trained", [])
    marks = {"positive": "+", "hard negative": "-", "other": " "}
    lines: list[str] = []
    for old, new in zip(before, after, strict=True):
        lines += [f"Query: {old['query']}", f"  task: {old['instruction']}"]
        for name, found in (("before", old), ("after", new)):
            lines.append(f"  {name} training (the positive is number {found['rank']} of {found['num_documents']}):")
            for document in found["nearest"]:
                text = " ".join(document["text"].split())
                text = text if len(text) <= width else text[: width - 1] + "…"
                lines.append(f"    {document['similarity']:+.3f} {marks[document['kind']]} {text}")
        lines.append("")
    return "\n".join([*lines, "+ positive, - hard negative; the number is the cosine similarity"])
