"""``--launcher slurm``: the cells that are missing as one job array, each task a worker for one cell.

Plain ``sbatch`` is all it takes: the ledger already knows who runs what, and results come back by the shared folder. A
job is warned before its time is up (``--signal=B:USR1``). The worker stands in the batch script's place, so it gets the
warning: it has its cell leave a checkpoint, gives it back and requeues its own job, which then goes on with the cell.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from m2h_lightning.errors import ConfigError
from m2h_lightning.runs import folder as runs
from m2h_lightning.runs.outcome import read_outcome
from m2h_lightning.storages.url import check_workers
from m2h_lightning.sweeps.ledger.study import Ledger
from m2h_lightning.sweeps.planning.plan import LOGS, Plan
from m2h_lightning.sweeps.planning.settle import settled
from m2h_lightning.sweeps.running.slurm_job import without_launcher
from m2h_lightning.sweeps.running.worker import WorkerOptions
from m2h_lightning.sweeps.view.status import read_status

SLURM, SCRIPT, SUBMISSION = "slurm", "job.sh", "submission.json"
WARNING_S = 60.0
"""Seconds of warning beside the cell's own ``--grace``: to start ``scontrol``, and for SLURM's clock of a minute."""

_KEY = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SHORT = {
    **{"A": "account", "C": "constraint", "G": "gpus", "J": "job-name", "M": "clusters", "N": "nodes", "a": "array"},
    **{"c": "cpus-per-task", "n": "ntasks", "o": "output", "p": "partition", "q": "qos", "t": "time", "w": "nodelist"},
    **{"x": "exclude", "D": "chdir", "L": "licenses", "d": "dependency", "e": "error"},
}
_OURS = {
    "array": "it is made of the missing cells; --workers limits how many run at a time",
    "wrap": "the script is made here; --slurm-setup adds lines to it",
    "parsable": "it is always given",
    "test-only": "use --dry-run",
    "wait": "use m2h sweep status",
}
_ONE = ("ntasks", "nodes", "ntasks-per-node")
_FLAGS_OFF = {"no-requeue": "requeue"}


@dataclass(frozen=True)
class SlurmOptions:
    """How a sweep is handed to SLURM.

    Args:
        options: ``KEY=VALUE`` or ``KEY``, options of sbatch by their long names.
        setup: Lines of the script before the worker starts, such as ``module load cuda``.
        workers: Cells at a time; None leaves it to SLURM.
        gpus_per_cell: GPUs of one cell; None asks for none beside what ``options`` says.
        worker: How each worker works.
    """

    options: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    workers: int | None = None
    gpus_per_cell: int | None = None
    worker: WorkerOptions = field(default_factory=WorkerOptions)


# ── the script ──────────────────────────────────────────────────────────────────────────────────────────────────────


def script(plan: Plan, cells: list[str], options: SlurmOptions) -> str:
    """Return the batch script for these cells.

    Args:
        plan: The sweep.
        cells: Ids of the cells to run, at least one.
        options: How to run them.

    Raises:
        ConfigError: An option is malformed, or not for the user to give.
    """
    given = directives(plan, len(cells), options)
    lines = ["#!/bin/bash"]
    lines += [
        f"#SBATCH --{key}" if value is None else f"#SBATCH --{key}={_quoted(value)}" for key, value in given.items()
    ]
    lines += ["", f"# {len(cells)} cells of {plan.folder}", "cells=("]
    lines += [f"  {shlex.quote(cell)}" for cell in cells]
    lines += [")", *options.setup, ""]
    worker = options.worker
    words = [sys.executable, "-m", "m2h_lightning", "sweep", "worker", str(plan.folder), "--grace", f"{worker.grace:g}"]
    words += ["--retry-oom"] if worker.retry_oom else []
    words += ["--requeue"] if "requeue" in given else []
    command = shlex.join(words) + ' --cell "${cells[$SLURM_ARRAY_TASK_ID]}"'
    if (options.gpus_per_cell or 1) == 1:  # else Lightning divides the cores among the ranks
        command += ' --threads "${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}"'
    lines += [
        "# In place of the script, so that the warning before the end of the time (USR1) reaches the worker.",
        f"exec {command}",
    ]
    return "\n".join(lines) + "\n"


def directives(plan: Plan, cells: int, options: SlurmOptions) -> dict[str, str | None]:
    """Return the options of sbatch: ours, replaced and added to by the user's."""
    at_once = f"%{options.workers}" if options.workers is not None and options.workers < cells else ""
    found: dict[str, str | None] = {
        "job-name": plan.name,
        "array": f"0-{cells - 1}{at_once}",
        "output": str(plan.folder / LOGS).replace("%", "%%") + "/slurm-%A_%a.log",
        "open-mode": "append",  # a requeued job goes on in its log
        "ntasks": "1",
        "requeue": None,
        "signal": f"B:USR1@{round(options.worker.grace + WARNING_S)}",
    }
    if options.gpus_per_cell is not None:
        found["gres"] = f"gpu:{options.gpus_per_cell}"
    for text in options.options:
        key, value = _read(text)
        if key in _FLAGS_OFF:
            found.pop(_FLAGS_OFF[key], None)
        if key == "gpus" or key.startswith("gpus-per-"):
            found.pop("gres", None)
        found[key] = value
    _check_time(found)
    return found


