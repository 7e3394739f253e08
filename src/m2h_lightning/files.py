"""Files that are whole or not there: written under a temporary name, then renamed. Standard library only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; what was written there gets its name when the block succeeds.

    When it fails, nothing is left: neither a part of the file nor the temporary one.

    Args:
        path: The file to make or replace; its folder exists.
        durable: Wait until the content is on the disk, so that a crash of the machine leaves no empty file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
