"""What this machine is called: in results, and among machines that share a folder. Imports no torch."""

from __future__ import annotations

import platform
import socket
from pathlib import Path


def processor() -> str:
    """Return the model of the processor; where the system does not tell it, its architecture."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine() -> str:
    """Return what names this machine until its next start, for all its containers alike."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()
