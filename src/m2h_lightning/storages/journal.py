"""The ledger's journal: Optuna's file of records, safe against writers that are killed at any moment.

Optuna's own lock is a link that stays behind when its holder is killed, and makes everybody wait for half a minute;
and a record that was cut short damages the file for good once another one follows. Here the processes of one machine
take turns by a lock of the kernel, which ends with its holder, so a link that is left behind by a process of this
machine is known to be dead at once; and what was cut short is removed before the next record is written. The link is
Optuna's own, so its dashboard and its tools may use the file at the same time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import LOCK_FILE_SUFFIX, BaseJournalFileLock, get_lock_file

from m2h_lightning.runs import folder as runs

GRACE_S = 30.0
"""Seconds after which a link of another machine that nobody changes counts as left behind (as in Optuna)."""


class MachineLock(BaseJournalFileLock):
    """A lock for the processes of one machine, and a link for those of others.

    Args:
        path: The journal.
        machine: What this machine is called until its next start.
    """

    def __init__(self, path: str, machine: str) -> None:
        journal = Path(path)
        self._link = f"{path}{LOCK_FILE_SUFFIX}"
        self._turn = str(journal.with_name(f".{journal.name}.{runs.slug(machine)[:40]}{LOCK_FILE_SUFFIX}"))
        self._held = -1

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._held = os.open(self._turn, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            alone = True
            try:
                fcntl.flock(self._held, fcntl.LOCK_EX)
            except OSError:  # a file system without locks: the link alone has to do
                alone = False
            os.utime(self._held)  # Optuna's own lock counts from here
            self._make_link(alone)
        except BaseException:
            self._let_go()
            raise
        return True

    def _make_link(self, alone: bool) -> None:
        mine, wait, seen, since = os.path.basename(self._turn), 0.001, None, time.monotonic()
        while True:
            try:
                os.symlink(mine, self._link)
                return
            except FileExistsError:
                now = self._state()
            if now is None:
                continue
            if alone and now[0] == mine:  # its process was killed: had it lived, we would not be alone
                self._remove()
                continue
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > GRACE_S:
                self._remove()
                continue
            time.sleep(wait)
            wait = min(2 * wait, 0.1)

    def _state(self) -> tuple[str, int, int] | None:
        """Return what distinguishes the link from one made later; None where it is gone."""
        try:
            status = os.lstat(self._link)
            return os.readlink(self._link), status.st_ino, status.st_mtime_ns
        except FileNotFoundError:
            return None
        except OSError:  # a plain file: the other lock of Optuna
            return "", status.st_ino, status.st_mtime_ns

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._link)

    def _let_go(self) -> None:
        os.close(self._held)
        self._held = -1

    def release(self) -> None:
        """Give the lock back."""
        state = self._state()
        if state is not None and state[0] == os.path.basename(self._turn):  # else it was taken for left behind
            self._remove()
        self._let_go()


class Journal(JournalFileBackend):
    """Optuna's file of records; every record is written whole or not at all.

    Args:
        path: The file.
        machine: What this machine is called until its next start.
    """

    def __init__(self, path: Path, machine: str) -> None:
        super().__init__(str(path), lock_obj=MachineLock(str(path), machine))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add records.

        Raises:
            OSError: They cannot be written; the file is as before.
        """
        content = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with get_lock_file(self._lock):
            file = os.open(self._file_path, os.O_RDWR | os.O_APPEND)  # never made anew: its readers know the old one
            try:
                whole = _whole(file)
                if whole < os.fstat(file).st_size:
                    os.ftruncate(file, whole)
                try:
                    rest = memoryview(content)
                    while rest:
                        rest = rest[os.write(file, rest) :]
                    os.fsync(file)
                except OSError:  # the disk is full
                    os.ftruncate(file, whole)
                    raise
            finally:
                os.close(file)


def _whole(file: int, step: int = 65536) -> int:
    """Return how many bytes of a file are whole lines."""
    end = os.fstat(file).st_size
    while end > 0:
        begin = max(0, end - step)
        at = os.pread(file, end - begin, begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0
