"""``m2h sweep run``: run what is missing of a sweep."""

from __future__ import annotations

import argparse
import sys

from m2h_lightning.data.arguments import OneLineParser
from m2h_lightning.errors import ConfigError
from m2h_lightning.sweeps.arguments import add_sweep_arguments, add_worker_arguments, planned, split
from m2h_lightning.sweeps.planning.check import checked
from m2h_lightning.sweeps.planning.merge import merged
from m2h_lightning.sweeps.planning.settle import settled
from m2h_lightning.sweeps.running.run import Run, RunOptions, slots
from m2h_lightning.sweeps.running.worker import WorkerOptions
from m2h_lightning.sweeps.view import provenance
from m2h_lightning.sweeps.view.status import GONE, read_status


def main(words: list[str]) -> int:
    """Run a sweep on this machine, or hand it to SLURM; return the exit code.

    Raises:
        M2HError: File, options or a cell's configuration are wrong; nothing was started.
    """
    parser = OneLineParser(prog="m2h sweep run", description=__doc__, allow_abbrev=False)
    add_sweep_arguments(parser)
    parser.add_argument("--workers", type=int, help="cells at a time (default: one per GPU, else one; SLURM: no limit)")
    parser.add_argument("--gpus-per-cell", type=int, help="GPUs of one cell; its trainer.devices (SLURM: gres=gpu:N)")
    add_worker_arguments(parser)
    _add_launcher_arguments(parser)
    own, extra = split(words)
    options = parser.parse_args(own)
    _check_launcher(options)
    gpus = options.gpus_per_cell or (1 if options.launcher == "local" else None)
    plan = checked(merged(planned(options, extra)), gpus)
    provenance.tell(plan)
    worker = WorkerOptions(grace=options.grace, retry_oom=options.retry_oom)
    if options.launcher == "slurm":
        from m2h_lightning.sweeps.running.slurm import SlurmOptions, launch

        job = SlurmOptions(
            tuple(options.slurm), tuple(options.slurm_setup), options.workers, options.gpus_per_cell, worker
        )
        return launch(plan, job, dry=options.dry_run)
    local = RunOptions(options.workers, options.gpus_per_cell or 1, worker)
    slots(local)  # what this machine lacks is told before anything is written
    with settled(plan) as plan:
        for entry in read_status(plan).gone:
            print(
                f"note: {entry.cell} is done by the ledger, but {GONE}: m2h sweep retry {plan.folder}", file=sys.stderr
            )
        return Run(plan, local).run()


def _add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local", help="where: here, or a job array")
    parser.add_argument(
        "--slurm", action="append", default=[], metavar="KEY=VALUE", help="option of sbatch: partition=gpu (repeatable)"
    )
    parser.add_argument(
        "--slurm-setup",
        action="append",
        default=[],
        metavar="LINE",
        help="line of the batch script: 'module load cuda'",
    )
    parser.add_argument("--dry-run", action="store_true", help="SLURM: print the script and the command; write nothing")


def _check_launcher(options: argparse.Namespace) -> None:
    if options.gpus_per_cell is not None and options.gpus_per_cell < 1:
        raise ConfigError(f"--gpus-per-cell is {options.gpus_per_cell}; give at least 1")
    if options.launcher == "slurm":
        return
    for name, given in (("slurm", options.slurm), ("slurm-setup", options.slurm_setup)):
        if given:
            raise ConfigError(f"--{name}: add --launcher slurm; without it the sweep runs on this machine")
    if options.dry_run:
        raise ConfigError("--dry-run is for --launcher slurm; m2h sweep plan shows what would run here")
