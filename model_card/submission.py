"""The verb `submit`: what the leaderboard's two pull requests need, from the run's files, checked by mteb's own code."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mteb
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from mteb.models.model_implementations import MODEL_REGISTRY
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.results import TaskResult
from mteb.results.task_result import TaskError, _expand_run_settings_entry
from packaging.version import Version

from dataset_builder.errors import InputError, RunError
from dataset_builder.publish import differences, manifest
from model_card.candidates import read_trained
from model_card.card import languages, render
from model_card.config import EvaluationArguments, ModelHubArguments
from model_card.encoder import PROMPT_PRIORITY, TEMPLATE
from model_card.instructions import read_instructions
from model_card.report import model_facts
from model_card.scores import read_evaluation, results_folder
from model_card.tasks import language_script

SUBMISSION, MOCK = "submission", "mteb_mock_run_results.md"
MAX_LOADED = 2_000_000_000
"""Parameters up to which mteb's own checks load a model, and ours do."""
_OURS = re.compile(r"README\.md|MTEB\.md|\.eval_results/.*|.*\.png")
"""Files of the model repo that no embedding depends on."""
_MIN_MTEB, _MAX_BYTES = Version("2.14.0"), 10 << 20


def submit(arguments: EvaluationArguments, hub: ModelHubArguments) -> str:
    """Write `<output_dir>/submission` and return the steps that are left to a person.

    The results are those of the run. They count for the published model because it is compared file by file: weights,
    tokenizer, configuration and prompts on the Hub have the digests of the ones that were judged.

    Raises:
        InputError: if the model is not published, or another one is, or no tasks of mteb were judged.
        RunError: if mteb's checks find something wrong.
    """
    if not hub.hub_model_id or "/" not in hub.hub_model_id:
        raise InputError(
            "`hub_model_id` is not given as name/model; say where the model is, as in --hub_model_id me/model."
        )
    trained = read_trained(arguments)
    evaluation = read_evaluation(arguments.run_dir)
    tasks = [score.task for score in evaluation.of(held_out=False) if score.subset is None]
    if not tasks:
        raise InputError(
            f"The results in {arguments.run_dir} are of held-out examples alone, which no leaderboard takes; run `embedsmith "
            "evaluate --benchmarks 'MTEB(Multilingual, v2)'` first, or name single --tasks."
        )
    sha, released = _published(trained.folder, hub)
    values = _meta_values(arguments, hub, trained.folder, trained.record, sha, released)
    work, folder = arguments.run_dir / f"{SUBMISSION}.partial", arguments.run_dir / SUBMISSION
    shutil.rmtree(work, ignore_errors=True)
    module = work / "mteb" / "models" / "model_implementations" / f"{values['organisation']}_models.py"
    module.parent.mkdir(parents=True)
    module.write_text(render("model_meta.py.jinja", values), encoding="utf-8")
    meta = load_meta(module, hub.hub_model_id)
    source = results_folder(arguments.run_dir, trained.name, trained.revision)
    results = _copy_results(source, work / "results", meta, tasks)
    problems = [*meta_problems(meta), *results_problems(results, meta)]
    if not problems and (meta.n_parameters or 0) < MAX_LOADED:  # as mteb's own checks: larger ones are not loaded
        problems = mock_run(meta, work / "mteb" / MOCK)
    if problems:
        raise RunError(f"mteb would not take this submission: {'; '.join(problems)}.")
    shutil.rmtree(folder, ignore_errors=True)
    work.rename(folder)
    return _steps(folder, meta, module.name, tasks)


def _published(folder: Path, hub: ModelHubArguments) -> tuple[str, str]:
    """Return commit and day of the published model, which is the one in `folder`."""
    api, name = HfApi(), str(hub.hub_model_id)
    try:
        info = api.model_info(name, revision=hub.hub_revision)
        changed = differences(api, name, "model", str(info.sha), manifest(folder))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(
            f"`hub_model_id` is '{name}', which the Hub does not show ({type(error).__name__}); push it with `embedsmith "
            "push-model` first, publicly, because the leaderboard's checks load it."
        ) from None
    wrong = [path for path in changed if not _OURS.fullmatch(path)]
    if wrong:
        raise InputError(
            f"What is published as {name} is another model than the one that was judged ({', '.join(wrong[:3])} differ); push "
            "it with `embedsmith push-model`, or judge what is published with --model_name_or_path."
        )
    if info.private:
        raise InputError(f"{name} is private; make it public on the Hub, because the leaderboard's checks load it.")
    released = info.last_modified
    return str(info.sha), released.date().isoformat() if released else "1970-01-01"


