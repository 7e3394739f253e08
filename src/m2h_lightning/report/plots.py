"""Pictures of a sweep: scores over what was swept, the course of a search, the importances of its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2h_lightning.errors import MissingExtraError
from m2h_lightning.files import atomic
from m2h_lightning.report.ablation import Measure, Variant, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which people who see few colours can tell apart; markers differ too."""

MARKERS = "osD^vPX"
_WIDTH, _DPI = 9.0, 110


def need_matplotlib() -> None:
    """Check that pictures can be made.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "pictures in a report (--no-plots leaves them out)") from error


def figure_of(panels: int, height: float = 2.7, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """Return a figure of that many panels; made without pyplot, which would look for a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 if panels in (2, 4) else min(panels, columns)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(_WIDTH, height * rows + 0.5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]
    for axis in axes:
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


@dataclass(frozen=True)
class Axis:
    """Along what scores are drawn.

    Args:
        key: A number that was swept, by its dotted key; None draws variants side by side.
        label: What stands below.
        log: Whether it is drawn on a logarithmic scale.
    """

    key: str | None
    label: str
    log: bool = False


def choose_axis(variants: Sequence[Variant], swept: Sequence[str]) -> Axis:
    """Draw over the swept number with the most values; variants side by side where there is none."""

    def numbers(key: str) -> set[float]:
        values = [variant.values.get(key) for variant in variants]
        plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        return {float(value) for value in values if value is not None} if plain else set()

    best = max(swept, key=lambda key: len(numbers(key)), default=None)
    if best is None or len(numbers(best)) < 3:
        return Axis(None, "")
    values = numbers(best)
    return Axis(best, best.removeprefix("model."), min(values) > 0 and max(values) / min(values) >= 50)


def plot_scores(
    path: Path, variants: Sequence[Variant], baseline: Variant | None, measures: Sequence[Measure], swept: Sequence[str]
) -> None:
    """Draw each score over what was swept: means with 95 % intervals, and a dot for every seed.

    Args:
        path: The PNG.
        variants: Those with a finished cell.
        baseline: Drawn with a dashed line.
        measures: One panel each.
        swept: Keys that differ between variants.
    """
    axis = choose_axis(variants, swept)
    long = axis.key is None
    tall = 0.2 * len(variants) + 1.3 if long else 2.7
    figure, panels = figure_of(len(measures), tall)
    lines = _lines(variants, swept, axis)
    for number, (panel, measure) in enumerate(zip(panels, measures, strict=True)):
        if baseline is not None and (middle := baseline.mean(measure)) is not None:
            draw = panel.axvline if long else panel.axhline
            draw(middle * measure.name.scale, color="#777777", linestyle="--", linewidth=1, zorder=1)
        for index, (label, members) in enumerate(lines.items()):
            _draw_line(panel, members, measure, axis, index, index - (len(lines) - 1) / 2, label)
        limit(panel, variants, measure, panel.set_xlim if long else panel.set_ylim)
        if long:
            panel.set_xlabel(measure.heading, fontsize=9)
            panel.set_yticks(range(len(variants)))
            first = number % (2 if len(measures) in (2, 4) else min(3, len(measures))) == 0
            panel.set_yticklabels([variant.label for variant in variants] if first else [])
            panel.set_ylim(len(variants) - 0.5, -0.5)
            panel.grid(False, axis="y")
        else:
            panel.set_title(measure.heading, fontsize=9)
            panel.set_xlabel(axis.label, fontsize=9)
            values = sorted({float(v.values[axis.key]) for v in variants}) if axis.key else []
            margin = 0.05 + 0.03 * len(lines)
            if axis.log:
                panel.set_xscale("log")
                factor = (values[-1] / values[0]) ** margin
                panel.set_xlim(values[0] / factor, values[-1] * factor)
            else:
                room = margin * (values[-1] - values[0])
                panel.set_xlim(values[0] - room, values[-1] + room)
                if len(values) <= 8:
                    panel.set_xticks(values, [f"{value:.4g}" for value in values])
    if len(lines) > 1:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(lines)), fontsize=8, frameon=False)
    save(figure, path)


def _lines(variants: Sequence[Variant], swept: Sequence[str], axis: Axis) -> dict[str, list[Variant]]:
    """Sort variants into lines: those that differ in the number below alone."""
    if axis.key is None:
        return {"": list(variants)}
    found: dict[str, list[Variant]] = {}
    for variant in variants:
        values = {key: variant.values.get(key) for key in swept if key != axis.key}
        others = [
            f"{key.removeprefix('model.')} {f'{value:.4g}' if isinstance(value, float) else value}"
            for key, value in values.items()
        ]
        found.setdefault(", ".join(others), []).append(variant)
    return {name: sorted(members, key=lambda v: float(v.values[axis.key or ""])) for name, members in found.items()}


