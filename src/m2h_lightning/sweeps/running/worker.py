"""``m2h sweep worker``: takes cells from the ledger and runs them, one process each, until none is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from m2h_lightning.errors import DataError, M2HError
from m2h_lightning.runs import folder as runs
from m2h_lightning.runs.cell import METRIC, PRUNER, STOPPED, STORAGE, STUDY, TRIAL
from m2h_lightning.runs.outcome import metric_of, read_outcome
from m2h_lightning.storages.url import absolute_url, check_workers
from m2h_lightning.sweeps.ledger.study import PATIENCE_S, Claim, Ledger
from m2h_lightning.sweeps.ledger.workers import BEAT_S, alive, read_workers, register
from m2h_lightning.sweeps.planning.plan import LOCKS, Plan, fit_words
from m2h_lightning.sweeps.running import child
from m2h_lightning.sweeps.running.restart import half_the_batch, set_aside

INTERRUPTED = 130
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

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
        self._noted: set[str] = set()

    def run(self) -> int:
        """Run cells until none waits, or a signal says stop.

        Returns:
            0 when no cell failed here, 1 when one did, 130 after a stop.

        Raises:
            ConfigError: The storage is for one worker, and there is one.
            DataError: The ledger or the sweep's folder cannot be used (any more); the cell is given back if possible.
        """
        before = {number: signal.signal(number, self._told) for number in heeded(_STOP_SIGNALS)}
        try:
            try:
                self._work()
            except OSError as error:
                where = error.filename or self.plan.folder
                raise DataError(
                    f"{where}: {error.strerror or error}; the worker stops, its cell waits again: mend it and run again"
                ) from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.stops:
            if self.options.on_stop is not None:
                self.options.on_stop(self.stops[0])
            return INTERRUPTED
        return 1 if self.failed else 0

    def _work(self) -> None:
        if not Path(self.plan.directory).is_dir():  # no fault of any cell
            raise DataError(
                f"{self.plan.directory}, where the cells of {self.plan.name} are to run, is not there; plan again (m2h "
                "sweep run) where the files are"
            )
        self.me = register(self.plan.folder, self.options.slot)
        try:
            others = sum(alive(worker) for worker in read_workers(self.plan.folder) if worker.id != self.me.id)
            check_workers(self.plan.storage, others + 1)
            self.ledger = Ledger(self.plan, PATIENCE_S, lambda: bool(self.stops))
            self.ledger.reap()
            while not self.stops:
                claim = self.ledger.claim(self.me, self.options.only)
                if claim is None:
                    break
                try:
                    self._run(claim)
                except OSError as error:  # no fault of the cell: the disk is full, there are too many processes
                    self.ledger.release(claim, f"its worker stopped: {error.strerror or error}")
                    self.me.trials = []
                    raise
                self.me.trials = []
                self.me.save()
        finally:
            if not self.me.trials:  # else somebody has to notice that a cell was left behind
                self.me.leave()

    def _told(self, number: int, _frame: FrameType | None) -> None:
        self.stops.append(number)

    def _note(self, text: str) -> None:
        """Tell something on the terminal, once."""
        if text not in self._noted:
            self._noted.add(text)
            print(f"note: {text}", file=sys.stderr, flush=True)

    # ── one cell ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self, claim: Claim) -> None:
        """Bring one cell to its end: done, failed, given up, or given back."""
        folder, log = self.plan.folder_of(claim.cell), self.plan.log_of(claim.cell)
        with self._alone(claim) as held:
            if held is None:
                self.ledger.release(claim, "stopped; goes on later")
                return
            try:
                state = read_outcome(folder).state
            except M2HError as error:
                self._fail(claim, _one_line(error))
                return
            if state in ("finished", "pruned"):  # its worker was killed before it could say so
                self._record(claim, 0)
                return
            words, begin = self._words(claim, state, folder), child.size(log)
            try:
                process = child.start(words, folder, log, self.plan.directory, self._environment(claim), held)
            except (FileNotFoundError, PermissionError, NotADirectoryError) as error:  # the command, or where it runs
                self._fail(claim, _one_line(error))
                return
            try:
                code = self._wait(process, claim)
            finally:
                child.end(process)
            if code is None:
                self._note(f"{claim.cell} was given to another worker, since this one seemed dead; ended here")
            elif (self.stops and code != 0) or (code == STOPPED and self._is_ours(claim)):
                self.ledger.release(claim, "stopped; goes on later")
            else:
                self._record(claim, code, child.tail(log, begin=begin))

    @contextlib.contextmanager
    def _alone(self, claim: Claim) -> Iterator[int | None]:
        """Hold the lock of a cell; wait for, or end, what an earlier worker has left running of it.

        Yields:
            The lock's descriptor (-1 where there are no locks); None after a stop.
        """
        path, beat = self.plan.folder / LOCKS / f"{claim.cell}.lock", 0.0
        folder = self.plan.folder_of(claim.cell)
        while not self.stops:
            if child.size(self.plan.log_of(claim.cell)):  # it was started before
                child.end_left_over(folder)
            with child.lock(path) as held:
                if held is not None:
                    yield held
                    return
            self._note(f"{claim.cell} is still run by a process of an earlier worker; waiting for its end")
            if time.monotonic() - beat > BEAT_S:
                beat = time.monotonic()
                self._beat(claim)
            time.sleep(0.2)
        yield None

    def _words(self, claim: Claim, state: str, folder: Path) -> list[str]:
        """Return the command: to start the cell, or to go on with it."""
        words = [*self.plan.command_of(self.plan.cell(claim.cell), claim.overrides), *claim.words]
        fit = fit_words(words)
        if fit is None:
            folder.mkdir(exist_ok=True)  # the program writes its result there
            return words
        if state == "interrupted":  # its config.yaml has all the words
            return [*words[: len(words) - len(fit)], "--run.resume", str(folder)]
        if state == "empty":
            set_aside(self.plan, folder)
        return words

    def _environment(self, claim: Claim) -> dict[str, str]:
        found = dict(self.plan.environment)
        if self.options.gpus is not None:
            found["CUDA_VISIBLE_DEVICES"] = self.options.gpus
        if self.options.threads is not None:
            found.update(dict.fromkeys(THREADS, str(self.options.threads)))
        if self.plan.searches or self.plan.pruner is not None:
            found[STORAGE] = absolute_url(self.plan.storage, self.plan.folder)
            found.update({STUDY: self.plan.name, TRIAL: str(claim.trial), METRIC: self.plan.metric})
        if self.plan.pruner is not None:
            found[PRUNER] = json.dumps(self.plan.pruner)
        return found

    def _is_ours(self, claim: Claim) -> bool:
        """Whether a cell is a training run of this package: it leaves a checkpoint at SIGUSR1."""
        return fit_words(self.plan.cell(claim.cell).command) is not None

    def _wait(self, process: subprocess.Popen[bytes], claim: Claim) -> int | None:
        """Wait for a cell, give signs of life, pass on a stop; a second one, or too long a wait, ends it.

        Returns:
            Its exit code; None where it was another worker's meanwhile.
        """
        beat, told, since, killed = time.monotonic(), False, 0.0, False
        while True:
            try:
                return process.wait(0.2)
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            if now - beat > BEAT_S:
                beat = now
                if not self._beat(claim):
                    return None
            if self.stops and not told:
                told, since = True, now
                if self._is_ours(claim):
                    process.send_signal(signal.SIGUSR1)  # it tells its ranks itself
                else:
                    child.tell(process, signal.SIGTERM)
            late = told and now - since > self.options.grace
            if told and not killed and (len(self.stops) > 1 or late):
                killed = True
                child.tell(process, signal.SIGKILL)

    def _beat(self, claim: Claim) -> bool:
        """Give signs of life; return whether the cell is still ours."""
        try:
            self.me.beat()
        except OSError as error:  # the cell is worth more than a sign; the ledger has another one
            self._note(f"{self.me.path}: {error.strerror}")
        return self.ledger.heartbeat(claim)

    def _record(self, claim: Claim, code: int, log: str = "") -> None:
        """Read what became of a cell, and tell the ledger."""
        folder = self.plan.folder_of(claim.cell)
        if code != 0:
            if self.options.retry_oom and not claim.words and child.ran_out_of_memory(log):
                halved = half_the_batch(folder)
                if halved:
                    # Anew: what was trained with the larger batch is not mixed with what the smaller one trains.
                    set_aside(self.plan, folder)
                    self.ledger.release(claim, "out of memory; once more with half the batch", halved, log)
                    return
            self._fail(claim, child.reason(code, folder, log), log)
            return
        value: float | None = None
        try:
            outcome = read_outcome(folder)
            if outcome.state == "finished":
                value = metric_of(outcome.result, self.plan.metric)
            elif outcome.state != "pruned":
                raise DataError(f"it ended without {folder / runs.RESULT}")
        except M2HError as error:
            self._fail(claim, _one_line(error), log)
            return
        if outcome.state == "pruned":
            self.ledger.prune(claim, _or_none(outcome.result, self.plan.metric), "given up by the rule")
        else:
            self.ledger.finish(claim, value)  # type: ignore[arg-type]

    def _fail(self, claim: Claim, reason: str, log: str = "") -> None:
        self.failed += 1
        self.ledger.fail(claim, reason, log)


def heeded(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Return the signals to handle: not a hang-up that nohup told this process to ignore."""
    return [n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _or_none(result: dict[str, object], metric: str) -> float | None:
    try:
        return metric_of(result, metric)
    except M2HError:
        return None


def work(plan: Plan, options: WorkerOptions) -> int:
    """Run a worker to its end; return its exit code."""
    return Work(plan, options).run()


def command(plan: Plan, options: WorkerOptions) -> list[str]:
    """Return the words that start a worker as a process of its own."""
    words = [sys.executable, "-m", "m2h_lightning", "sweep", "worker", str(plan.folder), "--grace", str(options.grace)]
    for name, value in (("--cell", options.only), ("--gpus", options.gpus), ("--threads", options.threads)):
        if value is not None:
            words += [name, str(value)]
    return [*words, "--retry-oom"] if options.retry_oom else words


def start(plan: Plan, options: WorkerOptions) -> subprocess.Popen[bytes]:
    """Start a worker that stops when this process ends, however it ends."""
    return subprocess.Popen(
        command(plan, options),
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches this process alone, which tells its workers
        preexec_fn=child.dies_with_parent(signal.SIGTERM, os.getpid()),
    )
