"""What a run says last: its headline metrics, task by task under every protocol, and where to look."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2h_lightning.runs import folder as runs


def print_headlines(
    headlines: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, float], stage: str, title: str, ours: str = "M2H"
) -> None:
    """Print a table of the headline metrics: a row per task, a group of columns per protocol.

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

    protocols = list(dict.fromkeys(p for line in headlines.values() for p in line if p != "higher_is_better"))
    with_trivial = any("/trivial_" in key for key in metrics)
    table = Table(title=title, title_justify="left")
    for column in ("task", "metric", "better is"):
        table.add_column(column)
    for protocol in protocols:
        name = protocol.replace("_", " ")
        for column in (f"{name}: {ours}", "trivial", f"{ours} / trivial") if with_trivial else (f"{name}: {ours}",):
            table.add_column(column, justify="right")
    for task, line in headlines.items():
        if f"{stage}/{task}/{line['pooled']}" not in metrics:
            continue
        cells = []
        for protocol in protocols:
            key = line.get(protocol)
            value, trivial = (metrics.get(f"{stage}/{task}/{prefix}{key}") for prefix in ("", "trivial_"))
            cells.append("–" if value is None else f"{value:.4f}")
            if with_trivial:
                cells.append("–" if trivial is None else f"{trivial:.4f}")
                cells.append(f"{value / trivial:.2f}×" if trivial and value is not None else "–")
        table.add_row(task, line["pooled"], "higher" if line["higher_is_better"] else "lower", *cells)
    Console().print(table)
    if with_trivial:
        print(
            "trivial: most frequent class, mean depth, mean normal of the training set; gradient of the image (edges)"
        )
    exact, fast = (metrics.get(f"{stage}/edges/{key}") for key in ("odsf", "odsf_fast"))
    if exact is not None and fast is not None:
        print(f"edges: odsF {exact:.4f}; the fast mode that validation uses gives {fast:.4f} ({fast - exact:+.4f})")


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
