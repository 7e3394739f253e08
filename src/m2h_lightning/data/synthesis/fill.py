"""Render the missing rooms of a cache, in this process or in several, with a progress bar."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from m2h_lightning.data.synthesis.shards import RoomsSpec, write_shard
from m2h_lightning.errors import DataError
from m2h_lightning.processes import cores, work


def fill(folder: Path, spec: RoomsSpec, rooms: list[int], workers: int | None, progress: bool) -> None:
    """Render ``rooms`` into ``folder``.

    Args:
        folder: The cache.
        spec: Its specification.
        rooms: Room numbers.
        workers: Processes; None for one per core this process may use, at most 8.
        progress: Whether to report.

    Raises:
        DataError: A rendering process failed; its message is repeated.
    """
    count = min(workers or min(cores(), 8), len(rooms))
    console = Console(stderr=True)
    finished = work(partial(_render, folder, spec), rooms, count, "rendering room {}".format)
    start = time.monotonic()
    if not progress:
        for _ in finished:
            pass
        return
    what = f"{len(rooms) * spec.views_per_room} images of {spec.height}x{spec.width} ({spec.split})"
    if not console.is_terminal:
        print(f"rooms: rendering {what} into {folder} with {count} process(es)", file=sys.stderr, flush=True)
        for _ in finished:
            pass
        rate = len(rooms) * spec.views_per_room / max(time.monotonic() - start, 1e-9)
        print(f"rooms: done, {time.monotonic() - start:.1f} s, {rate:.1f} images/s", file=sys.stderr, flush=True)
        return
    columns = (
        TextColumn("rooms {task.fields[split]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} images/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(rooms) * spec.views_per_room, split=spec.split, rate=0.0)
        for done, _ in enumerate(finished, 1):
            images = done * spec.views_per_room
            bar.update(task, completed=images, rate=images / max(time.monotonic() - start, 1e-9))


def _render(folder: Path, spec: RoomsSpec, room: int) -> int:
    try:
        write_shard(folder, spec, room)
    except DataError as error:
        raise DataError(f"rendering room {room} failed: {error}: run again to resume") from error
    return room
