"""What became of a cell, read from its run folder: the folder is the truth, the ledger a record of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.runs import folder as runs


@dataclass(frozen=True)
class Outcome:
    """The state of a cell's folder.

    Args:
        state: "none": no folder. "empty": nothing to go on from. "interrupted": a checkpoint, no result. "finished",
            "pruned": a result.
        result: The content of ``result.json``, or empty.
    """

    state: Literal["none", "empty", "interrupted", "finished", "pruned"]
    result: dict[str, Any]


def read_outcome(folder: Path) -> Outcome:
    """Read the state of a cell's folder.

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


def metric_of(result: dict[str, Any], name: str) -> float:
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
