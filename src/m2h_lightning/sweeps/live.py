"""What a person sees while a sweep runs: a line per event, or a live table in a terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

from m2h_lightning.sweeps.ledger import Entry
from m2h_lightning.sweeps.plan import Plan


def view(plan: Plan, workers: int) -> Lines:
    """Return how to show a sweep here."""
    return Lines(plan, workers)


class Lines:
    """One line per event, for logs and pipes.

    Args:
        plan: The sweep.
        workers: Cells at a time.
    """

    def __init__(self, plan: Plan, workers: int) -> None:
        self.plan, self.workers = plan, workers
        self._before: dict[str, Entry] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def show(self, entries: list[Entry]) -> None:
        """Tell what has changed since the last call."""
        done = sum(entry.state in ("done", "failed", "pruned") for entry in entries)
        for entry in entries:
            before = self._before.get(entry.cell)
            if before is not None and before != entry and before.state != entry.state:
                value = "" if entry.value is None else f" {self.plan.metric} {entry.value:.4g}"
                why = f": {entry.reason}" if entry.state == "failed" else ""
                self._say(f"[{done}/{len(entries)}] {entry.cell} {entry.state}{value}{why}")
            elif before is None and entry.state == "running":
                self._say(f"[{done}/{len(entries)}] {entry.cell} running")
            self._before[entry.cell] = entry

    def stopping(self, times: int) -> None:
        """Tell that Ctrl-C was heard."""
        again = "; once more ends them at once" if times == 1 else ""
        self._say("stopping: cells leave a checkpoint and go on next time" + again if times == 1 else "ending now")

    def close(self, entries: list[Entry]) -> None:
        """Tell the end."""
        counts = {
            state: sum(e.state == state for e in entries)
            for state in ("done", "pruned", "failed", "waiting", "running")
        }
        text = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        self._say(f"{self.plan.name}: {text} ({self.plan.folder})")

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True, file=sys.stdout)
