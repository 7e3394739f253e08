"""Cells: the combinations of a sweep's parameters, each with an id that never changes and a command line."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2h_lightning.runs.folder import slug
from m2h_lightning.sweeps.planning.parameters import SEED, Parameter, as_text

LONGEST = 60
"""Characters of a cell's id before its digest."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Args:
        id: Name of its folder: the values, and a digest of them.
        overrides: Value of every parameter; None for a run of a search, whose values are drawn when it starts.
        command: The words that run it; for a run of a search, those before and after its values.
        config_hash: Digest of the configuration that it is to have; None where that is not known.
    """

    id: str
    overrides: dict[str, Any] | None
    command: tuple[str, ...]
    config_hash: str | None = None


def grid(parameters: Mapping[str, Parameter]) -> list[dict[str, Any]]:
    """Return every combination; seeds change slowest, so that a sweep cut short has whole comparisons.

    Args:
        parameters: Parameters with values, by key.
    """
    order = sorted(parameters.values(), key=lambda parameter: parameter.name != SEED)  # stable: the file's order
    combinations = itertools.product(*(parameter.values for parameter in order))
    return [{name: values[[p.name for p in order].index(name)] for name in parameters} for values in combinations]


def cell_id(overrides: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> str:
    """Return the id of a cell: readable, and different for different values (8 hex digits of a digest)."""
    names = short_names([name for name, parameter in parameters.items() if parameter.swept])
    words = [f"{names[name]}-{_readable(overrides[name])}" for name in names]
    text = slug("-".join(words))[:LONGEST].strip("-.")
    content = json.dumps(overrides, sort_keys=True)
    return f"{text}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the shortest ends of dotted names that tell them apart; the seed is called so.

    Example:
        >>> short_names(["model.wmca.enabled", "model.ggfm.enabled", "seed_everything"])
        {'model.wmca.enabled': 'wmca.enabled', 'model.ggfm.enabled': 'ggfm.enabled', 'seed_everything': 'seed'}
    """
    found = {}
    for name in names:
        if name == SEED:
            found[name] = "seed"
            continue
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            end = ".".join(parts[-count:])
            if not any(other != name and f".{other}".endswith(f".{end}") for other in names):
                break
        found[name] = end
    return found


def _readable(value: Any) -> str:
    if isinstance(value, Mapping):
        return "-".join(_readable(item) for item in value.values())
    if isinstance(value, list):
        return "-".join(_readable(item) for item in value)
    text = as_text(value)
    return Path(text).stem if text.endswith((".yaml", ".yml")) else text


def assignments(overrides: Mapping[str, Any]) -> list[str]:
    """Return the words ``--key=value`` of a cell."""
    return [f"--{name}={as_text(value)}" for name, value in overrides.items()]


def variant(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a cell without its seed: what all its repetitions share."""
    return {name: value for name, value in overrides.items() if name != SEED}
