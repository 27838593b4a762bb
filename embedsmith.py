"""embedsmith: from an LLM endpoint to a published multilingual embedding model.

This file is the command line, and the only one that knows all stages. A recipe is a saved command line: the keys of its
YAML files become flags, placed before the ones that are typed, so that the typed ones win and argparse checks them all.
Stages are imported inside their verb, because importing them takes seconds.

Exit codes: 0 done, 1 failed, 2 wrong usage. stdout carries the result, stderr the progress.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from dataset_builder.errors import EmbedsmithError, InputError, suggestion

RECIPES_DIR = Path(__file__).parent / "recipes"
RECIPES = sorted({path.parent.name for path in RECIPES_DIR.glob("*/*.yaml")} - {"accelerate"})


STAGES = {
    "dataset": "dataset_builder.config:DATASET_ARGUMENTS",
    "train": "trainer.config:TRAIN_ARGUMENTS",
    "model_card": "model_card.config:MODEL_CARD_ARGUMENTS",
}
"""Where the dataclasses of each stage are, by the stem of its recipe file."""


@dataclass(frozen=True)
class Verb:
    """One verb: `function` is where its function is, which gets those of the stage's dataclasses that it has types for."""

    help: str
    stage: str
    function: str

    @property
    def types(self) -> tuple[type, ...]:
        """The dataclasses whose fields are the flags."""
        types: tuple[type, ...] = _imported(STAGES[self.stage])
        return types

    def call(self, filled: Sequence[Any]) -> str | None:
        """Call the function with the filled dataclasses and return its result, a sentence, a path or a URL."""
        function = _imported(self.function)
        wanted = [hint for name, hint in get_type_hints(function).items() if name != "return"]
        by_type = {type(one): one for one in filled}
        result: str | None = function(*(by_type[hint] for hint in wanted))
        return result


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


VERBS = {
    "plan": Verb("show what a recipe would ask and cost, without asking", "dataset", "dataset_builder.preview:preview"),
    "brainstorm": Verb("ask the LLM for the tasks that the plan needs", "dataset", "dataset_builder.asking:brainstorm"),
    "generate": Verb("ask the LLM for the examples, each for one task", "dataset", "dataset_builder.asking:generate"),
    "curate": Verb(
        "turn replies into the dataset, rejections with reasons", "dataset", "dataset_builder.dataset:curate"
    ),
    "browse": Verb("write a page to look through examples and rejections", "dataset", "dataset_builder.browse:browse"),
    "push-dataset": Verb("publish the dataset in one commit", "dataset", "dataset_builder.dataset:push_dataset"),
    "train": Verb("fine-tune a model on the dataset and export it", "train", "trainer.train:train"),
    "evaluate": Verb("judge base, trained and other models with mteb", "model_card", "model_card.evaluation:evaluate"),
    "report": Verb("write card and report from the files of the run", "model_card", "model_card.report:report"),
    "push-model": Verb("publish the model folder in one commit", "model_card", "model_card.push:push_model"),
    "submit": Verb("write what the leaderboard's pull requests need", "model_card", "model_card.submission:submit"),
    "try": Verb("type a query and see the nearest texts of a corpus", "model_card", "model_card.try_model:try_model"),
}

USAGE = """usage: embedsmith VERB [--config RECIPE] [--flag value ...]

From an LLM endpoint to a published multilingual embedding model.

verbs, in the order of a run:
{verbs}
  demo          all of them up to the report, on recorded replies: a first look, no key, no GPU, no Hub

RECIPE is a folder such as recipes/demo, one of its files, or the name of a shipped recipe: {recipes}.
`embedsmith VERB --help` lists the verb's flags. Each verb can be run again: it does only what is missing.
"""


def usage() -> str:
    """Return the text of `embedsmith --help`."""
    verbs = "\n".join(f"  {name:13} {verb.help}" for name, verb in VERBS.items())
    return USAGE.format(verbs=verbs, recipes=", ".join(RECIPES))


def recipe_file(config: str, stage: str) -> Path:
    """Return the YAML file that `--config` names for a stage.

    Raises:
        InputError: if there is no such file.
    """
    for path in (Path(config), RECIPES_DIR / config):
        candidate = path / f"{stage}.yaml" if path.is_dir() else path
        if candidate.is_file():
            return candidate
    raise InputError(
        f"`--config` is '{config}', which has no {stage}.yaml; give a recipe folder, a YAML file, or one of the shipped "
        f"recipes: {', '.join(RECIPES)}."
    )


