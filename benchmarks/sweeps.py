"""What a sweep adds to each cell: claim, process, record; per storage. ``python -m benchmarks.sweeps [URL …]``."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from m2h_lightning.sweeps.ledger.study import Ledger
from m2h_lightning.sweeps.planning.file import read_sweep
from m2h_lightning.sweeps.planning.plan import Plan, Request, make_plan
from m2h_lightning.sweeps.running.worker import Work, WorkerOptions

CELLS = 200
CELL = 'printf \'{"metrics": {"val": {"score": 1.0}}}\' > "$M2H_CELL/result.json"'


def measure(url: str | None) -> dict[str, Any]:
    """Run trivial cells with one worker; return seconds per cell, of which the cell's own process, and the rest.

    Args:
        url: The storage; None is the journal in the sweep's folder.
    """
    with tempfile.TemporaryDirectory() as place:
        plan = _plan(Path(place), url)
        began = time.perf_counter()
        Ledger(plan).enroll()
        enrolled = time.perf_counter()
        code = Work(plan, WorkerOptions()).run()
        ended = time.perf_counter()
        wrong = [entry for entry in Ledger(plan).entries() if entry.state != "done"]
        if code or wrong:
            raise SystemExit(f"{url}: exit code {code}, {len(wrong)} cells are not done: {wrong[:1]}")
        folder = plan.folder_of(plan.cells[0].id)
        for _ in range(CELLS):
            subprocess.run(["/bin/sh", "-c", CELL], env={**os.environ, "M2H_CELL": str(folder)}, check=True)
        child = (time.perf_counter() - ended) / CELLS
    cell = (ended - enrolled) / CELLS
    kind = (url or "journal").split("://")[0].split("+")[0]
    return {
        "storage": kind,
        "cells": CELLS,
        "enroll_s": round((enrolled - began) / CELLS, 4),
        "cell_s": round(cell, 4),
        "child_s": round(child, 4),
        "overhead_s": round(cell - child, 4),
    }


def _plan(place: Path, url: str | None) -> Plan:
    content = {
        "method": "grid",
        "metric": {"name": "val/score", "goal": "maximize"},
        "parameters": {"x": {"values": list(range(CELLS))}},
        "command": ["/bin/sh", "-c", CELL, "cell", "${args}"],
    }
    file = place / "trivial.yaml"
    file.write_text(json.dumps(content))
    plan = make_plan(read_sweep(file), Request(root=str(place / "runs"), storage=url, name=f"b{time.time_ns()}"))
    plan.save()
    return plan


def main(urls: list[str]) -> None:
    """Measure the journal and the given storages; print JSON."""
    versions = {name: metadata.version(name) for name in ("optuna", "sqlalchemy")}
    about = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **versions,
    }
    print(json.dumps({**about, "results": [measure(url) for url in (None, *urls)]}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
