"""Tell how far it is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY = 10.0  # seconds between lines


class Reporter:
    """Counts samples; used as a context.

    Args:
        what: Begins every line.
        total: Number of samples to come; 0 says nothing.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self._start = self._told = time.monotonic()
        self._bar: Progress | None = None

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._start

    def __enter__(self) -> Reporter:
        console = Console(stderr=True)
        if console.is_terminal and self.total:
            columns = (
                TextColumn(self.what),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:.1f} samples/s"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console)
            self._bar.add_task("", total=self.total, rate=0.0)
            self._bar.start()
        elif self.total:
            self._say(f"{self.total} samples to write")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, samples: int) -> None:
        """Count samples that are done."""
        self.done += samples
        rate = self.done / max(self.seconds, 1e-9)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self.done, rate=rate)
        elif time.monotonic() - self._told >= _EVERY:
            self._told = time.monotonic()
            left = int((self.total - self.done) / rate)
            clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
            self._say(f"{self.done} of {self.total} samples, {rate:.1f} samples/s, {clock} left")

    def _say(self, text: str) -> None:
        print(f"{self.what}: {text}", file=sys.stderr, flush=True)
