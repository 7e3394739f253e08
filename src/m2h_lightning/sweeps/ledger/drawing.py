"""The values of a cell as parameters of Optuna: those of a grid for its dashboard, those of a search drawn by it.

What was drawn for a run of a search is also written to ``values/<cell>.json``, so that a later attempt, or a ledger
that was lost, uses the same.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from m2h_lightning.errors import DataError
from m2h_lightning.runs import folder as runs
from m2h_lightning.sweeps.planning.parameters import Parameter
from m2h_lightning.sweeps.planning.plan import Plan

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage

VALUES = "values"
"""Folder of the values that were drawn."""


def as_parameters(plan: Plan, overrides: dict[str, Any]) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Return a cell's values as Optuna's parameters.

    Of a grid these are the swept numbers; words are left to the cell's name, since their list of choices could never
    grow in a study. All numbers are floats for the same reason: whole ones may be joined by others later.

    Args:
        plan: The sweep.
        overrides: The cell's values.
    """
    from optuna.distributions import FloatDistribution

    values: dict[str, Any] = {}
    space: dict[str, BaseDistribution] = {}
    for name, parameter in plan.parameters.items():
        if not parameter.swept or name not in overrides:
            continue
        if plan.searches:
            values[name], space[name] = overrides[name], _distribution(parameter)
            continue
        numbers = [*parameter.values, overrides[name]]  # an earlier plan may have had values that this one lacks
        if all(isinstance(number, int | float) for number in numbers):
            space[name] = FloatDistribution(float(min(numbers)), float(max(numbers)))
            values[name] = float(overrides[name])
    return values, space


def _distribution(parameter: Parameter) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.kind == "values":
        with no_warnings():
            return CategoricalDistribution(list(parameter.values))
    if parameter.kind == "int":
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def draw(plan: Plan, storage: BaseStorage, cell: str, trial: int, number: int) -> dict[str, Any]:
    """Let the sampler choose the values of a run; those of an earlier attempt are kept.

    The sampler is seeded by the trial's number: the same history gives the same values, and no two workers the same.

    Args:
        plan: The sweep.
        storage: The ledger's storage.
        cell: Id of the run.
        trial: Id of its trial in the storage.
        number: Number of its trial in the study.
    """
    import optuna
    from optuna.samplers import RandomSampler, TPESampler

    with no_warnings():
        random = plan.method == "random"
        sampler = (
            RandomSampler(seed=number) if random else TPESampler(seed=number, multivariate=True, constant_liar=True)
        )
        # A study of its own: one that is kept remembers the trials it has read.
        study = optuna.load_study(study_name=plan.name, storage=storage, sampler=sampler)
        open_trial = optuna.trial.Trial(study, trial)
        found = {name: _suggest(open_trial, parameter) for name, parameter in plan.parameters.items()}
    place = plan.folder / VALUES
    place.mkdir(exist_ok=True)
    runs.write_json(place / f"{cell}.json", found)
    return found


def drawn(plan: Plan, cell: str) -> dict[str, Any] | None:
    """Return the values that were drawn for a run of a search; None where none were.

    Raises:
        DataError: The file that holds them is damaged.
    """
    path = plan.folder / VALUES / f"{cell}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name, parameter in plan.parameters.items() if parameter.kind != "constant"}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged ({error}); remove it, and other values are drawn") from error


def _suggest(trial: Any, parameter: Parameter) -> Any:
    if parameter.kind == "constant":
        return parameter.values[0]
    if parameter.kind == "values":
        return trial.suggest_categorical(parameter.name, list(parameter.values))
    if parameter.kind == "int":
        return trial.suggest_int(parameter.name, int(parameter.low), int(parameter.high), log=parameter.log)
    return trial.suggest_float(parameter.name, parameter.low, parameter.high, log=parameter.log, step=parameter.step)


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Silence what Optuna says of samplers that it calls experimental, and of groups as choices."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
