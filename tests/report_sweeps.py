"""Sweeps with results written by hand, for their report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cli_helpers import m2h
from m2h_lightning.sweeps.planning.file import read_sweep
from m2h_lightning.sweeps.planning.plan import Plan, Request, make_plan
from result_files import result

SWEEP = """
method: grid
metric: {name: test/semseg/miou, goal: maximize}
parameters:
  model.wmca.window_size: {values: [5, 7]}
  seed_everything: {values: [0, 1, 2]}
command: [python, -m, m2h_lightning, fit, --config, "${envvar:EXPERIMENT}", "${args}"]
"""


def planned(root: Path, text: str = SWEEP, name: str = "window.yaml") -> Plan:
    """Plan a sweep; nothing is run."""
    (root / name).write_text(text)
    plan = make_plan(read_sweep(root / name), Request(experiment="e.yaml", root=str(root / "runs")))
    plan.save()
    return plan


def put(plan: Plan, cell: str, content: dict[str, Any]) -> None:
    """Write the result of a cell."""
    folder = plan.folder_of(cell)
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(json.dumps(content))


def make(root: Path, scores: dict[int, list[float]], **others) -> Plan:
    """Plan a sweep and write the results of its cells: mIoU by window size and seed; the rest is not run.

    Args:
        root: A folder.
        scores: mIoU by window size, for the first seeds.
        others: Other content of the last cell's result.
    """
    plan = planned(root)
    for cell in plan.cells:
        assert cell.overrides is not None
        values = scores[cell.overrides["model.wmca.window_size"]]
        seed = cell.overrides["seed_everything"]
        if seed < len(values):
            extra = others if cell is plan.cells[-1] else {}
            put(plan, cell.id, result(scores={"semseg": {"miou": values[seed]}}, seed=seed, **extra))
    return plan


def report(plan: Plan, *words) -> dict:
    """Write a report and return its JSON."""
    assert m2h("sweep", "report", plan.folder, "--no-measure", "--no-plots", *words) == 0
    return json.loads((plan.folder / "report" / "report.json").read_text())
