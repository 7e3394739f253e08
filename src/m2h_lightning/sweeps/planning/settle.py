"""Writing a plan: one at a time, beside others that run the same sweep."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from m2h_lightning.errors import DataError
from m2h_lightning.storages.url import open_storage
from m2h_lightning.sweeps.planning.merge import merged
from m2h_lightning.sweeps.planning.plan import LOCKS, Plan

WRITING, RUNNING = "plan.writing", "plan.running"
"""Locks: held while a plan is read, merged and written; shared by all that run the sweep."""


@contextlib.contextmanager
def settled(plan: Plan) -> Iterator[Plan]:
    """Write a plan, and keep others from dropping its cells as long as the block runs.

    While somebody else runs the same sweep, cells of theirs that are not finished yet stay in the plan.

    Yields:
        The plan as it was written.

    Raises:
        ConfigError: The folder holds a sweep of another kind by now.
        DataError: The folder cannot be written, or the ledger cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = plan.folder / LOCKS
            folder.mkdir(parents=True, exist_ok=True)
            running = stack.enter_context(_open(folder / RUNNING))
            with _open(folder / WRITING) as writing:
                _flock(writing, fcntl.LOCK_EX)
                alone = _flock(running, fcntl.LOCK_EX | fcntl.LOCK_NB)
                plan = merged(plan, keep_all=not alone)
                open_storage(plan.storage, plan.folder)  # what cannot be opened is not written down
                plan.save()
                _flock(running, fcntl.LOCK_SH)
        except OSError as error:
            raise DataError(
                f"{error.filename or plan.folder}: the sweep's folder cannot be written ({error.strerror}); choose "
                "another --root or --name, or free space"
            ) from error
        yield plan


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _flock(descriptor: int, how: int) -> bool:
    """Take a lock; False where somebody else has it, True also where the file system knows none."""
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
