"""The ledger: an Optuna study that knows of every cell whether it waits, runs, is done or failed.

Each attempt at a cell is one trial. Workers claim waiting trials by an atomic change of state; the study itself never
samples cells of a grid, since with several workers Optuna's grid sampler runs cells twice. What decides whether a cell
is done is its ``result.json``: a ledger that was lost is made anew from the run folders.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from m2h_lightning.errors import DataError
from m2h_lightning.sweeps.parameters import Parameter
from m2h_lightning.sweeps.plan import Plan
from m2h_lightning.sweeps.storage import open_storage, shown_url
from m2h_lightning.sweeps.workers import SILENT_S, Worker, alive, read_workers

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

CELL, ATTEMPT, AGAIN, REASON, OWNER, LOG, WORDS = "cell", "attempt", "again", "reason", "owner", "log", "words"
"""User attributes of a trial: its cell, the number of the attempt from 0, whether it is to be tried again, why it
failed, who ran it, the last lines it printed, words added to its command."""

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


class Ledger:
    """The ledger of one sweep.

    Args:
        plan: The sweep.

    Raises:
        DataError: The storage cannot be reached.
    """

    def __init__(self, plan: Plan) -> None:
        import optuna

        self.plan = plan
        self._storage = open_storage(plan.storage, plan.folder)
        direction: Literal["minimize", "maximize"] = "maximize" if plan.higher_is_better else "minimize"
        try:
            self.study: Study = optuna.create_study(
                study_name=plan.name, storage=self._storage, direction=direction, load_if_exists=True
            )
        except Exception as error:  # whatever a database's driver raises
            raise DataError(f"--storage {shown_url(plan.storage)}: {' '.join(str(error).split())}") from error
        self._id = self.study._study_id
        self._names = {cell.id for cell in plan.cells}

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _trials(self) -> dict[str, list[FrozenTrial]]:
        """Return the attempts at each cell of the plan, in order; of two with the same number the first one counts."""
        found: dict[str, dict[int, FrozenTrial]] = {}
        for trial in self._storage.get_all_trials(self._id, deepcopy=False):
            cell = trial.user_attrs.get(CELL)
            if cell in self._names:
                found.setdefault(cell, {}).setdefault(trial.user_attrs[ATTEMPT], trial)
        return {cell: [attempts[number] for number in sorted(attempts)] for cell, attempts in found.items()}

    def entries(self) -> list[Entry]:
        """Return every cell of the plan, in its order."""
        trials = self._trials()
        return [_entry(cell.id, trials.get(cell.id, [])) for cell in self.plan.cells]

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def enroll(self) -> None:
        """Make a waiting trial for every cell that has none, and for every one that is to be tried again.

        May be done by several processes at once: of two trials for the same attempt the first one counts.
        """
        trials = self._trials()
        for cell in self.plan.cells:
            attempts = trials.get(cell.id)
            if not attempts:
                self._add(cell.id, 0, cell.overrides)
            elif attempts[-1].state.name == "FAIL" and attempts[-1].user_attrs.get(AGAIN):
                self._again(attempts[-1])

    def retry(self, cells: Collection[str]) -> None:
        """Make a waiting trial for cells that failed."""
        for cell, attempts in self._trials().items():
            if cell in cells and attempts[-1].state.name == "FAIL":
                self._again(attempts[-1], words=())

    def _again(self, last: FrozenTrial, words: Iterable[str] | None = None) -> None:
        attrs = last.user_attrs
        extra = attrs.get(WORDS, ()) if words is None else words
        fixed = dict(last.params) if self.plan.searches else None
        self._add(attrs[CELL], attrs[ATTEMPT] + 1, self.plan.cell(attrs[CELL]).overrides, extra, fixed)

    def _add(
        self,
        cell: str,
        attempt: int,
        overrides: dict[str, Any] | None,
        words: Iterable[str] = (),
        fixed: dict[str, Any] | None = None,
    ) -> None:
        from optuna.trial import TrialState, create_trial

        attrs: dict[str, Any] = {CELL: cell, ATTEMPT: attempt, **({WORDS: list(words)} if words else {})}
        values, space = self._as_parameters(overrides or {})
        system = {"fixed_params": fixed} if fixed else {}  # what Trial.suggest_* then returns
        trial = create_trial(
            state=TrialState.WAITING, params=values, distributions=space, user_attrs=attrs, system_attrs=system
        )
        self._storage.create_new_trial(self._id, template_trial=trial)

    def _as_parameters(self, overrides: dict[str, Any]) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Return a cell's swept numbers as Optuna's parameters, so that its dashboard can plot over them.

        Words are left to the cell's name: their list of choices could never grow in a study.
        """
        from optuna.distributions import FloatDistribution, IntDistribution

        values: dict[str, Any] = {}
        space: dict[str, BaseDistribution] = {}
        for name, parameter in self.plan.parameters.items():
            if not parameter.swept or name not in overrides:
                continue
            numbers = [value for value in parameter.values if isinstance(value, int | float)]
            if len(numbers) < len(parameter.values):
                continue
            whole = all(isinstance(number, int) for number in numbers)
            low, high = min(numbers), max(numbers)
            space[name] = IntDistribution(int(low), int(high)) if whole else FloatDistribution(low, high)
            values[name] = int(overrides[name]) if whole else float(overrides[name])
        return values, space

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

        order = {cell.id: index for index, cell in enumerate(self.plan.cells)}
        waiting = [
            (order[cell], attempts[-1])
            for cell, attempts in self._trials().items()
            if attempts[-1].state == TrialState.WAITING and (only is None or cell == only)
        ]
        for _, trial in sorted(waiting, key=lambda pair: pair[0]):
            worker.trials = [trial._trial_id]
            worker.save()  # before the claim: see workers.py
            try:
                mine = self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
            except UpdateFinishedTrialError:
                mine = False
            if mine:
                self._storage.set_trial_user_attr(trial._trial_id, OWNER, worker.about())
                cell = trial.user_attrs[CELL]
                overrides = self.plan.cell(cell).overrides
                if overrides is None:
                    overrides = self._draw(trial._trial_id, trial.number)
                return Claim(cell, trial._trial_id, trial.number, overrides, tuple(trial.user_attrs.get(WORDS, ())))
        worker.trials = []
        worker.save()
        return None

    def _draw(self, trial_id: int, number: int) -> dict[str, Any]:
        """Let the sampler choose values; those of an earlier attempt are kept."""
        import optuna
        from optuna.samplers import RandomSampler, TPESampler

        # Seeded by the trial, so that the same history gives the same values, and workers do not repeat each other.
        random = self.plan.method == "random"
        with _no_warnings():
            self.study.sampler = (
                RandomSampler(seed=number) if random else TPESampler(seed=number, multivariate=True, constant_liar=True)
            )
        trial = optuna.trial.Trial(self.study, trial_id)
        return {name: _suggest(trial, parameter) for name, parameter in self.plan.parameters.items()}

    def finish(self, claim: Claim, value: float) -> None:
        """Note that a cell is done."""
        self._end(claim.trial, "COMPLETE", value)

    def prune(self, claim: Claim, value: float | None, reason: str) -> None:
        """Note that a cell was given up by the rule."""
        self._storage.set_trial_user_attr(claim.trial, REASON, reason)
        self._end(claim.trial, "PRUNED", value)

    def fail(self, claim: Claim, reason: str, log: str = "") -> None:
        """Note that a cell failed."""
        self._storage.set_trial_user_attr(claim.trial, REASON, reason)
        if log:
            self._storage.set_trial_user_attr(claim.trial, LOG, log)
        self._end(claim.trial, "FAIL")

    def release(self, claim: Claim, reason: str, words: Iterable[str] | None = None) -> None:
        """Give a cell back, to go on with it later.

        Args:
            claim: The cell.
            reason: Why it was not finished.
            words: Words to add to its command then; None keeps those it had.
        """
        if words is not None:
            self._storage.set_trial_user_attr(claim.trial, WORDS, list(words))
        self._give_back(claim.trial, reason)
        self.enroll()

    def _give_back(self, trial: int, reason: str) -> None:
        self._storage.set_trial_user_attr(trial, REASON, reason)
        self._storage.set_trial_user_attr(trial, AGAIN, True)
        self._end(trial, "FAIL")

    def _end(self, trial: int, state: str, value: float | None = None) -> None:
        from optuna.trial import TrialState

        self._storage.set_trial_state_values(trial, TrialState[state], None if value is None else [float(value)])

    def heartbeat(self, claim: Claim) -> None:
        """Tell a database that the cell is being run; other storages have no such thing."""
        record = getattr(self._storage, "record_heartbeat", None) or getattr(
            getattr(self._storage, "_backend", None), "record_heartbeat", None
        )
        if record is not None:
            record(claim.trial)

    # ── reaping ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def reap(self) -> list[str]:
        """Give back the cells of workers that were killed; return their names.

        Several processes may do so at once: a trial ends once.
        """
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        running = [t[-1] for t in self._trials().values() if t[-1].state == TrialState.RUNNING]
        found = []
        workers = read_workers(self.plan.folder)  # after the trials: who runs one has named it before
        living = {trial for worker in workers if alive(worker) for trial in worker.trials}
        named = {trial for worker in workers for trial in worker.trials}
        for trial in running:
            if trial._trial_id in living or (trial._trial_id not in named and _young(trial)):
                continue
            owner = trial.user_attrs.get(OWNER) or {}
            with contextlib.suppress(UpdateFinishedTrialError):  # another one was quicker
                self._give_back(trial._trial_id, f"its worker died ({owner.get('host', '?')}, {owner.get('pid', '?')})")
                found.append(trial.user_attrs[CELL])
        for worker in workers:
            if not alive(worker):
                worker.leave()
        self.enroll()
        return found


def _young(trial: FrozenTrial) -> bool:
    """Whether a trial may be that of a worker whose file a shared directory does not show yet."""
    if trial.datetime_start is None:
        return True
    start = trial.datetime_start
    now = datetime.datetime.now(start.tzinfo)
    return (now - start).total_seconds() < SILENT_S


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
    )


def _suggest(trial: Any, parameter: Parameter) -> Any:
    if parameter.kind == "constant":
        return parameter.values[0]
    if parameter.kind == "values":
        return trial.suggest_categorical(parameter.name, list(parameter.values))
    if parameter.kind == "int":
        return trial.suggest_int(parameter.name, int(parameter.low), int(parameter.high), log=parameter.log)
    return trial.suggest_float(parameter.name, parameter.low, parameter.high, log=parameter.log, step=parameter.step)


@contextlib.contextmanager
def _no_warnings() -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
