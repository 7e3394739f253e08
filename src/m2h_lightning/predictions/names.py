"""File names of samples: every id has one of its own, and the id can be read back from it."""

from __future__ import annotations

import re
import string

_SAFE = frozenset(string.ascii_letters + string.digits + "-_.~")


def escape(name: str) -> str:
    """Return the path, without suffix, under which a sample's files lie in the folder of a task.

    Slashes become sub-folders; every byte that is not a letter, a digit or one of ``-_.~`` becomes ``%XX``, and so do
    a leading dot and all dots of folders' names, so that no file can have the name of a folder. No two ids share a path
    (on file systems that tell upper from lower case).

    Args:
        name: The sample's id.
    """
    *folders, file = name.split("/")
    return "/".join([*(_part(folder, "") for folder in folders), _part(file, ".")])


def unescape(path: str) -> str:
    """Return the id whose :func:`escape` is ``path``."""

    def decode(part: str) -> str:
        return "" if part == "%" else re.sub(rb"%(..)", lambda m: bytes([int(m[1], 16)]), part.encode()).decode()

    return "/".join(decode(part) for part in path.split("/"))


def _part(part: str, kept: str) -> str:
    if not part:
        return "%"
    safe = _SAFE - ({"."} - set(kept))
    out = "".join(c if c in safe else "".join(f"%{byte:02X}" for byte in c.encode()) for c in part)
    return f"%2E{out[1:]}" if out.startswith(".") else out


def flatten(name: str) -> str:
    """Return an id as the run folder's own ``.npz`` files are named: one underscore for whatever is not plain."""
    return re.sub(r"[^\w.-]+", "_", name)
