"""What surrounds a training run: whether its parts go together, asked before anything is written; why it ended."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from m2h_lightning.callbacks.conflicts import GradientConflicts
from m2h_lightning.callbacks.stop import Stopped
from m2h_lightning.data.base import BaseDataModule
from m2h_lightning.errors import CheckpointError, ConfigError, M2HError
from m2h_lightning.runs import folder as runs
from m2h_lightning.runs.checkpoint_io import read_checkpoint


def check_fit(model: Any, data: Any, callbacks: list[Callback]) -> None:
    """Refuse what model, data and callbacks cannot do together, before any data are made or read.

    Raises:
        ConfigError: A block whose gradients shall be compared does not exist; or depth and normals shall agree, and the
            augmentation makes them contradict each other.
    """
    for callback in callbacks:
        if isinstance(callback, GradientConflicts) and len(model.tasks) > 1:
            callback.check(model)
    legacy = isinstance(data, BaseDataModule) and data.augment.legacy_scale_depth
    if legacy and "consistency/depth_normals" in model.objective.consistency_weights:
        raise ConfigError(
            "model.consistency.depth_normals.weight is above 0, but data.augment.legacy_scale_depth changes depth and "
            "leaves normals and camera as they are: the two contradict each other; switch one of them off"
        )


def check_going_on(path: str, model: Any, max_epochs: int | None) -> None:
    """Refuse a checkpoint from which this run cannot go on.

    Raises:
        CheckpointError: It is of another balancing method or of other trained parameters, or has more epochs.
    """
    checkpoint = read_checkpoint(path)
    model.check_goes_on(checkpoint)
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {})
    done = int(progress.get("processed", 0))
    if max_epochs is not None and 0 <= max_epochs < done:
        raise CheckpointError(
            f"the checkpoint {path} has {done} epochs, this run is to have {max_epochs} (trainer.max_epochs, or the "
            "epochs of model.stages); give at least as many, or start a new run from its weights with "
            "model.init_weights"
        )


def write_failure(folder: Path, error: BaseException) -> None:
    """Leave the reason in ``failure.txt``: one line, and the traceback when the fault is not the user's."""
    if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
        error = error.__context__
    reason = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
    if isinstance(error, Stopped):
        reason = str(error)
    text = " ".join(reason.split()) + "\n"
    if not isinstance(error, M2HError | KeyboardInterrupt | MisconfigurationException | Stopped):
        text += "\n" + "".join(traceback.format_exception(error))
    runs.write_text(folder / runs.FAILURE, text)