def _check_time(found: Mapping[str, str | None]) -> None:
    """Refuse a time limit within the warning: each start would be told to stop at once, and requeue itself for ever."""
    limit, warning = _seconds(found.get("time") or ""), int(str(found["signal"]).rpartition("@")[2])
    if limit is not None and limit <= 2 * warning:
        raise ConfigError(
            f"--slurm time={found['time']}: a cell is told to stop {warning} s before the end, so give it more than "
            f"{2 * warning} s, or less --grace"
        )


def _seconds(text: str) -> int | None:
    """Return a time as sbatch writes it (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S) in seconds; None where it is none."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None or text in ("0", "00:00:00"):  # 0 is without limit
        return None
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _read(text: str) -> tuple[str, str | None]:
    key, sign, value = text.removeprefix("--").partition("=")
    place = f"--slurm {text}"
    if key in _SHORT:
        raise ConfigError(f"{place}: use sbatch's long name: --slurm {_SHORT[key]}{sign}{value}")
    if not _KEY.fullmatch(key):
        raise ConfigError(f"{place}: give KEY=VALUE with a long option of sbatch, such as partition=gpu")
    if any(ord(letter) < 32 for letter in value):
        raise ConfigError(f"--slurm {key}: its value has a line break or another control character")
    if sign and not value:
        raise ConfigError(f"{place}: has no value")
    if key in _OURS:
        raise ConfigError(f"{place}: {_OURS[key]}")
    if key in _ONE and value != "1":
        raise ConfigError(
            f"{place}: a cell is one task on one node, it starts its own ranks; use gres=gpu:N and cpus-per-task=N"
        )
    if key == "signal" and not re.fullmatch(r"B:(SIG)?USR1@\d+", value):
        raise ConfigError(f"{place}: the worker is the batch script and listens to USR1: --slurm signal=B:USR1@SECONDS")
    return key, value if sign else None


def _quoted(value: str) -> str:
    """Return a value as sbatch reads it from a script: in quotes where it has blanks, ``#`` or quotes."""
    if re.fullmatch(r"[^\s\"'\\#]+", value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


# ── submitting ──────────────────────────────────────────────────────────────────────────────────────────────────────


def launch(plan: Plan, options: SlurmOptions, dry: bool = False) -> int:
    """Submit what is missing of a sweep, and tell how to watch it.

    Args:
        plan: The sweep; it is saved here, unless ``dry``.
        options: How to run it.
        dry: Print script and command only; write nothing.

    Returns:
        The exit code.

    Raises:
        ConfigError: sbatch is not there or refuses, or an option is wrong.
    """
    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"--workers is {options.workers}; give at least 1")
    if options.gpus_per_cell is not None and options.gpus_per_cell < 1:
        raise ConfigError(f"--gpus-per-cell is {options.gpus_per_cell}; give at least 1")
    directives(plan, 1, options)  # wrong options are told before anything is written
    if not dry and shutil.which("sbatch") is None:
        raise ConfigError("--launcher slurm: there is no sbatch here; run it where jobs are submitted, or --dry-run")
    check_workers(plan.storage, min(options.workers or len(plan.cells), len(plan.cells)))
    if not dry:
        with settled(plan) as plan:
            pass
    states = _states(plan, dry)
    queued = queued_cells(plan.folder)
    cells = [name for name, state in states.items() if state == "waiting" and name not in queued]
    summary = _summary(states, queued)
    if not cells:
        print(f"{plan.name}: nothing to submit: {summary}")
        _tell_next(plan)
        return 0
    text = script(plan, cells, options)
    if dry:
        place = plan.folder / SLURM / str(_next_number(plan.folder)) / SCRIPT
        print(f"# {place}\n{text}\n# {summary}\n{shlex.join(_sbatch(place))}")
        return 0
    place = _new_folder(plan.folder) / SCRIPT
    place.write_text(text, encoding="utf-8")
    job = _submit(place, list(directives(plan, len(cells), options)))
    runs.write_json(place.with_name(SUBMISSION), {"job": job, "time": runs.timestamp(), "cells": cells})
    print(f"{plan.name}: submitted {len(cells)} cells as job {job} ({place}); {summary}")
    _tell_next(plan, job)
    return 0


