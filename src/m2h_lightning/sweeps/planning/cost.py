"""What a cell costs: from runs that are done, else from a few steps that are measured (:mod:`.probe`)."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from m2h_lightning.errors import DataError, M2HError
from m2h_lightning.processes import cores
from m2h_lightning.runs.outcome import read_outcome
from m2h_lightning.sweeps.planning.cells import Cell
from m2h_lightning.sweeps.planning.plan import Plan, fit_words, variants

ESTIMATED = "≈"
"""Stands before a cost that is of other cells than this one's own variant."""


@dataclass(frozen=True)
class Estimate:
    """How long a cell takes.

    Args:
        seconds: Wall time; None is not known.
        exact: Whether it was measured on this very variant.
        peak_memory_mb: Peak memory in MB (10⁶ bytes) by place ("host", "device"); empty where nobody measured it.
    """

    seconds: float | None = None
    exact: bool = False
    peak_memory_mb: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        if self.seconds is None:
            return "unknown"
        memory = "".join(f", {megabytes / 1000:.1f} GB {place}" for place, megabytes in self.peak_memory_mb)
        return f"{'' if self.exact else ESTIMATED}{duration(self.seconds)}{memory}"


def duration(seconds: float) -> str:
    """Return a duration in the unit that suits it.

    Example:
        >>> [duration(s) for s in (7.4, 90, 5400, 200000)]
        ['7 s', '1.5 min', '1.5 h', '55.6 h']
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def from_results(plan: Plan) -> dict[str, Estimate]:
    """Return the cost of every cell by the wall time of finished ones: the median of its variant, else of all."""
    times = {cell.id: _wall_time(plan, cell) for cell in plan.cells}
    found: dict[str, Estimate] = {}
    for cells in variants(plan).values():
        known = [seconds for cell in cells if (seconds := times[cell.id]) is not None]
        if known:
            found.update({cell.id: Estimate(statistics.median(known), exact=True) for cell in cells})
    everything = [seconds for seconds in times.values() if seconds is not None]
    other = Estimate(statistics.median(everything)) if everything else Estimate()
    return {cell.id: found.get(cell.id, other) for cell in plan.cells}


def _wall_time(plan: Plan, cell: Cell) -> float | None:
    """Return the wall time of a finished cell in seconds; one that was given up cost less than a whole one."""
    try:
        outcome = read_outcome(plan.folder_of(cell.id))
    except DataError:  # told by whoever asks for the state of the cell
        return None
    seconds = outcome.result.get("wall_time_s")
    known = outcome.state == "finished" and isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return float(seconds) if known and seconds > 0 else None  # type: ignore[operator, arg-type]


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Return how long cells take on several workers that each take the next one, in seconds.

    Args:
        seconds: Of each cell, in the order in which they are started.
        workers: Number of cells at a time, at least 1.
    """
    busy = [0.0] * workers
    for length in seconds:
        busy[busy.index(min(busy))] += length
    return max(busy)


# ── measuring ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Measured:
    """What a few steps have shown.

    Args:
        setup_s: Seconds until the first step: building, loading weights, starting loaders.
        step_s: Seconds of one training batch.
        val_batch_s: Seconds of one validation batch.
        val_end_s: Seconds at the end of a validation, beside its batches.
        epoch_batches: Training batches of an epoch.
        epochs: Epochs of the run; None is no limit.
        max_batches: Training batches after which the run ends; None is no limit.
        val_batches: Batches of one validation.
        val_every_batches: Training batches between two validations inside an epoch; that many or more is one per epoch.
        val_every_epochs: Epochs between epochs with validation; None where ``val_every_batches`` counts over epochs.
        test_batches: Batches of the test at the end; 0 is no test.
    """

    setup_s: float
    step_s: float
    val_batch_s: float
    val_end_s: float
    epoch_batches: int
    epochs: int | None
    max_batches: int | None
    val_batches: int
    val_every_batches: int
    val_every_epochs: int | None
    test_batches: int


def extrapolate(measured: Measured) -> float | None:
    """Return the seconds of the full schedule; None where the run has no end."""
    m = measured
    whole = m.epochs * m.epoch_batches if m.epochs is not None else None
    limits = [limit for limit in (whole, m.max_batches) if limit is not None]
    if not limits:
        return None
    batches = min(limits)
    if m.val_batches == 0 or m.epoch_batches == 0:
        validations = 0
    elif m.val_every_epochs is None:
        validations = batches // max(1, m.val_every_batches)
    else:
        inside = max(1, m.epoch_batches // max(1, min(m.val_every_batches, m.epoch_batches)))
        validations = inside * (batches // m.epoch_batches // max(1, m.val_every_epochs))
    evaluation = validations * (m.val_batches * m.val_batch_s + m.val_end_s)
    if m.test_batches:
        evaluation += m.test_batches * m.val_batch_s + m.val_end_s
    return m.setup_s + batches * m.step_s + evaluation


def probe(plan: Plan, cell: Cell, overrides: Mapping[str, Any], workers: int) -> Estimate:
    """Measure a few steps of a cell in a process of its own, which writes nothing that stays.

    Args:
        plan: The sweep.
        cell: The cell.
        overrides: Its values.
        workers: Cells at a time: without a GPU they share the cores.

    Raises:
        DataError: It failed; with the last line it printed.
    """
    from m2h_lightning.sweeps.running.run import visible_gpus

    words = fit_words(plan.command_of(cell, overrides))
    if words is None:
        raise DataError(f"{cell.id}: only commands of m2h fit can be measured")
    threads = {} if visible_gpus() else {"OMP_NUM_THREADS": str(max(1, cores() // workers))}
    answer = subprocess.run(
        [sys.executable, "-m", "m2h_lightning.sweeps.planning.probe", "--", *words],
        cwd=plan.directory,
        env={**os.environ, **threads, **plan.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    lines = [line for line in (answer.stderr + answer.stdout).splitlines() if line.strip()]
    if answer.returncode != 0:
        raise DataError(f"{cell.id}: cannot be measured: {lines[-1] if lines else f'exit code {answer.returncode}'}")
    try:
        content = json.loads(answer.stdout.strip().splitlines()[-1])
        memory = tuple((str(place), float(value)) for place, value in content["peak_memory_mb"].items())
        seconds = content["seconds"]
        return Estimate(None if seconds is None else float(seconds), exact=True, peak_memory_mb=memory)
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise DataError(f"{cell.id}: its measurement printed no result: {lines[-1] if lines else error}") from error


def measure(plan: Plan, found: dict[str, Estimate], missing: set[str], workers: int) -> dict[str, Estimate]:
    """Measure every variant of which nothing is known and something is missing.

    Args:
        plan: The sweep.
        found: What is known; see :func:`from_results`.
        missing: Ids of the cells that are not done.
        workers: Cells at a time.

    Returns:
        The estimates, with what was measured; a variant that failed is told on stderr and stays as it was.
    """
    found = dict(found)
    groups = [cells for cells in variants(plan).values() if not found[cells[0].id].exact]
    groups = [cells for cells in groups if any(cell.id in missing for cell in cells)]
    for number, cells in enumerate(groups, 1):
        print(f"measuring {number} of {len(groups)}: {cells[0].id}", file=sys.stderr, flush=True)
        try:
            estimate = probe(plan, cells[0], cells[0].overrides or {}, workers)
        except M2HError as error:
            print(f"note: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        found.update({cell.id: estimate for cell in cells})
    return found