def recipe_flags(path: Path, known: Sequence[str]) -> list[str]:
    """Return a recipe as flags: `{lora_r: 16, languages: {en: 2}}` becomes `--lora_r=16 --languages en=2`.

    Raises:
        InputError: if the file is no mapping, or has a key that is none of the `known` flags.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads `no` as Norwegian, not as False: only true and false are booleans, as in YAML 1.2."""

    Loader.yaml_implicit_resolvers = {
        char: [(tag, regex) for tag, regex in resolvers if tag != "tag:yaml.org,2002:bool" or char in "tTfF"]
        for char, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8"), Loader) or {}  # noqa: S506  a safe loader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise InputError(f"{path} holds a {type(recipe).__name__}; a recipe is a mapping of flags to values.")
    flags: list[str] = []
    for key, value in recipe.items():
        if f"--{key}" not in known:
            raise InputError(f"{path} has the unknown key '{key}'.{_nearest(str(key), known)}")
        if isinstance(value, dict):
            flags += [f"--{key}", *(f"{name}={weight}" for name, weight in value.items())]
        elif isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{key}={value}")
    return flags


def _nearest(key: str, known: Sequence[str]) -> str:
    names = [flag.removeprefix("--") for flag in known if flag.startswith("--")]
    return suggestion(key, names, cutoff=0.5) or " See `embedsmith VERB --help` for the known ones."


def parse(verb: str, types: tuple[type, ...], arguments: list[str]) -> tuple[Any, ...]:
    """Return the dataclasses of a verb, filled from the recipe that `--config` names and from the typed flags.

    Raises:
        InputError: for an unknown key, flag or value.
    """
    from transformers.hf_argparser import HfArgumentParser

    class Parser(HfArgumentParser):
        """Raises instead of printing its usage and leaving."""

        def error(self, message: str) -> Any:
            """Called by argparse for a flag or value that it does not take."""
            raise InputError(f"embedsmith {verb}: {message}")

    parser = Parser(types, prog=f"embedsmith {verb}", description=VERBS[verb].help, allow_abbrev=False)  # type: ignore[arg-type]
    parser.add_argument("--config", help="Recipe whose values stand before the typed flags.")
    known = [flag for action in parser._actions for flag in action.option_strings if flag != "--config"]
    config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config.add_argument("--config", action="append", default=[])
    given, arguments = config.parse_known_args(arguments)
    if len(given.config) > 1:
        raise InputError(f"`--config` is given {len(given.config)} times; give one recipe, and single flags after it.")
    flags = recipe_flags(recipe_file(given.config[0], VERBS[verb].stage), known) if given.config else []
    *filled, _, rest = parser.parse_args_into_dataclasses(flags + arguments, return_remaining_strings=True)
    if rest:
        hint = _nearest(rest[0].removeprefix("--").split("=")[0], known) if rest[0].startswith("--") else ""
        raise InputError(f"embedsmith {verb}: unknown flag or value '{rest[0]}'.{hint}")
    return tuple(filled)


def run(verb: str, arguments: list[str]) -> str | None:
    """Run one verb and return its result, a sentence, a path or a URL."""
    return VERBS[verb].call(parse(verb, VERBS[verb].types, arguments))


DEMO = ("brainstorm", "generate", "curate", "browse", "train", "evaluate", "report")
DEMO_END = """
What was made in {folder}, in {seconds:.0f} s:
  journal.sqlite  every request and every reply
  dataset/        a Hub dataset repo, six configs and `tasks`: load_dataset("{folder}/dataset", "bitext")
  rejected/       every reply that became no example, with its reason
  browse.html     a page to look through both
  model/          a Hub model repo: SentenceTransformer("{folder}/model"), AutoModel.from_pretrained("{folder}/model")
  results/        mteb's results of base and trained model; report.html has all of it on one page

{neighbours}

{table}

This is {num_examples} training examples on two cores; it shows that everything works, not how good a model gets. Go on with:
  embedsmith try --output_dir {folder}                type a query, see the nearest texts; --html draws a map of them
  embedsmith generate --help                          your own LLM: --llm live --base_url ... --llm_model ...
  embedsmith train --help                             your own base model: --model_name_or_path ...
  embedsmith push-dataset --config demo --hub_dataset_id NAME/DATASET --dry_run
  embedsmith push-model --config demo --hub_model_id NAME/MODEL --dry_run"""


def demo(arguments: list[str]) -> str:
    """Run all verbs but the pushes on the recipe `demo` and return what is to be seen at the end.

    Raises:
        InputError: for anything but `--output_dir DIR`.
    """
    if arguments in (["-h"], ["--help"]):
        return usage()
    if len(arguments) not in (0, 2) or arguments[:1] not in ([], ["--output_dir"]):
        raise InputError(f"embedsmith demo knows no '{' '.join(arguments)}'; its only flag is --output_dir DIR.")
    folder = arguments[1] if arguments else "runs/demo"
    started = time.monotonic()
    for verb in DEMO:
        print(f"\n$ embedsmith {verb} --config demo", file=sys.stderr, flush=True)
        flags = ["--config", "demo", "--output_dir", folder, *(["--overwrite"] if verb == "train" else [])]
        print(f"{verb}: {run(verb, flags)}", file=sys.stderr, flush=True)
    from model_card.scores import read_evaluation
    from model_card.terminal import summary_neighbours, summary_table

    evaluation = read_evaluation(Path(folder))
    return DEMO_END.format(
        folder=folder,
        seconds=time.monotonic() - started,
        neighbours=summary_neighbours(evaluation),
        table=summary_table(evaluation),
        num_examples=evaluation.num_training_examples,
    )


def _dispatch(arguments: list[str]) -> str | None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return usage()
    verb, rest = arguments[0], arguments[1:]
    if verb == "demo":
        return demo(rest)
    if verb not in VERBS:
        hint = suggestion(verb, [*VERBS, "demo"])
        raise InputError(f"'{verb}' is no verb of embedsmith; known are {', '.join(VERBS)} and demo.{hint}")
    return run(verb, rest)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the dataloader forks after the tokenizer was used
    for name in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ.setdefault(name, "1")  # our own line tells the progress
    try:
        result = _dispatch(sys.argv[1:] if arguments is None else arguments)
    except EmbedsmithError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except (FileExistsError, NotADirectoryError) as error:
        print(f"error: {error.filename} is a file and no folder; choose another --output_dir.", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print(f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    if result:
        print(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
