"""A plan beside the earlier plan of the same folder: what may change, and what is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from m2h_lightning.errors import ConfigError
from m2h_lightning.runs import folder as runs
from m2h_lightning.storages.url import shown_url
from m2h_lightning.sweeps.planning.cells import Cell
from m2h_lightning.sweeps.planning.parameters import SEED
from m2h_lightning.sweeps.planning.plan import PLAN, Plan, fit_words, load_plan


def merged(plan: Plan, keep_all: bool = False) -> Plan:
    """Return the plan beside what an earlier plan of the same folder has done.

    A sweep may grow (more values, more seeds) and shrink: cells that both plans have keep their names, and finished
    cells that the new one lacks stay in it.

    Args:
        plan: The new plan.
        keep_all: Keep unfinished cells of the earlier one too: somebody runs them.

    Raises:
        ConfigError: The folder holds a sweep with another command, whose cells do not stand beside this one's.
    """
    if not (plan.folder / PLAN).is_file():
        return plan
    before = load_plan(plan.folder)
    same = before.experiment == plan.experiment or _experiment(before) == _experiment(plan)
    old, new = _character(before, plan.experiment if same else before.experiment), _character(plan, plan.experiment)
    for key, value in new.items():
        if old[key] != value:
            raise ConfigError(
                f"{plan.folder} holds a sweep with {key} {_shown(old[key])}, now it is {_shown(value)}; give another "
                "--name, or move the folder away"
            )
    for name, parameter in plan.parameters.items():
        choices = list(parameter.values)
        earlier = list(before.parameters[name].values) if name in before.parameters else []
        if plan.searches and choices != earlier:
            raise ConfigError(
                f"{plan.folder} holds a search with {name} among {earlier}, now it is among {choices}: a search "
                "keeps its choices; give another --name, or move the folder away"
            )
    cells = _with_names_of(before, plan.cells)
    names = {cell.id for cell in cells}
    kept = [
        cell
        for cell in before.cells
        if cell.id not in names and (keep_all or (plan.folder_of(cell.id) / runs.RESULT).is_file())
    ]
    return replace(plan, cells=(*cells, *kept))


def _experiment(plan: Plan) -> Path | None:
    return (Path(plan.directory) / plan.experiment).resolve() if plan.experiment else None


def _character(plan: Plan, experiment: str | None) -> dict[str, Any]:
    """Return what the cells of a folder have in common, but for the folder itself and the interpreter.

    Args:
        plan: The plan.
        experiment: The name that its experiment's file is to have in the words.
    """
    command = plan.cells[0].command if plan.cells else ()
    if fit_words(command) is not None and "--run.root" in command:
        command = command[: len(command) - 1 - command[::-1].index("--run.root")]  # what follows is the folder
    words = ["python" if at == 0 and Path(word).name.startswith("python") else word for at, word in enumerate(command)]
    return {
        "method": plan.method,
        "metric": plan.metric,
        "goal": "maximize" if plan.higher_is_better else "minimize",
        "parameters": tuple(sorted(name for name in plan.parameters if name != SEED)),
        "experiment": experiment,
        "words": plan.words,
        "command": tuple(experiment if experiment and word == plan.experiment else word for word in words),
        "environment": plan.environment,
        "storage": shown_url(plan.storage),
    }


def _with_names_of(before: Plan, cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
    """Return the cells, those with the same values as an earlier one under its name.

    A name tells the values of what is swept: a parameter that gets its second value now is in the new names alone.
    """
    known = {_values(cell): cell.id for cell in before.cells if cell.overrides is not None}
    return tuple(_renamed(cell, known.get(_values(cell), cell.id)) for cell in cells)


def _values(cell: Cell) -> str:
    return json.dumps(cell.overrides, sort_keys=True) if cell.overrides is not None else cell.id


def _renamed(cell: Cell, name: str) -> Cell:
    if name == cell.id:
        return cell
    words = list(cell.command)
    if fit_words(words) is not None:
        words[len(words) - words[::-1].index("--run.id")] = name
    return replace(cell, id=name, command=tuple(words))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"'{' '.join(value)}'"
    return repr(value)
