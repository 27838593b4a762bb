"""datatrove's executors, set up so that nothing is lost, told twice or left running."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, wait
from functools import partial
from pathlib import Path
from typing import Any

import dill
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from loguru import logger

from dataset_builder.errors import EmbedsmithError, InputError, RunError
from dataset_builder.scale_config import ENVIRONMENT, ScaleArguments
from dataset_builder.sifting import processes
from dataset_builder.slurm import noted


def run(pipeline: list[Any], folder: Path, num_tasks: int, scale: ScaleArguments) -> bool:
    """Run a pipeline as tasks; return whether that is over (slurm: it is only submitted).

    Args:
        pipeline: datatrove's blocks.
        folder: absolute; its logs/ gets datatrove's logs.
        num_tasks: how many tasks.
        scale: where they run.

    Raises:
        InputError: if the executor cannot be used.
        RunError: if tasks ended before they were done.
    """
    logs = folder / "logs"
    shutil.rmtree(logs, ignore_errors=True)  # which tasks are complete: those of an earlier start had other work
    logger.remove()  # one progress line is ours; what datatrove says is in its log files
    executor = _executor(pipeline, str(logs), num_tasks, scale)
    try:
        executor.run()
    except Exception as error:  # whatever a task raised
        cause = str(error) if isinstance(error, EmbedsmithError) else f"{type(error).__name__}: {error}"
        raise RunError(f"{_early(executor, num_tasks, logs)}. {cause}") from None
    if scale.executor == "slurm":
        print(
            f"submitted as Slurm job {executor.job_id}; run the same command again when it has ended", file=sys.stderr
        )
        return False
    if executor.get_incomplete_ranks():
        raise RunError(_early(executor, num_tasks, logs))
    return True


def _early(executor: Any, num_tasks: int, logs: Path) -> str:
    return f"{len(executor.get_incomplete_ranks())} of {num_tasks} tasks ended early; see {logs}/logs"


def _executor(pipeline: list[Any], logs: str, num_tasks: int, scale: ScaleArguments) -> Any:
    settings: dict[str, Any] = {"pipeline": pipeline, "tasks": num_tasks, "logging_dir": logs}
    settings["workers"] = scale.at_once(num_tasks)
    if scale.executor == "local":
        return Processes(**settings)
    settings |= {
        "cpus_per_task": scale.cpus_per_task,
        "gpus_per_task": scale.gpus_per_task,
        "mem_per_cpu_gb": scale.gb_per_cpu,
    }
    if scale.executor == "ray":
        _start_ray(scale)
        return RayPipelineExecutor(**settings)
    if shutil.which("sbatch") is None:
        raise InputError("`executor` is slurm but there is no sbatch here; run this on a login node of the cluster.")
    return Slurm(
        **settings,
        time=scale.slurm_time,
        partition=str(scale.slurm_partition),
        job_name="embedsmith",
        qos="",
        venv_path=str(Path(sys.prefix, "bin", "activate")),
        sbatch_args={name: "" if value is True else value for name, value in flags_of(scale.slurm_args).items()},
        job_id_retriever=partial(noted, str(Path(logs).parent)),
    )


def flags_of(arguments: Iterable[str]) -> dict[str, Any]:
    """Return `['dtype=bfloat16', 'enforce-eager']` as `{'dtype': 'bfloat16', 'enforce-eager': True}`."""
    return {name: value if mark else True for name, mark, value in (a.partition("=") for a in arguments)}


def _start_ray(scale: ScaleArguments) -> None:
    try:
        import ray
    except ImportError:
        raise InputError("`executor` is ray but Ray is missing; run: pip install 'embedsmith[scale]'.") from None
    if not ray.is_initialized():
        # the cluster that RAY_ADDRESS names or that runs on this machine, else a new one
        ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": ENVIRONMENT})
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    needs = {
        "CPU": scale.cpus_per_task,
        "GPU": scale.gpus_per_task,
        "memory": scale.gb_per_cpu * scale.cpus_per_task * 2**30,
    }
    for name, need in needs.items():
        if need > has.get(name, 0):
            raise InputError(
                f"A task needs {need:,.0f} of {name}, and the whole Ray cluster has {has.get(name, 0):,.0f}; lower "
                "--cpus_per_task, --gpus_per_task or --gb_per_cpu."
            )


class Processes(LocalPipelineExecutor):
    """datatrove's tasks on this machine, in a pool that notices when one of its processes is killed.

    datatrove's own pool waits for such a task forever, and one that runs a single task runs it in the starting process.
    """

    def run(self) -> None:
        """Run the tasks that are not complete.

        Raises:
            RunError: if a process was ended from outside.
        """
        self.save_executor_as_json()
        me = dill.dumps(self)
        with processes(self.workers, "works on a task") as pool:
            running = [pool.submit(_run_rank, me, rank) for rank in self.get_incomplete_ranks()]
            for done in wait(running, return_when=FIRST_EXCEPTION).done:
                done.result()


def _run_rank(executor: bytes, rank: int) -> None:
    """Run one task in this process, whose stderr is a file from then on: datatrove's log lines go there."""
    this = dill.loads(executor)  # noqa: S301  of the process that started this one
    sys.stderr = this.logging_dir.open(f"stderr/{rank:05d}.txt", "w")
    this._run_for_rank(rank, local_rank=1)


class Slurm(SlurmPipelineExecutor):
    """datatrove's Slurm job array alone, without the job that merges statistics, which may be refused or wait forever."""

    def launch_merge_stats(self) -> None:
        """Do nothing."""

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """Return the flags of sbatch; memory in whole megabytes, as Slurm wants it."""
        flags: dict[str, Any] = super().get_sbatch_args(max_array)
        return flags | {"mem-per-cpu": f"{round(self.mem_per_cpu_gb * 1024)}M"}
