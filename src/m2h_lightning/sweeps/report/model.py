"""What a report of a sweep is asked for, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2h_lightning.report.ablation import Comparison, Measure, Variant
from m2h_lightning.sweeps.planning.plan import Plan
from m2h_lightning.sweeps.report.cells import Cells
from m2h_lightning.sweeps.report.search import Trial


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows.

    Args:
        baseline: ``KEY=VALUE`` of the baseline; other parameters have the first value of the sweep file.
        single: Single-task runs that Δm is counted over.
        protocol: "pooled" or "per_image"; None is the heading protocol of the runs.
        measure: Whether latency and throughput are measured now, where they are not known.
        rounds: Rounds of the measurement, which is made anew then; None takes what is known.
        pictures: Whether pictures are drawn.
        words: The words of the command, to be repeated.
    """

    baseline: tuple[str, ...] = ()
    single: tuple[Path, ...] = ()
    protocol: str | None = None
    measure: bool = True
    rounds: int | None = None
    pictures: bool = True
    words: tuple[str, ...] = ()


@dataclass
class Report:
    """All that a report says; see the functions that fill it.

    Args:
        plan: The sweep.
        cells: Its cells.
        protocol: The protocol of the scores.
        measures: The columns.
        variants: The rows: variants with a finished cell.
        baseline: What the others are compared with; None where it has no finished cell, and for a search.
        comparisons: The differences from it.
        delta: Δm in percent by label.
        delta_over: What Δm is counted over, in words.
        trials: Finished runs of a search, best first.
        given_up: Number and last score of runs of a search that were given up.
        cost: Cost of the network by label.
        measured: When and where the cost was measured.
        memory: Kind and mean of the peak memory of training in MB by label.
        importance: Of the parameters of a search.
        pictures: PNG by what it shows.
        notes: Sentences below the tables.
        warnings: What the cells do not have in common.
        words: The words of the command.
    """

    plan: Plan
    cells: Cells
    protocol: str
    measures: list[Measure]
    variants: list[Variant]
    baseline: Variant | None
    words: tuple[str, ...]
    comparisons: list[Comparison] = field(default_factory=list)
    delta: dict[str, float] = field(default_factory=dict)
    delta_over: str = ""
    trials: list[Trial] = field(default_factory=list)
    given_up: list[tuple[int, float]] = field(default_factory=list)
    cost: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, tuple[str, float]] = field(default_factory=dict)
    importance: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
