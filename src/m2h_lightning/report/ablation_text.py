"""The tables of a sweep in Markdown, and in words which differences stand. Names come from files and are escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from m2h_lightning.report.ablation import Comparison, Measure, Variant, spread
from m2h_lightning.report.model import NONE
from m2h_lightning.report.render import markdown_text
from m2h_lightning.report.statistics import ALPHA


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    """Return the lines of a Markdown table; the first ``words`` columns hold words, the others numbers.

    Args:
        head: Headings; escaped already, as the cells are.
        rows: Cells.
        words: Number of columns set to the left.
    """
    widths = [max(len(row[index]) for row in (head, *rows)) for index in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i < words else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if index < words else f"{'-' * (width - 1)}:" for index, width in enumerate(widths)]
    return [line(head), line(rule), *map(line, rows)]


def score_table(
    variants: Sequence[Variant], baseline: Variant | None, measures: Sequence[Measure], delta: Mapping[str, float]
) -> list[str]:
    """Return the table of means with 95 % intervals over seeds, one row per variant."""
    head = ["variant", "seeds", *(markdown_text(measure.heading) for measure in measures)]
    head += ["Δm ↑ (%)"] if delta else []
    rows = []
    for variant in variants:
        name = markdown_text(variant.label) + (" (baseline)" if variant is baseline else "")
        short = len(variant.done) < len(variant.planned)
        row = [name, f"{len(variant.done)} of {len(variant.planned)}" if short else str(len(variant.done))]
        row += [_mean(variant, measure) for measure in measures]
        if delta:
            row.append(signed(delta[variant.label]) if variant.label in delta else NONE)
        rows.append(row)
    return grid(head, rows)


def _mean(variant: Variant, measure: Measure) -> str:
    found = spread(variant, measure)
    if found is None:
        return NONE
    mean, half, count = found
    text = measure.text(mean) + ("" if math.isnan(half) else f" ± {measure.text(half)}")
    return text if count == len(variant.done) else f"{text} (n = {count})"


def signed(value: float, digits: int = 2) -> str:
    """Return a number with its sign; none before a zero."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("+-")


def difference_table(comparisons: Sequence[Comparison], measures: Sequence[Measure]) -> list[str]:
    """Return the table of paired differences from the baseline, with intervals, corrected p-values and verdicts."""
    by_label: dict[str, dict[str, Comparison]] = {}
    for comparison in comparisons:
        by_label.setdefault(comparison.label, {})[comparison.measure.id] = comparison
    head = ["variant − baseline", *(markdown_text(measure.heading) for measure in measures)]
    rows = [
        [markdown_text(label), *(_difference(own.get(measure.id)) for measure in measures)]
        for label, own in by_label.items()
    ]
    return grid(head, rows)


def _difference(comparison: Comparison | None) -> str:
    if comparison is None:
        return NONE
    text = comparison.measure.text(comparison.gap.mean, sign=True)
    if comparison.gap.n < 2:
        return text
    if comparison.p is None:
        return f"{text} ± 0, p undefined"
    text += f" ± {comparison.measure.text(comparison.gap.half)}, p {p_text(comparison.p)}"
    return text if comparison.verdict == "within noise" else f"**{text}: {comparison.verdict}**"


