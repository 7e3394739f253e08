"""Whether the cells of a sweep stand on the same code, data and machines: what is not the same does not compare."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

from m2h_lightning.errors import DataError
from m2h_lightning.runs import folder as runs
from m2h_lightning.runs.outcome import read_outcome
from m2h_lightning.sweeps.planning.plan import Plan

Results = dict[str, dict[str, Any]]

_QUIET = ("platform",)
"""Versions whose differences say nothing: the kernel's build differs between the nodes of a cluster."""


def warnings(plan: Plan, now: bool = False) -> list[str]:
    """Return what the cells of a sweep do not have in common, one line each; empty where all is the same.

    Args:
        plan: The sweep.
        now: Whether the code as it is now counts too: that with which the missing cells would run.
    """
    results, found = _results(plan)
    found += _commits(results) + _versions(results) + _data(plan, results) + _devices(plan, results)
    found += _configurations(plan, results)
    if now and any(cell.id not in results for cell in plan.cells):
        found += _now(results)
    return found


def tell(plan: Plan) -> None:
    """Print the warnings before cells are started."""
    for line in warnings(plan, now=True):
        print(f"warning: {line}", file=sys.stderr)


def _results(plan: Plan) -> tuple[Results, list[str]]:
    """Return the ``result.json`` of the cells that have one; and a line for each that cannot be read."""
    found, problems = {}, []
    for cell in plan.cells:
        try:
            outcome = read_outcome(plan.folder_of(cell.id))
        except DataError as error:
            problems.append(" ".join(str(error).split()))
            continue
        if outcome.result:
            found[cell.id] = outcome.result
    return found, problems


def _groups(cells: Iterable[str], value: Callable[[str], Any]) -> dict[str, list[str]]:
    """Return the cells by a value of theirs, the most frequent first; cells that do not tell it are left out."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        told = value(cell)
        if told is not None:
            found.setdefault(told if isinstance(told, str) else json.dumps(told, sort_keys=True), []).append(cell)
    return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))


def _listed(groups: dict[str, list[str]], shown: int = 4) -> str:
    """Return the groups in words: ``2.6.0 (10 cells), 2.7.0 (2, such as X)``."""
    words = []
    for index, (name, cells) in enumerate(list(groups.items())[:shown]):
        words.append(f"{name} ({len(cells)} cells)" if index == 0 else f"{name} ({len(cells)}, such as {cells[0]})")
    return ", ".join(words) + (f" and {len(groups) - shown} more" if len(groups) > shown else "")


def _get(result: dict[str, Any], *keys: str) -> Any:
    node: Any = result
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _commits(results: Results) -> list[str]:
    found = []
    commits = _groups(results, lambda cell: _short(_get(results[cell], "git", "commit")))
    if len(commits) > 1:
        found.append(f"the cells stand on {len(commits)} commits of the code: {_listed(commits)}")
    dirty = [cell for cell, result in results.items() if _get(result, "git", "dirty")]
    if dirty:
        found.append(
            f"{len(dirty)} of {len(results)} finished cells ran with uncommitted changes (such as {dirty[0]}): their "
            "commit does not say which code that was"
        )
    return found


def _short(commit: Any) -> str | None:
    return commit[:10] if isinstance(commit, str) else None


def _versions(results: Results) -> list[str]:
    names = dict.fromkeys(name for result in results.values() for name in _get(result, "versions") or {})
    found = []
    for name in names:
        groups = _groups(results, lambda cell, name=name: _get(results[cell], "versions", name))  # type: ignore[misc]
        if name not in _QUIET and len(groups) > 1:
            found.append(f"the cells ran with {len(groups)} versions of {name}: {_listed(groups)}")
    return found


def _data(plan: Plan, results: Results) -> list[str]:
    """Compare the data; where the sweep itself changes them, among the cells that it gives the same."""
    found = []
    swept = [name for name, parameter in plan.parameters.items() if parameter.swept and name.startswith("data.")]

    def asked(cell: str) -> str:
        overrides = plan.cell(cell).overrides or {}
        return json.dumps({name: overrides.get(name) for name in swept}, sort_keys=True)

    for cells in _groups(results, asked).values():
        groups = _groups(cells, lambda cell: _get(results[cell], "data", "fingerprint"))
        if len(groups) > 1:
            found.append(f"the cells were trained on {len(groups)} states of the data: {_listed(groups)}")
    tests = _groups(results, lambda cell: _get(results[cell], "data", "test_fingerprint"))
    if len(tests) > 1:
        found.append(f"the cells were tested on {len(tests)} states of the data: {_listed(tests)}")
    return found


def _devices(plan: Plan, results: Results) -> list[str]:
    kinds = (
        ("kinds of devices", ("type", "name"), ("trainer.accelerator",), "; their times and memory do not compare"),
        ("precisions", ("precision",), ("trainer.precision",), ""),
        (
            "numbers of processes",
            ("processes",),
            ("trainer.devices", "trainer.num_nodes"),
            "; their batches differ as well",
        ),
    )
    found = []
    for what, keys, parameters, so in kinds:
        if any(name in plan.parameters and plan.parameters[name].swept for name in parameters):
            continue

        def told(cell: str, keys: tuple[str, ...] = keys) -> str | None:
            values = [_get(results[cell], "device", key) for key in keys]
            return None if None in values else " ".join(map(str, values))

        groups = _groups(results, told)
        if len(groups) > 1:
            found.append(f"the cells ran with {len(groups)} {what}: {_listed(groups)}{so}")
    return found


def _configurations(plan: Plan, results: Results) -> list[str]:
    """Name the cells whose configuration is not the planned one: the experiment's file was edited, or memory short."""
    other = [
        cell.id
        for cell in plan.cells
        if cell.config_hash and _get(results.get(cell.id, {}), "config_hash") not in (None, cell.config_hash)
    ]
    if not other:
        return []
    return [
        f"{len(other)} of {len(results)} finished cells ran with another configuration than planned (such as "
        f"{other[0]}): the experiment's file was edited, or the batch was halved"
    ]


def _now(results: Results) -> list[str]:
    """Compare the code that finished cells had with what the missing ones would get."""
    found = []
    state = runs.git_state()
    commits = _groups(results, lambda cell: _short(_get(results[cell], "git", "commit")))
    if state is not None:
        here = _short(state["commit"])
        others = {name: cells for name, cells in commits.items() if name != here}
        if others:
            found.append(f"the code is at {here} now, but finished cells ran at {_listed(others)}")
        if state["dirty"] and commits:
            found.append(f"the code at {here} has uncommitted changes now: the missing cells would run with them")
    for name, version in runs.versions().items():
        groups = _groups(results, lambda cell, name=name: _get(results[cell], "versions", name))  # type: ignore[misc]
        others = {other: cells for other, cells in groups.items() if other != version}
        if name not in _QUIET and others:
            found.append(f"{name} is {version or 'not installed'} now, but finished cells ran with {_listed(others)}")
    return found
