"""Render the missing rooms of a cache, in this process or in several, with a progress bar."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from m2h_lightning.data.synthesis.shards import RoomsSpec, write_shard
from m2h_lightning.errors import DataError


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
    count = min(workers or min(_cores(), 8), len(rooms))
    console = Console(stderr=True)
    finished = _serially(folder, spec, rooms) if count <= 1 else _in_processes(folder, spec, rooms, count)
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serially(folder: Path, spec: RoomsSpec, rooms: list[int]) -> Iterator[int]:
    for room in rooms:
        write_shard(folder, spec, room)
        yield room


def _ask(process: subprocess.Popen[str], room: int) -> int:
    """Have one process render one room; blocks until the shard is on disk."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"{room}\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if answer.strip() != str(room):
        process.stdin.close()
        said = process.stderr.read().strip().splitlines() if process.stderr else []
        reason = said[-1] if said else f"exit code {process.wait()}"
        raise DataError(f"rendering room {room} failed: {reason}: run again to resume")
    return room


def _in_processes(folder: Path, spec: RoomsSpec, rooms: list[int], count: int) -> Iterator[int]:
    command = [sys.executable, "-m", "m2h_lightning.data.synthesis.worker", str(folder), json.dumps(asdict(spec))]
    # One thread each: the processes are the parallelism.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
        for _ in range(count)
    ]
    queue = deque(rooms)
    try:
        with ThreadPoolExecutor(count) as pool:
            running: dict[Future[int], subprocess.Popen[str]] = {}
            for process in processes:
                running[pool.submit(_ask, process, queue.popleft())] = process
            try:
                while running:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        process = running.pop(future)
                        if queue:
                            running[pool.submit(_ask, process, queue.popleft())] = process
                        yield future.result()
            except BaseException:  # Ctrl-C too: end the processes first, or the pool would wait for their answers
                _stop(processes)
                raise
    finally:
        _stop(processes)


def _stop(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                try:
                    stream.close()
                except BrokenPipeError:  # what was still to be sent has no reader any more
                    continue
