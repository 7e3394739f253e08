"""A rendering process: ``python -m m2h_lightning.data.synthesis.worker FOLDER SPEC_JSON``.

Room numbers come in on standard input, one a line; the number goes out again once its shard is on disk. The process
ends with its input, so it does not outlive a parent that was killed. A plain process instead of ``multiprocessing``:
it imports neither torch nor the caller's main module.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from m2h_lightning.data.synthesis.shards import RoomsSpec, write_shard


def main(argv: list[str]) -> int:
    """Render the rooms asked for until the input ends."""
    folder, spec = Path(argv[0]), RoomsSpec(**json.loads(argv[1]))
    try:
        for line in sys.stdin:
            write_shard(folder, spec, int(line))
            print(int(line), flush=True)
    except (KeyboardInterrupt, BrokenPipeError):  # the parent stops too, and says so
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
