"""What an ablation says: variants with their seeds, differences from a baseline, and which of them are noise."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from m2h_lightning.errors import ConfigError
from m2h_lightning.report.collect import STAGE, Run
from m2h_lightning.report.delta import delta_m
from m2h_lightning.report.names import SUFFIXES, MetricName, metric_key, metric_name, task_order
from m2h_lightning.report.statistics import ALPHA, Paired, holm, interval, paired

CONSISTENCY = "consistency"
CONSISTENCY_NAMES: dict[str, MetricName] = {
    "depth_normals_deg": MetricName("depth–normals", False, "°", 2),
    "edges_semseg_f": MetricName("edges–classes F", True, "%", 2),
}
"""Agreement between the predictions of two tasks, shown beside the scores of the tasks."""


@dataclass(frozen=True)
class Measure:
    """A column: a score by its place in ``metrics.test``, such as ``semseg/miou``.

    Args:
        id: Its place.
        task: Its task; ``consistency``, or empty for a metric of the whole run.
        name: How it is printed.
        headline: Whether it is what its task is judged by, and so a part of Δm.
    """

    id: str
    task: str
    name: MetricName
    headline: bool

    @property
    def title(self) -> str:
        """Task and metric: ``depth RMSE``."""
        return self.name.label if self.task in ("", CONSISTENCY) else f"{self.task} {self.name.label}"

    @property
    def heading(self) -> str:
        """Title, direction and unit: ``depth RMSE ↓ (m)``."""
        unit = f" ({self.name.unit})" if self.name.unit else ""
        return f"{self.title} {'↑' if self.name.higher_is_better else '↓'}{unit}"

    def text(self, value: float, sign: bool = False) -> str:
        """Return a value as printed, without its unit; ``sign`` writes a plus too."""
        text = f"{value * self.name.scale:{'+' if sign else ''}.{self.name.digits}f}"
        if not float(text):
            return text.lstrip("+-")  # no sign before a zero
        return text.replace("-", "−")


@dataclass(frozen=True)
class Done:
    """A finished cell.

    Args:
        cell: Its id.
        seed: Its seed as text.
        scores: Every number of its test by place; None where it is not finite.
        run: What tables know of it; None for another program's.
        result: Its ``result.json``.
    """

    cell: str
    seed: str
    scores: dict[str, float | None]
    run: Run | None
    result: Mapping[str, Any]


@dataclass
class Variant:
    """Cells that differ in the seed alone.

    Args:
        label: What it is called.
        values: Its parameters by dotted key, without the seed.
        planned: Seeds that were planned.
        done: Finished cells by seed.
    """

    label: str
    values: dict[str, Any]
    planned: list[str]
    done: dict[str, Done] = field(default_factory=dict)

    def scores(self, measure: Measure) -> dict[str, float]:
        """Return a score by seed; seeds without a finite value are left out."""
        found = {seed: self.done[seed].scores.get(measure.id) for seed in sorted(self.done, key=_natural)}
        return {seed: value for seed, value in found.items() if value is not None}

    def mean(self, measure: Measure) -> float | None:
        """Return the mean over seeds; None without any value."""
        values = list(self.scores(measure).values())
        return statistics.fmean(values) if values else None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Its tasks."""
        return next((done.run.tasks for done in self.done.values() if done.run is not None), ())


@dataclass(frozen=True)
class Comparison:
    """One cell of the table of differences.

    Args:
        label: The variant.
        measure: The score.
        gap: Its difference from the baseline.
        p: The p-value corrected for all comparisons of the table; None where the test is not defined.
    """

    label: str
    measure: Measure
    gap: Paired
    p: float | None

    @property
    def verdict(self) -> str:
        """The judgement: better, worse, within noise, or why nothing can be said (one seed, equal, undefined)."""
        if self.gap.n < 2:
            return "one seed"
        if self.p is None:
            return "equal" if self.gap.mean == 0 else "undefined"
        if self.p >= ALPHA:
            return "within noise"
        return "better" if (self.gap.mean > 0) == self.measure.name.higher_is_better else "worse"


