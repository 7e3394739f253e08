"""Whether one cell fits its sweep: its metric, its devices, and what already lies in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from m2h_lightning.errors import ConfigError
from m2h_lightning.runs import folder as runs
from m2h_lightning.runs.outcome import check_same_run, read_outcome
from m2h_lightning.sweeps.planning.plan import Plan

if TYPE_CHECKING:
    from m2h_lightning.sweeps.planning.fit_reading import Reading


def check_metric(plan: Plan, reading: Reading) -> None:
    """Refuse a metric that a cell will not have.

    Args:
        plan: The sweep.
        reading: What the cell would do.

    Raises:
        ConfigError: It is of the test, and nothing is tested; or of a task that is not trained.
    """
    from m2h_lightning.tasks import DEFAULT_LOSS_WEIGHTS

    stage, *rest = plan.metric.split("/")
    if stage == "test" and not reading.tree["run"]["test"]:
        raise ConfigError(
            f"{plan.file}: metric.name is {plan.metric}, but the cells are not tested; add --run.test=true to command, "
            "or take a metric of validation (val/…)"
        )
    if len(rest) > 1 and rest[0] in DEFAULT_LOSS_WEIGHTS and rest[0] not in reading.tasks:
        raise ConfigError(
            f"{plan.file}: metric.name is {plan.metric}, but {rest[0]} is not trained by every cell (there are "
            f"{', '.join(reading.tasks)}); take {stage}/score, or a metric of a task that all cells train"
        )


def check_devices(tree: Mapping[str, Any], gpus_per_cell: int) -> None:
    """Refuse a cell that asks for other devices than it will be given.

    Args:
        tree: Configuration of the cell.
        gpus_per_cell: GPUs that it will see.

    Raises:
        ConfigError: ``trainer.devices`` is another number, or training is on a CPU.
    """
    from m2h_lightning.sweeps.running.run import visible_gpus

    trainer = tree["trainer"]
    accelerator = str(trainer.get("accelerator") or "auto")
    if accelerator not in ("auto", "gpu", "cuda"):
        if gpus_per_cell > 1:
            raise ConfigError(f"--gpus-per-cell is {gpus_per_cell}, but trainer.accelerator is {accelerator}")
        return
    wanted = _devices(trainer.get("devices"))
    if (
        wanted is None
        or wanted == gpus_per_cell
        or (gpus_per_cell == 1 and accelerator == "auto" and not visible_gpus())
    ):
        return
    raise ConfigError(
        f"trainer.devices is {trainer.get('devices')!r}, but a cell is given {gpus_per_cell} "
        f"GPU{'s' if gpus_per_cell > 1 else ''}; give --gpus-per-cell {wanted}, or -- --trainer.devices {gpus_per_cell}"
    )


def _devices(given: Any) -> int | None:
    """Return how many devices ``trainer.devices`` means; None for all there are."""
    if isinstance(given, list | tuple):
        return len(given)
    text = str(given).strip()
    if given is None or text in ("auto", "-1"):
        return None
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    return int(text) if text.isdigit() else None


def check_folder(folder: Path, tree: Mapping[str, Any]) -> None:
    """Refuse to count a run of another configuration as this cell.

    Args:
        folder: Run folder of the cell.
        tree: The configuration that it is to have.

    Raises:
        ConfigError: It has another one; with the keys.
        DataError: A file of it is damaged.
    """
    mend = "give another --name, or move it away"
    result = read_outcome(folder).result
    saved = folder / runs.CONFIG
    if saved.is_file() and not _was_halved(folder, tree):
        check_same_run(folder, tree, mend)
    elif result and not saved.is_file() and result.get("config_hash") != runs.config_hash(tree):
        raise ConfigError(f"{folder} was trained with another configuration, which is not stored there; {mend}")


def _was_halved(folder: Path, tree: Mapping[str, Any]) -> bool:
    """Whether this is the cell but for its batch, which the sweep has halved after it had run out of memory."""
    halved, doubled = "data.batch_size", "trainer.accumulate_grad_batches"
    try:
        before = yaml.safe_load((folder / runs.CONFIG).read_text(encoding="utf-8"))
        starts = json.loads((folder / runs.HISTORY).read_text(encoding="utf-8"))["starts"]
        old, new = (runs.flatten({k: v for k, v in one.items() if k != "run"}) for one in (before, tree))
        words = [f"--{halved}", str(new[halved] // 2), f"--{doubled}", str(2 * (new[doubled] or 1))]
        told = any(start["command"][-len(words) :] == words for start in starts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return False  # no such run; whatever else it is, check_same_run tells
    expected = {**new, halved: int(words[1]), doubled: int(words[3])}
    return told and runs.plain(old) == runs.plain(expected)