def p_text(p: float) -> str:
    """Return a p-value as printed: two digits that count; ``< 0.001`` below."""
    if p < 0.001:
        return "< 0.001"
    return "1" if p > 0.995 else f"{p:.2g}" if p < 0.01 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def conclusions(comparisons: Sequence[Comparison]) -> list[str]:
    """Say in words which differences stand, and which are within noise."""
    tested = [comparison for comparison in comparisons if comparison.p is not None]
    lines = []
    if tested:
        stand = [c for c in tested if c.verdict in ("better", "worse")]
        lines.append(
            f"p-values are of two-sided paired t-tests over seeds, corrected by Holm for the m = {len(tested)} "
            f"{'comparison' if len(tested) == 1 else 'comparisons'} of this table (variants × columns). A difference "
            f"is called better or worse only where the corrected p is below {ALPHA:g}; all others are within noise."
        )
        if stand:
            verb = "stands" if len(stand) == 1 else "stand"
            lines += [f"**{len(stand)} of {len(tested)} differences {verb}:**", *map(_stands, stand)]
        else:
            lines.append(f"**None of the {len(tested)} differences stands: all are within noise.**")
        noise: dict[str, list[str]] = {}
        for comparison in tested:
            if comparison.verdict == "within noise":
                noise.setdefault(comparison.label, []).append(comparison.measure.title)
        if noise and stand:
            lines += [
                "Within noise:",
                *(f"- {markdown_text(k)}: {markdown_text(', '.join(v))}" for k, v in noise.items()),
            ]
        pairs = min(comparison.gap.n for comparison in tested)
        if pairs < 5:
            lines.append(
                f"With {pairs} seeds a paired test sees only differences that are large beside the spread between "
                "seeds: within noise means not shown, not that there is no difference."
            )
    equal = [c for c in comparisons if c.gap.n > 1 and c.p is None]
    for comparison in equal:
        what = "is 0" if comparison.verdict == "equal" else "is the same"
        lines.append(
            f"- {markdown_text(comparison.label)}, {markdown_text(comparison.measure.title)}: the difference {what} "
            "for every seed; without any spread the test has no p-value"
        )
    single = [c for c in comparisons if c.gap.n < 2]
    if single and len(single) == len(comparisons):
        lines.append("There is one seed: no interval and no test, and no difference here can be told from noise.")
    elif single:
        names = ", ".join(dict.fromkeys(markdown_text(c.label) for c in single))
        lines.append(f"One seed in common with the baseline, so no interval and no test: {names}.")
    return lines


def _stands(comparison: Comparison) -> str:
    measure, gap = comparison.measure, comparison.gap
    unit = "percentage points" if measure.name.unit == "%" else measure.name.unit
    size = f"{measure.text(abs(gap.mean))} ± {measure.text(gap.half)}{f' {unit}' if unit else ''}"
    return (
        f"- {markdown_text(comparison.label)}: {markdown_text(measure.title)} {comparison.verdict} by {size} "
        f"(p {p_text(comparison.p or 0.0)})"
    )


def cost_table(
    variants: Sequence[Variant], cost: Mapping[str, Mapping[str, Any]], memory: Mapping[str, Any]
) -> list[str]:
    """Return the table of what the variants' networks cost.

    Args:
        variants: The rows.
        cost: What was measured, by label; empty leaves its columns out.
        memory: Kind ("GPU", "host") and mean of the peak memory of training in MB, by label.
    """
    kinds = sorted({kind for kind, _ in memory.values()})
    head = ["variant"]
    if cost:
        batch = next(iter(cost.values()))["batch"]
        tail = all(own["latency_p95_ms"] is not None for own in cost.values())
        head += ["parameters (M)", "GMACs", "latency p50 (ms)", *(["p95 (ms)"] if tail else [])]
        head += [f"images/s, batch {batch}"]
    head += [f"peak memory of training, {kind} (MB)" for kind in kinds]
    rows = []
    for variant in variants:
        row = [markdown_text(variant.label)]
        if cost:
            own = cost.get(variant.label)
            columns = ["latency_p50_ms", *(["latency_p95_ms"] if tail else []), "images_per_s"]
            texts = [] if own is None else [f"{own['parameters'] / 1e6:.2f}", f"{own['gmacs']:.3g}"]
            texts += [] if own is None else [f"{own[column]:.1f}" for column in columns]
            row += texts or [NONE] * (2 + len(columns))
        mine = memory.get(variant.label)
        row += [f"{mine[1]:.0f}" if mine is not None and mine[0] == kind else NONE for kind in kinds]
        rows.append(row)
    return grid(head, rows) if len(head) > 1 else []
