"""How fast a batch is trained on, in how much memory, here and by peers: `python benchmarks/training.py --write`.

A small Qwen3 of random weights (8 layers, 256 units, 6.3 M parameters besides the embeddings), one hard negative a pair, on the
CPU in float32. Each measurement is a process of its own that adds the gradients of one batch to the weights, up to three
times within a minute, after a warm-up on a few pairs; the fastest counts, because shared machines stall. Nothing else is
timed: no optimizer, no tokenizer. The methods take turns, and must agree on loss and gradient. sentence-transformers' cached
loss gets the mini-batch size that suits it best, which is looked for first. Memory is the peak of the process, 0.55 GB of
which are Python, torch and the libraries. Useful GFLOP/s count what the batch needs (`training_methods.useful_flops`), not
what padding and computing twice add.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

README = Path(__file__).parent / "README.md"
CELLS = {"short": (64, 256, 1_024), "mixed": (64, 256, 1_024), "long": (64,)}
_ENOUGH_S = 60.0  # seconds of one measurement after which it is not repeated
MINI_BATCH_SIZES = (8, 16, 32, 64)
METHODS = ("embedsmith", "cached", "grad_cache", "plain")
NAMES = {
    "embedsmith": "embedsmith",
    "cached": "sentence-transformers, cached loss",
    "grad_cache": "GradCache loop",
    "plain": "sentence-transformers, plain loss",
}


def measure_here(method: str, mix: str, batch: int, folder: Path, arguments: dict[str, int]) -> dict[str, Any]:
    """Measure one method in this process."""
    import torch
    import training_methods as methods
    import transformers

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    make: Any = {
        "embedsmith": methods.embedsmith,
        "cached": methods.cached_mnrl,
        "grad_cache": methods.grad_cache,
        "plain": methods.plain_mnrl,
    }[method]
    texts = methods.columns(mix, batch, 4_096)
    make(folder, [column[:4] for column in texts], **arguments)[1]()
    model, step = make(folder, texts, **arguments)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    times: list[float] = []
    while len(times) < 3 and sum(times) < _ENOUGH_S:
        model.zero_grad()
        start = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - start)
    seconds = min(times)
    status = Path("/proc/self/status").read_text().splitlines()
    peak_kb = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    gradients = [weight.grad.norm() for weight in model.parameters() if weight.grad is not None]
    return {
        "seconds": seconds,
        "pairs_per_s": batch / seconds,
        "peak_mb": peak_kb / 1024,
        "gflops": methods.useful_flops(model, texts) / seconds / 1e9,
        "matrix_gflops": methods.matrix_rate() / 1e9,
        "loss": float(loss),
        "gradient": float(torch.stack(gradients).norm()),
    }


def measure(method: str, mix: str, batch: int, folder: Path, **arguments: int) -> dict[str, Any] | None:
    """Measure one method in a process of its own; None if the system killed it for its memory."""
    task = json.dumps([method, mix, batch, str(folder), arguments])
    done = subprocess.run(
        [sys.executable, __file__, "--here", task],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    if done.returncode == -signal.SIGKILL:
        print(f"{method} {arguments or ''} {mix} {batch}: out of memory", file=sys.stderr)
        return None
    if done.returncode:
        raise SystemExit(f"{method} {mix} {batch} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    shown = f"{result['pairs_per_s']:.2f} pairs/s, {result['peak_mb']:,.0f} MB, {result['gflops']:.0f} GFLOP/s"
    print(
        f"{method} {arguments or ''} {mix} {batch}: {shown}; the machine {result['matrix_gflops']:.0f}", file=sys.stderr
    )
    return result


def best_mini_batch_size(mix: str, folder: Path) -> int:
    """Return the mini-batch size with which sentence-transformers' cached loss is fastest on a batch of 64."""
    results = {size: measure("cached", mix, 64, folder, mini_batch_size=size) for size in MINI_BATCH_SIZES}
    speeds = {size: result["pairs_per_s"] for size, result in results.items() if result}
    return max(speeds, key=speeds.__getitem__)


