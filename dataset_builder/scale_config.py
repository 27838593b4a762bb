"""Past one machine: on what datatrove runs the asking and the judging of replies."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field

from dataset_builder.errors import InputError
from dataset_builder.llm_config import LLMArguments

ENVIRONMENT = {
    "LOGURU_LEVEL": "ERROR",
    "LOGURU_DIAGNOSE": "NO",  # else tracebacks in datatrove's logs tell the values of variables, keys among them
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default, which Ray warns of
}


@dataclass
class ScaleArguments:
    """Where the work is done; without an executor all of it in this process and those that it starts."""

    executor: str | None = field(
        default=None,
        metadata={
            "help": "Let datatrove spread `brainstorm`, `generate` and `curate`: local (processes), ray (a cluster that runs, "
            "or a new one here) or slurm (submits, and takes the results when run again). The run folder must be on a disk "
            "that all nodes share. Needs `pip install embedsmith[scale]`.",
            "choices": ["local", "ray", "slurm"],
        },
    )
    num_tasks: int = field(default=16, metadata={"help": "Tasks that the executor splits the work into."})
    num_tasks_at_once: int | None = field(
        default=None, metadata={"help": "Tasks that run at the same time. Default: all; local: one a core."}
    )
    llm_server: str | None = field(
        default=None,
        metadata={
            "help": "Engine that each task starts for itself, to serve `llm_model` on `gpus_per_task` GPUs. Default: the tasks "
            "ask `base_url`.",
            "choices": ["vllm", "sglang"],
        },
    )
    llm_server_args: list[str] = field(
        default_factory=list, metadata={"help": "Flags of that engine without dashes: max-num-seqs=512 dtype=bfloat16."}
    )
    cpus_per_task: int = field(default=1, metadata={"help": "Cores that ray or slurm reserve for a task."})
    gpus_per_task: int = field(default=0, metadata={"help": "GPUs that ray or slurm reserve for a task."})
    gb_per_cpu: float = field(default=2.0, metadata={"help": "Memory that ray or slurm reserve, in GB a core."})
    slurm_partition: str | None = field(default=None, metadata={"help": "Partition that slurm runs the tasks in."})
    slurm_time: str = field(default="24:00:00", metadata={"help": "Time that slurm grants a task."})
    slurm_args: list[str] = field(
        default_factory=list, metadata={"help": "Further flags of sbatch without dashes: account=me qos=low."}
    )

    def __post_init__(self) -> None:
        for name in ("num_tasks", "num_tasks_at_once", "cpus_per_task", "gb_per_cpu"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be above 0.")
        if self.gpus_per_task < 0:
            raise InputError(f"`gpus_per_task` is {self.gpus_per_task}; it must be 0 or more.")
        if self.executor == "slurm" and not self.slurm_partition:
            raise InputError("`executor` is slurm but no partition is given; say which with --slurm_partition.")
        if self.llm_server and not self.executor:
            raise InputError(
                f"`llm_server` is {self.llm_server} but there are no tasks to start it; give --executor local, ray or slurm."
            )

    def at_once(self, num_tasks: int) -> int:
        """Return how many of the tasks run at the same time, at most."""
        cores = os.cpu_count() or 1
        return min(num_tasks, self.num_tasks_at_once or (cores if self.executor == "local" else num_tasks))

    def check(self, llm: LLMArguments) -> None:
        """Check that tasks can ask this LLM.

        Raises:
            InputError: if there is an executor, and nothing for its tasks to ask.
        """
        if self.executor and (llm.llm != "live" or llm.batch_out or llm.batch_in or llm.batch_submit):
            raise InputError(
                f"`executor` is {self.executor}, whose tasks ask a live LLM; give --llm live and no batch, or no executor."
            )


def prepare_datatrove() -> None:
    """Set what datatrove's log library and Ray read when they are imported, here and in the tasks.

    Raises:
        InputError: if the extra `scale` is not installed.
    """
    os.environ |= ENVIRONMENT
    if importlib.util.find_spec("datatrove") is None:
        raise InputError("`executor` is given but datatrove is missing; run: pip install 'embedsmith[scale]'.")


HERE = ScaleArguments()
"""No executor."""
