"""The command that goes on with a sweep, from its plan."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from m2h_lightning.errors import M2HError
from m2h_lightning.storages.url import shown_url
from m2h_lightning.sweeps.planning.file import read_sweep
from m2h_lightning.sweeps.planning.parameters import SEED, Parameter
from m2h_lightning.sweeps.planning.plan import LEDGER, Plan, Request, folder_of


def run_command(plan: Plan) -> str:
    """Return the ``m2h sweep run`` that continues a sweep: the same plan, however it was asked for.

    Passwords are left out of a storage's URL. Where the sweep's file is not what it was, a worker does it as well.
    """
    directory = Path(plan.directory)
    try:
        sweep = read_sweep(directory / plan.file)
        usual = folder_of(sweep, Request(experiment=plan.experiment)).name
    except M2HError:
        return f"m2h sweep worker {shlex.quote(str(plan.folder))}"
    words = ["m2h", "sweep", "run", plan.file]
    if plan.experiment:
        words += ["--experiment", plan.experiment]
    seeds, given = plan.parameters.get(SEED), sweep.parameters.get(SEED)
    if seeds is not None and _values(seeds) != _values(given):
        words += ["--seeds", _listed(seeds)]
    if usual != plan.name:
        words += ["--name", plan.name]
    root = plan.folder.parent
    if root != directory / "runs":
        words += ["--root", str(root.relative_to(directory) if root.is_relative_to(directory) else root)]
    if plan.storage != f"journal:{LEDGER}":
        words += ["--storage", shown_url(plan.storage)]
    if "M2H_DATA" in plan.environment:
        words += ["--data-root", plan.environment["M2H_DATA"]]
    if plan.prune:
        words.append("--prune")
    if plan.words:
        words += ["--", *plan.words]
    there = "" if Path.cwd() == directory else f"cd {shlex.quote(str(directory))} && "
    return there + shlex.join(words)


def from_here(plan: Plan) -> Plan:
    """Return the plan as if made in this directory, where its files are here too: for pages that others read."""
    needed = [plan.file, *([plan.experiment] if plan.experiment else [])]
    if all(Path(name).is_file() for name in needed) and plan.folder.is_relative_to(Path.cwd()):
        return replace(plan, directory=str(Path.cwd()))
    return plan


def _values(parameter: Parameter | None) -> tuple[object, ...]:
    return () if parameter is None else parameter.values


def _listed(seeds: Parameter) -> str:
    text = ",".join(map(str, seeds.values))
    return text if len(seeds.values) > 1 else f"{text},"  # one number alone would be their count
