"""Where the ledger is kept: Optuna's storages by URL, with what each can and cannot do.

``journal:PATH`` is a file, for one machine or a shared directory; ``postgresql://…`` (or another RDB) a server, for a
cluster that has one; ``grpc://HOST:PORT`` a proxy in front of either, for thousands of workers; ``sqlite:///PATH`` is
for one worker at a time: it lets two claim the same run.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2h_lightning.errors import ConfigError, DataError, MissingExtraError
from m2h_lightning.runs.machine import machine
from m2h_lightning.storages.patience import damaged, one_line

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

HEARTBEAT_S = int(os.environ.get("M2H_HEARTBEAT_S", "60"))
GRACE_S = int(os.environ.get("M2H_GRACE_S", "300"))
"""Seconds between signs of life of a running cell in the ledger, and after which it counts as lost, where nobody can be
asked."""

OPENINGS = 10
"""How often a database is opened while others make its tables."""

CONNECT_S = 20
"""Seconds to wait for a server's answer."""


def absolute_url(url: str, folder: Path) -> str:
    """Return a storage's URL with the path of a journal made absolute: relative ones are in the sweep's folder."""
    if url.startswith("journal:"):
        return f"journal:{(folder / url.removeprefix('journal:')).absolute()}"
    return url


def open_storage(url: str, folder: Path) -> BaseStorage:
    """Open a storage.

    Args:
        url: ``journal:PATH``, ``grpc://HOST:PORT``, or a URL of SQLAlchemy.
        folder: The sweep's folder.

    Raises:
        ConfigError: The URL is of no known kind.
        DataError: It cannot be reached.
        MissingExtraError: The client of the database is not installed.
    """
    with _quiet():
        if url.startswith("journal:"):
            return _journal(Path(absolute_url(url, folder).removeprefix("journal:")))
        if url.startswith("grpc://"):
            return _grpc(url)
        if "://" in url:
            return _database(url)
    raise ConfigError(f"--storage: '{url}' is no journal:PATH, postgresql://…, sqlite:///PATH or grpc://HOST:PORT")


def one_worker_only(url: str) -> bool:
    """Whether two workers on this storage could run the same cell."""
    return url.startswith("sqlite")


def check_workers(url: str, workers: int) -> None:
    """Refuse several workers on a storage that cannot tell them apart.

    Raises:
        ConfigError: It is SQLite.
    """
    if workers > 1 and one_worker_only(url):
        raise ConfigError(
            f"--storage {url}: SQLite lets two workers claim the same cell (measured: 31 of 160); use one worker, the "
            "journal (default), or postgresql://…"
        )


def shown_url(url: str) -> str:
    """Return a storage's URL without its password."""
    head, sign, tail = url.partition("://")
    if not sign or "@" not in tail:
        return url
    user, _, host = tail.rpartition("@")
    return f"{head}://{user.split(':')[0]}:***@{host}" if ":" in user else url


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Optuna says of itself: its progress in the terminal, and that a part of it is experimental."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage

    from m2h_lightning.storages.journal import Journal

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(Journal(path, machine()))
    except OSError as error:
        raise DataError(f"{path}: the ledger cannot be opened ({error.strerror}); choose another --storage") from error
    except (ValueError, KeyError, TypeError, AssertionError) as error:  # no JSON, or JSON that is no record of Optuna
        raise DataError(damaged(str(path), error)) from error


def _grpc(url: str) -> BaseStorage:
    try:
        import grpc
        from optuna.storages import GrpcStorageProxy
    except ImportError as error:
        raise MissingExtraError("grpcio", "grpc", f"--storage {url}") from error
    host, _, port = url.removeprefix("grpc://").strip("/").partition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--storage: '{url}' is no grpc://HOST:PORT")
    try:
        proxy = GrpcStorageProxy(host=host, port=int(port))
        proxy.wait_server_ready(timeout=CONNECT_S)
    except (grpc.FutureTimeoutError, OSError) as error:
        raise DataError(f"--storage {url}: nobody answers; start m2h sweep proxy there") from error
    return proxy


def _database(url: str) -> BaseStorage:
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage, get_storage
    from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

    kind, _, place = url.partition("://")
    if one_worker_only(url) and (not place.strip("/") or ":memory:" in place):
        raise ConfigError(f"--storage {url}: a ledger in memory is lost with its process; give sqlite:///PATH")
    if kind in ("postgres", "postgresql"):  # whose own choice of a driver differs between SQLAlchemy 2.0 and 2.1
        kind = "postgresql+psycopg2"
    connect: dict[str, Any] = {}
    if one_worker_only(url):
        connect = {"timeout": 60}  # its one worker and those who look on take turns
    elif "psycopg" in kind:
        connect = {"connect_timeout": CONNECT_S}
    options = {"pool_pre_ping": True, "connect_args": connect}
    try:
        for left in reversed(range(OPENINGS)):
            try:
                storage = RDBStorage(
                    f"{kind}://{place}", heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S, engine_kwargs=options
                )
                return get_storage(storage)  # with its cache: finished trials are read once
            except (
                IntegrityError,
                ProgrammingError,
                OperationalError,
            ) as error:  # others make the same tables meanwhile
                if not left or (isinstance(error, OperationalError) and "already exists" not in str(error)):
                    raise
                time.sleep(random.uniform(0.1, 0.5))
    except ImportError as error:
        package = "psycopg2" if "psycopg2" in str(error) or url.startswith("postgres") else str(error).split("'")[1]
        raise MissingExtraError(package, "postgres", f"--storage {shown_url(url)}") from error
    except ArgumentError as error:
        raise ConfigError(
            f"--storage {shown_url(url)}: is no URL of a database: {str(error).splitlines()[0]}"
        ) from error
    except (SQLAlchemyError, StorageInternalError) as error:
        raise DataError(f"--storage {shown_url(url)}: cannot be reached: {one_line(error)}") from error
    raise AssertionError("not reached")
