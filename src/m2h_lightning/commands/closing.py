"""What a run says last: its headline metrics, task by task under every protocol, and where to look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m2h_lightning.runs import folder as runs

_KINDS = {"depth_normals{}_deg": ("", "_target"), "edges{}_f": ("_semseg", "_semseg_target")}
"""How the names of consistency scores, and of the same score of the labels, are filled in."""


def print_headlines(
    headlines: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, float], stage: str, title: str, ours: str = "M2H"
) -> None:
    """Print a table of the headline metrics, a row per task and protocol, and a line per group of structural scores.

    Where the trivial baseline was scored, it stands beside each metric.

    Args:
        headlines: Key per protocol and ``higher_is_better``, by task (``Evaluator.headlines``).
        metrics: Metrics by their ``stage/task/metric`` name.
        stage: "test" or "val".
        title: Title of the table.
        ours: Whose metrics these are.
    """
    from rich.console import Console
    from rich.table import Table

    with_trivial = any("/trivial_" in key for key in metrics)
    numbers = (ours, "trivial", f"{ours} / trivial") if with_trivial else (ours,)
    table = Table(title=title, title_justify="left")
    for column in ("task", "protocol", "metric", *numbers, "better is"):
        table.add_column(column, justify="right" if column in numbers else "left")
    for task, line in headlines.items():
        better = "higher" if line["higher_is_better"] else "lower"
        name = task
        for protocol, key in line.items():
            value, trivial = (metrics.get(f"{stage}/{task}/{prefix}{key}") for prefix in ("", "trivial_"))
            if protocol == "higher_is_better" or value is None:
                continue
            cells = [f"{value:.4f}"]
            if with_trivial:
                cells += ["–" if trivial is None else f"{trivial:.4f}", f"{value / trivial:.2f}×" if trivial else "–"]
            table.add_row(name, protocol.replace("_", " "), line["pooled"], *cells, better)
            name = ""
    Console().print(table)
    if with_trivial:
        print(
            "trivial: most frequent class, mean depth, mean normal of the training set; gradient of the image (edges)"
        )
    for text in _structure({k.removeprefix(f"{stage}/"): v for k, v in metrics.items()}, list(headlines)):
        print(text)


def _structure(metrics: Mapping[str, float], tasks: list[str]) -> Iterator[str]:
    """Yield a line per group of scores that are of no single task."""
    exact, fast = metrics.get("edges/odsf"), metrics.get("edges/odsf_fast")
    if exact is not None and fast is not None:
        yield f"edges: odsF {exact:.4f}; the fast mode, as in validation, gives {fast:.4f} ({fast - exact:+.4f})"
    parts = []
    for key, text in (
        ("depth_normals{}_deg", "{:.2f}° between normals of depth and predicted normals (labels: {:.2f}°)"),
        ("edges{}_f", "F {:.3f} between edges and class borders (labels: {:.3f})"),
    ):
        found = [metrics.get(f"consistency/{key.format(kind)}") for kind in _KINDS[key]]
        if None not in found:
            parts.append(text.format(*found))
    if parts:
        yield f"consistency: {'; '.join(parts)}"
    seams = []
    for task in tasks:
        at, control = metrics.get(f"seams/{task}_error"), metrics.get(f"seams/{task}_error_control")
        if at is not None:
            seams.append(f"{task} {at:+.1%} ({'–' if control is None else f'{control:+.1%}'})")
    if seams:
        yield f"window seams: error at borders against inside (control): {', '.join(seams)}"
    if "temporal/pairs" in metrics:
        parts = [f"{int(metrics['temporal/pairs'])} pairs of frames"]
        for key, text in (("depth_flicker", "depth flickers by {:.2%}"), ("label_flip_rate", "{:.2%} of labels flip")):
            if f"temporal/{key}" in metrics:
                parts.append(text.format(metrics[f"temporal/{key}"]))
        yield f"temporal: {', '.join(parts)}"


def print_closing(module: Any, metrics: dict[str, float], folder: Path) -> None:
    """Print the table of the headline metrics and the paths worth opening.

    The test metrics where the run has them, else those of validation.

    Args:
        module: The trained module.
        metrics: Final metrics by their ``stage/task/metric`` name.
        folder: The run folder.
    """
    stage = next((s for s in ("test", "val") if f"{s}/loss" in metrics), None)
    if stage is not None:
        heading = module.metrics_config.protocol.replace("_", " ")
        title = (
            f"{stage} metrics on '{module.facts['name']}', {int(metrics[f'{stage}/images'])} images; heading: {heading}"
        )
        print_headlines(module.evaluator(stage).headlines, metrics, stage, title)
    print(f"result:  {folder / runs.RESULT}")
    pictures = sorted((folder / runs.PICTURES).glob(f"{stage}-*.png"))
    if pictures:
        # Validation pictures sort by epoch: the last epoch's first image.
        last = [path for path in pictures if path.stem.rsplit("-", 1)[0] == pictures[-1].stem.rsplit("-", 1)[0]]
        print(f"picture: {last[0]}")
    if (folder / runs.PREDICTIONS).is_dir():
        print(f"predictions: {folder / runs.PREDICTIONS}")
