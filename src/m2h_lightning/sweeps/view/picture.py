"""The picture of a running sweep in a terminal, for any width and height. What cells and files are called is text."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from m2h_lightning.sweeps.ledger.study import Entry
from m2h_lightning.sweeps.planning.plan import Plan
from m2h_lightning.sweeps.view.progress import Progress
from m2h_lightning.sweeps.view.status import best, duration, elapsed, eta, owner

COLOURS = {"done": "green", "pruned": "yellow", "failed": "red", "running": "cyan", "waiting": "dim"}
NARROW, WIDE = 50, 100
"""Columns of a terminal from which on a running cell's metric is shown, and its worker."""

LOW = 14
"""Rows of a terminal below which only the running cells are listed, not the ended ones."""

RECENT, FAILED = 3, 3
"""Rows of the last ended cells and of the last failures."""


def picture(
    plan: Plan,
    entries: list[Entry],
    workers: int,
    progress: Mapping[str, Progress],
    width: int,
    height: int,
    note: str = "",
) -> RenderableType:
    """Return the picture.

    Args:
        plan: The sweep.
        entries: Its cells.
        workers: Cells at a time.
        progress: How far the running cells are, by id.
        width: Columns of the terminal.
        height: Its rows; what does not fit is counted instead.
        note: A last line, such as that Ctrl-C was heard.
    """
    by_state = {state: [entry for entry in entries if entry.state == state] for state in COLOURS}
    running = sorted(by_state["running"], key=lambda entry: (-elapsed(entry), entry.cell))
    ended = sorted((*by_state["done"], *by_state["pruned"]), key=_end)[-RECENT:]
    failed = sorted(by_state["failed"], key=_end)[-FAILED:]
    fixed = 5 + 2 * bool(note)
    if height < fixed + len(running) + len(ended) + len(failed) + 1:  # a low terminal keeps what runs
        few = 1 if height >= LOW else 0
        ended, failed = ended[-few:] if few else [], failed[-few:] if few else []
    room = max(1, height - fixed - len(ended) - len(failed) - 2)
    parts: list[RenderableType] = [
        _line(width, (plan.name, "bold"), *([(f"  {plan.experiment}", "")] if plan.experiment else [])),
        Text(middle(str(plan.folder), width), style="dim", no_wrap=True),
        _bar(by_state, width),
        _counts(by_state, len(entries), width),
        _outlook(plan, entries, workers, progress, width),
    ]
    if running:
        parts.append(_running(running[:room], progress, width))
    if len(running) > room:
        parts.append(_line(width, (f"  and {len(running) - room} more running", "dim")))
    for entry in ended:
        value = "" if entry.value is None else f" {plan.metric} {entry.value:.4g}"
        told = f"{value} in {duration(elapsed(entry))}"
        parts.append(_event(entry, told, width))
    for entry in failed:
        parts.append(_event(entry, f": {' '.join(entry.reason.split())}", width, share=0.5))
    if note:
        parts.append(Text(note, style="bold yellow"))
    return Group(*parts)


def middle(text: str, width: int) -> str:
    """Return text cut in its middle to fit: the beginnings and ends of cells' names tell them apart."""
    if len(text) <= width:
        return text
    if width < 5:
        return text[: max(0, width)]
    head = (width - 1) // 3
    return f"{text[:head]}…{text[head - width + 1 :]}"


def _end(entry: Entry) -> tuple[float, str]:
    return (entry.ended.timestamp() if entry.ended else 0.0, entry.cell)


def _line(width: int, *parts: tuple[str, str]) -> Text:
    line = Text.assemble(*parts, no_wrap=True, overflow="ellipsis")
    line.truncate(width, overflow="ellipsis")
    return line


def _bar(by_state: Mapping[str, list[Entry]], width: int) -> RenderableType:
    total = sum(map(len, by_state.values()))
    ended = sum(len(by_state[state]) for state in ("done", "pruned", "failed"))
    label = f" {ended}/{total}"
    row = Table.grid()
    row.add_row(
        ProgressBar(total=max(1, total), completed=ended, width=max(8, min(60, width - len(label) - 1))), Text(label)
    )
    return row


def _counts(by_state: Mapping[str, list[Entry]], total: int, width: int) -> Text:
    words: list[tuple[str, str]] = []
    for state, colour in COLOURS.items():
        if by_state[state]:
            words += [(", " if words else "", ""), (f"{len(by_state[state])} {state}", colour)]
    return _line(width, *(words or [("no cells", "dim")]))


def _outlook(plan: Plan, entries: list[Entry], workers: int, progress: Mapping[str, Progress], width: int) -> Text:
    first = best(plan, entries)
    left = f"ETA {duration(eta(plan, entries, workers, progress))}"
    if first is None:
        return _line(width, (f"{left}  best –", ""))
    told = f"{left}  best {plan.metric} {first.value:.4g}  "
    return _line(width, (told, ""), (middle(first.cell, max(8, width - len(told))), "green"))


def _running(entries: list[Entry], progress: Mapping[str, Progress], width: int) -> Table:
    parts = [progress.get(entry.cell, Progress()) for entry in entries]
    values = ["–" if part.value is None else f"{part.name} {part.value:.4g}" for part in parts]
    columns = [[owner(entry) for entry in entries]] if width >= WIDE else []
    columns += [[duration(elapsed(entry)) for entry in entries], [str(part) for part in parts]]
    columns += [values] if width >= NARROW else []
    columns = [[middle(text, max(10, width // 3)) for text in column] for column in columns]
    room = max(8, width - sum(max(map(len, column)) + 2 for column in columns) - 2)
    table = Table.grid(padding=(0, 2, 0, 0))
    for index in range(len(columns) + 1):
        table.add_column(no_wrap=True, overflow="ellipsis", style="cyan" if index == 0 else None)
    for index, entry in enumerate(entries):
        again = f" ({entry.attempts})" if entry.attempts > 1 else ""
        name = middle(entry.cell, room - len(again)) + again
        table.add_row(Text(name), *(Text(column[index]) for column in columns))
    return table


def _event(entry: Entry, told: str, width: int, share: float = 0.4) -> Text:
    head = f"{entry.state:<7}"
    room = max(int(width * share) - len(head), width - len(head) - len(told))
    return _line(width, (head, COLOURS[entry.state]), (middle(entry.cell, room), ""), (told, ""))
