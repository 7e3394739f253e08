"""Checkpoint files: written atomically, read without running any code stored in them."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from m2h_lightning.errors import CheckpointError
from m2h_lightning.files import atomic
from m2h_lightning.runs.folder import CHECKPOINTS, checkpoint_candidates


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it to disk, then renames it: a ``.ckpt`` file is always whole.

    Lightning's own writer goes through the system's temporary folder, and a move between file systems is a copy that
    a kill can cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as temporary, open(temporary, "wb") as file:
            torch.save(checkpoint, file)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint onto the CPU, tensors mapped from the file, refusing anything but plain data.

    Raises:
        CheckpointError: The file is damaged, is no training checkpoint, or holds more than tensors and plain values.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error) or "weights_only" in str(error).lower():
            reason = "it is damaged, or holds more than tensors and plain values and is not loaded for safety"
        else:
            reason = "it is damaged"
        raise CheckpointError(f"cannot read the checkpoint {path}: {reason}; give another one") from error
    except (RuntimeError, EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"cannot read the checkpoint {path}: it is damaged or cut short; give another one"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is not a training checkpoint: it has no 'state_dict'; give one of a run folder")
    return checkpoint


def newest_checkpoint(folder: Path) -> Path:
    """Return the newest readable checkpoint of a run folder.

    Raises:
        CheckpointError: None can be read.
    """
    problem: CheckpointError | None = None
    for path in checkpoint_candidates(folder):
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            problem = problem or error
            rank_zero_warn(f"{error}; trying the one before it")
            continue
        return path
    raise problem or CheckpointError(f"no complete checkpoint in {folder / CHECKPOINTS}; give another run folder")
