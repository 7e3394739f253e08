"""Look at many samples in several processes, with a progress bar; the sums do not depend on who was faster."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from m2h_lightning.data.sources.base import Item, Source
from m2h_lightning.data.verify.one_sample import Totals, examine
from m2h_lightning.processes import work

_CHUNK = 8
Chunk = tuple[int, list[Item]]


def spread(items: list[Item], count: int | None) -> list[Item]:
    """Return ``count`` items spread evenly over the list, the first and the last among them; all if None or too many.

    Args:
        items: In their order.
        count: At least 1.
    """
    if count is None or count >= len(items):
        return items
    if count == 1:
        return items[:1]
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


@dataclass(frozen=True)
class _Look:
    """The job of a working process: look at a few samples and add them up."""

    source: Source

    def __call__(self, chunk: Chunk) -> tuple[int, Totals]:
        number, items = chunk
        totals = Totals()
        for item in items:
            totals.add(examine(self.source, item))
        return number, totals


def _name(chunk: Chunk) -> str:
    return f"verifying sample '{chunk[1][0].id}' and the next ones"


def scan(source: Source, items: list[Item], workers: int) -> Totals:
    """Look at every item and add up what was found.

    Args:
        source: The set; it is sent to the processes.
        items: What to look at.
        workers: Processes; 1 looks in this process.

    Raises:
        DataError: A process was killed.
    """
    chunks: list[Chunk] = [
        (number, items[start : start + _CHUNK]) for number, start in enumerate(range(0, len(items), _CHUNK))
    ]
    totals, early = Totals(), dict[int, Totals]()
    columns = (TextColumn("verify"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(items))
        following = 0
        for number, part in work(_Look(source), chunks, min(workers, len(chunks)), _name):
            early[number] = part
            while following in early:  # sums of fractions depend on their order
                totals.add(early.pop(following))
                following += 1
            bar.advance(task, len(part.records))
    return totals
