"""The verb `evaluate`: the trained model, its base and any references judged by mteb, on the same tasks by the same code.

Always judged are the held-out examples of the corpus; mteb's own tasks and benchmarks are named by flags. Three states of
the model are compared: the base as published, the base with EOS pooling (where training starts from), and the trained model.
Results lie in `<output_dir>/results` in the layout of the leaderboard's results repository; what is there for this model and
this data is not judged again. `<output_dir>/evaluation.json` names models and tasks and shows a few neighbours.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from copy import copy
from importlib.metadata import version
from typing import Any

import transformers
from datasets import Dataset
from mteb.abstasks import AbsTask
from mteb.cache import ResultCache
from mteb.languages import check_language_code

from dataset_builder.errors import EmbedsmithError, InputError, RunError
from dataset_builder.mteb_texts import tasks_called
from model_card.candidates import candidates, read_trained
from model_card.config import EvaluationArguments
from model_card.instructions import read_instructions
from model_card.judge import Judge, plan_work
from model_card.languages import iso_639_3
from model_card.neighbours import write_neighbours
from model_card.published import WELL_KNOWN, fetch_published
from model_card.scores import EVALUATION, read_summary
from model_card.tasks import HeldOutTask, all_rows, held_out_tasks, num_characters, num_queries
from model_card.usage import printed
from trainer.data import dataset_revision, dataset_subgroups


def evaluate(arguments: EvaluationArguments) -> str:
    """Judge what is not judged yet and return a sentence on where the results are.

    Raises:
        InputError: if model, dataset, a task or a reference cannot be found, or the model was not made by `embedsmith train`.
        RunError: if some tasks could not be judged; the others are.
    """
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    trained = read_trained(arguments)
    instructions = read_instructions(arguments.task_instructions)
    official = official_tasks(arguments.tasks or [], arguments.benchmarks or [], arguments.eval_languages)
    held_out = _held_out(arguments, has_others=bool(official))
    tasks: list[AbsTask] = [*held_out, *official]
    cache = ResultCache(arguments.run_dir)
    found = candidates(arguments, trained)
    settings = arguments.eval_batch_tokens, arguments.eval_devices or ()
    judges = [Judge(candidate, cache, instructions, *settings) for candidate in found]
    failures = _run(judges, tasks, all_rows(held_out))
    summary = _summary(arguments, judges, tasks, trained.record)
    if official:
        subsets = {task.metadata.name: task.hf_subsets for task in official}
        names = WELL_KNOWN if arguments.published_models is None else arguments.published_models
        print(f"evaluate: {fetch_published(arguments.run_dir, names, subsets)}", file=sys.stderr)
    (arguments.run_dir / EVALUATION).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if failures:
        raise RunError(
            f"{len(failures)} of {len(tasks) * len(judges)} results are missing, the others are there: "
            f"{'; '.join(failures[:5])}{'; …' if len(failures) > 5 else ''}. Run the same command again to try only these."
        )
    return f"{arguments.run_dir / 'results'}: {len(judges)} models on {_kinds(held_out, official)}"


def official_tasks(
    tasks: Sequence[str], benchmarks: Sequence[str], languages: Sequence[str] | None = None
) -> list[AbsTask]:
    """Return mteb's tasks of these names and those of the benchmarks, each task once, with all that is asked of it.

    Args:
        tasks: names of tasks.
        benchmarks: names of benchmarks.
        languages: codes of two or three letters; subsets in none of them are left out, and tasks without any other.

    Raises:
        InputError: if mteb has neither a task nor a benchmark of such a name, or a task is not of texts alone.
    """
    found: dict[str, AbsTask] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a task is superseded or in beta
        named = [(name, flag) for flag, names in (("tasks", tasks), ("benchmarks", benchmarks)) for name in names]
        for task in (copy(task) for name, flag in named for task in tasks_called(name, flag)):  # mteb shares its tasks
            metadata = task.metadata
            if set(metadata.modalities) != {"text"}:
                raise InputError(
                    f"`tasks` has '{metadata.name}', which is not of texts alone; the model reads only texts."
                )
            same = found.setdefault(metadata.name, task)
            if same is not task:  # two benchmarks take it with other languages or splits
                same.hf_subsets = sorted({*same.hf_subsets, *task.hf_subsets})
                same._eval_splits = sorted({*same.eval_splits, *task.eval_splits})
    return [task for task in found.values() if languages is None or _has_languages(task, languages)]


def _has_languages(task: AbsTask, languages: Sequence[str]) -> bool:
    """Leave a task those of its subsets that are in one of the languages; tell whether there are any."""
    codes = [iso_639_3(code) for code in languages]
    for given, code in zip(languages, codes, strict=True):
        try:
            check_language_code(code)
        except ValueError:
            raise InputError(
                f"`eval_languages` has '{given}', which mteb does not know; give codes such as en, deu or yor."
            ) from None
    try:
        task.filter_languages(codes, hf_subsets=task.hf_subsets)
    except ValueError:  # there are none
        print(f"evaluate: {task.metadata.name} is in none of {', '.join(languages)}: left out", file=sys.stderr)
        return False
    return True


def _held_out(arguments: EvaluationArguments, *, has_others: bool) -> list[AbsTask]:
    if not arguments.held_out:
        if has_others:
            return []
        raise InputError("There is nothing to judge: `held_out` is off, and no --tasks or --benchmarks are given.")
    dataset_subgroups(arguments.dataset, arguments.dataset_revision)  # is it there at all?
    digest = dataset_revision(arguments.dataset, arguments.dataset_revision)
    return held_out_tasks(arguments.dataset, arguments.dataset_revision, digest)


def _run(judges: Sequence[Judge], tasks: Sequence[AbsTask], rows: Dataset) -> list[str]:
    """Judge what is left, model by model; return a line for each task that could not be judged."""
    work, failures = plan_work(judges, tasks), []
    if not any(work):
        print("evaluate: nothing to do, all results are there", file=sys.stderr)
    for judge, left in zip(judges, work, strict=True):
        for task in left:
            what, size = f"{judge.candidate.label} | {task.metadata.name}", num_characters(task)
            judge.progress.begin(what)
            try:
                judge.progress.end(f"{task.metadata.main_score} {judge.judge(task):.4f}", size)
            except EmbedsmithError:
                raise
            except Exception as error:  # whatever a task's own code and the Hub's clients raise
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                failures.append(f"{what}: {reason}")
                judge.progress.end(f"failed: {reason}", size)
        if judge.candidate.key in ("base_eos", "trained") and len(rows):
            write_neighbours(judge, rows)
        judge.unload()
    return failures


def _summary(
    arguments: EvaluationArguments, judges: Sequence[Judge], tasks: Sequence[AbsTask], record: dict[str, Any]
) -> dict[str, Any]:
    """Name models and tasks, those of earlier calls among them as long as they are about the same trained model."""
    models = [_describe_model(judge) for judge in judges]
    described = [_describe_task(task) for task in tasks]
    earlier = read_summary(arguments.run_dir)
    mine = next(model for model in models if model["key"] == "trained")
    theirs = next((model for model in earlier.get("models", []) if model["key"] == "trained"), None)
    if theirs and (theirs["name"], theirs["revision"]) == (mine["name"], mine["revision"]):
        models += [model for model in earlier["models"] if model["key"] not in {m["key"] for m in models}]
        names = {task["name"] for task in described}
        described += [task for task in earlier["tasks"] if task["name"] not in names]
    dataset = [task.metadata.revision for task in tasks if isinstance(task, HeldOutTask)]
    return {
        "dataset_revision": dataset[0] if dataset else earlier.get("dataset_revision"),
        "num_training_examples": record["dataset"]["num_examples"],
        "tasks": described,
        "models": models,
        "usage": _usage(judges, earlier if theirs and theirs["revision"] == mine["revision"] else {}),
        "mteb": version("mteb"),
    }


def _usage(judges: Sequence[Judge], earlier: dict[str, Any]) -> dict[str, str]:
    """Return what the card's usage examples print, as an earlier call found for this very model, or found anew."""
    if "usage" in earlier:
        return dict(earlier["usage"])
    judge = next(judge for judge in judges if judge.candidate.key == "trained")
    found = printed(judge.model)
    judge.unload()
    return found


def _describe_model(judge: Judge) -> dict[str, Any]:
    c = judge.candidate
    return {
        "key": c.key,
        "label": c.label,
        "name": c.name,
        "revision": c.revision,
        "use_instructions": c.use_instructions,
    }


def _describe_task(task: Any) -> dict[str, Any]:
    metadata = task.metadata
    described = {"name": metadata.name, "type": metadata.type, "main_score": metadata.main_score}
    if isinstance(task, HeldOutTask):
        described["num_queries"] = num_queries(task)
    data = {"dataset": metadata.dataset["path"], "revision": metadata.revision}
    return described | data | {"held_out": isinstance(task, HeldOutTask)}


def _kinds(held_out: Sequence[AbsTask], official: Sequence[AbsTask]) -> str:
    parts = [f"{len(held_out)} held-out tasks"] if held_out else []
    parts += [f"{len(official)} task{'s' if len(official) > 1 else ''} of mteb"] if official else []
    return " and ".join(parts)
