"""Picture of a sweep: accuracy against latency, and the front that no variant beats in both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m2h_lightning.report.ablation import Measure, Variant, spread
from m2h_lightning.report.plots import COLOURS, figure_of, limit, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def pareto(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[int]:
    """Return the indices of points that no other one beats in both: lower latency and a better score.

    Args:
        points: Latency and score.
        higher_is_better: Direction of the score.

    Example:
        >>> pareto([(1.0, 0.5), (2.0, 0.4), (3.0, 0.9)], True)
        [0, 2]
    """
    sign = 1.0 if higher_is_better else -1.0
    return [
        index
        for index, (x, y) in enumerate(points)
        if not any(a <= x and sign * b >= sign * y and (a < x or sign * b > sign * y) for a, b in points)
    ]


def plot_pareto(
    path: Path,
    variants: Sequence[Variant],
    latency: Mapping[str, float],
    measures: Sequence[Measure],
    delta: Mapping[str, float],
    baseline: Variant | None = None,
) -> None:
    """Draw each headline, and Δm, against latency; the variants are numbered, the legend names them.

    Args:
        path: The PNG.
        variants: Those with a latency.
        latency: Median of one image in milliseconds, by label.
        measures: One panel each.
        delta: Δm in percent by label; empty draws no panel.
        baseline: Told in the legend.
    """
    titles = [measure.heading for measure in measures] + (["Δm ↑ (%)"] if delta else [])
    figure, panels = figure_of(len(titles), 2.7)
    for panel, title, measure in zip(panels, titles, [*measures, None][: len(titles)], strict=True):
        points = []
        for number, variant in enumerate(variants, 1):
            value = delta.get(variant.label) if measure is None else variant.mean(measure)
            if value is not None:
                points.append((number, latency[variant.label], value * (measure.name.scale if measure else 1.0)))
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("latency p50, 1 image (ms)", fontsize=9)
        panel.margins(0.15)
        if not points:
            continue
        front = pareto([(x, y) for _, x, y in points], measure is None or measure.name.higher_is_better)
        best = sorted((points[index][1], points[index][2]) for index in front)
        panel.plot(*zip(*best, strict=True), color=COLOURS[1], linewidth=1.2, zorder=1)
        if measure is not None:
            _intervals(panel, variants, latency, measure)
        for index, (_, x, y) in enumerate(points):
            colour = COLOURS[1] if index in front else COLOURS[0]
            panel.scatter([x], [y], s=26, color=colour, marker="D" if index in front else "o", zorder=2)
    names = "\n".join(
        _wrapped(
            [
                f"{number} {variant.label}{' (baseline)' if variant is baseline else ''}"
                for number, variant in enumerate(variants, 1)
            ]
        )
    )
    key = "orange diamonds: the front, whose means no other variant beats in both; grey: 95 % interval over seeds"
    figure.supxlabel(f"{names}\n{key}", fontsize=8)
    figure.draw_without_rendering()
    for panel, measure in zip(panels, [*measures, None][: len(titles)], strict=True):
        values = [delta.get(v.label) if measure is None else v.mean(measure) for v in variants]
        scale = measure.name.scale if measure else 1.0
        _number(
            panel,
            [
                (n, latency[v.label], y * scale)
                for n, (v, y) in enumerate(zip(variants, values, strict=True), 1)
                if y is not None
            ],
        )
    save(figure, path)


def _intervals(panel: Axes, variants: Sequence[Variant], latency: Mapping[str, float], measure: Measure) -> None:
    """Draw the 95 % intervals of a score over seeds behind its points."""
    for variant in variants:
        found = spread(variant, measure)
        if found is not None and not math.isnan(found[1]):
            mean, half = found[0] * measure.name.scale, found[1] * measure.name.scale
            panel.errorbar([latency[variant.label]], [mean], yerr=[half], color="#bbbbbb", elinewidth=0.9, zorder=0)
    limit(panel, variants, measure, panel.set_ylim)


def _wrapped(names: Sequence[str], width: int = 140) -> list[str]:
    """Put names into lines of at most ``width`` characters."""
    lines: list[str] = []
    for name in names:
        if lines and len(lines[-1]) + len(name) + 4 <= width:
            lines[-1] += f"    {name}"
        else:
            lines.append(name)
    return lines


def _number(panel: Axes, points: Sequence[tuple[int, float, float]]) -> None:
    """Write the numbers beside their points, each where no point and no other number is."""
    taken = [tuple(panel.transData.transform((x, y))) for _, x, y in points]
    for number, x, y in points:
        px, py = panel.transData.transform((x, y))
        ring = [
            (r * math.cos(a), r * math.sin(a)) for r in (13, 21, 30, 40) for a in (0.8, 2.3, 3.9, 5.5, 0, 3.14, 1.57)
        ]
        room = [max(0.0, 11 - min(math.dist((px + dx, py + dy), other) for other in taken)) for dx, dy in ring]
        dx, dy = ring[min(range(len(ring)), key=lambda index: (room[index], index))]
        taken.append((px + dx, py + dy))
        at = panel.transData.inverted().transform((px + dx, py + dy))
        panel.text(at[0], at[1], str(number), fontsize=8, ha="center", va="center", zorder=3)
