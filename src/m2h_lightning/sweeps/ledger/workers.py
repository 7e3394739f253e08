"""Who is at work: one small file per worker in the sweep's folder, and whether its worker is still alive.

A worker names a trial in its file *before* it claims it from the ledger, so a trial that runs always has a name to it,
however the worker ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2h_lightning.files import atomic
from m2h_lightning.runs import folder as runs
from m2h_lightning.runs.machine import machine
from m2h_lightning.sweeps.planning.plan import WORKERS

BEAT_S = float(os.environ.get("M2H_BEAT_S", "10"))
SILENT_S = float(os.environ.get("M2H_SILENT_S", "300"))
"""Seconds between signs of life of a worker, and after which one that cannot be asked counts as dead."""


@dataclass
class Worker:
    """One process that runs cells.

    Args:
        id: Unique name.
        host: Machine.
        boot: Identity of the machine's start and of the container, within which process numbers mean something.
        pid: Process.
        began: Start of the process in clock ticks: tells it from a later one with the same number.
        slurm: Job, array task and restart count, where SLURM started it.
        slot: What it was given: threads or GPUs.
        trials: Trials it claims or runs.
        path: Its file.
    """

    id: str
    host: str
    boot: str
    pid: int
    began: str
    slurm: dict[str, str] | None
    slot: str
    trials: list[int] = field(default_factory=list)
    path: Path = Path()

    def save(self) -> None:
        """Write the file.

        Raises:
            OSError: It cannot be written; the file is as before.
        """
        content = {key: value for key, value in vars(self).items() if key != "path"}
        with atomic(self.path, durable=False) as temporary:  # a worker does not outlive a crash of its machine
            temporary.write_text(json.dumps(content), encoding="utf-8")

    def beat(self) -> None:
        """Give a sign of life.

        Raises:
            OSError: It cannot be given.
        """
        try:
            os.utime(self.path)
        except FileNotFoundError:  # somebody took this worker for dead and tidied up
            self.save()

    def leave(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    def about(self) -> dict[str, Any]:
        """Return what the ledger notes of a cell's worker."""
        return {
            "host": self.host, "pid": self.pid, "slot": self.slot, "slurm": self.slurm, "worker": self.id,
            "boot": self.boot, "began": self.began,
        }  # fmt: skip

    @classmethod
    def from_about(cls, about: Mapping[str, Any], folder: Path) -> Worker | None:
        """Return the worker that the ledger notes; None where the note does not say enough."""
        try:
            name = about["worker"]
            return cls(
                name, about["host"], about["boot"], about["pid"], about["began"], about["slurm"], about["slot"],
                path=folder / WORKERS / f"{name}.json",
            )  # fmt: skip
        except KeyError:
            return None


def register(folder: Path, slot: str = "", env: Mapping[str, str] = os.environ) -> Worker:
    """Write a file for this process and return it."""
    (folder / WORKERS).mkdir(parents=True, exist_ok=True)
    name = f"{runs.slug(socket.gethostname())}-{os.getpid()}-{secrets.token_hex(3)}"
    worker = Worker(
        name, socket.gethostname(), _space(), os.getpid(), _began(os.getpid()), slurm_identity(env), slot,
        path=folder / WORKERS / f"{name}.json",
    )  # fmt: skip
    worker.save()
    return worker


def slurm_identity(env: Mapping[str, str] = os.environ) -> dict[str, str] | None:
    """Return which job of SLURM this process belongs to, or None."""
    if "SLURM_JOB_ID" not in env:
        return None
    names = {"job": "SLURM_JOB_ID", "array_job": "SLURM_ARRAY_JOB_ID", "array_task": "SLURM_ARRAY_TASK_ID"}
    found = {key: env[name] for key, name in names.items() if name in env}
    return {**found, "restart": env.get("SLURM_RESTART_COUNT", "0")}


def read_workers(folder: Path) -> list[Worker]:
    """Return all workers that have a file."""
    found = []
    for path in sorted((folder / WORKERS).glob("*.json")):
        try:
            found.append(Worker(**json.loads(path.read_text(encoding="utf-8")), path=path))
        except (OSError, ValueError, TypeError):  # it left meanwhile, or is no file of ours
            continue
    return found


def alive(worker: Worker, env: Mapping[str, str] = os.environ) -> bool:
    """Whether a worker may still be at work; where nobody can be asked, by its last sign of life."""
    known = known_alive(worker, env)
    return recent(worker) if known is None else known


def known_alive(worker: Worker, env: Mapping[str, str] = os.environ) -> bool | None:
    """Whether a worker is certainly alive or dead; None where nobody here can say."""
    here = slurm_identity(env)
    if worker.slurm and here and worker.slurm["job"] == here["job"] and worker.slurm["restart"] != here["restart"]:
        return False  # an earlier start of this very job
    if worker.host == socket.gethostname() and worker.boot == _space():
        return _began(worker.pid) == worker.began != ""
    # The same name with another start is this machine before it was restarted, another container, or another machine
    # of the same name: process numbers say nothing there.
    if worker.slurm and _job_is_gone(worker.slurm["job"]):
        return False
    return None


def recent(worker: Worker) -> bool:
    """Whether a worker has given a sign of life of late, by the clock of the file system."""
    try:
        return _now(worker.path.parent) - worker.path.stat().st_mtime < SILENT_S
    except OSError:
        return False


def _now(folder: Path) -> float:
    """Return the time of the file system's clock: that of another machine, where the folder is shared."""
    probe = folder / f".now-{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _job_is_gone(job: str) -> bool:
    """Whether SLURM says that a job has ended; False where it cannot be asked."""
    if shutil.which("squeue") is None:
        return False
    try:
        answer = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return False
    if answer.returncode != 0:
        return "Invalid job id" in answer.stderr
    return not answer.stdout.strip()


def _space() -> str:
    """Return what names the space of process numbers that this process is in."""
    try:
        return f"{machine()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return machine()


def _began(pid: int) -> str:
    """Return when a process started, as text that no other process of its number has; empty when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in ("Z", "X") else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return answer.stdout.strip()
