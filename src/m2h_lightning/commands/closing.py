"""What a run says last: its headline metrics, task by task, and where to look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m2h_lightning.runs import folder as runs


def print_closing(module: Any, metrics: dict[str, float], folder: Path) -> None:
    """Print a table of the headline metrics and the paths worth opening.

    The test metrics where the run has them, else those of validation. Where the trivial baseline was scored, each
    metric stands beside it.

    Args:
        module: The trained module.
        metrics: Final metrics by their ``stage/task/metric`` name.
        folder: The run folder.
    """
    from rich.console import Console
    from rich.table import Table

    stage = next((s for s in ("test", "val") if f"{s}/loss" in metrics), None)
    if stage is not None:
        name = module.facts["name"]
        table = Table(title=f"{stage} metrics on '{name}', protocol {module.protocol}", title_justify="left")
        columns = ("task", "metric", "M2H", "trivial", "M2H / trivial", "better is")
        for column in columns:
            table.add_column(column, justify="right" if column in columns[2:5] else "left")
        for task in module.tasks.values():
            ours = metrics.get(f"{stage}/{task.name}/{task.headline}")
            trivial = metrics.get(f"{stage}/{task.name}/trivial_{task.headline}")
            if ours is None:
                continue
            table.add_row(
                task.name,
                task.headline,
                f"{ours:.4f}",
                "" if trivial is None else f"{trivial:.4f}",
                f"{ours / trivial:.2f}×" if trivial else "",
                "higher" if task.higher_is_better else "lower",
            )
        Console().print(table)
        if any("/trivial_" in key for key in metrics):
            print("trivial: most frequent class, mean depth, mean normal, edge prior of the training set")
    print(f"result:  {folder / runs.RESULT}")
    pictures = sorted((folder / runs.PICTURES).glob(f"{stage}-*.png"))
    if pictures:
        # Validation pictures sort by epoch: the last epoch's first image.
        last = [path for path in pictures if path.stem.rsplit("-", 1)[0] == pictures[-1].stem.rsplit("-", 1)[0]]
        print(f"picture: {last[0]}")
    if (folder / runs.PREDICTIONS).is_dir():
        print(f"predictions: {folder / runs.PREDICTIONS}")
