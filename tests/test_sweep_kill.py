"""Processes of a sweep are killed at random moments; every cell still ends exactly once."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from cli_helpers import TINY, process_environment, write
from ledger_cells import CACHE, events, plan_of, processes_of, python_cells, sweep, sweep_file
from m2h_lightning.sweeps.ledger.study import Ledger
from m2h_lightning.sweeps.ledger.workers import alive, read_workers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SOON = {"M2H_SILENT_S": "5", "M2H_GRACE_S": "5"}


def kill(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def cell_of(folder: Path, rng: random.Random) -> int | None:
    """A process of a cell, by the variable of its environment; None where none is seen."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"M2H_CELL={folder}/".encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return rng.choice(sorted(found)) if found else None


def wait_until(true, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def finish(place: Path, plan, file: Path) -> str:
    """Run until nothing is left, letting failed cells wait again; return what was printed."""
    text = ""
    for _ in range(10):
        run = sweep(place, "run", file, "--root", place / "runs", "--workers", 2, env=SOON)
        text += run.communicate(timeout=100)[0]
        if run.returncode == 0:
            return text
        failed = [entry for entry in Ledger(plan).entries() if entry.state == "failed"]
        assert all(entry.reason.startswith("killed by SIGKILL") for entry in failed), failed
        Ledger(plan).retry([entry.cell for entry in failed])
    raise AssertionError(text)


@pytest.mark.parametrize("seed", [0, 1])
def test_kill_9_at_random_moments(tmp_path, seed):
    rng, cells = random.Random(seed), 50
    file = python_cells(tmp_path, cells, seconds=0.25)
    plan = plan_of(file, tmp_path / "runs")
    moments = ["worker"] * 6 + ["cell"] * 4 + ["parent"] * 3 + ["both"] * 3
    rng.shuffle(moments)
    run = None
    for what in moments:
        if run is None or run.poll() is not None:
            run = sweep(tmp_path, "run", file, "--root", tmp_path / "runs", "--workers", 2, env=SOON)
        at = time.monotonic() + rng.uniform(0.0, 0.7)
        wait_until(lambda: [worker for worker in read_workers(plan.folder) if alive(worker)])
        while time.monotonic() < at:
            time.sleep(0.01)
        if what == "cell":
            wait_until(lambda: kill(cell_of(plan.folder, rng)))
        elif what == "worker":
            wait_until(lambda: kill(next((w.pid for w in read_workers(plan.folder) if alive(w)), None)))
        else:
            kill(run.pid)
            if what == "both":
                for worker in read_workers(plan.folder):
                    kill(worker.pid) if alive(worker) else None
            run.wait()
    if run is not None and run.poll() is None:
        kill(run.pid)
        run.wait()

    finish(tmp_path, plan, file)
    noted = events(plan.folder)
    assert not [event for event in noted if event[0] in ("again", "together")], noted
    for cell in plan.cells:
        result = json.loads((plan.folder_of(cell.id) / "result.json").read_text())
        assert result["metrics"]["val"]["score"] == cell.overrides["x"] + 0.5
        # The last thing a cell does is to note its end: it may be killed before, but never comes to it twice.
        assert noted["end", cell.id] <= 1 <= noted["start", cell.id]
    assert [entry.state for entry in Ledger(plan).entries()] == ["done"] * cells
    complete = [trial for trial in Ledger(plan).study.trials if trial.state.name == "COMPLETE"]
    assert sorted(trial.user_attrs["cell"] for trial in complete) == sorted(cell.id for cell in plan.cells)
    wait_until(lambda: not processes_of(plan.folder), 10)


def test_what_a_killed_cell_left_running_is_ended_before_it_runs_again(tmp_path):
    # A rank that has a session of its own, and no signal when its parent dies.
    text = """
import os, subprocess, sys, time
folder = os.environ["M2H_CELL"]
if not os.path.exists(folder + "/rank"):
    rank = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    open(folder + "/rank.tmp", "w").write(str(rank.pid))
    os.rename(folder + "/rank.tmp", folder + "/rank")
    time.sleep(1000)
open(folder + "/result.json", "w").write('{"metrics": {"val": {"score": 1}}}')
"""
    program = tmp_path / "ranks.py"
    program.write_text(text)
    file = sweep_file(tmp_path, ["python", "-SE", str(program)], {"x": {"values": [0]}})
    plan = plan_of(file, tmp_path / "runs")
    worker = sweep(tmp_path, "worker", plan.folder)
    rank = plan.folder_of(plan.cells[0].id) / "rank"
    wait_until(rank.exists)
    kill(worker.pid)
    worker.wait()
    left = int(rank.read_text())
    assert Path(f"/proc/{left}").exists()
    assert sweep(tmp_path, "worker", plan.folder).wait(60) == 0
    wait_until(lambda: not Path(f"/proc/{left}").exists() or "Z" in Path(f"/proc/{left}/stat").read_text().split()[2])
    assert Ledger(plan).entries()[0].state == "done"


def test_training_killed_with_its_worker_goes_on_and_ends_as_if_nothing_was(tmp_path):
    tiny = write(tmp_path / "tiny.yaml", TINY)
    command = ["python", "-m", "m2h_lightning", "fit", "--config", tiny]
    slow = ["--trainer.max_epochs", "2", "--run.pictures", "0", "--trainer.deterministic", "true"]
    results = []
    for name in ("whole", "killed"):
        file = sweep_file(tmp_path, [*command, *slow], {"seed_everything": {"values": [7]}})
        content = json.loads(file.read_text())
        content["metric"] = {"name": "val/loss", "goal": "minimize"}
        file.write_text(json.dumps(content))
        plan = plan_of(file, tmp_path / "runs", name=name)
        folder = plan.folder_of(plan.cells[0].id)
        env = process_environment(CACHE)
        if name == "killed":
            worker = sweep(tmp_path, "worker", plan.folder, env=env)
            wait_until(lambda f=folder: list((f / "checkpoints").glob("*.ckpt")), 120)
            kill(worker.pid)
            worker.wait()
            assert not (folder / "result.json").exists()
            wait_until(lambda f=folder: not processes_of(f))
        worker = sweep(tmp_path, "worker", plan.folder, env=env)
        printed = worker.communicate(timeout=200)[0]
        assert worker.returncode == 0, printed + plan.log_of(plan.cells[0].id).read_text()
        results.append(json.loads((folder / "result.json").read_text()))
        starts = json.loads((folder / "run.json").read_text())["starts"]
        assert len(starts) == (1 if name == "whole" else 2)
    assert results[0]["metrics"] == results[1]["metrics"]
