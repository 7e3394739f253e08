"""What became of a run, read from its folder; and whether it is the run that somebody means. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.runs import folder as runs

SHOWN = 3
"""How many differing keys a message names."""


@dataclass(frozen=True)
class Outcome:
    """The state of a run folder.

    Args:
        state: "none": no folder. "empty": nothing to go on from. "interrupted": a checkpoint, no result. "finished",
            "pruned": a result.
        result: The content of ``result.json``, or empty.
    """

    state: Literal["none", "empty", "interrupted", "finished", "pruned"]
    result: dict[str, Any]


def read_outcome(folder: Path) -> Outcome:
    """Read the state of a run folder.

    Raises:
        DataError: ``result.json`` is damaged.
    """
    path = folder / runs.RESULT
    if path.is_file():
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            status = result.get("status", "finished")
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: is damaged ({error}); move {folder} away and run again") from error
        return Outcome("pruned" if status == "pruned" else "finished", result)
    if not folder.is_dir():
        return Outcome("none", {})
    resumable = (folder / runs.CONFIG).is_file() and runs.checkpoint_candidates(folder)
    return Outcome("interrupted" if resumable else "empty", {})


def check_same_run(folder: Path, tree: Mapping[str, Any], mend: str) -> None:
    """Refuse a run folder whose run has another configuration.

    Args:
        folder: The run folder. One without a configuration is that of no run and is let pass.
        tree: The configuration that is meant.
        mend: What to do about it, for the message.

    Raises:
        ConfigError: It differs; the message names the first keys with both values.
        DataError: Its configuration cannot be read.
    """
    path = folder / runs.CONFIG
    if not path.is_file():
        return
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}); move {folder} away") from error
    if not isinstance(before, dict) or runs.config_hash(before) != runs.config_hash(tree):
        raise ConfigError(f"{folder} was trained with another configuration ({_differing(before, tree)}); {mend}")


def _differing(before: Any, now: Mapping[str, Any]) -> str:
    """Return the keys in which two configurations differ, with both values."""
    trees = (before if isinstance(before, Mapping) else {}, now)
    old, new = (runs.flatten({key: value for key, value in tree.items() if key != "run"}) for tree in trees)
    keys = [key for key in {**new, **old} if runs.plain(old.get(key)) != runs.plain(new.get(key))]
    named = [f"{key} {old.get(key)!r} there, {new.get(key)!r} now" for key in keys[:SHOWN]]
    return "; ".join(named) + (f"; and {len(keys) - SHOWN} more keys" if len(keys) > SHOWN else "")


def metric_of(result: Mapping[str, Any], name: str) -> float:
    """Return a metric of a ``result.json`` by its ``stage/task/metric`` name.

    Raises:
        ConfigError: It is not there, or is no finite number.
    """
    node: Any = result.get("metrics", {})
    for part in name.split("/"):
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict):
        node = node.get("total")
    if isinstance(node, bool) or not isinstance(node, int | float) or not math.isfinite(node):
        there = ", ".join(sorted(_names(result.get("metrics", {})))[:8]) or "none"
        problem = "is not a finite number" if node is not None else "is not there"
        raise ConfigError(f"the metric {name} {problem} in {runs.RESULT} (there are {there}); change metric.name")
    return float(node)


def _names(tree: Any, prefix: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return [prefix]
    return [name for key, value in tree.items() for name in _names(value, f"{prefix}/{key}" if prefix else str(key))]
