"""``m2h sweep worker``: takes cells from the ledger and runs them, one process each, until none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from m2h_lightning.errors import DataError, M2HError
from m2h_lightning.runs import folder as runs
from m2h_lightning.runs.cell import METRIC, STORAGE, STUDY, TRIAL
from m2h_lightning.runs.outcome import metric_of, read_outcome
from m2h_lightning.sweeps import child
from m2h_lightning.sweeps.ledger import Claim, Ledger
from m2h_lightning.sweeps.plan import ASIDE, LOCKS, Plan, fit_words
from m2h_lightning.sweeps.storage import absolute_url, check_workers
from m2h_lightning.sweeps.workers import BEAT_S, alive, read_workers, register

INTERRUPTED = 130

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker works.

    Args:
        only: The one cell to run; None takes what waits.
        gpus: GPUs of its cells, as CUDA_VISIBLE_DEVICES names them; None leaves all visible.
        threads: Threads of a cell; None leaves it to torch.
        grace: Seconds that a cell has to leave a checkpoint when the worker is told to stop.
        retry_oom: Run a cell that ran out of memory once more, with half the batch and twice the accumulation.
        on_stop: Called with the signal after a stop, when the cell is safe: a job may requeue itself.
    """

    only: str | None = None
    gpus: str | None = None
    threads: int | None = None
    grace: float = 60.0
    retry_oom: bool = False
    on_stop: Callable[[int], None] | None = None

    @property
    def slot(self) -> str:
        """What the worker was given, in words."""
        if self.gpus is not None:
            return f"GPU {self.gpus}"
        return f"{self.threads} thread{'s' if self.threads != 1 else ''}" if self.threads else ""


class Work:
    """The loop of one worker.

    Args:
        plan: The sweep.
        options: How to work.
    """

    def __init__(self, plan: Plan, options: WorkerOptions) -> None:
        self.plan, self.options = plan, options
        self.stops: list[int] = []
        self.failed = 0

    def run(self) -> int:
        """Run cells until none waits, or a signal says stop.

        Returns:
            0 when no cell failed here, 1 when one did, 130 after a stop.
        """
        others = sum(alive(worker) for worker in read_workers(self.plan.folder))
        check_workers(self.plan.storage, others + 1)
        before = {number: signal.signal(number, self._told) for number in _STOP_SIGNALS}
        self.me = register(self.plan.folder, self.options.slot)
        try:
            self.ledger = Ledger(self.plan)
            self.ledger.reap()
            while not self.stops:
                claim = self.ledger.claim(self.me, self.options.only)
                if claim is None:
                    break
                self._run(claim)
                self.me.trials = []
                self.me.save()
        finally:
            if not self.me.trials:  # else somebody has to notice that a cell was left behind
                self.me.leave()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.stops:
            if self.options.on_stop is not None:
                self.options.on_stop(self.stops[0])
            return INTERRUPTED
        return 1 if self.failed else 0

    def _told(self, number: int, _frame: FrameType | None) -> None:
        self.stops.append(number)

    # ── one cell ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self, claim: Claim) -> None:
        """Bring one cell to its end: done, failed, given up, or given back."""
        folder, log = self.plan.folder_of(claim.cell), self.plan.log_of(claim.cell)
        with child.lock(self.plan.folder / LOCKS / f"{claim.cell}.lock") as held:
            if held is None:
                self._wait_for_other(claim)
                return
            try:
                state = read_outcome(folder).state
                if state in ("finished", "pruned"):  # its worker was killed before it could say so
                    self._record(claim, 0)
                    return
                words = self._words(claim, state, folder)
                process = child.start(words, folder, log, self.plan.directory, self._environment(claim), held)
            except (OSError, M2HError) as error:
                self._fail(claim, " ".join(str(error).split()))
                return
            code = self._wait(process, claim)
        if self.stops and code != 0:
            self.ledger.release(claim, "stopped; goes on later")
            return
        self._record(claim, code)

    def _words(self, claim: Claim, state: str, folder: Path) -> list[str]:
        """Return the command: to start the cell, or to go on with it."""
        cell = self.plan.cell(claim.cell)
        words = [*self.plan.command_of(cell, claim.overrides), *claim.words]
        fit = fit_words(words)
        if fit is None:
            return words
        if state == "interrupted":
            return [*words[: len(words) - len(fit)], "--run.resume", str(folder), *claim.words]
        if state == "empty":
            self._set_aside(folder)
        return words

    def _set_aside(self, folder: Path) -> None:
        """Move a folder without a checkpoint out of the way: a run never writes into another one's."""
        place = self.plan.folder / ASIDE
        place.mkdir(exist_ok=True)
        name = next(name for n in range(1, 10000) if not (name := place / f"{folder.name}-{n}").exists())
        folder.rename(name)

    def _environment(self, claim: Claim) -> dict[str, str]:
        found = dict(self.plan.environment)
        if self.options.gpus is not None:
            found["CUDA_VISIBLE_DEVICES"] = self.options.gpus
        if self.options.threads is not None:
            found.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.options.threads)))
        if self.plan.searches or self.plan.pruner is not None:
            found[STORAGE] = absolute_url(self.plan.storage, self.plan.folder)
            found.update({STUDY: self.plan.name, TRIAL: str(claim.trial), METRIC: self.plan.metric})
        return found

    def _wait(self, process: subprocess.Popen[bytes], claim: Claim) -> int:
        """Wait for a cell, give signs of life, pass on a stop; a second one, or too long a wait, ends it."""
        beat, told, since, killed = 0.0, 0, 0.0, False
        ours = fit_words(self.plan.cell(claim.cell).command) is not None
        while True:
            try:
                return process.wait(0.2)
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            if now - beat > BEAT_S:
                beat = now
                self.me.beat()
                self.ledger.heartbeat(claim)
            if self.stops and not told:
                told, since = 1, now
                if ours:
                    process.send_signal(signal.SIGUSR1)
                else:
                    child.tell(process, signal.SIGTERM)
            late = told and now - since > self.options.grace
            if told and not killed and (len(self.stops) > 1 or late):
                killed = True
                child.tell(process, signal.SIGKILL)

    def _wait_for_other(self, claim: Claim) -> None:
        """Wait while a process of an earlier worker still runs this cell, then give it back."""
        while not self.stops:
            with child.lock(self.plan.folder / LOCKS / f"{claim.cell}.lock") as held:
                if held is not None:
                    break
            self.me.beat()
            time.sleep(0.5)
        self.ledger.release(claim, "a process of an earlier worker still ran it")

    def _record(self, claim: Claim, code: int) -> None:
        """Read what became of a cell, and tell the ledger."""
        log = child.tail(self.plan.log_of(claim.cell))
        folder = self.plan.folder_of(claim.cell)
        if code != 0:
            if self.options.retry_oom and not claim.words and child.ran_out_of_memory(log):
                halved = _halved(folder)
                if halved:
                    self.ledger.release(claim, "out of memory; once more with half the batch", halved)
                    return
            self._fail(claim, child.reason(code, folder, log), log)
            return
        try:
            outcome = read_outcome(folder)
            if outcome.state == "pruned":
                self.ledger.prune(claim, _or_none(outcome.result, self.plan.metric), "given up by the rule")
            elif outcome.state == "finished":
                self.ledger.finish(claim, metric_of(outcome.result, self.plan.metric))
            else:
                raise DataError(f"it ended without {folder / runs.RESULT}")
        except M2HError as error:
            self._fail(claim, " ".join(str(error).split()), log)

    def _fail(self, claim: Claim, reason: str, log: str = "") -> None:
        self.failed += 1
        self.ledger.fail(claim, reason, log)


