"""What this machine is called in results. Imports no torch."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """Return the model of the processor; where the system does not tell it, its architecture."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
