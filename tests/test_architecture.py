"""What holds for the whole repository: the direction of imports, the shape of files, and documents that cannot drift."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml

from embedsmith import RECIPES_DIR, VERBS, parse, usage

ROOT = Path(__file__).parent.parent
PACKAGES = ("dataset_builder", "trainer", "model_card")
SHARED = {"dataset_builder.errors", "dataset_builder.schema"}
MAY_IMPORT = {
    "dataset_builder": set(),
    "trainer": {*SHARED, "dataset_builder.progress"},
    "model_card": {
        *SHARED,
        "dataset_builder.progress",
        "dataset_builder.languages",
        "dataset_builder.mteb_texts",
        "dataset_builder.publish",
        "trainer",
    },
}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    for path in sources(package):
        for module in imports(path):
            top = module.split(".")[0]
            assert top not in ("embedsmith", "tests"), f"{path} imports {module}"
            if top in PACKAGES and top != package:
                allowed = MAY_IMPORT[package]
                assert module in allowed or top in allowed, f"{path} imports {module}"


def test_files_and_functions_stay_small() -> None:
    for path in [ROOT / "embedsmith.py", *sources(*PACKAGES, "tests")]:
        text = path.read_text()
        assert len(text.splitlines()) <= 320, f"{path} has {len(text.splitlines())} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and "tests" not in path.parts:
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"


def test_public_functions_are_documented() -> None:
    for path in [ROOT / "embedsmith.py", *sources(*PACKAGES)]:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        members = [*tree.body, *(node for scope in classes for node in scope.body)]
        for node in [*classes, *members]:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith(
                "_"
            ):
                assert ast.get_docstring(node), f"{path}: {node.name}"


@pytest.mark.parametrize(
    "path",
    sorted(path for path in RECIPES_DIR.glob("*/*.yaml") if path.parent.name != "accelerate"),
    ids=lambda p: f"{p.parent.name}/{p.name}",
)
def test_recipes_parse(path: Path) -> None:
    verb = next(name for name, verb in VERBS.items() if verb.stage == path.stem)
    types = VERBS[verb].types
    # bf16 on this machine, which may have no GPU
    flags = ["--use_cpu", "true"] if path.stem == "train" else []
    arguments = parse(verb, types, ["--config", str(path), *flags])
    values = {name: value for argument in arguments for name, value in vars(argument).items()}
    for key in yaml.safe_load(path.read_text()):
        assert key in values


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_the_commands_of_the_readme_parse() -> None:
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", readme(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if re.match(r"(\$ )?embedsmith ", line)]
    assert len(commands) >= 6
    for _, verb, *flags in commands:
        if verb != "demo":
            types = VERBS[verb].types
            parse(verb, types, [*flags, "--use_cpu"] if "--bf16" in flags else flags)  # no GPU here


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (\w+)", readme()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_file_tree_of_the_readme_exists() -> None:
    tree = re.search(r"```text\n(.*?)```", readme(), re.DOTALL)
    assert tree
    for name in re.findall(r"^(\S+)", tree[1], re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_help_names_every_verb() -> None:
    for verb in (*VERBS, "demo"):
        assert f"  {verb} " in usage()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in readme()


def test_nothing_names_a_machine() -> None:
    words = re.compile(r"/(?:work|home|root|Users)/\w")
    for path in [*ROOT.glob("*.*"), *sources(*PACKAGES), *(ROOT / "recipes").rglob("*.yaml")]:
        if path.is_file() and path.suffix != ".png":
            assert not words.search(path.read_text()), path