def find_measures(cells: Sequence[Done], protocol: str, metric: str, higher_is_better: bool) -> list[Measure]:
    """Return the columns: headlines of the tasks, consistency, or the sweep's own metric where there are neither.

    Args:
        cells: The finished cells.
        protocol: "pooled" or "per_image".
        metric: The sweep's metric by its ``stage/task/metric`` name.
        higher_is_better: Its direction.
    """
    found: dict[str, Measure] = {}
    for cell in cells:
        for task, headline in (cell.run.headlines if cell.run else {}).items():
            base = headline.keys["pooled"]
            name = metric_name(task, base, headline.higher_is_better)
            if name is not None:
                place = f"{task}/{metric_key(task, base, protocol)}"
                found.setdefault(place, Measure(place, task, name, True))
    measures = sorted(found.values(), key=lambda measure: task_order(measure.task))
    for key, name in CONSISTENCY_NAMES.items():
        place = f"{CONSISTENCY}/{key}{SUFFIXES[protocol]}"
        if any(cell.scores.get(place) is not None for cell in cells):
            measures.append(Measure(place, CONSISTENCY, name, False))
    if not measures:
        label = metric.removeprefix(f"{STAGE}/")
        measures.append(Measure(label, "", MetricName(label, higher_is_better), False))
    return measures


def compare_all(variants: Sequence[Variant], baseline: Variant, measures: Sequence[Measure]) -> list[Comparison]:
    """Compare every variant with the baseline, seed by seed; p-values are corrected over the whole table (Holm)."""
    gaps: list[tuple[str, Measure, Paired]] = []
    for variant in variants:
        if variant is baseline:
            continue
        for measure in measures:
            ours, theirs = variant.scores(measure), baseline.scores(measure)
            both = [seed for seed in ours if seed in theirs]
            if both:
                gap = paired([ours[seed] for seed in both], [theirs[seed] for seed in both])
                gaps.append((variant.label, measure, gap))
    corrected = holm([gap.p for *_, gap in gaps])
    return [Comparison(label, measure, gap, p) for (label, measure, gap), p in zip(gaps, corrected, strict=True)]


@dataclass(frozen=True)
class Reference:
    """What Δm is counted over.

    Args:
        name: In words: "the baseline", "the single-task cells of this sweep", …
        means: Mean of each headline by its place.
    """

    name: str
    means: dict[str, float]


def delta_over(variant: Variant, reference: Reference, measures: Sequence[Measure]) -> float:
    """Return Δm in percent of a variant's means over a reference, one headline per task.

    Raises:
        ConfigError: A value is missing, or the reference is not above 0.
    """
    own = [measure for measure in measures if measure.headline and measure.task in variant.tasks]
    ours = {measure.task: {measure.id: variant.mean(measure)} for measure in own}
    theirs = {measure.task: {measure.id: reference.means.get(measure.id)} for measure in own}
    directions = {measure.task: {measure.id: measure.name.higher_is_better} for measure in own}
    return delta_m(ours, theirs, directions, (f"'{variant.label}'", reference.name)).percent


def deltas(
    variants: Sequence[Variant], references: Mapping[str, Reference], measures: Sequence[Measure]
) -> tuple[dict[str, float], list[str]]:
    """Return Δm of every variant that has a reference, by label, and why others have none."""
    found, notes = {}, []
    for variant in variants:
        if variant.done and variant.label in references:
            try:
                found[variant.label] = delta_over(variant, references[variant.label], measures)
            except ConfigError as error:
                notes.append(str(error))
    return found, notes


def means_of(variant: Variant, measures: Sequence[Measure]) -> dict[str, float]:
    """Return the means of a variant's headlines."""
    found = {measure.id: variant.mean(measure) for measure in measures if measure.headline}
    return {place: mean for place, mean in found.items() if mean is not None}


def spread(variant: Variant, measure: Measure) -> tuple[float, float, int] | None:
    """Return mean, half width of the interval and number of seeds of a score; None without any value."""
    values = list(variant.scores(measure).values())
    return (*interval(values), len(values)) if values else None


def _natural(seed: str) -> tuple[int, str]:
    return (len(seed), seed)


def raw_unit(place: str) -> str:
    """Return the unit of a score as it is stored: percent are shares there; empty where it has none.

    Example:
        >>> raw_unit("semseg/miou"), raw_unit("depth/rmse_m_per_image"), raw_unit("loss")
        ('share', 'm', '')
    """
    task, _, key = place.partition("/")
    base = key.removesuffix(SUFFIXES["per_image"])
    name = CONSISTENCY_NAMES.get(base) if task == CONSISTENCY else metric_name(task, base)
    return "" if name is None else "share" if name.unit == "%" else name.unit


def flat_scores(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Return every number of a result's test by its place, ``task/metric``; not the scores of single classes."""
    found: dict[str, float | None] = {}
    for key, value in ((result.get("metrics") or {}).get(STAGE) or {}).items():
        for name, number in value.items() if isinstance(value, Mapping) else ((None, value),):
            if number is None or (isinstance(number, int | float) and not isinstance(number, bool)):
                found[key if name is None else f"{key}/{name}"] = None if number is None else float(number)
    return found