def _or_none(result: dict[str, object], metric: str) -> float | None:
    try:
        return metric_of(result, metric)
    except M2HError:
        return None


def _halved(folder: Path) -> list[str]:
    """Return the words for half the batch and twice the accumulation; none where the batch cannot be halved."""
    import yaml

    try:
        flat = runs.flatten(yaml.safe_load((folder / runs.CONFIG).read_text(encoding="utf-8")))
        batch, steps = int(flat["data.batch_size"]), int(flat.get("trainer.accumulate_grad_batches") or 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return []
    if batch < 2:
        return []
    return ["--data.batch_size", str(batch // 2), "--trainer.accumulate_grad_batches", str(2 * steps)]


def work(plan: Plan, options: WorkerOptions) -> int:
    """Run a worker to its end; return its exit code."""
    return Work(plan, options).run()


def command(folder: Path, options: WorkerOptions) -> list[str]:
    """Return the words that start a worker as a process of its own."""
    words = [sys.executable, "-m", "m2h_lightning", "sweep", "worker", str(folder), "--grace", str(options.grace)]
    for name, value in (("--cell", options.only), ("--gpus", options.gpus), ("--threads", options.threads)):
        if value is not None:
            words += [name, str(value)]
    return [*words, "--retry-oom"] if options.retry_oom else words


def start(folder: Path, options: WorkerOptions) -> subprocess.Popen[bytes]:
    """Start a worker that stops when this process ends, however it ends."""
    return subprocess.Popen(
        command(folder, options),
        start_new_session=True,  # Ctrl-C reaches this process alone, which tells its workers
        preexec_fn=child.dies_with_parent(signal.SIGTERM, os.getpid()),
    )
