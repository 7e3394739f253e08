"""How far a running cell is, from the end of its ``metrics.csv`` and the length in its ``config.yaml``."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from m2h_lightning.runs import folder as runs

TAIL = 65536
"""Bytes read from the end of a ``metrics.csv``: some rows, however long the run."""


@dataclass(frozen=True)
class Progress:
    """How far a cell is; None stands for what cannot be known.

    Args:
        epoch: Number of the epoch it is in, from 1.
        epochs: Epochs of the whole run.
        step: Optimiser steps done.
        steps: Optimiser steps of the whole run, where it is limited by them.
        name: Name of the value shown.
        value: The metric of the sweep as last logged, or what stands nearest to it.
    """

    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    name: str = ""
    value: float | None = None

    @property
    def fraction(self) -> float | None:
        """Return the part of the run that is done for certain, or None."""
        if self.steps and self.step is not None:
            return min(1.0, self.step / self.steps)
        if self.epochs and self.epoch is not None:
            return min(1.0, (self.epoch - 1) / self.epochs)
        return None

    def __str__(self) -> str:
        """Return it in two words: ``epoch 2/4``."""
        if self.epoch is not None and self.epochs:
            return f"epoch {self.epoch}/{self.epochs}"
        if self.step is not None and self.steps:
            return f"step {self.step}/{self.steps}"
        return "–" if self.epoch is None else f"epoch {self.epoch}"


class Reader:
    """Reads the progress of cells; of a file that has not changed since, only its size and time.

    Args:
        metric: The metric of the sweep. Where only the validation knows it yet, ``val/…`` of it is shown, else a loss.
    """

    def __init__(self, metric: str) -> None:
        rest = metric.partition("/")[2] or metric
        self.names = tuple(dict.fromkeys((metric, f"val/{rest}", "val/loss", "train/loss")))
        self._lengths: dict[Path, tuple[Any, tuple[int | None, int | None]]] = {}
        self._ends: dict[Path, tuple[Any, dict[str, float]]] = {}

    def read(self, folder: Path) -> Progress:
        """Return how far the run of a folder is."""
        last = self._cached(self._ends, folder / runs.METRICS, _last_values, {})
        epochs, steps = self._cached(self._lengths, folder / runs.CONFIG, _length, (None, None))
        epoch = None if "epoch" not in last else int(last["epoch"]) + 1
        if epoch is not None and epochs:
            epoch = min(epoch, epochs)  # the test after the last epoch is logged as one more
        name = next((name for name in self.names if name in last), "")
        step = None if "step" not in last else int(last["step"]) + 1
        return Progress(epoch, epochs, step, steps, name, last.get(name))

    @staticmethod
    def _cached(known: dict[Path, tuple[Any, Any]], path: Path, read: Any, without: Any) -> Any:
        try:
            state = os.stat(path)
            mark = (state.st_ino, state.st_size, state.st_mtime_ns)
            if path not in known or known[path][0] != mark:
                known[path] = (mark, read(path))
        except OSError:  # not begun yet, or moved aside meanwhile
            return without
        return known[path][1]


def _length(path: Path) -> tuple[int | None, int | None]:
    """Return epochs and steps of the run that a ``config.yaml`` describes; None where there is no such limit."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        config = yaml.load(path.read_bytes(), Loader=loader)
        trainer, stages = config["trainer"], config.get("model", {}).get("stages") or []
        epochs = sum(int(stage["epochs"]) for stage in stages) or trainer.get("max_epochs")
        return _positive(epochs), _positive(trainer.get("max_steps"))
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):  # another program's file of that name
        return None, None


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _last_values(path: Path) -> dict[str, float]:
    """Return the last value of every column that has one in the file's last rows."""
    with open(
        path, "rb"
    ) as file:  # rows are added at the end, a new column replaces the file: both ends belong together
        header = file.readline()
        begin = file.tell()
        size = file.seek(0, os.SEEK_END)
        file.seek(max(begin, size - TAIL))
        skipped = file.tell() > begin
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1].decode(errors="replace").splitlines()
    columns = next(csv.reader([header.decode(errors="replace")]), [])
    found: dict[str, float] = {}
    for row in csv.reader(whole[1:] if skipped else whole):
        if len(row) == len(columns):
            numbers = zip(columns, map(_number, row), strict=True)
            found.update({name: number for name, number in numbers if number is not None})
    return found


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