def _draw_line(
    panel: Axes, members: Sequence[Variant], measure: Measure, axis: Axis, index: int, aside: float, label: str
) -> None:
    """Draw one line, or the points of all variants; seeds are small dots beside.

    Args:
        panel: Where.
        members: The variants of the line, in order.
        measure: The score.
        axis: What it is drawn over.
        index: Number of the line, for its colour.
        aside: How many steps to the right, so that lines do not hide each other.
        label: Its name in the legend.
    """
    from matplotlib.transforms import offset_copy

    figure = panel.get_figure(root=True)
    scale, colour = measure.name.scale, COLOURS[index % len(COLOURS)]
    long, points, dots = axis.key is None, [], []
    for place, variant in enumerate(members):
        found = spread(variant, measure)
        if found is None:
            continue
        at = float(place) if axis.key is None else float(variant.values[axis.key])
        points.append((at, found[0] * scale, 0.0 if math.isnan(found[1]) else found[1] * scale))
        dots += [(at, value * scale) for value in variant.scores(measure).values()]
    if not points:
        return

    def beside(steps: float) -> Any:
        sideways = {"y": -steps} if long else {"x": steps}
        return offset_copy(panel.transData, figure, **sideways, units="points")

    pairs = [(value, at) if long else (at, value) for at, value in dots]
    xs, ys = (list(column) for column in zip(*pairs, strict=True))
    look: dict[str, Any] = {"s": 11, "color": colour, "alpha": 0.5, "linewidths": 0, "zorder": 2}
    panel.scatter(xs, ys, transform=beside(8 * aside + (8 if long else 4)), **look)
    places, means, halves = (list(column) for column in zip(*points, strict=True))
    style: dict[str, Any] = {
        "color": colour,
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 5,
        "capsize": 2.5,
        "linewidth": 1.3,
        "elinewidth": 0.9,
        "transform": beside(8 * aside),
    }
    if long:
        panel.errorbar(means, places, xerr=halves, linestyle="none", label=label, **style)
    else:
        panel.errorbar(places, means, yerr=halves, label=label, **style)


def limit(
    panel: Axes, variants: Sequence[Variant], measure: Measure, set_limits: Callable[[float, float], Any]
) -> None:
    """End the axis of scores not far from the seeds: intervals of two seeds would press all else into a line."""
    values = [value * measure.name.scale for variant in variants for value in variant.scores(measure).values()]
    ends = list(values)
    for variant in variants:
        if (found := spread(variant, measure)) is not None and not math.isnan(found[1]):
            ends += [(found[0] + sign * found[1]) * measure.name.scale for sign in (-1, 1)]
    if not values or max(ends) == min(ends):
        return
    room = max(values) - min(values)
    low, high = max(min(ends), min(values) - room), min(max(ends), max(values) + room)
    margin = 0.05 * (high - low)
    set_limits(low - margin, high + margin)


def plot_history(
    path: Path,
    values: Sequence[tuple[int, float]],
    given_up: Sequence[tuple[int, float]],
    metric: str,
    higher_is_better: bool,
) -> None:
    """Draw the score of every run of a search in its order, and the best so far.

    Args:
        path: The PNG.
        values: Number of each finished run, and its score.
        given_up: Number of each run that was given up, and its last score; they do not count as the best so far.
        metric: Name of the score.
        higher_is_better: Its direction.
    """
    figure, (panel,) = figure_of(1, 2.9)
    ordered = sorted(values)
    best, so_far = [], None
    for _, value in ordered:
        so_far = value if so_far is None else (max if higher_is_better else min)(so_far, value)
        best.append(so_far)
    panel.scatter(
        [n for n, _ in ordered], [v for _, v in ordered], s=18, color=COLOURS[0], label="finished run", zorder=2
    )
    panel.step([n for n, _ in ordered], best, where="post", color=COLOURS[1], label="best so far")
    if given_up:
        numbers, scores = (list(column) for column in zip(*given_up, strict=True))
        panel.scatter(numbers, scores, s=18, color="#777777", marker="x", label="given up", zorder=2)
    panel.set_xlabel("number of the run", fontsize=9)
    panel.set_ylabel(f"{metric} {'↑' if higher_is_better else '↓'}", fontsize=9)
    panel.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    panel.legend(fontsize=8, frameon=False)
    save(figure, path)


def plot_importance(path: Path, importance: Mapping[str, float]) -> None:
    """Draw how much of the scores' spread each parameter explains, as shares between 0 and 1."""
    figure, (panel,) = figure_of(1, 0.32 * len(importance) + 1.0)
    names = sorted(importance, key=lambda name: importance[name])
    panel.barh(range(len(names)), [importance[name] for name in names], color=COLOURS[0])
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set_xlabel("importance (share of the whole)", fontsize=9)
    panel.set_xlim(0, 1)
    save(figure, path)
