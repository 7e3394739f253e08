"""How a sweep stands: its cells by state, the best so far, the time that is left. Reads, and writes nothing."""

from __future__ import annotations

import datetime
import heapq
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from m2h_lightning.errors import DataError, M2HError
from m2h_lightning.runs.outcome import metric_of, read_outcome
from m2h_lightning.storages.url import absolute_url, open_storage, shown_url
from m2h_lightning.sweeps.ledger.study import Entry, Ledger
from m2h_lightning.sweeps.ledger.workers import SILENT_S, Worker, alive, read_workers
from m2h_lightning.sweeps.planning.cells import variant
from m2h_lightning.sweeps.planning.plan import Plan
from m2h_lightning.sweeps.view.progress import Progress

STATES = ("done", "pruned", "failed", "running", "lost", "waiting")
"""States of a cell as a person sees them; "lost": the ledger says that it runs, and its worker is dead."""

GONE = "its result.json is gone or damaged"
"""Reason of a cell that has ended by the ledger, while somebody removed its folder: it may be tried again."""


class ReadLedger(Ledger):
    """The ledger of a sweep for a reader: nothing is written, not even the study's beginning.

    Args:
        plan: The sweep.

    Raises:
        DataError: The storage cannot be reached, or is damaged.
        KeyError: There is no study of that name yet.
    """

    def __init__(self, plan: Plan) -> None:
        import optuna

        self.plan = plan
        self._storage = open_storage(plan.storage, plan.folder)
        self.study = optuna.load_study(study_name=plan.name, storage=self._storage)
        self._id = self.study._study_id
        self._names = {cell.id for cell in plan.cells}


@dataclass(frozen=True)
class Status:
    """How a sweep stands.

    Args:
        plan: The sweep.
        entries: Its cells in the plan's order.
        lost: Cells whose worker is dead.
        workers: Those that have a file, and whether each is alive.
    """

    plan: Plan
    entries: list[Entry]
    lost: frozenset[str]
    workers: list[tuple[Worker, bool]]

    def state(self, entry: Entry) -> str:
        """Return the state of a cell as a person sees it."""
        return "lost" if entry.cell in self.lost else entry.state

    @property
    def gone(self) -> list[Entry]:
        """The cells that have ended by the ledger, and have no result."""
        return [entry for entry in self.entries if entry.state in ("done", "pruned") and entry.reason == GONE]

    def of(self, state: str) -> list[Entry]:
        """Return the cells of one state."""
        return [entry for entry in self.entries if self.state(entry) == state]


def read_status(plan: Plan) -> Status:
    """Read how a sweep stands, while others may write.

    Raises:
        DataError: The ledger cannot be reached, or is damaged.
    """
    entries = read_entries(plan)
    workers = [(worker, alive(worker)) for worker in read_workers(plan.folder)]
    lost = _lost(entries, workers)
    if lost:  # a cell may have ended, and its worker left, between the two readings
        entries = read_entries(plan)
        lost &= _lost(entries, workers)
    return Status(plan, [_by_folder(plan, entry) for entry in entries], lost, workers)


def read_entries(plan: Plan) -> list[Entry]:
    """Return what the ledger says of every cell; before the first start every one waits.

    Raises:
        DataError: The ledger cannot be reached, or is damaged.
    """
    url = absolute_url(plan.storage, plan.folder)
    if url.startswith("journal:") and not Path(url.removeprefix("journal:")).exists():
        return [Entry(cell.id, "waiting", 0) for cell in plan.cells]
    try:
        return ReadLedger(plan).entries()
    except M2HError:
        raise
    except KeyError:  # the storage knows no such study
        return [Entry(cell.id, "waiting", 0) for cell in plan.cells]
    except Exception as error:  # a line that is no JSON, an operation without its study, whatever a driver raises
        raise DataError(
            f"the ledger {shown_url(url)} cannot be read ({' '.join(str(error).split()) or type(error).__name__}); if "
            "it stays so, move it away: finished cells are kept, m2h sweep run goes on with the others"
        ) from error


def _lost(entries: Iterable[Entry], workers: Iterable[tuple[Worker, bool]]) -> frozenset[str]:
    living = {worker.id for worker, lives in workers if lives}
    return frozenset(
        entry.cell
        for entry in entries
        # Who claims a cell signs it a moment later.
        if entry.state == "running"
        and (entry.owner["worker"] not in living if entry.owner else elapsed(entry) > SILENT_S)
    )


