"""The parameters of a sweep file, in the words of the W&B format: lists of values, constants, ranges to search."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from m2h_lightning.errors import ConfigError, did_you_mean

SEED = "seed_everything"
"""The key that makes repetitions of a cell: cells that differ in it alone are one variant."""

Kind = Literal["values", "constant", "float", "int"]

_KEYS = ("value", "values", "distribution", "min", "max", "q", "parameters")
_DISTRIBUTIONS: dict[str, tuple[Kind, bool, bool]] = {  # kind, logarithmic, in steps of q
    "uniform": ("float", False, False),
    "q_uniform": ("float", False, True),
    "log_uniform_values": ("float", True, False),
    "int_uniform": ("int", False, False),
}
_OTHERS = {
    "log_uniform": "its bounds are exponents; use log_uniform_values",
    "q_log_uniform": "use log_uniform_values",
    "q_log_uniform_values": "use log_uniform_values",
    "inv_log_uniform": "use log_uniform_values",
    "inv_log_uniform_values": "use log_uniform_values",
    "normal": "use uniform",
    "q_normal": "use q_uniform",
    "log_normal": "use log_uniform_values",
    "q_log_normal": "use log_uniform_values",
    "beta": "use uniform",
    "q_beta": "use q_uniform",
}


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Args:
        name: Dotted key of the command, such as ``model.wmca.window_size``.
        kind: A list of values, one value, or a range.
        values: The values; of a constant, the one.
        low: Lower bound of a range, included.
        high: Upper bound, included.
        log: Whether the range is searched on a logarithmic scale.
        step: Distance of the values of a range; None is any.
    """

    name: str
    kind: Kind
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    @property
    def swept(self) -> bool:
        """Whether it takes more than one value."""
        return self.kind in ("float", "int") or len(self.values) > 1


def read_parameter(name: str, given: Any, place: str) -> Parameter:
    """Read one entry of ``parameters``.

    Args:
        name: Its key.
        given: What the file says of it.
        place: File and key, for messages.

    Raises:
        ConfigError: It is malformed, or asks for what only W&B's own server does.
    """
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{place}: give 'values: [...]', 'value: …' or 'min: … max: …', not {given!r:.60}")
    for key in given:
        if key not in _KEYS:
            if key == "probabilities":
                raise ConfigError(f"{place}.probabilities: values are drawn evenly here; leave it out")
            raise ConfigError(f"{place}.{key}: there is no such key{did_you_mean(str(key), _KEYS)}")
    if "parameters" in given:
        return _nested(name, given, place)
    if "value" in given and "values" not in given:
        return Parameter(name, "constant", (_checked(given["value"], f"{place}.value"),))
    if "values" in given:
        values = given["values"]
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{place}.values is {values!r:.60}; give a list of at least one value")
        checked = tuple(_checked(value, f"{place}.values") for value in values)
        for index, value in enumerate(checked):
            if any(_same(value, other) for other in checked[:index]):
                raise ConfigError(f"{place}.values has {value!r} twice; every cell is run once")
        return Parameter(name, "values" if len(checked) > 1 else "constant", checked)
    return _range(name, given, place)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same on a command line: 1 and true are not, 1 and 1.0 are."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _nested(name: str, given: Mapping[str, Any], place: str) -> Parameter:
    """Return a parameter whose values are groups of keys: every combination of the inner ones."""
    if set(given) != {"parameters"} or not isinstance(given["parameters"], Mapping):
        raise ConfigError(f"{place}: 'parameters' stands alone and holds parameters of its own")
    inner = [read_parameter(str(key), value, f"{place}.{key}") for key, value in given["parameters"].items()]
    for parameter in inner:
        if parameter.kind in ("float", "int"):
            raise ConfigError(f"{place}.{parameter.name}: a range cannot stand inside a group; write its dotted key")
    choices = itertools.product(*(parameter.values for parameter in inner))
    groups = tuple(dict(zip((p.name for p in inner), values, strict=True)) for values in choices)
    return Parameter(name, "values" if len(groups) > 1 else "constant", groups)


def _checked(value: Any, place: str) -> Any:
    """Return a value that means the same on W&B's command line and on ours."""
    if value is None:
        raise ConfigError(f"{place}: null reaches a command as the word None under W&B; leave the key out instead")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{place}: {value} is not a finite number")
    if isinstance(value, list):
        return [_checked(item, place) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _checked(item, f"{place}.{key}") for key, item in value.items()}
    if not isinstance(value, bool | int | float | str):
        raise ConfigError(f"{place}: {value!r} is no number, word, list or group; put it in quotes")
    return value


def _range(name: str, given: Mapping[str, Any], place: str) -> Parameter:
    for key in ("min", "max"):
        if isinstance(given.get(key), bool) or not isinstance(given.get(key), int | float):
            raise ConfigError(f"{place}.{key} is {given.get(key)!r}; a range needs numbers for min and max")
    low, high = given["min"], given["max"]
    whole = isinstance(low, int) and isinstance(high, int)
    distribution = given.get("distribution", "int_uniform" if whole else "uniform")
    if distribution not in _DISTRIBUTIONS:
        known = [*_DISTRIBUTIONS, "categorical", "constant"]
        hint = _OTHERS.get(str(distribution)) or f"known are {', '.join(known)}{did_you_mean(str(distribution), known)}"
        raise ConfigError(f"{place}.distribution: {distribution} is not supported: {hint}")
    kind, log, stepped = _DISTRIBUTIONS[distribution]
    if not math.isfinite(low) or not math.isfinite(high) or low >= high:
        raise ConfigError(f"{place}: min {low} must be below max {high}")
    if log and low <= 0:
        raise ConfigError(f"{place}.min is {low}; a logarithmic range begins above 0")
    if kind == "int" and not whole:
        raise ConfigError(f"{place}: int_uniform needs whole numbers for min and max")
    step = given.get("q", 1 if stepped else None)
    if step is not None and (not stepped or not isinstance(step, int | float) or step <= 0):
        raise ConfigError(f"{place}.q is {step!r}; it is a step above 0, for q_uniform")
    return Parameter(name, kind, (), float(low), float(high), log, None if step is None else float(step))
