"""``m2h sweep retry``: let failed cells wait again, and those whose result was removed. Starts nothing."""

from __future__ import annotations

from pathlib import Path

from m2h_lightning.data.arguments import OneLineParser
from m2h_lightning.errors import ConfigError, did_you_mean
from m2h_lightning.runs import folder as runs
from m2h_lightning.sweeps.arguments import existing
from m2h_lightning.sweeps.ledger.study import Ledger
from m2h_lightning.sweeps.planning.again import run_command
from m2h_lightning.sweeps.planning.plan import ASIDE, Plan
from m2h_lightning.sweeps.running.restart import set_aside
from m2h_lightning.sweeps.view.status import read_status


def main(words: list[str]) -> int:
    """Let failed cells wait again; return the exit code.

    Raises:
        M2HError: There is no sweep or no such cell, or its ledger cannot be reached.
    """
    parser = OneLineParser(prog="m2h sweep retry", description=__doc__, allow_abbrev=False)
    parser.add_argument("place", type=Path, metavar="FOLDER|FILE", help="the sweep's folder, or its file")
    parser.add_argument("cells", nargs="*", metavar="CELL", help="ids of cells (default: all that failed)")
    parser.add_argument("--experiment", help="experiment file, where the sweep is named by its file")
    parser.add_argument("--root", default="runs", help="folder of all runs, where the sweep is named by its file")
    parser.add_argument("--name", help="name of the sweep's folder, where it is not the file's and the experiment's")
    options = parser.parse_args(words)
    plan = existing(options.place, options.experiment, options.root, options.name)
    _check(plan, options.cells)
    status = read_status(plan)
    states = {entry.cell: status.state(entry) for entry in status.entries}
    ended = {entry.cell for entry in (*status.of("failed"), *status.gone)}
    failed = [cell for cell in dict.fromkeys(options.cells or states) if cell in ended]
    for cell in options.cells:
        if cell not in ended:
            print(f"{cell} is {states[cell]}: nothing to retry")
    if not failed:
        print(f"{plan.name}: no {'such ' if options.cells else ''}cell failed")
        return 0
    for cell in failed:
        if (plan.folder_of(cell) / runs.RESULT).exists():  # it failed on its result: with that it would fail again
            set_aside(plan, plan.folder_of(cell))
            print(f"{cell}: its folder, which has a result, is kept in {plan.folder / ASIDE}")
    Ledger(plan).retry(failed)
    for cell in failed:
        print(f"{cell} waits again")
    print(f"to run {'it' if len(failed) == 1 else 'them'}: {run_command(plan)}")
    return 0


def _check(plan: Plan, cells: list[str]) -> None:
    known = [cell.id for cell in plan.cells]
    for cell in cells:
        if cell not in known:
            raise ConfigError(
                f"{plan.folder} has no cell '{cell}'{did_you_mean(cell, known)} (m2h sweep status --cells lists them)"
            )