def _by_folder(plan: Plan, entry: Entry) -> Entry:
    """Return an entry with what its folder knows better: a result that the ledger has not, or one that is gone."""
    if entry.state in ("done", "pruned"):
        try:
            there = read_outcome(plan.folder_of(entry.cell)).state in ("finished", "pruned")
        except M2HError:
            there = False
        return entry if there else replace(entry, reason=GONE)
    if entry.state != "waiting":
        return entry
    try:
        outcome = read_outcome(plan.folder_of(entry.cell))
        if outcome.state == "finished":
            return replace(entry, state="done", value=metric_of(outcome.result, plan.metric), reason="")
    except M2HError as error:
        return replace(entry, reason=" ".join(str(error).split()))
    return entry


def counts(status: Status) -> dict[str, int]:
    """Return the number of cells in each state."""
    return {state: len(status.of(state)) for state in STATES}


def best(plan: Plan, entries: Iterable[Entry]) -> Entry | None:
    """Return the finished cell with the best metric; the first one of equals."""
    done = [entry for entry in entries if entry.state == "done" and entry.value is not None]
    sign = 1 if plan.higher_is_better else -1
    return max(done, key=lambda entry: sign * (entry.value or 0.0), default=None)


def elapsed(entry: Entry) -> float:
    """Return the seconds that the last attempt at a cell took, or has taken so far."""
    if entry.started is None:
        return 0.0
    end = entry.ended or datetime.datetime.now(entry.started.tzinfo)
    return max(0.0, (end - entry.started).total_seconds())


def eta(plan: Plan, entries: Iterable[Entry], workers: int, progress: Mapping[str, Progress]) -> float | None:
    """Return the seconds until every cell has ended, or None when nothing can be known yet.

    What is left is dealt to the workers one after another, each cell as long as the finished ones of its variant took
    (all finished ones, where it has none). Before the first one has ended, what the running ones have done tells.

    Args:
        plan: The sweep.
        entries: Its cells.
        workers: Cells at a time.
        progress: How far running cells are, by id.
    """
    entries = list(entries)
    running = [entry for entry in entries if entry.state == "running"]
    waiting = [entry for entry in entries if entry.state == "waiting"]
    if not running and not waiting:
        return 0.0
    names = _variants(plan)
    known: dict[str, list[float]] = {}
    for entry, seconds in _durations(entries, progress):
        known.setdefault(names.get(entry.cell, ""), []).append(seconds)
    if not known:
        return None
    overall = statistics.median(value for values in known.values() for value in values)

    def whole(entry: Entry) -> float:
        return statistics.mean(known.get(names.get(entry.cell, ""), [overall]))

    def left(entry: Entry) -> float:
        by_time = max(0.0, whole(entry) - elapsed(entry))
        part = progress[entry.cell].fraction if entry.cell in progress else None
        # What was done before a stop is not in the time of this attempt; and one that is late tells how late.
        return whole(entry) * (1 - part) if part and (entry.attempts > 1 or not by_time) else by_time

    free = [left(entry) for entry in running]
    free += [0.0] * max(0, max(1, workers) - len(free))
    heapq.heapify(free)
    for entry in waiting:
        heapq.heappush(free, heapq.heappop(free) + whole(entry))
    return max(free)


def _durations(entries: list[Entry], progress: Mapping[str, Progress]) -> list[tuple[Entry, float]]:
    """Return cells with the seconds that each takes, from the best witnesses there are."""
    timed = [entry for entry in entries if entry.state in ("done", "pruned") and entry.started and entry.ended]
    done = [entry for entry in timed if entry.state == "done"]
    # The last attempt at a cell that was stopped in its middle is shorter than the cell.
    witnesses = [entry for entry in done if entry.attempts == 1] or done or timed
    if witnesses:
        return [(entry, elapsed(entry)) for entry in witnesses]
    parts = [(entry, progress[entry.cell].fraction) for entry in entries if entry.cell in progress]
    return [
        (entry, elapsed(entry) / part)
        for entry, part in parts
        if part and entry.state == "running" and entry.attempts == 1
    ]


def _variants(plan: Plan) -> dict[str, str]:
    return {cell.id: json.dumps(variant(cell.overrides), sort_keys=True) for cell in plan.cells if cell.overrides}


def duration(seconds: float | None) -> str:
    """Return a time as a clock shows it (``1:23``, ``2:01:05``, ``3 d 4 h``); "–" where it is unknown."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole >= 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    minutes, rest = divmod(whole, 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def owner(entry: Entry) -> str:
    """Return who runs or ran a cell: ``host:pid, 2 threads``."""
    about: dict[str, Any] = entry.owner or {}
    if not about:
        return "–"
    job = (about.get("slurm") or {}).get("job")
    parts = [f"{about.get('host', '?')}:{about.get('pid', '?')}", about.get("slot") or "", f"job {job}" if job else ""]
    return ", ".join(part for part in parts if part)