def _states(plan: Plan, dry: bool) -> dict[str, str]:
    """Return the state of every cell; a dry run reads the ledger and leaves it as it is."""
    states: dict[str, str]
    if dry:
        status = read_status(plan)
        states = {entry.cell: status.state(entry).replace("lost", "waiting") for entry in status.entries}
    else:
        ledger = Ledger(plan)
        ledger.reap()
        states = {entry.cell: entry.state for entry in ledger.entries()}
    for cell in plan.cells:  # the folder is the truth: a lost ledger runs nothing twice
        if states[cell.id] == "waiting" and (found := read_outcome(plan.folder_of(cell.id)).state) in (
            "finished",
            "pruned",
        ):
            states[cell.id] = "done" if found == "finished" else found
    return states


def _summary(states: Mapping[str, str], queued: set[str]) -> str:
    counts: dict[str, int] = {}
    for name, state in states.items():
        shown = "queued" if state == "waiting" and name in queued else state
        counts[shown] = counts.get(shown, 0) + 1
    text = ", ".join(f"{number} {state}" for state, number in counts.items())
    return text + ("; m2h sweep retry lets the failed ones wait again" if counts.get("failed") else "")


def _tell_next(plan: Plan, job: str | None = None) -> None:
    folder = shlex.quote(str(plan.folder))
    queue = f"  or  squeue -r -j {job}   (end it: scancel {job})" if job else ""
    print(f"  watch:  m2h sweep status {folder}{queue}\n  result: m2h sweep report {folder}")


def _sbatch(place: Path) -> list[str]:
    return ["sbatch", "--parsable", str(place)]


def _submit(place: Path, keys: list[str]) -> str:
    """Hand the script to SLURM; return the number of the job."""
    env = without_launcher(os.environ)
    for key in keys:  # sbatch takes these variables before what the script says
        env.pop(f"SBATCH_{key.upper().replace('-', '_')}", None)
    env.pop("SBATCH_ARRAY_INX", None)
    answer = subprocess.run(_sbatch(place), capture_output=True, text=True, env=env)
    if answer.returncode != 0:
        said = "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in answer.stderr.splitlines())
        large = " (more cells than the cluster's MaxArraySize?)" if "array" in said.lower() else ""
        raise ConfigError(f"sbatch refuses {place}: {said or f'exit code {answer.returncode}'}{large}")
    return answer.stdout.strip().splitlines()[-1].split(";")[0]  # "job" or "job;cluster"


def _next_number(folder: Path) -> int:
    taken = {path.name for path in (folder / SLURM).glob("*")}
    return next(number for number in count(1) if str(number) not in taken)


def _new_folder(folder: Path) -> Path:
    """Make the folder of a submission; two submissions at once get one each."""
    while True:
        place = folder / SLURM / str(_next_number(folder))
        with contextlib.suppress(FileExistsError):
            place.mkdir(parents=True)
            return place


def queued_cells(folder: Path) -> set[str]:
    """Return the cells that earlier submissions still have in SLURM's queue, as far as it can be asked."""
    found: set[str] = set()
    if shutil.which("squeue") is None:
        return found
    for path in sorted((folder / SLURM).glob(f"*/{SUBMISSION}")):
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError, subprocess.SubprocessError):
            submission = json.loads(path.read_text(encoding="utf-8"))
            words = ["squeue", "--noheader", "--array", f"--jobs={submission['job']}", "--format=%K"]
            answer = subprocess.run(words, capture_output=True, text=True, timeout=30)
            if answer.returncode == 0:  # else SLURM has forgotten the job
                found |= {submission["cells"][int(index)] for index in answer.stdout.split() if index.isdigit()}
    return found
