"""The verb `report`: model card, MTEB.md, scores for machines and a page to look at, from the files of the run, offline."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from dataset_builder.errors import InputError, RunError
from model_card.candidates import read_record
from model_card.card import MTEB_MD, card_data, context, model_card, render, repo_of
from model_card.config import EvaluationArguments, ModelHubArguments
from model_card.eval_results import EVAL_RESULTS, eval_results_files
from model_card.plots import group_dots, score_bars, task_arrows
from model_card.scores import Evaluation, read_evaluation
from trainer.base_model import model_digest
from trainer.curves import CURVES, training_curves

REPORT = "report.html"


@dataclass(frozen=True)
class Files:
    """What the report consists of: content by path, and the files of earlier reports that have no place in it."""

    content: dict[Path, bytes]
    gone: list[Path]


def report(arguments: EvaluationArguments, hub: ModelHubArguments) -> str:
    """Write the report's files, or with `check` compare them; return the path of the page.

    The card and its companions go into the model folder, `report.html` into the run folder. What people wrote into the card
    outside of our markers is kept.

    Raises:
        InputError: if model or results are missing, or the results are of another model than the one in the folder, or the
            card has none of our markers.
        RunError: with `check`, if a file does not say what the results say.
    """
    files = report_files(arguments, hub)
    page = arguments.run_dir / REPORT
    if arguments.check:
        wrong = [path for path, content in files.content.items() if not _is(path, content)]
        wrong += [path for path in files.gone if path.exists()]
        if wrong:
            names = ", ".join(path.relative_to(arguments.run_dir).as_posix() for path in sorted(wrong))
            raise RunError(f"{names} does not agree with model, data and results; run `embedsmith report`.")
        return f"{len(files.content)} files agree with model, data and results"
    for path in files.gone:
        path.unlink(missing_ok=True)
    for path, content in files.content.items():
        if not _is(path, content):
            _write(path, content)
    return str(page)


def report_files(arguments: EvaluationArguments, hub: ModelHubArguments) -> Files:
    """Return all files of the report, made anew from model, data and results."""
    folder, run_dir = arguments.model_dir, arguments.run_dir
    record = read_record(folder)
    evaluation = read_evaluation(run_dir)
    _require_same_model(arguments, evaluation)
    facts = model_facts(folder)
    card = folder / "README.md"
    existing = card.read_text(encoding="utf-8") if card.is_file() else None
    repo = hub.hub_model_id or (existing and repo_of(existing)) or folder.as_posix()
    values = context(arguments, record, evaluation, facts, repo)
    curves = training_curves(record["log_history"])
    data = card_data(arguments, record, evaluation, is_adapter=facts["is_adapter"])
    texts = {card: model_card(data, values, existing, str(card)), run_dir / REPORT: _page(values, evaluation, curves)}
    machine = {folder / EVAL_RESULTS / name: text for name, text in eval_results_files(run_dir, evaluation).items()}
    if machine:
        texts[folder / MTEB_MD] = render("mteb.md", values)
    content = {path: text.encode() for path, text in (texts | machine).items()} | {folder / CURVES: curves}
    old = [folder / MTEB_MD, *(folder / EVAL_RESULTS).glob("*.yaml")]
    return Files(content, [path for path in old if path not in content])


def _require_same_model(arguments: EvaluationArguments, evaluation: Evaluation) -> None:
    judged = next(model["revision"] for model in evaluation.models if model["key"] == "trained")
    if judged != model_digest(arguments.model_dir):
        raise InputError(
            f"The results in {arguments.run_dir} are of another model ({judged[:12]}) than the one in "
            f"{arguments.model_dir}; run `embedsmith evaluate` again."
        )


def _is(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        shutil.move(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _page(values: dict[str, Any], evaluation: Evaluation, curves: bytes) -> str:
    before, after = evaluation.neighbours.get("base_eos", []), evaluation.neighbours.get("trained", [])
    tasks = [score for score in evaluation.of(held_out=False) if score.subset is None]
    models = values["mteb_models"]
    plots = {"curves": curves}
    if values["held_out"]:
        plots["bars"] = score_bars(evaluation)
    if tasks:
        plots["types"] = group_dots(values["types"], models, evaluation.models)
        plots["tasks"] = task_arrows(tasks)
    if len(values["by_language"]) > 1:
        plots["languages"] = group_dots(values["by_language"], models, evaluation.models)
    return render(
        "report.html.jinja",
        values,
        plots={name: _data_uri(image) for name, image in plots.items()},
        tasks=tasks,
        pairs=list(zip(before, after, strict=True)),
    )


def _data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def model_facts(model_dir: Path) -> dict[str, Any]:
    """Return what the files of a model tell without loading it.

    Returns:
        `dim` of the embedding; `num_parameters` and `num_bytes` of the weights, from their headers; `num_embedding_parameters`,
        those of the token embeddings; `is_adapter`, whether the weights are adapters of another model's.
    """
    config = json.loads((model_dir / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    num_parameters = num_embedding = num_bytes = 0
    for path in sorted(model_dir.glob("*.safetensors")):
        num_bytes += path.stat().st_size
        with safe_open(path, framework="np") as weights:
            for name in weights.keys():  # noqa: SIM118  not a dictionary
                size = math.prod(weights.get_slice(name).get_shape())
                num_parameters += size
                if re.search(r"(^|\.)(embed_tokens|word_embeddings|wte|tok_embeddings)\.weight$", name):
                    num_embedding += size
    return {
        "dim": config["embedding_dimension"],
        "num_parameters": num_parameters,
        "num_embedding_parameters": num_embedding,
        "num_bytes": num_bytes,
        "is_adapter": (model_dir / "adapter_config.json").is_file(),
    }
