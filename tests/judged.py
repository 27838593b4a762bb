"""A run that went through all verbs up to the report, once for all tests of stage 3."""

from __future__ import annotations

from pathlib import Path

from tests.hub_server import Hub
from tests.mteb_toys import TASKS, put_toys
from tests.runs import embedsmith

EVALUATE = ("--tasks", *[task for task in TASKS if task != "STS16"])


def judged_run(hub: Hub, folder: Path) -> Path:
    """Return the run folder."""
    put_toys(hub, folder / "toys")
    run = folder / "run"
    demo = ("--config", "demo", "--output_dir", run)
    few = (*demo, "--num_examples", 72)  # encoding the held-out ones takes most of the time
    short = (
        "--max_seq_length",
        64,
        "--max_steps",
        2,
        "--logging_steps",
        1,
        "--subgroups",
        "short-long",
        "sts",
        "bitext",
    )
    where = ("--output_dir", run)
    for verb in (
        ("brainstorm", *few),
        ("generate", *few),
        ("curate", *few),
        ("train", *demo, *short),
        ("evaluate", *where, *EVALUATE, "--reference_models", "bm25"),
        ("report", *where, "--model_title", "Toy"),
    ):
        assert embedsmith(*verb) == 0, verb
    return run
