"""What is done with a run folder before its cell is started once more."""

from __future__ import annotations

from pathlib import Path

import yaml

from m2h_lightning.runs import folder as runs
from m2h_lightning.sweeps.planning.plan import ASIDE, Plan


def set_aside(plan: Plan, folder: Path) -> None:
    """Move a run folder out of the way, into ``aside/``: a run never writes into another one's.

    Args:
        plan: The sweep.
        folder: The folder; the caller holds the cell's lock.
    """
    place = plan.folder / ASIDE
    place.mkdir(exist_ok=True)
    folder.rename(next(name for n in range(1, 10000) if not (name := place / f"{folder.name}-{n}").exists()))


def half_the_batch(folder: Path) -> list[str]:
    """Return the words for half the batch and twice the accumulation; none where the batch cannot be halved.

    Args:
        folder: Folder of the run that had too large a batch.
    """
    try:
        flat = runs.flatten(yaml.safe_load((folder / runs.CONFIG).read_text(encoding="utf-8")))
        batch, steps = int(flat["data.batch_size"]), int(flat.get("trainer.accumulate_grad_batches") or 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return []
    if batch < 2:
        return []
    return ["--data.batch_size", str(batch // 2), "--trainer.accumulate_grad_batches", str(2 * steps)]
