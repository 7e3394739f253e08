"""Help pages of the training verbs, kept: making one imports torch and Lightning, which takes seconds.

A page depends on this package's source, on the versions of what describes its keys, and on the width of the terminal;
all of that is in the page's name, so a stale page is never shown.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from m2h_lightning.files import atomic

_DESCRIBES_KEYS = ("jsonargparse", "lightning", "torch")


def cache_folder() -> Path:
    """Return the folder of kept pages, ``$XDG_CACHE_HOME/m2h_lightning``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2h_lightning"


def page_path(verb: str) -> Path:
    """Return where the page of ``verb`` is kept for this source, these packages and this terminal."""
    source = Path(__file__).parents[1]
    parts = [sys.version, str(shutil.get_terminal_size().columns), *map(metadata.version, _DESCRIBES_KEYS)]
    for path in sorted(source.rglob("*.py")):
        status = path.stat()
        parts.append(f"{path} {status.st_mtime_ns} {status.st_size}")
    return cache_folder() / f"help-{verb}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}.txt"


def show_help(verb: str, make: Callable[[], int]) -> int:
    """Print the help page of ``verb``, from the cache where it is there.

    Args:
        verb: The command.
        make: Prints the page and returns the exit code.
    """
    path = page_path(verb)
    if path.is_file():
        print(path.read_text(), end="")
        return 0
    with contextlib.redirect_stdout(io.StringIO()) as page:
        code = make()
    print(page.getvalue(), end="")
    # A cache that cannot be written costs seconds the next time, nothing else.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f"help-{verb}-*.txt"):
            old.unlink(missing_ok=True)
        with atomic(path, durable=False) as temporary:
            temporary.write_text(page.getvalue())
    return code
