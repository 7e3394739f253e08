"""``m2h sweep plan``: what a sweep would run."""

from __future__ import annotations

import shlex

from m2h_lightning.data.arguments import OneLineParser
from m2h_lightning.sweeps.arguments import add_sweep_arguments, planned, split


def main(words: list[str]) -> int:
    """Print every cell; return the exit code.

    Raises:
        M2HError: File, options or a cell's configuration are wrong.
    """
    parser = OneLineParser(prog="m2h sweep plan", description=__doc__, allow_abbrev=False)
    add_sweep_arguments(parser)
    own, extra = split(words)
    plan = planned(parser.parse_args(own), extra)
    for cell in plan.cells:
        print(cell.id, shlex.join(plan.command_of(cell, cell.overrides or {})))
    return 0
