"""The verb `plan`: what it says is what the plan holds, and nothing is asked or written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dataset_builder.config import PlanArguments
from dataset_builder.plan import brainstorm_requests, generate_requests
from tests.runs import embedsmith


def number(pattern: str, output: str) -> float:
    """Return the number that the first group of `pattern` holds."""
    match = re.search(pattern, output, re.MULTILINE)
    assert match, output
    return float(match[1].replace(",", ""))


def test_the_counts_are_those_of_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    flags = ("--output_dir", run, "--num_examples", 700, "--subgroups", "short-long=2", "bitext", "--num_prompts", 3)
    assert embedsmith("plan", *flags) == 0
    output = capsys.readouterr().out
    plan = PlanArguments(output_dir=str(run), num_examples=700, subgroups=["short-long=2", "bitext"])
    num_brainstorms = sum(1 for _ in brainstorm_requests(plan))
    assert output.startswith(f"700 examples from {20 * num_brainstorms} tasks ({num_brainstorms} brainstorms of 20), ")
    assert re.search(rf"^short-long +{num_brainstorms} +467$", output, re.MULTILINE)
    assert re.search(r"^bitext +0 +233$", output, re.MULTILINE)
    assert re.search(rf"^all +{num_brainstorms} +700$", output, re.MULTILINE)
    assert "languages (bitext has two): English" in output
    assert "estimated from the lengths asked for" in output
    assert output.count("\n--- ") == 3
    for request in (next(brainstorm_requests(plan)), next(generate_requests(plan))):
        assert request.id in output
    assert not run.exists()


def test_dollars_follow_from_the_prices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--output_dir", tmp_path, "--num_examples", 60, "--num_prompts", 0)
    assert embedsmith("plan", *flags) == 0
    assert "give --input_price and --output_price" in capsys.readouterr().out
    assert embedsmith("plan", *flags, "--input_price", 0, "--output_price", 0) == 0
    assert "about $0.00 at $0 and $0 per million" in capsys.readouterr().out


def test_several_models_share_the_dollars_by_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        "--output_dir",
        tmp_path,
        "--num_examples",
        600,
        "--num_prompts",
        0,
        "--languages",
        "en",
        "--subgroups",
        "sts",
    )
    models = ("--llm_model", "large=3", "small", "--input_price", 0, "--output_price", 3000, 1000)
    assert embedsmith("plan", *flags, *models) == 0
    output = capsys.readouterr().out
    total = number(r"^about \$([\d.,]+)$", output)
    large = number(r"^  large, 75% of the requests: \$([\d.,]+) at \$0 and \$3000 per million", output)
    small = number(r"^  small, 25% of the requests: \$([\d.,]+) at \$0 and \$1000 per million", output)
    assert total == pytest.approx(large + small, abs=0.02)
    assert large == pytest.approx(9 * small, rel=0.01)


def test_a_long_plan_is_counted_in_full_and_estimated_from_a_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--output_dir", tmp_path, "--subgroups", "sts", "bitext", "--languages", "en", "ka", "--num_prompts", 0)
    outputs = []
    for num_examples in (11_000, 22_000):
        assert embedsmith("plan", *flags, "--num_examples", num_examples) == 0
        outputs.append(capsys.readouterr().out)
    assert "estimated from a sample of 11,000 requests" in outputs[1]
    assert "a sample" not in outputs[0]
    assert re.search(r"^sts +0 +11,000$", outputs[1], re.MULTILINE)
    for pattern in (
        r"about ([\d.]+) million prompt tokens",
        r"and ([\d.]+) to",
        r" to ([\d.]+) million completion tokens",
    ):
        small, large = (number(pattern, output) for output in outputs)
        assert large == pytest.approx(2 * small, rel=0.02)


def test_the_paper_recipe_can_be_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = ("--llm_model", "gpt-4=75", "gpt-3.5-turbo=25", "--input_price", 2, 1, "--output_price", 4, 3)
    assert embedsmith("plan", "--config", "paper", "--num_examples", 3000, "--num_prompts", 1, *prices) == 0
    output = capsys.readouterr().out
    assert output.startswith("3,000 examples from 940 tasks (47 brainstorms of 20), seed 0\n")
    assert re.search(r"^9\d languages \(bitext has two\): English [34]\d\.", output, re.MULTILINE)
    assert "gpt-3.5-turbo, 25% of the requests" in output
    assert embedsmith("brainstorm", "--config", "paper", "--output_dir", tmp_path / "run") == 2
    assert "`llm_model` is not given" in capsys.readouterr().err
