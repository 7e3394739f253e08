"""A storage that is out of reach for a while: its calls are repeated before anybody gives up."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from m2h_lightning.errors import DataError

FIRST_S, LONGEST_S = 0.2, 10.0
"""Seconds between two attempts: at first, and at most."""


class Patient:
    """Stands for a storage of Optuna, and repeats the calls that fail because it cannot be reached.

    A call may then have been made twice. The ledger bears that: of two trials for one attempt the first one counts, and
    a claim that was made but not answered is given back by the reaper.

    Args:
        storage: The storage.
        name: What it is called in messages.
        seconds: How long a call is repeated.
        stop: Whether to give up at once: somebody wants this process to end.
    """

    def __init__(self, storage: Any, name: str, seconds: float, stop: Callable[[], bool]) -> None:
        self._storage, self._name, self._seconds, self._stop = storage, name, seconds, stop
        self.lost = _lost()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        return functools.partial(self._call, found) if callable(found) else found

    def _call(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        began, wait = time.monotonic(), FIRST_S
        while True:
            try:
                return call(*args, **options)
            except FileNotFoundError as error:
                raise DataError(f"{self._name}: the ledger is gone; run again: finished cells are kept") from error
            except self.lost as error:
                reason, waited = one_line(error), time.monotonic() - began
                if waited + wait > self._seconds or self._stop():
                    kept = "run again to go on, finished cells are kept"
                    raise DataError(f"{self._name}: the ledger cannot be reached ({reason}); {kept}") from error
                if wait == FIRST_S:
                    print(
                        f"note: the ledger {self._name} cannot be reached ({reason}); trying for {self._seconds:.0f} s",
                        file=sys.stderr,
                    )
            except ValueError as error:
                if isinstance(error, json.JSONDecodeError) or "Invalid log format" in str(error):
                    raise DataError(damaged(self._name, error)) from error
                raise
            _sleep(wait, self._stop)
            wait = min(2 * wait, LONGEST_S)


def damaged(name: str, error: Exception) -> str:
    """Return the message for a journal that is no journal any more."""
    return f"{name}: the ledger is damaged ({one_line(error)}); move it away and run again, finished cells are kept"


def one_line(error: BaseException) -> str:
    """Return the reason of a failed call: of several errors the first one, without SQL."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    details = getattr(cause, "details", None)  # grpc's
    text = str(details()) if callable(details) else str(getattr(cause, "orig", None) or cause)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__


def _lost() -> tuple[type[BaseException], ...]:
    """Return what the storages raise when they cannot be reached."""
    from optuna.exceptions import StorageInternalError

    found: list[type[BaseException]] = [OSError, StorageInternalError]
    if "sqlalchemy" in sys.modules:
        from sqlalchemy.exc import DBAPIError

        found.append(DBAPIError)
    if "grpc" in sys.modules:
        import grpc

        found.append(grpc.RpcError)
    return tuple(found)


def _sleep(seconds: float, stop: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not stop():
        time.sleep(min(left, 0.1))
