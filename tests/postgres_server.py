"""A PostgreSQL server of one's own for tests: Debian's package, a folder that goes away, a socket, no network."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def programs() -> Path:
    """Return the folder of the server's programs; skips the test where they are not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed (pip install 'm2h-lightning[postgres]')")
    return found[-1].parent


class Server:
    """A running server.

    Args:
        place: Folder of its data and its socket.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.bin = place, programs()
        # It refuses to run as root.
        self._as = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        self._databases = 0

    def run(self, name: str, *words: str) -> None:
        done = subprocess.run([*self._as, str(self.bin / name), *words], cwd=self.place, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        options = f"-k {self.place} -c listen_addresses='' -c fsync=off -c max_connections=60"
        self.run("pg_ctl", "-D", f"{self.place}/data", "-l", f"{self.place}/log", "-w", "-o", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", f"{self.place}/data", "-m", "immediate", "-w", "stop")

    def new_url(self) -> str:
        """Make an empty database and return its URL."""
        self._databases += 1
        name = f"sweep{self._databases}"
        self.run("createdb", "-h", str(self.place), "-U", "postgres", name)
        return f"postgresql://postgres@/{name}?host={self.place}"


@contextlib.contextmanager
def postgres_server() -> Iterator[Server]:
    """Yield a server; it is gone afterwards."""
    programs()
    place = Path(tempfile.mkdtemp(prefix="m2h-pg-", dir="/tmp"))  # a socket's path must be short
    try:
        if os.getuid() == 0:
            shutil.chown(place, "postgres", "postgres")
        server = Server(place)
        server.run("initdb", "-D", f"{place}/data", "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8")
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(place, ignore_errors=True)
