"""``m2h sweep plan``: every cell of a sweep with its state, its cost and its command. Starts nothing.

Nothing is written either, but with ``--save``: then workers may be started by whatever starts processes on a cluster.
"""

from __future__ import annotations

import argparse
import shlex
import sys

from m2h_lightning.data.arguments import OneLineParser
from m2h_lightning.errors import ConfigError
from m2h_lightning.storages.url import shown_url
from m2h_lightning.sweeps.arguments import add_sweep_arguments, planned, split
from m2h_lightning.sweeps.planning import cost
from m2h_lightning.sweeps.planning.cells import Cell
from m2h_lightning.sweeps.planning.check import checked
from m2h_lightning.sweeps.planning.merge import merged
from m2h_lightning.sweeps.planning.plan import Plan, fit_words
from m2h_lightning.sweeps.planning.settle import settled
from m2h_lightning.sweeps.running.child import CELL_VARIABLE
from m2h_lightning.sweeps.view import provenance
from m2h_lightning.sweeps.view.status import read_status

ENDED = ("done", "pruned")
"""States of cells that a run would not start again. Failed ones wait for ``m2h sweep retry``."""


def main(words: list[str]) -> int:
    """Print every cell; return the exit code.

    Raises:
        M2HError: File, options or a cell's configuration are wrong.
    """
    parser = OneLineParser(prog="m2h sweep plan", description=__doc__, allow_abbrev=False)
    add_sweep_arguments(parser)
    parser.add_argument("--workers", type=_positive, default=1, help="cells at a time, for the time of the whole sweep")
    parser.add_argument("--probe", action="store_true", help="measure a few steps of every variant that has no run yet")
    parser.add_argument("--commands", action="store_true", help="print the commands of the missing cells, nothing else")
    parser.add_argument("--save", action="store_true", help="write plan.json: m2h sweep worker FOLDER then runs cells")
    own, extra = split(words)
    options = parser.parse_args(own)
    plan = checked(merged(planned(options, extra)))
    provenance.tell(plan)
    if options.commands and plan.searches:
        raise ConfigError(f"--commands: {plan.file} is a search, whose values are drawn when a run starts")
    if options.probe and (plan.searches or fit_words(plan.cells[0].command) is None):
        raise ConfigError("--probe measures the cells of a grid that run m2h fit; the first runs tell what others cost")
    if options.save:
        with settled(plan) as plan:
            pass
    states = _states(plan)
    missing = [cell for cell in plan.cells if states[cell.id] not in ENDED]
    if options.commands:
        _print_commands(plan, missing)
        return 0
    estimates = cost.from_results(plan)
    if options.probe:
        estimates = cost.measure(plan, estimates, {cell.id for cell in missing}, options.workers)
    _print_table(plan, states, estimates)
    _print_totals(plan, states, missing, estimates, options.workers)
    return 0


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 1")
    return int(text)


def _states(plan: Plan) -> dict[str, str]:
    status = read_status(plan)
    return {entry.cell: status.state(entry) for entry in status.entries}


def command_line(plan: Plan, cell: Cell) -> str:
    """Return the words that run a cell by hand, to be pasted into a shell in the plan's directory."""
    variables = dict(plan.environment)
    if fit_words(cell.command) is None:
        variables[CELL_VARIABLE] = str(plan.folder_of(cell.id))
    # A run of a search has no values yet: its command stands for all.
    words = list(cell.command) if cell.overrides is None else plan.command_of(cell, cell.overrides)
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in variables.items()), shlex.join(words)])


def _print_commands(plan: Plan, cells: list[Cell]) -> None:
    for cell in cells:
        print(command_line(plan, cell))
    done = len(plan.cells) - len(cells)
    left_out = f"; {done} finished cell{'s are' if done != 1 else ' is'} left out" if done else ""
    print(f"note: relative paths in them are from {plan.directory}: start them there{left_out}", file=sys.stderr)


def _print_table(plan: Plan, states: dict[str, str], estimates: dict[str, cost.Estimate]) -> None:
    """Print a row per cell: for a terminal a table, else columns, the command last so that nothing is broken."""
    rows = [(cell.id, states[cell.id], str(estimates[cell.id]), command_line(plan, cell)) for cell in plan.cells]
    head = ("cell", "state", "cost", "command")
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*head[:3])
        table.add_column(head[3], overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))  # not markup: a command may hold brackets
        Console(highlight=False).print(table)
        return
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(3)]
    for row in (head, *rows):
        print("  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]))


def _print_totals(
    plan: Plan, states: dict[str, str], missing: list[Cell], estimates: dict[str, cost.Estimate], workers: int
) -> None:
    counts = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    print(f"{len(plan.cells)} cells: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    known = [(cell, seconds) for cell in missing if (seconds := estimates[cell.id].seconds) is not None]
    if missing and not known:
        search = plan.searches or fit_words(plan.cells[0].command) is None
        print("time for what is missing: unknown" + (" until a run is done" if search else " (--probe measures)"))
    elif missing:
        total = sum(seconds for _, seconds in known)
        wall = cost.makespan([seconds for _, seconds in known], workers)
        some = f" (without {len(missing) - len(known)} whose cost is unknown)" if len(known) < len(missing) else ""
        at = f"{workers} worker{'s' if workers > 1 else ''}"
        print(f"time for what is missing: {wall / 3600:.2f} h with {at}, {total / 3600:.2f} h in all{some}")
    about = {"folder": str(plan.folder), "ledger": shown_url(plan.storage), "run the commands in": plan.directory}
    for name, value in about.items():
        print(f"{name}: {value}")
