"""Every cell is checked by training's own rules before the first one starts; loads torch for cells of ``m2h fit``."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from m2h_lightning.errors import ConfigError, DataError, M2HError
from m2h_lightning.runs import folder as runs
from m2h_lightning.runs.outcome import check_same_run, read_outcome
from m2h_lightning.sweeps.cells import as_text
from m2h_lightning.sweeps.parameters import SEED, Parameter
from m2h_lightning.sweeps.plan import Plan, fit_words, variants

if TYPE_CHECKING:
    from m2h_lightning.sweeps.fit_reading import Reading

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
        _check_metric(plan, reading)
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
    chosen = [({}, "the first of all values and lower ends")]
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
        M2HError: Of the kind that the first wrong case has.
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
        from m2h_lightning.sweeps.fit_reading import prepare, read_fit

        prepare()
        for case in cases:
            try:
                readings.append(read_fit(case.words))
            except M2HError as error:
                faults.append((case, error))
    if not faults:
        return readings
    case, error = faults[0]
    text = " ".join(str(error).split())
    if isinstance(error, DataError) and not _uses_rooms(plan):
        text += ROOMS_HINT
    if len(faults) == len(cases) and len({str(other) for _, other in faults}) == 1:  # not the cells' fault
        raise type(error)(text) if type(error) in _PLAIN else ConfigError(text)
    others = sum(len(other.cells) for other, _ in faults) - 1
    place = case.cells[0] + (f" ({case.values})" if case.values else "")
    more = f" (and {others} more cell{'s' if others > 1 else ''})" if others and not plan.searches else ""
    if plan.searches and len(faults) > 1:
        more = f" (and {len(faults) - 1} more of the values)"
    raise (type(error) if type(error) in _PLAIN else ConfigError)(f"{place}: {text}{more}")


_PLAIN = (ConfigError, DataError)
"""Errors that are made of their message alone."""


def _uses_rooms(plan: Plan) -> bool:
    return Path(plan.experiment or "").name.startswith("rooms")


def _check_metric(plan: Plan, reading: Reading) -> None:
    """Refuse a metric that no cell will have.

    Raises:
        ConfigError: It is of the test, and nothing is tested; or of a task that is not trained.
    """
    from m2h_lightning.tasks import DEFAULT_LOSS_WEIGHTS

    stage, *rest = plan.metric.split("/")
    if stage == "test" and not reading.tree["run"]["test"]:
        raise ConfigError(
            f"{plan.file}: metric.name is {plan.metric}, but the cells are not tested; add --run.test=true to command, "
            "or take a metric of validation (val/…)"
        )
    if len(rest) > 1 and rest[0] in DEFAULT_LOSS_WEIGHTS and rest[0] not in reading.tasks:
        raise ConfigError(
            f"{plan.file}: metric.name is {plan.metric}, but {rest[0]} is not trained by every cell (there are "
            f"{', '.join(reading.tasks)}); take {stage}/score, or a metric of a task that all cells train"
        )


def check_devices(tree: Mapping[str, Any], gpus_per_cell: int) -> None:
    """Refuse a cell that asks for other devices than it will be given.

    Args:
        tree: Configuration of the cell.
        gpus_per_cell: GPUs that it will see.

    Raises:
        ConfigError: ``trainer.devices`` is another number, or training is on a CPU.
    """
    from m2h_lightning.sweeps.run import visible_gpus

    trainer = tree["trainer"]
    accelerator = str(trainer.get("accelerator") or "auto")
    if accelerator not in ("auto", "gpu", "cuda"):
        if gpus_per_cell > 1:
            raise ConfigError(f"--gpus-per-cell is {gpus_per_cell}, but trainer.accelerator is {accelerator}")
        return
    wanted = _devices(trainer.get("devices"))
    if (
        wanted is None
        or wanted == gpus_per_cell
        or (gpus_per_cell == 1 and accelerator == "auto" and not visible_gpus())
    ):
        return
    raise ConfigError(
        f"trainer.devices is {trainer.get('devices')!r}, but a cell is given {gpus_per_cell} "
        f"GPU{'s' if gpus_per_cell > 1 else ''}; give --gpus-per-cell {wanted}, or -- --trainer.devices {gpus_per_cell}"
    )


def _devices(given: Any) -> int | None:
    """Return how many devices ``trainer.devices`` means; None for all there are."""
    if isinstance(given, list | tuple):
        return len(given)
    text = str(given).strip()
    if given is None or text in ("auto", "-1"):
        return None
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    return int(text) if text.isdigit() else None


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
                "nothing; do the words of command or after -- undo a parameter, or are two files the same?"
            )


# ── what lies there already ─────────────────────────────────────────────────────────────────────────────────────────


def check_folder(folder: Path, tree: Mapping[str, Any]) -> None:
    """Refuse to count a run of another configuration as this cell.

    Args:
        folder: Run folder of the cell.
        tree: The configuration that it is to have.

    Raises:
        ConfigError: It has another one; with the keys.
        DataError: A file of it is damaged.
    """
    mend = "give another --name, or move it away"
    result = read_outcome(folder).result
    saved = folder / runs.CONFIG
    if saved.is_file() and not _was_halved(folder, tree):
        check_same_run(folder, tree, mend)
    elif result and not saved.is_file() and result.get("config_hash") != runs.config_hash(tree):
        raise ConfigError(f"{folder} was trained with another configuration, which is not stored there; {mend}")


def _was_halved(folder: Path, tree: Mapping[str, Any]) -> bool:
    """Whether this is the cell but for its batch, which the sweep has halved after it had run out of memory."""
    halved, doubled = "data.batch_size", "trainer.accumulate_grad_batches"
    try:
        before = yaml.safe_load((folder / runs.CONFIG).read_text(encoding="utf-8"))
        starts = json.loads((folder / runs.HISTORY).read_text(encoding="utf-8"))["starts"]
        old, new = (runs.flatten({k: v for k, v in one.items() if k != "run"}) for one in (before, tree))
        words = [f"--{halved}", str(new[halved] // 2), f"--{doubled}", str(2 * (new[doubled] or 1))]
        told = any(start["command"][-len(words) :] == words for start in starts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return False  # no such run; whatever else it is, check_same_run tells
    expected = {**new, halved: int(words[1]), doubled: int(words[3])}
    return told and runs.plain(old) == runs.plain(expected)


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
