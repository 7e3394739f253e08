"""Let a process keep the memory it frees: loading and scoring need the same sizes again for the next image."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc
_MEBIBYTE = 2**20


def keep_freed_memory() -> bool:
    """Tell glibc not to hand freed memory back to the system.

    A sample is some ten arrays of up to a megabyte. By default each is mapped and unmapped anew, and the kernel clears
    its pages on first touch: a third of the time of a training sample, and of scoring an image. Blocks above 32 MiB go
    back as before, so a process keeps what its small arrays need at most, and no more.

    Returns:
        Whether it worked; False, and nothing changed, where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # no glibc: macOS, musl
        return False
    settings = ((_MMAP_THRESHOLD, 32 * _MEBIBYTE), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 16 * _MEBIBYTE))
    worked = [mallopt(name, value) == 1 for name, value in settings]  # all of them, also after one that failed
    return all(worked)


def start_worker(number: int) -> None:
    """Prepare a loading process.

    Args:
        number: Which of the loader's processes; all are prepared alike, as samples depend on no process.
    """
    keep_freed_memory()
