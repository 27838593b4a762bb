"""How long curation takes, and how much memory: `python benchmarks/curation.py --num_examples 100000 500000`.

The replies are word salad in the demo corpus' languages, of the lengths that the plan asks for (the paper's), so that every
check has its full work; one in a hundred repeats an earlier one, one in fifty is broken. Making the journal is not timed.
Memory is the peak of the process and its children together, sampled every 0.2 s.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict

import psutil

from dataset_builder.config import PlanArguments
from dataset_builder.journal import Journal, chunks
from dataset_builder.outcome import Outcome, reply_outcome
from dataset_builder.plan import Request, brainstorm_requests, generate_requests
from dataset_builder.recorded_llm import DEFAULT_REPLIES, read_batch_output
from dataset_builder.schema import FIXED_INSTRUCTIONS, example_reply
from embedsmith import VERBS, parse

DEMO: PlanArguments = parse("curate", VERBS["curate"].types, ["--config", "demo"])[0]
UNSPACED = ("ja", "th", "zh")


def vocabularies() -> dict[str, list[str]]:
    """Return the words (in scripts without spaces, runs of four characters) of the recorded replies, by language."""
    by_id = {request.id: request for request in generate_requests(DEMO)}
    words: dict[str, list[str]] = defaultdict(list)
    for id_, body in read_batch_output(DEFAULT_REPLIES):
        if request := by_id.get(id_):
            texts = [t for t in json.loads(body["choices"][0]["message"]["content"]).values() if t]
            codes = [request.attributes["language"]]
            codes += [request.attributes.get("positive_language", codes[0])] * 2
            for code, text in zip(codes, texts, strict=False):
                parts = [text[i : i + 4] for i in range(0, len(text), 4)] if code in UNSPACED else text.split()
                words[code] += parts
    return words


def reply(request: Request, words: dict[str, list[str]], rng: random.Random) -> str:
    """Return a reply of random words, of the asked lengths."""
    attributes = request.attributes
    model = example_reply(request.subgroup, hard_negative=attributes.get("hard_negative", True))
    long = attributes.get("num_words", 300)
    lengths = {
        "short-long": (8, long, long),
        "long-short": (long, 2, 2),
        "short-short": (12, 12, 12),
        "long-long": (320, 320, 320),
    }.get(request.subgroup, ({"phrase": 6, "sentence": 16, "passage": 60}.get(attributes.get("unit", ""), 20),) * 3)
    codes = [attributes["language"]] + [attributes.get("positive_language", attributes["language"])] * 2
    texts = []
    for code, length in zip(codes, lengths, strict=True):
        parts = rng.choices(words[code], k=length)
        texts.append(("" if code in UNSPACED else " ").join(parts))
    return json.dumps(dict(zip(model.model_fields, texts, strict=False)), ensure_ascii=False)


def make_journal(plan: PlanArguments) -> None:
    """Write a journal in which every request of the plan has a reply."""
    words, rng, last = vocabularies(), random.Random(0), dict[str, str]()
    with Journal(plan.run_dir / "journal.sqlite", plan.identity(), write=True) as journal:
        for step in (brainstorm_requests, generate_requests):
            for chunk in chunks(step(plan), 5_000):
                tasks = [
                    f"Find {r.subgroup} thing {r.task_slot} by {' '.join(rng.choices(words['en'], k=8))}" for r in chunk
                ]
                journal.plan(
                    (r, FIXED_INSTRUCTIONS.get(r.subgroup, task) if r.step == "generate" else None)
                    for r, task in zip(chunk, tasks, strict=True)
                )
                outcomes: list[Outcome] = []
                for request in chunk:
                    if request.step == "brainstorm":
                        text = json.dumps(
                            {"tasks": [f"Find {' '.join(rng.choices(words['en'], k=9))}" for _ in range(20)]}
                        )
                    else:
                        kind = f"{request.subgroup} {request.attributes}"
                        text = last.get(kind, "") if rng.random() < 0.01 else ""
                        text = last[kind] = text or reply(request, words, rng)
                        if rng.random() < 0.02:
                            text = text[: len(text) // 2]
                    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                    outcomes.append(reply_outcome(request, {"model": "salad", "choices": [choice]}))
                journal.add_outcomes(outcomes, "benchmark", lambda _: None)


def measure(plan: PlanArguments, num_proc: int | None) -> tuple[float, float, str]:
    """Return seconds, peak megabytes and the verb's own sentence."""
    command = [
        sys.executable,
        "-m",
        "embedsmith",
        "curate",
        "--output_dir",
        plan.output_dir,
        "--languages",
        *DEMO.languages,
    ]
    command += ["--num_examples", str(plan.num_examples), *(["--num_proc", str(num_proc)] if num_proc else [])]
    start, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family = [watched, *watched.children(recursive=True)]
            peak = max(peak, sum(_memory(member) for member in family))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.2)
    seconds = time.monotonic() - start
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"curate ended with exit code {process.returncode}")
    return seconds, peak / 1e6, process.stdout.read().strip()


def _memory(process: psutil.Process) -> int:
    """Proportional set size: what processes share, such as a memory-mapped file, counts once."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def main() -> None:
    """Make the journals, curate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_examples", type=int, nargs="+", default=[100_000, 500_000])
    parser.add_argument("--num_proc", type=int)
    arguments = parser.parse_args()
    rows = []
    for num_examples in arguments.num_examples:
        with tempfile.TemporaryDirectory() as folder:
            plan = PlanArguments(folder, num_examples, languages=DEMO.languages)
            make_journal(plan)
            size = (plan.run_dir / "journal.sqlite").stat().st_size / 1e9
            seconds, megabytes, sentence = measure(plan, arguments.num_proc)
            print(f"{num_examples:,}: {seconds:.0f} s, {megabytes:,.0f} MB; {sentence}", file=sys.stderr, flush=True)
            per_second = num_examples / seconds
            rows.append(f"| {num_examples:,} | {size:.2f} | {seconds:.0f} | {per_second:,.0f} | {megabytes:,.0f} |")
    print("| examples | journal GB | seconds | examples/s | peak MB |\n|---:|---:|---:|---:|---:|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
