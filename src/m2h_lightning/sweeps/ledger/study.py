"""The ledger: an Optuna study that knows of every cell whether it waits, runs, is done or failed.

Each attempt at a cell is one trial. Workers claim waiting trials by an atomic change of state; the study itself never
samples cells of a grid, since with several workers Optuna's grid sampler runs cells twice. What decides whether a cell
is done is its ``result.json``: a ledger that was lost is made anew from the run folders.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from m2h_lightning.errors import DataError, M2HError
from m2h_lightning.runs.outcome import metric_of, read_outcome
from m2h_lightning.storages.patience import Patient, one_line
from m2h_lightning.storages.url import GRACE_S, HEARTBEAT_S, absolute_url, open_storage, shown_url
from m2h_lightning.sweeps.ledger.drawing import as_parameters, draw, drawn
from m2h_lightning.sweeps.ledger.workers import Worker, alive, known_alive, read_workers, recent
from m2h_lightning.sweeps.planning.cells import Cell
from m2h_lightning.sweeps.planning.plan import LOCKS, Plan
from m2h_lightning.sweeps.running import child

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

CELL, ATTEMPT, AGAIN, REASON, OWNER, LOG, WORDS = "cell", "attempt", "again", "reason", "owner", "log", "words"
BEAT = "beat"
"""User attributes of a trial: its cell, the number of the attempt from 0, whether it is to be tried again, why it
failed, who ran it, the last lines it printed, words added to its command; the last sign of life of its worker, where
the storage has no heartbeats of its own."""

PATIENCE_S = float(os.environ.get("M2H_PATIENCE_S", "600"))
"""Seconds that a worker waits for a ledger that cannot be reached."""

State = Literal["waiting", "running", "done", "failed", "pruned"]
DUPLICATE = "another planner had enrolled the cell"


@dataclass(frozen=True)
class Claim:
    """A cell that this worker is to run now.

    Args:
        cell: Its id.
        trial: Id of its trial in the storage.
        number: Number of its trial in the study.
        overrides: Its values.
        words: Words added to its command in this attempt.
    """

    cell: str
    trial: int
    number: int
    overrides: dict[str, Any]
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What the ledger says of a cell.

    Args:
        cell: Its id.
        state: Its state by its last attempt.
        attempts: How often it was started.
        value: The metric, when done.
        reason: Why it failed, or was given up.
        log: The last lines it printed.
        owner: Who runs or ran it.
        started: When its last attempt began.
        ended: When its last attempt ended.
        overrides: Values that were drawn, for a run of a search.
        words: Words added to its command in the last attempt: half the batch after out of memory.
    """

    cell: str
    state: State
    attempts: int
    value: float | None = None
    reason: str = ""
    log: str = ""
    owner: dict[str, Any] | None = None
    started: datetime.datetime | None = None
    ended: datetime.datetime | None = None
    overrides: dict[str, Any] | None = None
    words: tuple[str, ...] = ()


