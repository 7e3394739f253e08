"""One cell as a process: started so that it cannot outlive its worker unnoticed, stopped so that it can go on later."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m2h_lightning.runs import folder as runs
from m2h_lightning.runs.cell import METRIC, PRUNER, STORAGE, STUDY, TRIAL
from m2h_lightning.sweeps.running.slurm_job import without_launcher

CELL_VARIABLE = "M2H_CELL"
"""Set for every cell: its run folder. Any program that writes a ``result.json`` there can be swept."""

LINES = 20
"""How many of the last lines of a failed cell the ledger keeps."""

LONGEST = 300
"""Characters of the line that tells why a cell failed."""

_OOM = re.compile(
    r"OutOfMemoryError|(CUDA|MPS backend) out of memory|can(no|')t allocate memory|\bMemoryError\b",
    re.IGNORECASE,
)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def dies_with_parent(how: signal.Signals, parent: int) -> Any:
    """Return what a new process does first, so that it gets a signal when the thread that started it ends (Linux)."""

    def before_exec() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, int(how))
            if os.getppid() != parent:  # it ended before we asked
                os._exit(1)

    return before_exec


@contextlib.contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[int | None]:
    """Hold a lock that the processes started meanwhile share: it is free when all of them have ended.

    Args:
        path: Its file.
        wait: Wait until nobody else holds it.

    Yields:
        Its descriptor, to be passed on; None where somebody holds it. -1 where the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            yield None if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else -1
            return
        yield descriptor
    finally:
        os.close(descriptor)


def start(
    words: list[str], folder: Path, log: Path, directory: str, environment: Mapping[str, str], held: int
) -> subprocess.Popen[bytes]:
    """Start a cell.

    Args:
        words: Its command.
        folder: Its run folder, for programs that are not ours.
        log: File that what it prints is added to.
        directory: Working directory.
        environment: Variables to set beside those of this process.
        held: Descriptor of its lock, or -1.

    Raises:
        OSError: It cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        file.write(f"$ {shlex.join(words)}\n".encode())
        file.flush()
        return subprocess.Popen(
            words,
            cwd=directory,
            env={**_inherited(), **environment, CELL_VARIABLE: str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the worker alone, which then stops it in its own way
            pass_fds=(held,) if held >= 0 else (),
            preexec_fn=dies_with_parent(signal.SIGKILL, os.getpid()),
        )


def _inherited() -> dict[str, str]:
    """Return the environment without what this process was told of a job's tasks, or of a sweep it is itself in."""
    reporting = (STORAGE, STUDY, TRIAL, METRIC, PRUNER)
    return {key: value for key, value in without_launcher(os.environ).items() if key not in reporting}


def tell(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Send a signal to a cell and to the processes it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, how)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill what a cell that has ended, or is to end now, has left of processes: ranks, loader workers."""
    tell(process, signal.SIGKILL)
    process.wait()


def end_left_over(folder: Path) -> int:
    """Kill the processes that an earlier worker's cell has left on this machine; return how many (Linux, else 0).

    They are known by the variable that every process of a cell inherits. Only for whoever holds the cell's claim.
    """
    mark, ended = f"{CELL_VARIABLE}={folder}".encode(), 0
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another person's
            if mark in (place / "environ").read_bytes().split(b"\0"):
                os.kill(int(place.name), signal.SIGKILL)
                ended += 1
    return ended


def size(log: Path) -> int:
    """Return the length of a log in bytes: where the next attempt's lines begin."""
    try:
        return log.stat().st_size
    except OSError:
        return 0


def tail(log: Path, lines: int = LINES, begin: int = 0) -> str:
    """Return the last lines of a log from ``begin`` on, without reading all of it."""
    try:
        with open(log, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(begin, file.tell() - 500 * lines))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(line[:500] for line in text.splitlines()[-lines:])


def reason(code: int, folder: Path, log: str) -> str:
    """Return in one line why a cell failed."""
    if ran_out_of_memory(log):
        return "out of memory"
    if code < 0:
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else str(-code)
        return f"killed by {name}" + (" (was memory short?)" if -code == signal.SIGKILL else "")
    with contextlib.suppress(OSError):
        first = (folder / runs.FAILURE).read_text(encoding="utf-8", errors="replace").splitlines()
        if first and first[0].strip():
            return first[0].strip()
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "it printed nothing")
    return f"exit code {code}: {last[:LONGEST]}"


def ran_out_of_memory(log: str) -> bool:
    """Whether the last lines of a cell tell of too little memory."""
    return bool(_OOM.search(log))