def cells(folder: Path, mixes: Sequence[str], batches: Sequence[int], rounds: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows so far after each batch, one for each method, mix and batch: medians over the rounds."""
    rows: list[dict[str, Any]] = []
    for mix in mixes:
        size = best_mini_batch_size(mix, folder)
        for batch in (batch for batch in CELLS[mix] if batch in batches):
            kinds: dict[str, dict[str, int]] = {"embedsmith": {}, "cached": {"mini_batch_size": size}}
            if batch < 1_024:  # where it would take a quarter of an hour to be what it is with 256
                kinds["grad_cache"] = {"chunk_size": size}
            if batch == 64:  # the graph of more does not fit
                kinds["plain"] = {}
            results: dict[str, list[dict[str, Any]]] = {method: [] for method in kinds}
            for _ in range(rounds):
                for method, arguments in kinds.items():
                    if result := measure(method, mix, batch, folder, **arguments):
                        results[method].append(result)
            results = {method: several for method, several in results.items() if several}
            for method, several in results.items():
                medians = {name: statistics.median(result[name] for result in several) for name in several[0]}
                rows.append(
                    {"mix": mix, "batch": batch, "method": method, "size": size, "rounds": len(several)} | medians
                )
            check_equal(rows[-len(results) :])
            yield rows


def check_equal(rows: list[dict[str, Any]]) -> None:
    """Stop if the methods did not compute the same."""
    for row in rows[1:]:
        for name in ("loss", "gradient"):
            if abs(row[name] - rows[0][name]) > 1e-3 * abs(rows[0][name]):
                raise SystemExit(f"{row['method']} has another {name} than embedsmith: {row[name]}, {rows[0][name]}")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    packages = f"sentence-transformers {version('sentence-transformers')}, torch {version('torch').split('+')[0]}"
    rate = statistics.median(row["matrix_gflops"] for row in rows)
    num = rows[0]["rounds"]
    times = "one round" if num == 1 else f"medians of {num} rounds"
    lines = [
        f"`python benchmarks/training.py` on {os.cpu_count()} cores ({platform.machine()}), {packages}; the machine's matrix "
        f"product: {rate:.0f} GFLOP/s; {times}:",
        "",
        "| texts | batch | method | pairs/s | × | peak MB | × | useful GFLOP/s |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        reference = next(
            other
            for other in rows
            if (other["mix"], other["batch"], other["method"]) == (row["mix"], row["batch"], "cached")
        )
        name = NAMES[row["method"]] + (f", {row['size']} at once" if row["method"] in ("cached", "grad_cache") else "")
        lines.append(
            f"| {row['mix']} | {row['batch']:,} | {name} | {row['pairs_per_s']:.2f} "
            f"| {row['pairs_per_s'] / reference['pairs_per_s']:.2f} | {row['peak_mb']:,.0f} "
            f"| {row['peak_mb'] / reference['peak_mb']:.2f} | {row['gflops']:.0f} |"
        )
    return "\n".join(lines)


def write(text: str) -> None:
    """Replace the table in the README."""
    before, _, rest = README.read_text(encoding="utf-8").partition("<!-- training: begin -->")
    _, _, after = rest.partition("<!-- training: end -->")
    README.write_text(f"{before}<!-- training: begin -->\n{text}\n<!-- training: end -->{after}", encoding="utf-8")


def main() -> None:
    """Measure and print, or measure one thing for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 256, 1_024])
    parser.add_argument("--rounds", type=int, default=1, help="medians of so many")
    parser.add_argument("--write", action="store_true", help="replace the table in benchmarks/README.md")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        method, mix, batch, folder, settings = json.loads(arguments.here)
        print(json.dumps(measure_here(method, mix, batch, Path(folder), settings)))
        return
    from training_methods import save_model

    with tempfile.TemporaryDirectory() as folder:
        for rows in cells(save_model(Path(folder)), arguments.mixes, arguments.batches, arguments.rounds):
            if arguments.write:  # what was measured stays, should it be interrupted
                write(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
