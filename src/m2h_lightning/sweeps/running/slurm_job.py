"""A worker inside a job of SLURM: what its cells do not get to know, and how the job requeues itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from m2h_lightning.errors import ConfigError
from m2h_lightning.runs.outcome import read_outcome

if TYPE_CHECKING:
    from m2h_lightning.sweeps.planning.plan import Plan

_KEPT = re.compile(
    r"SLURM_(CONF|CLUSTER_NAME|RESTART_COUNT|SUBMIT_(DIR|HOST)|ARRAY_(JOB_ID|TASK_ID)"
    r"|JOB_(ID|NAME|PARTITION|ACCOUNT|QOS|NODELIST|START_TIME|END_TIME))"
)
_LAUNCHER = re.compile(
    r"SLURM_.*|SLURMD_.*|SRUN_.*|PMI_.*|PMIX_.*|PMI2_.*|OMPI_.*|TORCHELASTIC_.*|MASTER_(ADDR|PORT)|(LOCAL_|NODE_|GROUP_|ROLE_)?RANK"
    r"|(LOCAL_|GROUP_|ROLE_)?WORLD_SIZE"
)


def without_launcher(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what a launcher says of its tasks; which job it is stays.

    Lightning takes a process with ``SLURM_NTASKS`` for one of several that ``srun`` started, and waits for the others.
    A cell is a run of its own: it starts its own ranks.
    """
    return {key: value for key, value in env.items() if _KEPT.fullmatch(key) or not _LAUNCHER.fullmatch(key)}


def requeue(plan: Plan, cell: str | None, env: Mapping[str, str] = os.environ) -> Callable[[int], None]:
    """Return what a worker does after a stop: put its own job back into the queue, when SLURM had warned it.

    Args:
        plan: The sweep.
        cell: The worker's one cell.
        env: Environment of the job.

    Raises:
        ConfigError: This process is no job of SLURM.
    """
    if "SLURM_JOB_ID" not in env:
        raise ConfigError("--requeue: this is no job of SLURM (SLURM_JOB_ID is not set); leave it out")
    job = env["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"

    def on_stop(number: int) -> None:
        if number != signal.SIGUSR1:  # the job was cancelled, or SLURM requeues it itself (preemption)
            return
        if cell is not None and read_outcome(plan.folder_of(cell)).state in ("finished", "pruned"):
            return  # it was done in time after all
        answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        if answer.returncode != 0:
            raise ConfigError(
                f"scontrol requeue {job}: {' '.join(answer.stderr.split())}; the cell waits: submit it again with "
                "m2h sweep run"
            )
        print(f"requeued job {job}: it goes on with {cell or 'what waits'}", flush=True)

    return on_stop
