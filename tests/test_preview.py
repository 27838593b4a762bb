"""The verb `plan`: what it says is what the plan holds, and nothing is asked or written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dataset_builder.config import PlanArguments
from dataset_builder.plan import brainstorm_requests, generate_requests
from dataset_builder.preview import reply_words
from dataset_builder.recorded_llm import DEFAULT_REPLIES, read_batch_output
from tests.runs import embedsmith


def test_the_counts_are_those_of_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    flags = ("--output_dir", run, "--num_examples", 700, "--subgroups", "short-long=2", "bitext", "--num_prompts", 3)
    assert embedsmith("plan", *flags) == 0
    output = capsys.readouterr().out
    plan = PlanArguments(output_dir=str(run), num_examples=700, subgroups=["short-long=2", "bitext"])
    num_brainstorms = sum(1 for _ in brainstorm_requests(plan))
    assert re.search(rf"^short-long +{num_brainstorms} +467$", output, re.MULTILINE)
    assert re.search(r"^bitext +0 +233$", output, re.MULTILINE)
    assert re.search(rf"^all +{num_brainstorms} +700$", output, re.MULTILINE)
    assert "languages: English" in output
    assert output.count("\n--- ") == 3
    for request in (next(brainstorm_requests(plan)), next(generate_requests(plan))):
        assert request.id in output
    assert not run.exists()


def test_dollars_follow_from_the_prices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--output_dir", tmp_path, "--num_examples", 60, "--num_prompts", 0)
    assert embedsmith("plan", *flags) == 0
    assert "give --input_price and --output_price" in capsys.readouterr().out
    assert embedsmith("plan", *flags, "--input_price", 0, "--output_price", 0) == 0
    assert "about $0.00" in capsys.readouterr().out


def test_the_estimated_lengths_are_near_those_of_real_replies() -> None:
    plan = PlanArguments(output_dir="x", num_examples=192, languages=["en", "de"], num_words=[50, 100, 200])
    estimated = sum(reply_words(request) for request in generate_requests(plan)) / 192
    texts = [b["choices"][0]["message"]["content"] for i, b in read_batch_output(DEFAULT_REPLIES) if "-generate-" in i]
    recorded = sum(len(text.split()) for text in texts) / len(texts)
    assert 0.6 < estimated / recorded < 1.67
