"""The parameters of a sweep file, in the words of the W&B format: lists of values, constants, ranges to search."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from m2h_lightning.errors import ConfigError, did_you_mean

SEED = "seed_everything"
"""The key that makes repetitions of a cell: cells that differ in it alone are one variant."""

Kind = Literal["values", "constant", "float", "int"]

_KEYS = ("value", "values", "distribution", "min", "max", "q", "parameters")
_BESIDE = {"parameters": (), "value": ("constant",), "values": ("categorical",)}
"""What says everything by itself, and the distributions that may stand beside it."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")  # as W&B's own schema has it
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
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{place}: '{name}' is no key of a command; letters, digits, '.', '_' and '-' may stand in it"
        )
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{place}: give 'values: [...]', 'value: …' or 'min: … max: …', not {given!r:.60}")
    _check_distribution(given.get("distribution"), place)
    for key in given:
        if key not in _KEYS:
            if key == "probabilities":
                raise ConfigError(f"{place}.probabilities: values are drawn evenly here; leave it out")
            raise ConfigError(f"{place}.{key}: there is no such key{did_you_mean(str(key), _KEYS)}")
    for key, distributions in _BESIDE.items():
        if key in given:
            _check_alone(given, key, distributions, place)
    if "parameters" in given:
        return _nested(name, given["parameters"], place)
    if "value" in given:
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


def _check_distribution(distribution: Any, place: str) -> None:
    known = [*_DISTRIBUTIONS, "categorical", "constant"]
    if distribution is None or str(distribution) in known:
        return
    hint = _OTHERS.get(str(distribution)) or f"known are {', '.join(known)}{did_you_mean(str(distribution), known)}"
    raise ConfigError(f"{place}.distribution: {distribution} is not supported: {hint}")


def _check_alone(given: Mapping[str, Any], key: str, distributions: tuple[str, ...], place: str) -> None:
    """Refuse what would be passed over in silence beside ``key``."""
    for other, value in given.items():
        if other != key and not (other == "distribution" and value in distributions):
            raise ConfigError(f"{place}: '{key}' stands alone, but '{other}' is there too; leave one of them out")


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same on a command line: 1 and true are not, 1 and 1.0 are."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _nested(name: str, given: Any, place: str) -> Parameter:
    """Return a parameter whose values are groups of keys: every combination of the inner ones."""
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{place}.parameters: give parameters of its own, such as 'name: {{values: [...]}}'")
    inner = [read_parameter(str(key), value, f"{place}.{key}") for key, value in given.items()]
    for parameter in inner:
        if parameter.kind in ("float", "int"):
            raise ConfigError(f"{place}.{parameter.name}: a range cannot stand inside a group; write its dotted key")
    choices = itertools.product(*(parameter.values for parameter in inner))
    groups = tuple(dict(zip((p.name for p in inner), values, strict=True)) for values in choices)
    return Parameter(name, "values" if len(groups) > 1 else "constant", groups)


def as_text(value: Any) -> str:
    """Return a value as it stands on a command line: YAML that every version reads alike."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _checked(value: Any, place: str) -> Any:
    """Return a value that means the same on W&B's command line, which has Python's spelling, and on ours."""
    plain = _plain(value, place)
    if isinstance(plain, list | dict):
        try:
            alike = yaml.safe_load(str(plain)) == yaml.safe_load(as_text(plain))
        except yaml.YAMLError:
            alike = False
        if not alike:
            raise ConfigError(f"{place}: {value!r:.60} reads differently under W&B; take out quotes and backslashes")
    return plain


def _plain(value: Any, place: str) -> Any:
    if value is None:
        raise ConfigError(f"{place}: null reaches a command as the word None under W&B; leave the key out instead")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{place}: {value} is not a finite number")
    if isinstance(value, list):
        return [_plain(item, place) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{place}.{key}") for key, item in value.items()}
    if not isinstance(value, bool | int | float | str):
        raise ConfigError(f"{place}: {value!r} is no number, word, list or group; put it in quotes")
    return value


def _range(name: str, given: Mapping[str, Any], place: str) -> Parameter:
    for key in ("min", "max"):
        value = given.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            hint = f"; YAML reads {value} as a word, write 1.0e-4 for 1e-4" if _number(value) else ""
            raise ConfigError(f"{place}.{key} is {value!r}; a range needs numbers for min and max{hint}")
    low, high = given["min"], given["max"]
    whole = isinstance(low, int) and isinstance(high, int)
    if "distribution" not in given and isinstance(low, int) != isinstance(high, int):
        raise ConfigError(f"{place}: min {low} and max {high} are of two kinds; write both with a point, or neither")
    distribution = given.get("distribution", "int_uniform" if whole else "uniform")
    if distribution not in _DISTRIBUTIONS:
        raise ConfigError(f"{place}.distribution: {distribution} has values, not min and max")
    kind, log, stepped = _DISTRIBUTIONS[distribution]
    if not math.isfinite(low) or not math.isfinite(high) or low >= high:
        raise ConfigError(f"{place}: min {low} must be below max {high}")
    if log and low <= 0:
        raise ConfigError(f"{place}.min is {low}; a logarithmic range begins above 0")
    if kind == "int" and not whole:
        raise ConfigError(f"{place}: int_uniform needs whole numbers for min and max")
    step = given.get("q", 1 if stepped else None)
    if step is not None and (not stepped or isinstance(step, bool) or not isinstance(step, int | float) or step <= 0):
        raise ConfigError(f"{place}.q is {step!r}; it is a step above 0, for q_uniform")
    return Parameter(name, kind, (), float(low), float(high), log, None if step is None else float(step))


def _number(value: Any) -> bool:
    """Whether a word is what Python takes for a number, and YAML 1.1 does not."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False
