"""Show what verification found: a table for people, plain values for programs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2h_lightning.data.sources.base import Source
from m2h_lightning.data.verify.axes_search import AxesTally, AxesVerdict
from m2h_lightning.data.verify.maps import MAPS
from m2h_lightning.data.verify.one_sample import Totals
from m2h_lightning.data.verify.problems import Finding
from m2h_lightning.errors import DataError
from m2h_lightning.files import atomic

WIDTH = 100


@dataclass(frozen=True)
class Report:
    """Everything that is known at the end.

    Args:
        source: The set.
        counts: Samples of each split that was listed.
        looked_at: Number of samples that were to be read.
        totals: Sums over the samples that could be read.
        verdict: Of the axis search; None when there was nothing to compare.
        axes: Convention with which the stored normals were loaded.
        findings: The worst first.
    """

    source: Source
    counts: dict[str, int]
    looked_at: int
    totals: Totals
    verdict: AxesVerdict | None
    axes: str
    findings: list[Finding]

    @property
    def problems(self) -> list[Finding]:
        """Findings that make the command fail."""
        return [finding for finding in self.findings if finding.severity == "problem"]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values; numbers that are not known are None."""
        source, totals = self.source, self.totals
        labels = int(totals.labels[: len(source.classes)].sum())
        return _plain(
            {
                "set": source.name,
                "path": str(source.path),
                "packaging": source.packaging,
                "provenance": source.provenance,
                "edge_rule": source.edges,
                "healthy": not self.problems,
                "counts": self.counts,
                "official_counts": source.official,
                "samples_looked_at": self.looked_at,
                "samples_read": totals.read,
                "sizes": dict(sorted(totals.sizes.items())),
                "maps": {key: totals.maps[key].as_dict() for key in MAPS if key in totals.maps},
                "class_shares": {
                    name: int(totals.labels[index]) / labels for index, name in enumerate(source.classes) if labels
                },
                "depth": totals.depth.as_dict() if "depth" in totals.maps else None,
                "normals": self._normals(totals.axes),
                "edges": totals.edges.as_dict() if "edges" in totals.maps else None,
                "findings": [finding.as_dict() for finding in self.findings],
            }
        )

    def _normals(self, axes: AxesTally) -> dict[str, Any]:
        return {
            "axes_in_use": self.axes,
            "search": self.verdict.as_dict() if self.verdict else None,
            "samples_compared": axes.samples,
            "blocks_compared": axes.count,
            "facing_away": axes.away / axes.seen if axes.seen else None,
        }


def _plain(value: Any) -> Any:
    """Make numbers JSON can hold of all numbers."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def write_json(report: Report, path: Path) -> None:
    """Write the report as JSON, whole or not at all; its folder is made.

    Raises:
        DataError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(report.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}): choose another place") from error


def print_report(report: Report) -> None:
    """Print the tables and the findings on standard output; no colours unless it is a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal or console.width > WIDTH:
        console.width = WIDTH
    source, totals = report.source, report.totals
    console.print(f"{source.name}: {source.packaging}", soft_wrap=True)
    console.print(f"  {source.path}", soft_wrap=True)
    for line in _head(report):
        console.print(f"  {line}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("map", "samples", "stored as", "min", "max", "mean", "unknown"):
        table.add_column(column, justify="left" if column in ("map", "stored as") else "right")
    for key in MAPS:
        if key in totals.maps:
            tally = totals.maps[key]
            table.add_row(
                key,
                str(tally.samples),
                ", ".join(sorted(tally.dtypes)),
                *(_number(value) for value in (tally.low, tally.high, tally.mean)),
                f"{tally.unknown_share:.1%}",
            )
    if totals.maps:
        console.print(table)
    for line in _details(report):
        console.print(f"  {line}")
    for severity, title in (("problem", "problems"), ("warning", "warnings"), ("note", "notes")):
        chosen = [finding for finding in report.findings if finding.severity == severity]
        if chosen:
            console.print(f"\n{title} ({len(chosen)})", style="bold red" if severity == "problem" else "bold")
        for finding in chosen:
            console.print(f"  - {finding.line}", soft_wrap=True)  # one line each: to be searched and cut
    if not report.problems:
        console.print("\nhealthy: no problem found", style="bold green")


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _head(report: Report) -> list[str]:
    source, totals = report.source, report.totals
    counts = []
    for split, count in report.counts.items():
        official = source.official.get(split)
        counts.append(f"{split} {count}" + (f" of {official}" if official is not None else ""))
    sizes = [f"{size} ({count})" for size, count in totals.sizes.most_common(6)]
    more = f", {len(totals.sizes) - 6} more sizes" if len(totals.sizes) > 6 else ""
    return [
        f"samples: {', '.join(counts) or 'none'}; looked at {report.looked_at}, readable {totals.read}",
        f"sizes: {', '.join(sizes) or '-'}{more}",
    ]


def _details(report: Report) -> list[str]:
    source, totals = report.source, report.totals
    lines = []
    if totals.labels[: len(source.classes)].any():
        shares = totals.labels[: len(source.classes)] / totals.labels[: len(source.classes)].sum()
        order = sorted(range(len(shares)), key=lambda index: (-shares[index], index))
        top = ", ".join(f"{source.classes[index]} {shares[index]:.1%}" for index in order[:4])
        lines.append(f"labels: {int((shares > 0).sum())} of {len(shares)} classes; {top}")
    if totals.depth.counts.any():
        depth = totals.depth
        parts = ", ".join(f"{percent} % {depth.percentile(percent):.3g}" for percent in (1, 5, 25, 50, 75, 95, 99))
        lines.append(f"depth: percentiles {parts}")
    if (verdict := report.verdict) is not None:
        lines.append(
            f"normals and depth: mean angle {verdict.identity_mean:.1f}° with axes '{report.axes}' "
            f"({totals.axes.count} places in {totals.axes.samples} samples)"
        )
        lines.append(
            f"  as loaded, best axes {verdict.convention} {verdict.mean:.1f}°, next {verdict.runner_up} "
            f"{verdict.runner_up_mean:.1f}°; depth fits best as {verdict.idea}"
        )
    if totals.axes.seen:
        lines.append(f"facing: {totals.axes.away / totals.axes.seen:.2%} of the normals face away from the camera")
    if "edges" in totals.maps:
        edges = totals.edges
        agreement = f", {edges.agreement:.0%} near a change ({edges.chance:.0%} by chance)" if edges.compared_on else ""
        lines.append(f"edges: {report.source.edges}; {edges.density:.2%} of the pixels{agreement}")
    return lines