class Ledger:
    """The ledger of one sweep.

    Args:
        plan: The sweep.
        patience: Seconds to repeat a call for while the storage cannot be reached, once it was opened.
        stop: Whether to give up waiting at once.

    Raises:
        DataError: The storage cannot be reached.
    """

    def __init__(self, plan: Plan, patience: float = 0.0, stop: Callable[[], bool] = lambda: False) -> None:
        import optuna
        from optuna.storages._heartbeat import is_heartbeat_enabled

        self.plan = plan
        self._raw: Any = open_storage(plan.storage, plan.folder)
        name = shown_url(absolute_url(plan.storage, plan.folder)).removeprefix("journal:")
        self._storage = cast(Any, Patient(self._raw, name, patience, stop))  # stands for a BaseStorage
        self._beats = is_heartbeat_enabled(self._raw)
        self._beaten, self._beating = 0.0, -1
        self._queue: list[FrozenTrial] = []
        self._known_until = 0.0
        direction: Literal["minimize", "maximize"] = "maximize" if plan.higher_is_better else "minimize"
        try:
            self.study: Study = optuna.create_study(
                study_name=plan.name, storage=self._storage, direction=direction, load_if_exists=True
            )
        except M2HError:
            raise
        except Exception as error:  # whatever a database's driver raises
            raise DataError(f"--storage {shown_url(plan.storage)}: {one_line(error)}") from error
        self._id = self.study._study_id
        self._names = {cell.id for cell in plan.cells}

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _every_trial(self) -> dict[str, dict[int, list[FrozenTrial]]]:
        """Return the trials of each cell of the plan by attempt, in the order in which they were made."""
        found: dict[str, dict[int, list[FrozenTrial]]] = {}
        for trial in self._storage.get_all_trials(self._id, deepcopy=False):
            cell = trial.user_attrs.get(CELL)
            if cell in self._names:
                found.setdefault(cell, {}).setdefault(trial.user_attrs[ATTEMPT], []).append(trial)
        return found

    def _trials(self) -> dict[str, list[FrozenTrial]]:
        """Return the attempts at each cell of the plan, in order; of two with the same number the first one counts."""
        every = self._every_trial()
        return {cell: [attempts[number][0] for number in sorted(attempts)] for cell, attempts in every.items()}

    def entries(self) -> list[Entry]:
        """Return every cell of the plan, in its order."""
        trials = self._trials()
        return [_entry(cell.id, trials.get(cell.id, [])) for cell in self.plan.cells]

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def enroll(self) -> None:
        """Make a waiting trial for every cell that has none, and for every one that is to be tried again.

        May be done by several processes at once: of two trials for the same attempt the first one counts. A cell that
        has a result but no trial, because the ledger was lost, is entered as done.
        """
        if not self._to_enroll(self._every_trial()):
            return
        with child.lock(self.plan.folder / LOCKS / "enroll.lock", wait=True):  # workers that start together
            for cell, last, doubles in self._to_enroll(self._every_trial()):
                if last is None:
                    self._first(cell.id, cell.overrides)
                elif _is_to_be_tried_again(last):
                    self._again(last)
                for trial in doubles:  # nobody claims it: for people who look at the study
                    self._end(trial._trial_id, "FAIL", {REASON: DUPLICATE})

    def _to_enroll(
        self, every: dict[str, dict[int, list[FrozenTrial]]]
    ) -> list[tuple[Cell, FrozenTrial | None, list[FrozenTrial]]]:
        """Return the cells with which something is to be done, their last attempts, and waiting trials too many."""
        found = []
        for cell in self.plan.cells:
            attempts = every.get(cell.id, {})
            last = attempts[max(attempts)][0] if attempts else None
            doubles = [t for trials in attempts.values() for t in trials[1:] if t.state.name == "WAITING"]
            if last is None or doubles or _is_to_be_tried_again(last):
                found.append((cell, last, doubles))
        return found

    def _first(self, cell: str, overrides: dict[str, Any] | None) -> None:
        fixed = drawn(self.plan, cell) if overrides is None else None
        try:
            outcome = read_outcome(self.plan.folder_of(cell))
            if outcome.state == "finished":
                value = metric_of(outcome.result, self.plan.metric)
                self._add(cell, 0, overrides if fixed is None else fixed, state="COMPLETE", value=value)
                return
        except M2HError:  # the worker that claims the cell records what is wrong
            pass
        self._add(cell, 0, overrides, fixed=fixed)

    def retry(self, cells: Collection[str]) -> None:
        """Make a waiting trial for cells that have ended: they failed, or their results are gone."""
        for cell, attempts in self._trials().items():
            if cell in cells and attempts[-1].state.is_finished():
                self._again(attempts[-1], words=())

    def _again(self, last: FrozenTrial, words: Iterable[str] | None = None) -> None:
        cell = last.user_attrs[CELL]
        extra = last.user_attrs.get(WORDS, ()) if words is None else words
        fixed = drawn(self.plan, cell) or dict(last.params) if self.plan.searches else None
        self._add(cell, last.user_attrs[ATTEMPT] + 1, self.plan.cell(cell).overrides, extra, fixed)

    def _add(
        self,
        cell: str,
        attempt: int,
        overrides: dict[str, Any] | None,
        words: Iterable[str] = (),
        fixed: dict[str, Any] | None = None,
        state: str = "WAITING",
        value: float | None = None,
    ) -> None:
        from optuna.trial import TrialState, create_trial

        attrs: dict[str, Any] = {CELL: cell, ATTEMPT: attempt, **({WORDS: list(words)} if words else {})}
        values, space = as_parameters(self.plan, overrides or {})
        system = {"fixed_params": fixed} if fixed else {}  # what Trial.suggest_* then returns
        trial = create_trial(
            state=TrialState[state],
            value=value,
            params=values,
            distributions=space,
            user_attrs=attrs,
            system_attrs=system,
        )
        self._storage.create_new_trial(self._id, template_trial=trial)
        self._known_until = 0.0

    def claim(self, worker: Worker, only: str | None = None) -> Claim | None:
        """Take the next waiting cell; exactly one worker gets it.

        Args:
            worker: This process.
            only: The id of the one cell to take.

        Returns:
            None when there is nothing to take.
        """
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        for fresh in (False, True):
            if fresh or time.monotonic() > self._known_until:
                self._read_queue()
            while (trial := next((t for t in self._queue if only in (None, t.user_attrs[CELL])), None)) is not None:
                self._queue.remove(trial)
                worker.trials = [trial._trial_id]
                worker.save()  # before the claim: see workers.py
                with contextlib.suppress(UpdateFinishedTrialError):
                    if self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                        return self._claimed(trial, worker)
        worker.trials = []
        worker.save()
        return None

    def _read_queue(self) -> None:
        """Read which trials wait, in the plan's order.

        A database reads hundreds of them in a second, so this is done again only after 20 times what it took, or when
        none is left: a trial that another worker has claimed meanwhile is refused by the storage.
        """
        began = time.monotonic()
        trials = self._trials()
        last = [trials[cell.id][-1] for cell in self.plan.cells if cell.id in trials]
        self._queue = [trial for trial in last if trial.state.name == "WAITING"]
        self._known_until = time.monotonic() + 20 * (time.monotonic() - began)

    def _claimed(self, trial: FrozenTrial, worker: Worker) -> Claim:
        cell, words = trial.user_attrs[CELL], tuple(trial.user_attrs.get(WORDS, ()))
        overrides = self.plan.cell(cell).overrides
        claim = Claim(cell, trial._trial_id, trial.number, overrides or {}, words)
        self.heartbeat(claim)
        self._storage.set_trial_user_attr(trial._trial_id, OWNER, worker.about())
        if overrides is None:
            claim = replace(claim, overrides=draw(self.plan, self._storage, cell, trial._trial_id, trial.number))
        return claim

    def finish(self, claim: Claim, value: float) -> bool:
        """Note that a cell is done; return False where it was not ours any more (so do the following ones)."""
        return self._end(claim.trial, "COMPLETE", {}, value)

    def prune(self, claim: Claim, value: float | None, reason: str) -> bool:
        """Note that a cell was given up by the rule."""
        return self._end(claim.trial, "PRUNED", {REASON: reason}, value)

    def fail(self, claim: Claim, reason: str, log: str = "") -> bool:
        """Note that a cell failed."""
        return self._end(claim.trial, "FAIL", {REASON: reason, **({LOG: log} if log else {})})

    def release(self, claim: Claim, reason: str, words: Iterable[str] | None = None, log: str = "") -> bool:
        """Give a cell back, to go on with it later.

        Args:
            claim: The cell.
            reason: Why it was not finished.
            words: Words to add to its command then; None keeps those it had.
            log: The last lines it printed.
        """
        added = {} if words is None else {WORDS: list(words)}
        given = self._give_back(claim.trial, reason, {**added, **({LOG: log} if log else {})})
        self.enroll()
        return given

    def _give_back(self, trial: int, reason: str, attrs: dict[str, Any] | None = None) -> bool:
        return self._end(trial, "FAIL", {REASON: reason, AGAIN: True, **(attrs or {})})

    def _end(self, trial: int, state: str, attrs: dict[str, Any], value: float | None = None) -> bool:
        """End a trial; a trial ends once, whoever else wants to end it."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            for key, content in attrs.items():
                self._storage.set_trial_user_attr(trial, key, content)
            self._storage.set_trial_state_values(trial, TrialState[state], None if value is None else [float(value)])
        except UpdateFinishedTrialError:
            return False
        return True

    def heartbeat(self, claim: Claim) -> bool:
        """Give a sign of life of a cell, for workers that can neither ask this machine nor see the worker's file.

        A ledger that cannot be reached now is not waited for: the cell runs meanwhile.

        Returns:
            Whether the cell is still this worker's; True where that cannot be known.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        now = time.monotonic()
        try:
            if now - self._beaten >= HEARTBEAT_S or claim.trial != self._beating:
                self._beaten, self._beating = now, claim.trial
                if self._beats:
                    self._raw.record_heartbeat(claim.trial)
                else:
                    self._raw.set_trial_user_attr(claim.trial, BEAT, _now().isoformat())
            return bool(self._raw.get_trial(claim.trial).state.name == "RUNNING")
        except UpdateFinishedTrialError:
            return False
        except self._storage.lost:
            return True

    # ── reaping ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def reap(self) -> list[str]:
        """Give back the cells of workers that were killed; return their names.

        Several processes may do so at once: a trial ends once.
        """
        running = [t[-1] for t in self._trials().values() if t[-1].state.name == "RUNNING"]
        workers = read_workers(self.plan.folder)  # after the trials: who runs one has named it before
        silent = set(self._storage._get_stale_trial_ids(self._id)) if self._beats and running else set()
        found = []
        for trial in running:
            naming = [worker for worker in workers if trial._trial_id in worker.trials]
            if self._lives(trial, naming, silent):
                continue
            owner = trial.user_attrs.get(OWNER) or (naming[0].about() if naming else {})
            reason = f"its worker died ({owner.get('host', '?')}, {owner.get('pid', '?')})"
            if self._give_back(trial._trial_id, reason):
                found.append(trial.user_attrs[CELL])
        for worker in workers:
            if not alive(worker):
                worker.leave()
        self.enroll()
        return found

    def _lives(self, trial: FrozenTrial, naming: list[Worker], silent: set[int]) -> bool:
        """Whether a running trial has a worker that may be alive.

        Those who can be asked decide: processes of this machine, jobs that SLURM knows. Of the others the last sign of
        life counts: of their file, or in the ledger, whichever is later.
        """
        noted = Worker.from_about(trial.user_attrs.get(OWNER) or {}, self.plan.folder)
        if noted is not None:
            naming = [worker for worker in naming if worker.id == noted.id] or [noted]
        verdicts = [known_alive(worker) for worker in naming]
        if True in verdicts:
            return True
        if verdicts and None not in verdicts:
            return False
        if any(recent(worker) for worker, verdict in zip(naming, verdicts, strict=True) if verdict is None):
            return True
        if self._beats:  # a trial with an owner has a heartbeat; without one only its start can tell
            return trial._trial_id not in silent and (noted is not None or _recent_sign(trial))
        return _recent_sign(trial)


