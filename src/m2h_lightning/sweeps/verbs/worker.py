"""``m2h sweep worker``: one more worker on a planned sweep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from m2h_lightning.data.arguments import OneLineParser
from m2h_lightning.sweeps.arguments import add_worker_arguments
from m2h_lightning.sweeps.planning.plan import load_plan
from m2h_lightning.sweeps.running.slurm_job import requeue
from m2h_lightning.sweeps.running.worker import WorkerOptions, work


def main(words: list[str]) -> int:
    """Run cells until none waits; return the exit code.

    Raises:
        M2HError: The folder holds no sweep, or its ledger cannot be reached.
    """
    parser = OneLineParser(prog="m2h sweep worker", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="the sweep's folder")
    parser.add_argument("--cell", help="run this one cell")
    parser.add_argument("--gpus", help="GPUs of its cells, as CUDA_VISIBLE_DEVICES names them")
    parser.add_argument("--threads", type=int, help="threads of a cell")
    parser.add_argument("--storage", help="the ledger, instead of the plan's: grpc://HOST:PORT of m2h sweep proxy")
    parser.add_argument("--requeue", action="store_true", help="SLURM: after its warning (USR1), requeue this job")
    add_worker_arguments(parser)
    options = parser.parse_args(words)
    plan = load_plan(options.folder)
    if options.cell is not None:
        plan.cell(options.cell)  # a wrong name is told
    if options.storage is not None:
        plan = replace(plan, storage=options.storage)
    on_stop = requeue(plan, options.cell) if options.requeue else None
    worker = WorkerOptions(options.cell, options.gpus, options.threads, options.grace, options.retry_oom, on_stop)
    return work(plan, worker)
