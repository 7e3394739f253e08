"""Shards: .npy files of records of fixed size, whole or not there, with a checksum in every record. No torch.

Shared by the prepared store and the cache of Rooms.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from m2h_lightning.errors import DataError
from m2h_lightning.files import atomic

HEADROOM = 16 * 2**20  # bytes to leave free on the disk


def npy_header(dtype: np.dtype, count: int) -> bytes:
    """Return the .npy header of ``count`` records; its length does not depend on ``count``."""
    buffer = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def npy_bytes(dtype: np.dtype, count: int) -> int:
    """Return the exact size of a shard."""
    return len(npy_header(dtype, count)) + count * dtype.itemsize


def checksum(record: np.void) -> int:
    """Return the checksum of a record: of all but its first field, which is the checksum itself (4 bytes)."""
    return zlib.crc32(memoryview(record.tobytes())[4:])


def write_atomically(path: Path, *parts: bytes) -> None:
    """Write a file that is complete under its name or not there at all.

    Raises:
        DataError: It cannot be written.
    """
    try:
        with atomic(path) as temporary, open(temporary, "wb") as file:
            file.writelines(parts)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> DataError:
    """Return the error for a file that cannot be written."""
    return DataError(f"{path}: cannot be written ({error.strerror}): free space or choose another folder")


def open_shard(path: Path, dtype: np.dtype, count: int, mend: str, restore: str) -> np.ndarray:
    """Open a shard by memory map, read only.

    Args:
        path: The file.
        dtype: Type of its records.
        count: Number of its records.
        mend: What to do about a damaged file, for the message.
        restore: What to do about a missing one.

    Raises:
        DataError: Missing, truncated, or something else.
    """
    expected = npy_bytes(dtype, count)
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{path}: shard is missing: {restore}") from error
    if size != expected:
        raise DataError(f"{path}: truncated or corrupt ({size} of {expected} bytes): {mend}")
    try:
        shard = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        # NumPy parses the header as Python source: damage there gives tokenize's, ast's and its own kinds of error.
        raise DataError(f"{path}: corrupt header ({error}): {mend}") from error
    if shard.dtype != dtype or shard.shape != (count,):
        raise DataError(f"{path}: holds something else than its manifest says: {mend}")
    return shard


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold the folder's lock.

    Args:
        folder: Where it is.
        wait: Wait while another process holds it; else refuse.

    Raises:
        DataError: Another process holds it.
    """
    with open(folder / ".lock", "a") as lock:
        try:
            # Freed by the kernel when the process dies, however it dies.
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another process is writing here; wait for it and run again") from None
        yield


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk on which a folder lies."""
    return shutil.disk_usage(folder).free
