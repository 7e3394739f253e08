"""``m2h sweep status``: how a sweep stands. Reads only, while others may write."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from m2h_lightning.data.arguments import OneLineParser
from m2h_lightning.runs import folder as runs
from m2h_lightning.sweeps.arguments import existing
from m2h_lightning.sweeps.ledger.study import Entry
from m2h_lightning.sweeps.planning.again import run_command
from m2h_lightning.sweeps.planning.plan import Plan
from m2h_lightning.sweeps.view import provenance
from m2h_lightning.sweeps.view.progress import Progress, Reader
from m2h_lightning.sweeps.view.status import Status, best, counts, duration, elapsed, eta, owner, read_status

LOG_LINES = 5
"""Last lines of a failed cell's log that are shown; the file has all of them."""


def main(words: list[str]) -> int:
    """Print how a sweep stands; return the exit code.

    Raises:
        M2HError: There is no sweep, or its ledger cannot be read.
    """
    parser = OneLineParser(prog="m2h sweep status", description=__doc__, allow_abbrev=False)
    parser.add_argument("place", type=Path, metavar="FOLDER|FILE", help="the sweep's folder, or its file")
    parser.add_argument("--experiment", help="experiment file, where the sweep is named by its file")
    parser.add_argument("--root", default="runs", help="folder of all runs, where the sweep is named by its file")
    parser.add_argument("--name", help="name of the sweep's folder, where it is not the file's and the experiment's")
    parser.add_argument("--cells", action="store_true", help="a line for every cell")
    parser.add_argument("--json", action="store_true", help="all that is known, as JSON")
    options = parser.parse_args(words)
    plan = existing(options.place, options.experiment, options.root, options.name)
    status = read_status(plan)
    reader = Reader(plan.metric)
    progress = {entry.cell: reader.read(plan.folder_of(entry.cell)) for entry in status.of("running")}
    warnings = provenance.warnings(plan, now=True)
    if options.json:
        print(json.dumps(runs.plain(as_json(status, progress, warnings)), indent=2, allow_nan=False))
    else:
        print("\n".join(as_lines(status, progress, warnings, options.cells)))
    return 0


def _left(status: Status, progress: dict[str, Progress]) -> float | None:
    """Return the seconds until the sweep ends; None where nobody works on it."""
    at_work = sum(alive for _, alive in status.workers)
    going = [entry for entry in status.entries if entry.cell not in status.lost]
    if not at_work:
        return 0.0 if all(entry.state in ("done", "pruned", "failed") for entry in going) and not status.lost else None
    return eta(status.plan, going, at_work, progress)


def as_json(status: Status, progress: dict[str, Progress], warnings: list[str]) -> dict[str, Any]:
    """Return the status in JSON's types.

    Args:
        status: The status.
        progress: How far running cells are, by id.
        warnings: What the cells do not have in common.
    """
    plan, first = status.plan, best(status.plan, status.entries)
    return {
        "format": 1,
        "name": plan.name,
        "folder": str(plan.folder),
        "file": plan.file,
        "experiment": plan.experiment,
        "method": plan.method,
        "metric": {"name": plan.metric, "goal": "maximize" if plan.higher_is_better else "minimize"},
        "time": runs.timestamp(),
        "planned": plan.made,
        "counts": {**counts(status), "total": len(status.entries)},
        "eta_s": _left(status, progress),
        "best": None if first is None else {"cell": first.cell, "value": first.value},
        "workers": [
            {"id": w.id, "host": w.host, "pid": w.pid, "slot": w.slot, "slurm": w.slurm, "alive": alive}
            for w, alive in status.workers
        ],
        "cells": [_cell(status, entry, progress.get(entry.cell)) for entry in status.entries],
        "warnings": warnings,
    }


