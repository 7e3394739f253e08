"""Fake cells for tests of the ledger: quick programs that tell what was done to them, and the sweep that runs them."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from cli_helpers import process_environment
from m2h_lightning.sweeps.planning.file import read_sweep
from m2h_lightning.sweeps.planning.plan import Plan, Request, make_plan

CACHE = Path(tempfile.mkdtemp(prefix="m2h-cache-"))
"""Compiled modules, for all processes of a test session."""
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

CELL = """
import fcntl, json, os, sys, time
folder = os.environ["M2H_CELL"]
root, cell = os.path.split(folder)

def note(word):
    file = os.open(os.path.join(root, "events"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{word} {cell} {os.getpid()}\\n".encode())
    os.close(file)

result = os.path.join(folder, "result.json")
alone = os.open(os.path.join(root, f"alone-{cell}"), os.O_RDWR | os.O_CREAT)
try:
    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    note("together")
if os.path.exists(result):
    note("again")
note("start")
values = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--"))
time.sleep(float(values.get("seconds", 0)))
if values.get("how") == "fail":
    print("the reason, in the last line")
    sys.exit(3)
with open(result + ".tmp", "w") as file:
    json.dump({"status": "finished", "metrics": {"val": {"score": float(values.get("x", 0)) + 0.5}}}, file)
if os.path.exists(result):
    note("again")
os.replace(result + ".tmp", result)
note("end")
"""

SHELL = (
    'n="$(basename "$M2H_CELL")"; d="$(dirname "$M2H_CELL")"; echo "start $n $$" >> "$d/events"; '
    'printf \'{"metrics": {"val": {"score": 1.0}}}\' > "$M2H_CELL/result.json"; echo "end $n $$" >> "$d/events"'
)
"""The quickest cell there is."""


def program(place: Path, text: str = CELL) -> Path:
    path = place / "cell.py"
    path.write_text(text)
    return path


def sweep_file(place: Path, command: list[str], parameters: dict[str, Any], **content: Any) -> Path:
    """Write a sweep file; JSON is YAML."""
    method = content.pop("method", "grid")
    metric = {"name": "val/score", "goal": "maximize"}
    full = {"method": method, "metric": metric, "parameters": parameters, "command": [*command, "${args}"], **content}
    path = place / "fake.yaml"
    path.write_text(json.dumps(full))
    return path


def python_cells(place: Path, count: int, seconds: float = 0.0, **content: Any) -> Path:
    """Write a sweep of ``count`` cells that note their starts and ends in ``events``."""
    parameters = {"x": {"values": list(range(count))}, "seconds": {"value": seconds}}
    return sweep_file(place, ["python", "-SE", str(program(place))], parameters, **content)


def plan_of(file: Path, root: Path, storage: str | None = None, **request: Any) -> Plan:
    """Plan a sweep and write its plan."""
    plan = make_plan(read_sweep(file), Request(root=str(root), storage=storage, **request))
    plan.save()
    return plan


def events(folder: Path) -> Counter[tuple[str, str]]:
    """Return how often each word was noted of each cell."""
    path = folder / "events"
    lines = path.read_text().splitlines() if path.is_file() else []
    return Counter((line.split()[0], line.split()[1]) for line in lines)


def sweep(place: Path, *words: object, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start ``m2h sweep …`` as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "m2h_lightning", "sweep", *map(str, words)],
        cwd=place,
        env={**process_environment(CACHE), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def processes_of(folder: Path) -> list[int]:
    """Return the processes that have something to do with a sweep's folder: workers, and cells by their variable."""
    found, word = [], str(folder).encode()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            about = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
            state = (place / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if word in about and state not in "ZX" and int(place.name) != os.getpid():
            found.append(int(place.name))
    return found
