"""``m2h sweep run``: workers on this machine, and what is told of them."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from types import FrameType

from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.processes import cores
from m2h_lightning.storages.url import check_workers
from m2h_lightning.sweeps.ledger.study import PATIENCE_S, Ledger
from m2h_lightning.sweeps.ledger.workers import BEAT_S, alive, read_workers
from m2h_lightning.sweeps.planning.plan import LOGS, Plan
from m2h_lightning.sweeps.running.worker import INTERRUPTED, WorkerOptions, heeded, start

DEATHS = 3
"""Workers that may die in a row without a cell being finished."""

PAUSE_S = 1.0
"""Seconds between two starts of a worker in the same slot."""

ENDED = ("done", "failed", "pruned")
"""States of cells with which nothing more happens."""


@dataclass(frozen=True)
class RunOptions:
    """How a sweep is run on this machine.

    Args:
        workers: Cells at a time; None is one per GPU (or group of GPUs), one without any.
        gpus_per_cell: GPUs of one cell.
        worker: How each worker works.
    """

    workers: int | None = None
    gpus_per_cell: int = 1
    worker: WorkerOptions = field(default_factory=WorkerOptions)


def visible_gpus() -> list[str]:
    """Return the GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; without importing torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        return list(itertools.takewhile(lambda name: name not in ("", "-1", "NoDevFiles"), names))  # as CUDA reads it
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return _listed(answer.stdout) if answer.returncode == 0 else []


def _listed(text: str) -> list[str]:
    """Return the names of the GPUs that ``nvidia-smi -L`` lists: of a divided GPU those of its parts."""
    gpus: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("GPU "):
            gpus.append([])
        elif gpus and (part := re.search(r"\(UUID: (MIG-[^)]+)\)", line)):
            gpus[-1].append(part.group(1))
    return [name for index, parts in enumerate(gpus) for name in parts or [str(index)]]


def slots(options: RunOptions) -> list[WorkerOptions]:
    """Divide the machine: GPUs in groups, or cores in equal parts.

    Raises:
        ConfigError: There are fewer GPUs than asked for, or a number is below 1.
    """
    for name, number in (("--workers", options.workers), ("--gpus-per-cell", options.gpus_per_cell)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}; give at least 1")
    gpus, each = visible_gpus(), options.gpus_per_cell
    if not gpus:
        if each > 1:
            raise ConfigError(f"--gpus-per-cell is {each}, but this machine shows no GPU (CUDA_VISIBLE_DEVICES)")
        count = options.workers or 1
        return [replace(options.worker, threads=max(1, cores() // count)) for _ in range(count)]
    groups = [",".join(gpus[at : at + each]) for at in range(0, len(gpus) - each + 1, each)]
    count = max(1, len(groups)) if options.workers is None else options.workers
    if count > len(groups):
        raise ConfigError(
            f"--workers is {count} with {each} GPU{'s' if each > 1 else ''} a cell, but there are "
            f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''}; {len(groups)} fit"
        )
    # Alone, a cell may use all cores; several would each start as many threads as there are cores.
    threads = max(1, cores() // count) if count > 1 else None
    return [replace(options.worker, gpus=group, threads=threads) for group in groups[:count]]


class Run:
    """Starts workers and stays until they have run every cell.

    Args:
        plan: The sweep, saved.
        options: How to run it.
        view: Told of every change; see :mod:`.live`.
    """

    def __init__(self, plan: Plan, options: RunOptions, view: object | None = None) -> None:
        from m2h_lightning.sweeps.view.live import view as make_view

        self.plan = plan
        self.slots = slots(options)
        check_workers(plan.storage, len(self.slots))
        self.view = view or make_view(plan, len(self.slots))
        self.stops, self.deaths, self.last_words = 0, 0, ""
        self.started: dict[int, float] = {}

    def run(self) -> int:
        """Run what is missing.

        Returns:
            0 when every cell is done or given up, 1 when one failed, 130 after Ctrl-C.

        Raises:
            ConfigError: The storage is for one worker, and there are others.
            DataError: Workers die, whatever they do; or the ledger cannot be reached any more.
        """
        handled = heeded((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background by a script: not meant for us
            handled.remove(signal.SIGINT)
        self.ledger = Ledger(self.plan, PATIENCE_S, lambda: self.stops > 0)
        self.ledger.reap()
        others = sum(alive(worker) for worker in read_workers(self.plan.folder))
        check_workers(self.plan.storage, others + len(self.slots))
        if others:
            workers = "another worker is" if others == 1 else f"{others} other workers are"
            print(f"note: {workers} at work on {self.plan.folder}", file=sys.stderr)
        before = {number: signal.signal(number, self._told) for number in handled}
        running: dict[int, subprocess.Popen[bytes]] = {}
        try:
            self._supervise(running)
        finally:
            for worker in running.values():
                _end(worker)
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._close()

    def _told(self, _number: int, _frame: FrameType | None) -> None:
        self.stops += 1

    def _supervise(self, workers: dict[int, subprocess.Popen[bytes]]) -> None:
        """Keep as many workers as there are slots and waiting cells; replace one that was killed.

        Stays while workers elsewhere run cells: one that dies there leaves its cell to those here.
        """
        told, finished, reaped = 0, -1, time.monotonic()
        with self.view as view:  # type: ignore[attr-defined]
            while True:
                lost = self._bury(workers)
                if lost or time.monotonic() - reaped > BEAT_S:
                    reaped = time.monotonic()
                    self.ledger.reap()
                entries = self.ledger.entries()
                view.show(entries)
                done = sum(entry.state in ENDED for entry in entries)
                if done > finished:
                    self.deaths, finished = 0, done
                if not self.stops and self.deaths < DEATHS:
                    self._fill(workers, sum(entry.state == "waiting" for entry in entries))
                if self.stops > told:
                    told = self.stops
                    view.stopping(told)
                    for worker in workers.values():
                        worker.send_signal(signal.SIGTERM)
                if not workers and (self.stops or self.deaths >= DEATHS or done == len(entries)):
                    return
                time.sleep(0.2)

    def _bury(self, workers: dict[int, subprocess.Popen[bytes]]) -> bool:
        """Forget workers that have ended; return whether one left a cell behind."""
        lost = False
        for slot, worker in list(workers.items()):
            code = worker.poll()
            if code is None:
                continue
            del workers[slot]
            if code not in (0, 1, INTERRUPTED):
                self.deaths += 1
                self.last_words = f"signal {-code}" if code < 0 else f"exit code {code}"
                lost = True
        return lost

    def _fill(self, workers: dict[int, subprocess.Popen[bytes]], waiting: int) -> None:
        """Start workers in free slots, as long as more cells wait than workers are about to take one."""
        now = time.monotonic()
        for slot, options in enumerate(self.slots):
            if slot not in workers and waiting > 0 and now - self.started.get(slot, -PAUSE_S) >= PAUSE_S:
                workers[slot] = start(self.plan, options)
                self.started[slot] = now
                waiting -= 1

    def _close(self) -> int:
        entries = self.ledger.entries()
        self.view.close(entries)  # type: ignore[attr-defined]
        if self.stops:
            return INTERRUPTED
        if any(entry.state not in ENDED for entry in entries):
            raise DataError(
                f"{self.deaths} workers died one after the other without ending a cell (the last: {self.last_words}); "
                f"see the lines above and {self.plan.folder / LOGS}, then run again"
            )
        return 1 if any(entry.state == "failed" for entry in entries) else 0


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End a worker that is still there when this process stops in an unforeseen way."""
    if worker.poll() is None:
        worker.terminate()
        worker.wait()