def _is_to_be_tried_again(last: FrozenTrial) -> bool:
    return last.state.name == "FAIL" and bool(last.user_attrs.get(AGAIN))


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _recent_sign(trial: FrozenTrial) -> bool:
    """Whether the last sign of life of a trial in the ledger is recent."""
    if trial.datetime_start is None:
        return True
    beat = trial.user_attrs.get(BEAT)
    last = datetime.datetime.fromisoformat(beat) if beat else trial.datetime_start
    return (datetime.datetime.now(last.tzinfo) - last).total_seconds() < GRACE_S


def _entry(cell: str, attempts: list[FrozenTrial]) -> Entry:
    if not attempts:
        return Entry(cell, "waiting", 0)
    last = attempts[-1]
    states: dict[str, State] = {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "done", "PRUNED": "pruned"}
    state = states.get(last.state.name, "failed")
    if state == "failed" and last.user_attrs.get(AGAIN):
        state = "waiting"
    began = [attempt for attempt in attempts if attempt.datetime_start is not None]
    shown = last if state not in ("waiting",) or not began else began[-1]
    return Entry(
        cell,
        state,
        len(began),
        last.values[0] if last.values else None,
        str(shown.user_attrs.get(REASON, "")),
        str(shown.user_attrs.get(LOG, "")),
        shown.user_attrs.get(OWNER),
        shown.datetime_start,
        shown.datetime_complete,
        dict(last.params) or None,
        tuple(last.user_attrs.get(WORDS, ())),
    )
