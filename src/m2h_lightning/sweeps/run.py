"""``m2h sweep run``: workers on this machine, and what is told of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from types import FrameType

from m2h_lightning.errors import ConfigError
from m2h_lightning.processes import cores
from m2h_lightning.sweeps.ledger import Entry, Ledger
from m2h_lightning.sweeps.plan import Plan
from m2h_lightning.sweeps.storage import check_workers
from m2h_lightning.sweeps.worker import WorkerOptions, start
from m2h_lightning.sweeps.workers import alive, read_workers

DEATHS = 3
"""Workers that may die in a row without a cell being finished."""


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
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    count = sum(line.startswith("GPU ") for line in answer.stdout.splitlines()) if answer.returncode == 0 else 0
    return [str(index) for index in range(count)]


def slots(options: RunOptions) -> list[WorkerOptions]:
    """Divide the machine: GPUs in groups, or cores in equal parts.

    Raises:
        ConfigError: There are fewer GPUs than asked for.
    """
    gpus, each = visible_gpus(), options.gpus_per_cell
    if not gpus:
        if each > 1:
            raise ConfigError(f"--gpus-per-cell is {each}, but this machine shows no GPU (CUDA_VISIBLE_DEVICES)")
        count = options.workers or 1
        return [replace(options.worker, threads=max(1, cores() // count)) for _ in range(count)]
    groups = [",".join(gpus[at : at + each]) for at in range(0, len(gpus) - each + 1, each)]
    count = len(groups) if options.workers is None else options.workers
    if count > len(groups):
        raise ConfigError(
            f"--workers is {count} with {each} GPU{'s' if each > 1 else ''} a cell, but there are {len(gpus)} GPUs; "
            f"{len(groups)} fit"
        )
    return [replace(options.worker, gpus=group) for group in groups[:count]]


class Run:
    """Starts workers and stays until they have run every cell.

    Args:
        plan: The sweep, saved.
        options: How to run it.
        view: Told of every change; see :mod:`.live`.
    """

    def __init__(self, plan: Plan, options: RunOptions, view: object | None = None) -> None:
        from m2h_lightning.sweeps.live import view as make_view

        self.plan = plan
        self.slots = slots(options)
        check_workers(plan.storage, len(self.slots))
        self.view = view or make_view(plan, len(self.slots))
        self.stops = 0

    def run(self) -> int:
        """Run what is missing.

        Returns:
            0 when every cell is done or given up, 1 when one failed, 130 after Ctrl-C.
        """
        self.ledger = Ledger(self.plan)
        self.ledger.reap()
        others = sum(alive(worker) for worker in read_workers(self.plan.folder))
        if others:
            print(f"note: {others} other workers are at work on {self.plan.folder}", file=sys.stderr)
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._told) for number in handled}
        workers: dict[int, subprocess.Popen[bytes]] = {}
        try:
            self._supervise(workers)
        finally:
            for worker in workers.values():
                _end(worker)
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._close()

    def _told(self, _number: int, _frame: FrameType | None) -> None:
        self.stops += 1

    def _supervise(self, workers: dict[int, subprocess.Popen[bytes]]) -> None:
        """Keep as many workers as there are slots and waiting cells; replace one that was killed."""
        told, deaths, finished = 0, 0, -1
        with self.view as view:  # type: ignore[attr-defined]
            while True:
                entries = self.ledger.entries()
                view.show(entries)
                done = sum(entry.state in ("done", "failed", "pruned") for entry in entries)
                deaths, finished = (0 if done > finished else deaths), done
                for slot, worker in list(workers.items()):
                    code = worker.poll()
                    if code is not None:
                        del workers[slot]
                        if code < 0 or code not in (0, 1, 130):
                            deaths += 1
                            self.ledger.reap()
                            entries = self.ledger.entries()
                waiting = sum(entry.state == "waiting" for entry in entries)
                if not self.stops and deaths < DEATHS:
                    for slot, options in enumerate(self.slots):
                        if slot not in workers and waiting > 0:
                            workers[slot] = start(self.plan.folder, options)
                            waiting -= 1
                if self.stops > told:
                    told = self.stops
                    view.stopping(told)
                    for worker in workers.values():
                        with contextlib.suppress(ProcessLookupError):
                            worker.send_signal(signal.SIGINT)
                if not workers:
                    return
                time.sleep(0.2)

    def _close(self) -> int:
        entries = self.ledger.entries()
        self.view.close(entries)  # type: ignore[attr-defined]
        if self.stops:
            return 130
        return 1 if any(entry.state == "failed" for entry in entries) else 0 if _complete(entries) else 1


def _complete(entries: list[Entry]) -> bool:
    return all(entry.state in ("done", "pruned", "failed") for entry in entries)


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End a worker that is still there when this process stops in an unforeseen way."""
    if worker.poll() is None:
        worker.terminate()
        worker.wait()
