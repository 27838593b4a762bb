"""How far one journal goes: `python -m benchmarks.scaling --num_examples 100000 1000000 10000000`.

A fake LLM that answers at once writes a batch output file for the whole plan, with short texts, so that what is timed is our
own work: the plan, the journal (`generate --batch_in`), judging by the tasks of an executor, and what is done in one process
after it (duplicates, writing). Each is timed in a process of its own; memory is the peak of that process and its children.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil

from dataset_builder.config import PlanArguments
from dataset_builder.plan import Request, brainstorm_requests, generate_requests
from dataset_builder.schema import example_reply

WORDS = (Path(__file__).parent.parent / "tests" / "sentences.tsv").read_text("utf-8").split()
LENGTHS = {"short-long": (8, 30, 30), "long-short": (30, 2, 2), "long-long": (30, 30, 30)}


def plan_of(num_examples: int, folder: Path) -> PlanArguments:
    """Return the plan: English and German, so that texts are cheap to make, and 20 tasks a brainstorm."""
    return PlanArguments(str(folder), num_examples, languages=["en", "de"], num_words=[50])


def flags(plan: PlanArguments) -> list[str]:
    """Return the plan as flags. The made-up texts are of no language and no asked length."""
    return [
        *("--output_dir", plan.output_dir, "--num_examples", str(plan.num_examples), "--languages", *plan.languages),
        *("--num_words", "50"),
    ]


def texts(rng: np.random.Generator, lengths: tuple[int, ...], words: list[str]) -> list[str]:
    """Return texts of random words."""
    numbers = rng.integers(0, len(words), sum(lengths)).tolist()
    bounds = np.cumsum((0, *lengths)).tolist()
    return [" ".join(words[n] for n in numbers[a:b]) for a, b in pairwise(bounds)]


def lines(requests: Iterator[Request]) -> Iterator[str]:
    """Yield the answers of an LLM that takes no time."""
    rng, words = np.random.default_rng(0), sorted({word for word in WORDS if word.isascii() and word.isalpha()})
    for request in requests:
        if request.step == "brainstorm":
            tasks = texts(rng, (10,) * request.attributes["num_tasks"], words)
            content = json.dumps({"tasks": tasks})
        else:
            model = example_reply(request.subgroup, hard_negative=request.attributes.get("hard_negative", True))
            made = texts(rng, LENGTHS.get(request.subgroup, (12, 12, 12)), words)
            content = json.dumps(dict(zip(model.model_fields, made, strict=False)))
        message = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        body = {"object": "chat.completion", "model": "instant", "choices": [message]}
        row = {"custom_id": request.id, "response": {"status_code": 200, "body": body}}
        yield json.dumps(row) + "\n"


@dataclass
class Measured:
    """Seconds, and the peak of the memory in MB."""

    seconds: float
    megabytes: float


def measured(*command: str) -> Measured:
    """Run a command and watch the memory of its processes (unique to each, so that nothing counts twice)."""
    start, peak = time.monotonic(), 0.0
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            total = 0
            try:
                for one in [watched, *watched.children(recursive=True)]:
                    total += one.memory_full_info().uss
            except psutil.NoSuchProcess:
                pass
            peak = max(peak, total / 1e6)
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return Measured(time.monotonic() - start, peak)


def size(*paths: Path) -> float:
    """Return the size of files and folders in MB."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def measure(num_examples: int, folder: Path) -> None:
    """Print the row of one size."""
    run, verb = plan_of(num_examples, folder), ["-m", "embedsmith"]
    count = f"sum(1 for _ in generate_requests(plan_of({num_examples}, Path('x'))))"
    planned = measured("-c", f"from pathlib import Path; from benchmarks.scaling import *; print({count})")
    answers = folder / "answers.jsonl"
    with answers.open("w", encoding="utf-8") as file:
        for step in (brainstorm_requests, generate_requests):
            file.writelines(lines(step(run)))
    took = flags(run)
    ask = ["--llm", "live", "--llm_model", "instant", "--batch_in", str(answers)]
    brainstormed = measured(*verb, "brainstorm", *took, *ask)
    committed = measured(*verb, "generate", *took, *ask)
    answers.unlink()
    keep_all = ["--check_language", "false", "--max_length_factor", "0"]
    num_cores = str(os.cpu_count())
    judged = measured("-m", "benchmarks.scaling", "--judge", str(num_examples), str(folder), num_cores)
    written = measured(*verb, "curate", *took, *keep_all, "--executor", "local", "--num_tasks", num_cores)
    stages = (planned, brainstormed, committed, judged, written)
    cells = [f"{one.seconds:,.0f} s ({num_examples / one.seconds:,.0f}/s), {one.megabytes:,.0f} MB" for one in stages]
    del cells[1]  # a few hundredths of the requests; told in the memory of the journal's column
    disk = [size(folder / "journal.sqlite"), size(folder / "dataset")]
    print(f"| {num_examples:,} | {' | '.join(cells)} | {disk[0]:,.0f} MB | {disk[1]:,.0f} MB |", flush=True)


def judge_only(num_examples: int, folder: Path, num_tasks: int) -> None:
    """Judge all replies by tasks, and leave what became of them for `curate`, which finds it done."""
    from dataset_builder import dataset
    from dataset_builder.config import CurationArguments
    from dataset_builder.scale_config import ScaleArguments

    dataset._Curation.write = lambda self: sys.exit(0)  # type: ignore[method-assign]
    arguments = CurationArguments(check_language=False, max_length_factor=0.0)
    dataset.curate(plan_of(num_examples, folder), arguments, ScaleArguments("local", num_tasks))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_examples", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, default=Path("runs/scaling"), help="some 3 GB a million")
    parser.add_argument("--judge", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.judge:
        judge_only(int(arguments.judge[0]), Path(arguments.judge[1]), int(arguments.judge[2]))
        return
    print("| examples | plan | journal | judging, all cores | the rest of `curate` | journal | dataset |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for num_examples in arguments.num_examples:
        shutil.rmtree(arguments.folder, ignore_errors=True)
        arguments.folder.mkdir(parents=True)
        measure(num_examples, arguments.folder)


if __name__ == "__main__":
    main()
