"""What a person sees while a sweep runs: a live table in a terminal, a line per event elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from m2h_lightning.sweeps.ledger.study import Entry
from m2h_lightning.sweeps.planning.plan import Plan
from m2h_lightning.sweeps.view.progress import Progress, Reader
from m2h_lightning.sweeps.view.status import best, duration, elapsed, eta

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

ENDED = ("done", "pruned", "failed")
INTERVAL_S = 0.25
"""Seconds between two pictures of the table at least."""


def view(plan: Plan, workers: int) -> Lines:
    """Return how to show a sweep here: a table where the output is a terminal that can move its cursor."""
    from rich.console import Console

    if sys.stdout is not None and sys.stdout.isatty():
        console = Console(highlight=False)
        if not console.is_dumb_terminal:
            return Table(plan, workers, console)
    return Lines(plan, workers)


def stopping_text(times: int) -> str:
    """Return what to say when Ctrl-C was pressed so many times."""
    if times == 1:
        return "stopping: cells leave a checkpoint and go on next time; once more ends them at once"
    return "ending now: cells go on from their last checkpoint next time"


def closing(plan: Plan, entries: list[Entry]) -> list[str]:
    """Return the last lines about a sweep: how many cells are what, and what to do next."""
    counts = {state: sum(e.state == state for e in entries) for state in (*ENDED, "waiting", "running")}
    text = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no cells"
    lines = [f"{plan.name}: {text} ({plan.folder})"]
    first = best(plan, entries)
    if first is not None:
        lines.append(f"best so far: {plan.metric} {first.value:.4g} ({first.cell})")
    if counts["failed"]:
        lines.append(f"failed cells: m2h sweep status {plan.folder} says why, m2h sweep retry {plan.folder} …")
    if counts["waiting"] or counts["running"]:
        lines.append("to go on: the same command again")
    elif counts["done"]:
        lines.append(f"tables: m2h sweep report {plan.folder}")
    return lines


class Lines:
    """One line per event, for logs and pipes.

    Args:
        plan: The sweep.
        workers: Cells at a time.
    """

    def __init__(self, plan: Plan, workers: int) -> None:
        self.plan, self.workers = plan, workers
        self._before: dict[str, Entry] = {}
        self._gone = False

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def show(self, entries: list[Entry]) -> None:
        """Tell what has changed since the last call."""
        done = sum(entry.state in ENDED for entry in entries)
        for entry in entries:
            before = self._before.get(entry.cell)
            self._before[entry.cell] = entry
            if entry == before or (before is None and entry.state != "running"):
                continue
            if before is not None and before.state == entry.state and before.attempts == entry.attempts:
                continue
            self._say(f"[{done}/{len(entries)}] {entry.cell} {entry.state}{self._details(entry, entries)}")

    def _details(self, entry: Entry, entries: list[Entry]) -> str:
        value = "" if entry.value is None else f" {self.plan.metric} {entry.value:.4g}"
        if entry.state in ENDED:
            value += f" in {duration(elapsed(entry))}"
        if entry.state in ("failed", "waiting") and entry.reason:
            value += f": {entry.reason}"
        left = eta(self.plan, entries, self.workers, {}) if entry.state == "done" else None
        return f"{value}; about {duration(left)} left" if left else value

    def stopping(self, times: int) -> None:
        """Tell that Ctrl-C was heard."""
        self._say(stopping_text(times))

    def close(self, entries: list[Entry]) -> None:
        """Tell the end."""
        for line in closing(self.plan, entries):
            self._say(line)

    def _say(self, text: str) -> None:
        self._watched(lambda: print(f"{time.strftime('%H:%M:%S')} {text}", flush=True))

    def _watched(self, show: Callable[[], object]) -> None:
        """Show something, unless whoever watched has gone: a closed terminal or pipe does not end a sweep."""
        if self._gone:
            return
        try:
            show()
        except OSError:
            self._gone = True
            try:  # what Python still holds for the closed output would raise again when this process ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            except (OSError, ValueError):  # an output without a descriptor has nothing to raise
                return


class Table(Lines):
    """A table that is drawn anew in place: bar, counts, running cells, the last ended ones, failures.

    Args:
        plan: The sweep.
        workers: Cells at a time.
        console: The terminal.
    """

    def __init__(self, plan: Plan, workers: int, console: Console) -> None:
        super().__init__(plan, workers)
        self.console = console
        self.note = ""
        self._reader = Reader(plan.metric)
        self._live: Live | None = None
        self._drawn = 0.0
        self._entries: list[Entry] = []

    def __enter__(self) -> Table:
        """Begin to draw."""
        from rich.live import Live

        # Drawn by show() alone: no thread, no picture between two readings of the ledger.
        self._live = Live(console=self.console, auto_refresh=False, vertical_overflow="crop")
        self._watched(self._live.start)
        return self

    def __exit__(self, *_: Any) -> None:
        """Leave the last picture standing."""
        if self._live is not None:
            self._draw()
            self._watched(self._live.stop)
            self._live = None

    def show(self, entries: list[Entry]) -> None:
        """Draw the sweep; at most four times a second."""
        self._entries = entries
        if time.monotonic() - self._drawn >= INTERVAL_S:
            self._draw()

    def stopping(self, times: int) -> None:
        """Tell that Ctrl-C was heard, in the table."""
        self.note = stopping_text(times)
        self._draw()

    def _draw(self) -> None:
        from m2h_lightning.sweeps.view.picture import picture

        if self._live is None or self._gone:
            return
        self._drawn = time.monotonic()
        live, size = self._live, self.console.size
        content = picture(self.plan, self._entries, self.workers, self._progress(), size.width, size.height, self.note)
        self._watched(lambda: live.update(content, refresh=True))

    def _progress(self) -> dict[str, Progress]:
        running = [entry.cell for entry in self._entries if entry.state == "running"]
        return {cell: self._reader.read(self.plan.folder_of(cell)) for cell in running}

    def _say(self, text: str) -> None:
        self._watched(lambda: self.console.print(text, markup=False, soft_wrap=True))