def _meta_values(
    arguments: EvaluationArguments,
    hub: ModelHubArguments,
    folder: Path,
    record: dict[str, Any],
    sha: str,
    released: str,
) -> dict[str, Any]:
    """Return what `model_meta.py.jinja` is filled with: each field as Python source."""
    name = str(hub.hub_model_id)
    organisation, short = name.split("/", 1)
    facts, base = model_facts(folder), record["base_model"]
    data = arguments.hub_dataset_id or (record["dataset"]["name"] if record["dataset"]["is_hub_id"] else None)
    fields: dict[str, Any] = {
        "name": name,
        "revision": sha,
        "release_date": released,
        "languages": sorted({language_script(code) for code in languages(record)}),
        "n_parameters": facts["num_parameters"],
        "n_embedding_parameters": facts["num_embedding_parameters"],
        "memory_usage_mb": round(facts["num_bytes"] / 2**20),
        "max_tokens": record["arguments"]["max_seq_length"],
        "embed_dim": facts["dim"],
        "license": arguments.model_license,
        "open_weights": True,
        "public_training_code": arguments.training_code_url,
        "public_training_data": f"https://huggingface.co/datasets/{data}" if data else None,
        "framework": ["Sentence Transformers", "PyTorch", "safetensors", "Transformers"],
        "reference": f"https://huggingface.co/{name}",
        "similarity_fn_name": ScoringFunction.COSINE,
        "use_instructions": True,
        "training_datasets": set(arguments.training_datasets or ()),
        "adapted_from": base["name"] if "/" in base["name"] else None,
        "citation": None,
    }
    source = {key: _source(value) for key, value in fields.items()}
    return {
        "organisation": re.sub(r"\W", "_", organisation.lower()),
        "variable": re.sub(r"\W", "_", short.lower()),
        "instructions": read_instructions(arguments.task_instructions),
        "template": TEMPLATE,
        "prompt_priority": [entry.value for entry in PROMPT_PRIORITY],
        "fields": source,
    }


def _source(value: Any) -> str:
    """Return a value as Python source, in the style of `ruff format`."""
    if isinstance(value, ScoringFunction):
        return f"ScoringFunction.{value.name}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:_}"
    if isinstance(value, set) and not value:
        return "set()"
    if isinstance(value, (list, set)):
        inner = [f"        {_source(item)},\n" for item in (value if isinstance(value, list) else sorted(value))]
        brackets = "[]" if isinstance(value, list) else "{}"
        return f"{brackets[0]}\n{''.join(inner)}    {brackets[1]}"
    return repr(value)