def _cell(status: Status, entry: Entry, part: Progress | None) -> dict[str, Any]:
    cell = status.plan.cell(entry.cell)
    overrides = entry.overrides if cell.overrides is None else cell.overrides
    return {
        "cell": entry.cell,
        "state": status.state(entry),
        "attempts": entry.attempts,
        "value": entry.value,
        "reason": entry.reason or None,
        "log": entry.log or None,
        "log_file": str(status.plan.log_of(entry.cell)),
        "owner": entry.owner,
        "started": None if entry.started is None else entry.started.isoformat(),
        "ended": None if entry.ended is None else entry.ended.isoformat(),
        "seconds": None if entry.started is None else elapsed(entry),
        "overrides": overrides,
        "command": None if overrides is None else status.plan.command_of(cell, overrides),
        "progress": None if part is None else vars(part),
    }


def as_lines(status: Status, progress: dict[str, Progress], warnings: list[str], cells: bool) -> list[str]:
    """Return the status as lines of text.

    Args:
        status: The status.
        progress: How far running cells are, by id.
        warnings: What the cells do not have in common.
        cells: Whether to tell of every cell.
    """
    plan = status.plan
    text = ", ".join(f"{count} {state}" for state, count in counts(status).items() if count) or "none"
    lines = [
        f"{plan.name}  ({plan.file}{f', {plan.experiment}' if plan.experiment else ''}; planned {plan.made['time']})",
        f"folder   {plan.folder}",
        f"cells    {len(status.entries)}: {text}",
    ]
    first = best(plan, status.entries)
    lines.append(f"best     {'–' if first is None else f'{plan.metric} {first.value:.4g}  {first.cell}'}")
    at_work = sum(alive for _, alive in status.workers)
    if status.of("running") or status.of("waiting") or status.of("lost"):
        lines.append(f"ETA      {duration(_left(status, progress))}  ({at_work} worker{'s' if at_work != 1 else ''})")
    for state in ("running", "lost", "failed"):
        if status.of(state):
            lines += ["", state]
        for entry in status.of(state):
            lines += _about(plan, entry, state, progress.get(entry.cell))
    for entry in status.gone:
        lines.append(f"  {entry.cell}: {entry.state} by the ledger, but {entry.reason}; m2h sweep retry runs it again")
    if cells:
        lines += ["", "cells", *_table(status)]
    if warnings:
        lines += ["", *(f"warning: {warning}" for warning in warnings)]
    return lines + _next(status, bool(at_work))


def _about(plan: Plan, entry: Entry, state: str, part: Progress | None) -> list[str]:
    if state == "failed":
        log = [line for line in entry.log.splitlines() if line.strip()][-LOG_LINES:]
        return [f"  {entry.cell}: {entry.reason}", *(f"    | {line}" for line in log), f"    {plan.log_of(entry.cell)}"]
    since = f"since {entry.started:%Y-%m-%d %H:%M:%S}" if entry.started else ""
    if state == "lost":
        return [f"  {entry.cell}  its worker died ({owner(entry)}), {since}; run again to go on"]
    words = [entry.cell, owner(entry), f"{since} ({duration(elapsed(entry))})"]
    if part is not None and part.epoch is not None:
        words.append(str(part))
    if part is not None and part.value is not None:
        words.append(f"{part.name} {part.value:.4g}")
    return ["  " + "  ".join(words)]


def _table(status: Status) -> list[str]:
    width = max((len(entry.cell) for entry in status.entries), default=0)
    rows = []
    for entry in status.entries:
        value = "" if entry.value is None else f"{entry.value:.4g}"
        took = duration(elapsed(entry)) if entry.started else ""
        tries = f"{entry.attempts} attempts" if entry.attempts > 1 else ""
        rows.append(f"  {status.state(entry):<8}{entry.cell:<{width}}  {value:>9}  {took:>8}  {tries}".rstrip())
    return rows


def _next(status: Status, at_work: bool) -> list[str]:
    """Return what can be done now."""
    plan, lines = status.plan, []
    if status.of("failed"):
        lines.append(f"let failed cells wait again: m2h sweep retry {shlex.quote(str(plan.folder))}")
    if not at_work and (status.of("waiting") or status.of("lost")):
        lines.append(f"to go on: {run_command(plan)}")
    if status.of("done") and not (status.of("waiting") or status.of("lost") or status.of("running")):
        lines.append(f"tables: m2h sweep report {shlex.quote(str(plan.folder))}")
    return ["", *lines] if lines else []
