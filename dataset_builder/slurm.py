"""Which Slurm jobs were submitted from a folder, and whether they are over."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dataset_builder.errors import RunError

_NOTE = "slurm_jobs"


def noted(folder: str, told: str) -> str:
    """Return the job's id of what sbatch told, after noting it in a folder: from then on nobody removes that folder."""
    job = told.rsplit(maxsplit=1)[-1]
    with Path(folder, _NOTE).open("a", encoding="utf-8") as file:
        file.write(f"{job}\n")
    return job


def slurm_job(folder: Path) -> str:
    """Return the ids of the jobs that were submitted from `folder` and wait or run, such as '7,8'; empty if there are none.

    Raises:
        RunError: if Slurm does not answer: then nobody knows, and nothing may be removed.
    """
    note = folder / _NOTE
    if not note.is_file():
        return ""
    jobs = ",".join(note.read_text(encoding="utf-8").split())
    try:
        asked = subprocess.run(  # noqa: S603
            ["squeue", "-h", "-o", "%A", "-j", jobs],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise RunError(
            f"Slurm jobs {jobs} were submitted from {folder}, and there is no squeue here to ask about them; run this on a "
            "login node of the cluster."
        ) from None
    if asked.returncode == 0:
        return ",".join(dict.fromkeys(asked.stdout.split()))
    if "invalid job id" in asked.stderr.lower():  # what Slurm says of jobs that ended a while ago
        return ""
    raise RunError(f"squeue cannot tell whether jobs {jobs} still run ({asked.stderr.strip()}); try again later.")
