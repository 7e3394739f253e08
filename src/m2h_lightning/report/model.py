"""What a table is before it has a format: columns, groups of comparable rows, and the best of each group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from m2h_lightning.errors import ConfigError, did_you_mean
from m2h_lightning.report.names import SUFFIXES, MetricName

DELTA = "delta_m"
NONE = "–"


@dataclass(frozen=True)
class Column:
    """A column of numbers: a metric of a task under a protocol, or Δm.

    Args:
        task: Name of the task; empty for Δm.
        base: Pooled key of the metric.
        protocol: "pooled" or "per_image".
        name: How the metric is printed.
    """

    task: str
    base: str
    protocol: str
    name: MetricName

    @property
    def key(self) -> str:
        """Task and key as in ``result.json``."""
        suffix = "" if self.name.whole_set else SUFFIXES[self.protocol]
        return f"{self.task}/{self.base}{suffix}" if self.task else f"{self.base}{suffix}"


@dataclass
class Cell:
    """A value as stored: shares between 0 and 1.

    Args:
        value: NaN where it is not defined.
        std: Standard deviation over seeds.
        mark: What to know about it; a value with a mark is not ranked.
        best: Whether it is the best of its group.
        printed: The value as its source prints it, with no more and no fewer decimals.
    """

    value: float
    std: float | None = None
    mark: str | None = None
    best: bool = False
    printed: str | None = None

    def text(self, column: Column) -> str:
        """Return the value as printed, without unit."""
        if self.printed is not None:
            return self.printed
        if math.isnan(self.value):
            return "NaN"
        name = column.name
        text = f"{self.value * name.scale:.{name.digits}f}"
        if column.base == DELTA and float(text):
            text = f"{'−' if self.value < 0 else '+'}{text.lstrip('-')}"
        text = text if float(text.replace("−", "-")) else text.lstrip("-")  # no minus before a zero
        return text if self.std is None else f"{text} ± {self.std * name.scale:.{name.digits}f}"


@dataclass
class Row:
    """A run, several runs of one configuration, or a published result; ``marks`` is what to know about it."""

    name: str
    backbone: str
    seed: str
    source: str
    cells: dict[Column, Cell]
    marks: list[str] = field(default_factory=list)


@dataclass
class Group:
    """Rows that are comparable with each other, and with those of no other group."""

    title: str
    rows: list[Row]
    ranked: bool = True


@dataclass
class Table:
    """All that is printed."""

    title: str
    columns: list[Column]
    groups: list[Group]
    notes: list[str]
    with_source: bool = False
    with_std: bool = False


def rank(group: Group, columns: Sequence[Column]) -> None:
    """Mark the best value of each column, and all that are printed alike; one value alone is not the best of any."""
    if not group.ranked:
        return
    for column in columns:
        cells = [row.cells[column] for row in group.rows if column in row.cells]
        cells = [cell for cell in cells if cell.mark is None and not math.isnan(cell.value)]
        if len(cells) < 2:
            continue
        choose = max if column.name.higher_is_better else min
        best = choose(cell.value for cell in cells)
        shown = Cell(best).text(column)
        for cell in cells:
            cell.best = Cell(cell.value).text(column) == shown


def sort_rows(groups: Sequence[Group], columns: Sequence[Column], task: str) -> None:
    """Sort the rows of each group by the first metric of a task that they have, best first; others stay last.

    Raises:
        ConfigError: No column is of this task.
    """
    own = [column for column in columns if column.task == task]
    if not own:
        tasks = list(dict.fromkeys(column.task for column in columns if column.task))
        raise ConfigError(f"--sort {task}: no run has this task{did_you_mean(task, tasks)} (tasks: {', '.join(tasks)})")

    def place(row: Row) -> tuple[int, float]:
        for index, column in enumerate(own):
            cell = row.cells.get(column)
            if cell is not None and not math.isnan(cell.value):
                return index, -cell.value if column.name.higher_is_better else cell.value
        return len(own), 0.0

    for group in groups:
        group.rows.sort(key=place)
