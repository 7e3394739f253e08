"""``m2h sweep run``: run what is missing of a sweep."""

from __future__ import annotations

from m2h_lightning.data.arguments import OneLineParser
from m2h_lightning.sweeps.arguments import add_sweep_arguments, add_worker_arguments, planned, split
from m2h_lightning.sweeps.plan import merged
from m2h_lightning.sweeps.run import Run, RunOptions
from m2h_lightning.sweeps.worker import WorkerOptions


def main(words: list[str]) -> int:
    """Run a sweep on this machine; return the exit code.

    Raises:
        M2HError: File, options or a cell's configuration are wrong; nothing was started.
    """
    parser = OneLineParser(prog="m2h sweep run", description=__doc__, allow_abbrev=False)
    add_sweep_arguments(parser)
    parser.add_argument("--workers", type=int, help="cells at a time (default: one per GPU, else one)")
    parser.add_argument("--gpus-per-cell", type=int, default=1, help="GPUs of one cell; its trainer.devices")
    add_worker_arguments(parser)
    own, extra = split(words)
    options = parser.parse_args(own)
    plan = merged(planned(options, extra))
    plan.save()
    worker = WorkerOptions(grace=options.grace, retry_oom=options.retry_oom)
    return Run(plan, RunOptions(options.workers, options.gpus_per_cell, worker)).run()
