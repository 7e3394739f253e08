"""Every cell is checked by training's own rules before the first one starts; loads torch for cells of ``m2h fit``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2h_lightning.errors import ConfigError, DataError, M2HError
from m2h_lightning.runs import folder as runs
from m2h_lightning.sweeps.planning.check_cell import check_devices, check_folder, check_metric
from m2h_lightning.sweeps.planning.parameters import SEED, Parameter, as_text
from m2h_lightning.sweeps.planning.plan import Plan, fit_words, variants

if TYPE_CHECKING:
    from m2h_lightning.sweeps.planning.fit_reading import Reading

OWN_KEYS = ("run.id", "run.root", "run.experiment", "run.resume", "ckpt_path")
"""Keys of ``fit`` that a sweep gives each cell itself."""

ROOMS_HINT = "; to try it without data: --experiment experiments/rooms.yaml (make: EXPERIMENT=experiments/rooms.yaml)"


@dataclass(frozen=True)
class Case:
    """One configuration to check: all seeds of it are the same to training.

    Args:
        cells: Ids of its cells.
        values: Its values in words.
        words: The words after ``fit``.
        seeds: Seed of each cell; None where the sweep has none.
    """

    cells: tuple[str, ...]
    values: str
    words: list[str]
    seeds: tuple[int | None, ...]


def checked(plan: Plan, gpus_per_cell: int | None = None) -> Plan:
    """Return a plan whose cells have been checked and know the digest of their configuration.

    Args:
        plan: The plan.
        gpus_per_cell: GPUs that each cell is to have; None where that is not known.

    Raises:
        M2HError: What is wrong with which cell. Nothing was written.
    """
    check_words(plan)
    if not plan.cells or fit_words(plan.cells[0].command) is None:
        program = " ".join(plan.cells[0].command[:3]) if plan.cells else "nothing"
        print(f"note: cells run '{program} …', which is not m2h fit: not checked before they start", file=sys.stderr)
        return plan
    cases = list(_cases_of_search(plan) if plan.searches else _cases_of_grid(plan))
    hashes: dict[str, str] = {}
    with _environment(plan.environment):
        readings = _read(plan, cases)
    for case, reading in zip(cases, readings, strict=True):
        check_metric(plan, reading)
        if gpus_per_cell is not None:
            check_devices(reading.tree, gpus_per_cell)
        for cell, seed in zip(case.cells, case.seeds, strict=True):
            tree = reading.tree if seed is None else {**reading.tree, SEED: seed}
            hashes[cell] = runs.config_hash(tree)
            if not plan.searches:
                check_folder(plan.folder_of(cell), tree)
    if plan.searches:
        return plan
    _check_different(plan, hashes)
    return replace(plan, cells=tuple(replace(cell, config_hash=hashes[cell.id]) for cell in plan.cells))


# ── what the words say ──────────────────────────────────────────────────────────────────────────────────────────────


def check_words(plan: Plan) -> None:
    """Refuse what the sweep itself gives each cell, and words after ``--`` that undo what is swept.

    Raises:
        ConfigError: Which word it is.
    """
    added = _keys(plan.words)
    for name, parameter in plan.parameters.items():
        inner = [key for value in parameter.values if isinstance(value, Mapping) for key in runs.flatten(value, name)]
        for key in added:
            if key == name or name.startswith(f"{key}.") or key in inner:
                raise ConfigError(f"--{key} after -- would undo the sweep over {name} in {plan.file}; leave it out")
        for key in (name, *inner):
            if key in OWN_KEYS or key == "run":
                raise ConfigError(f"{plan.file}: parameters.{key}: every cell is given its own by the sweep; {_MEND}")
    if not plan.cells or fit_words(plan.cells[0].command) is None:
        return
    for key in added:
        if key in ("help", "print_config"):
            raise ConfigError(f"--{key} after --: a cell has to train; ask m2h fit --help instead")
        if key in OWN_KEYS:
            raise ConfigError(f"--{key} after --: every cell is given its own by the sweep; {_MEND}")
    # The sweep's own words stand at the end and were not there when the file was written.
    command = plan.cells[0].command
    for key in _keys(command[: _generated(command)]):
        if key in OWN_KEYS:
            raise ConfigError(f"{plan.file}: command: --{key}: every cell is given its own by the sweep; {_MEND}")


_MEND = "leave it out (--root, --name and -- --model.init_weights do what is meant)"


def _generated(command: tuple[str, ...]) -> int:
    """Return where the words begin that the plan adds to a ``fit`` command."""
    places = [index for index, word in enumerate(command) if word == "--run.root"]
    return places[-1] if places else len(command)


def _keys(words: Iterable[str]) -> list[str]:
    return [word[2:].partition("=")[0].rstrip("+") for word in words if word.startswith("--") and len(word) > 2]


# ── what training says ──────────────────────────────────────────────────────────────────────────────────────────────


def _cases_of_grid(plan: Plan) -> Iterator[Case]:
    swept = [name for name, parameter in plan.parameters.items() if parameter.swept and name != SEED]
    for cells in variants(plan).values():
        first = cells[0].overrides or {}
        seeds = tuple((cell.overrides or {}).get(SEED) for cell in cells)
        yield Case(tuple(cell.id for cell in cells), _shown(first, swept), _words(plan, first), seeds)


def _cases_of_search(plan: Plan) -> Iterator[Case]:
    """Yield the lower ends of all ranges, then each other end and choice by itself: not every combination."""
    ends = {name: _ends(parameter) for name, parameter in plan.parameters.items()}
    base = {name: values[0] for name, values in ends.items()}
    chosen: list[tuple[dict[str, Any], str]] = [({}, "the first of all values and lower ends")]
    chosen += [({name: value}, _shown({name: value}, [name])) for name, values in ends.items() for value in values[1:]]
    for change, text in chosen:
        yield Case((plan.file,), text, _words(plan, {**base, **change}), (None,))


def _ends(parameter: Parameter) -> list[Any]:
    if parameter.kind == "int":
        return [int(parameter.low), int(parameter.high)]
    return [parameter.low, parameter.high] if parameter.kind == "float" else list(parameter.values)


def _words(plan: Plan, overrides: Mapping[str, Any]) -> list[str]:
    words = fit_words(plan.command_of(plan.cells[0], overrides))
    assert words is not None
    return words


def _shown(overrides: Mapping[str, Any], names: Iterable[str]) -> str:
    return ", ".join(f"{name}={as_text(overrides[name])}" for name in names if name in overrides)


def _read(plan: Plan, cases: list[Case]) -> list[Reading]:
    """Read every case; all that are wrong are told in one error.

    Raises:
        M2HError: Which case is wrong in what; of the kind that the first one has.
    """
    from m2h_lightning.commands.arguments import Arguments

    faults: list[tuple[Case, M2HError]] = []
    for case in cases:  # missing files are told before torch is imported
        try:
            Arguments.read("fit", case.words)
        except M2HError as error:
            faults.append((case, error))
    readings: list[Reading] = []
    if not faults:
        from m2h_lightning.sweeps.planning.fit_reading import prepare, read_fit

        prepare()
        for case in cases:
            try:
                readings.append(read_fit(case.words))
            except M2HError as error:
                faults.append((case, error))
    if not faults:
        return readings
    case, first = faults[0]
    text = " ".join(str(first).split())
    kind = DataError if isinstance(first, DataError) else ConfigError
    if kind is DataError and not _uses_rooms(plan):
        text += ROOMS_HINT
    if len(faults) == len(cases) and len({str(other) for _, other in faults}) == 1:  # not the cells' fault
        raise kind(text)
    others = sum(len(other.cells) for other, _ in faults) - 1
    place = case.cells[0] + (f" ({case.values})" if case.values else "")
    more = f" (and {others} more cell{'s' if others > 1 else ''})" if others and not plan.searches else ""
    if plan.searches and len(faults) > 1:
        more = f" (and {len(faults) - 1} more of the values)"
    raise kind(f"{place}: {text}{more}")


def _uses_rooms(plan: Plan) -> bool:
    return Path(plan.experiment or "").name.startswith("rooms")


def _check_different(plan: Plan, hashes: Mapping[str, str]) -> None:
    """Refuse two cells that would train the same thing.

    Raises:
        ConfigError: Which two.
    """
    seen: dict[str, str] = {}
    for cell in plan.cells:
        other = seen.setdefault(hashes[cell.id], cell.id)
        if other != cell.id:
            raise ConfigError(
                f"{plan.file}: the cells {other} and {cell.id} have the same configuration, so one of them says "
                "nothing; do the words of command or after -- undo a parameter, are two files the same, or was one of "
                "them run before the sweep had this parameter? Then give another --name"
            )


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set the variables that the cells will have."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