def load_meta(path: Path, name: str) -> ModelMeta:
    """Import a file of mteb's `model_implementations` and return the ModelMeta of `name`, entered into mteb's registry.

    Raises:
        RunError: if the file defines no such model.
    """
    spec = importlib.util.spec_from_file_location(f"embedsmith_submission_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for meta in vars(module).values():
        if isinstance(meta, ModelMeta) and meta.name == name:
            MODEL_REGISTRY[name] = meta  # as mteb does with what it finds in its own folder
            return meta
    raise RunError(f"{path} defines no model {name}.")


def meta_problems(meta: ModelMeta) -> list[str]:
    """Return what the checks of mteb's repository would say of a ModelMeta, in sentences; empty if all is well."""
    found = []
    if not re.fullmatch("[0-9a-f]{40}", meta.revision or ""):
        found.append(f"the revision '{meta.revision}' is no commit")
    if meta.adapted_from == meta.name:
        found.append("it is adapted from itself")
    needed = (
        "n_parameters",
        "n_embedding_parameters",
        "memory_usage_mb",
        "embed_dim",
        "max_tokens",
        "license",
        "languages",
    )
    found += [f"`{field}` is missing" for field in needed if not getattr(meta, field)]
    return found


def results_problems(folder: Path, meta: ModelMeta) -> list[str]:
    """Return what the checks of mteb's results repository would say of `<org>__<model>/<revision>`; empty if all is well."""
    found, covered = [], {}
    described = json.loads((folder / "model_meta.json").read_text(encoding="utf-8"))
    if (described["name"], described["revision"]) != (meta.name, meta.revision):
        found.append("model_meta.json is of another model")
    for line in (folder / "run_settings.jsonl").read_text(encoding="utf-8").splitlines():
        for scope, _, settings in _expand_run_settings_entry(json.loads(line)):
            covered[scope] = settings["version"]["mteb"]
    for path in sorted(folder.glob("*.json")):
        if path.name == "model_meta.json":
            continue
        result = TaskResult.from_disk(path)
        if result.task_name != path.stem:
            found.append(f"{path.name} holds {result.task_name}")
        if path.stat().st_size > _MAX_BYTES:
            found.append(f"{path.name} is larger than 10 MB")
        if missing := result.get_missing_evaluations(result.task):
            print(f"submit: {path.stem} lacks {missing}, so it counts for no benchmark with them", file=sys.stderr)
        scopes = [(result.task_name, split, s["hf_subset"]) for split, rows in result.scores.items() for s in rows]
        for scope in scopes:
            if scope not in covered:
                found.append(f"{'/'.join(scope)} has no line in run_settings.jsonl")
            elif Version(covered[scope]) < _MIN_MTEB:
                found.append(f"{'/'.join(scope)} was judged with mteb {covered[scope]}, before {_MIN_MTEB}")
    return found


def mock_run(meta: ModelMeta, path: Path) -> list[str]:
    """Load the model from the Hub by its ModelMeta, run mteb's mock tasks, write mteb's report of it; return what failed."""
    logging.getLogger("mteb").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mteb's own code and of scores of a dozen texts
        results = mteb.mock_run(meta.load_model())
    path.write_text(results.to_markdown(), encoding="utf-8")
    failed = [name for name, result in results.task_results.items() if isinstance(result, TaskError)]
    return [f"mock tasks fail: {', '.join(failed)}"] if failed else []


def _copy_results(source: Path, target: Path, meta: ModelMeta, tasks: Sequence[str]) -> Path:
    """Copy the results of mteb's own tasks to where the results repository has those of this model; return the folder."""
    folder = target / meta.model_name_as_path() / str(meta.revision)
    folder.mkdir(parents=True)
    for task in tasks:
        shutil.copy(source / f"{task}.json", folder)
    lines = (source / "run_settings.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["task"] in tasks]
    (folder / "run_settings.jsonl").write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    described = json.dumps(meta.to_dict(), indent=4, default=str)
    (folder / "model_meta.json").write_text(described, encoding="utf-8")
    return folder


def _steps(folder: Path, meta: ModelMeta, module: str, tasks: Sequence[str]) -> str:
    is_run = (folder / "mteb" / MOCK).is_file()
    mock = f"move {MOCK} to its top" if is_run else f"`mteb mock-run -m {meta.name}`, which writes {MOCK}"
    return f"""{folder}: {meta.name} at {meta.revision}, {len(tasks)} task{"s" if len(tasks) > 1 else ""}

Left to you:
1. Read {module}: `training_datasets` must name each MTEB data set that training texts were taken from
   (now {sorted(meta.training_datasets or ()) or "none"}), and `public_training_code` may name your repository.
2. In a clone of github.com/embeddings-benchmark/mteb copy {folder}/mteb over it, run `make lint` and
   {mock}, commit both, and open a pull request titled "model: add {meta.name}".
3. In a clone of github.com/embeddings-benchmark/results copy {folder}/results over it and open a pull request; fill in its
   checklist, the disclosure of the training data above all.
4. The leaderboard shows the model about a day after both are merged."""
