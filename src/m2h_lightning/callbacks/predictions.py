"""Writes what ``predict`` predicts: into the run folder, or as files that others read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from m2h_lightning.callbacks.pictures import panel, without_padding, write_png
from m2h_lightning.callbacks.run_folder import run_folder
from m2h_lightning.errors import DataError
from m2h_lightning.files import atomic
from m2h_lightning.predictions.formats import SaveFormat, check_folder, describe, finish, start, write_prediction
from m2h_lightning.predictions.names import flatten
from m2h_lightning.runs import folder as runs


def to_arrays(prediction: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Return one image's predictions as they are stored.

    Args:
        prediction: Activated predictions without batch dimension.

    Returns:
        ``semseg`` uint8 H×W classes; ``depth`` float32 H×W metres; ``normals`` float32 H×W×3 unit, camera frame;
        ``edges`` float32 H×W probability; any other task as it is.
    """
    arrays = {}
    for name, value in prediction.items():
        value = value.detach().cpu()
        if name == "semseg":
            # The largest of scores with a NaN among them would be the NaN, and a class like any other.
            if not torch.isfinite(value).all():
                raise DataError("the prediction of semseg is NaN or infinite; nothing of it is saved")
            arrays[name] = value.max(0).indices.numpy().astype(np.uint8)
        elif name == "normals":
            arrays[name] = value.float().permute(1, 2, 0).numpy()
        elif name in ("depth", "edges"):
            arrays[name] = value[0].float().numpy()
        else:
            arrays[name] = value.float().numpy()
    return arrays


class PredictionFiles(BasePredictionWriter):
    """Writes ``predictions/<id>.npz`` and ``predictions/<id>.png`` into the run folder, batch by batch.

    In the names of the files an underscore stands for whatever in an id is no letter, digit, dot or dash.

    Args:
        pictures: Whether to write the pictures beside the arrays.
    """

    def __init__(self, pictures: bool = True) -> None:
        super().__init__(write_interval="batch")
        self.pictures = pictures
        self._owners: dict[str, str] = {}

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the images of a batch; every process writes its own.

        Raises:
            DataError: Two samples would have the same file, or a prediction is not finite.
        """
        folder = run_folder(trainer) / runs.PREDICTIONS
        folder.mkdir(parents=True, exist_ok=True)
        module: Any = pl_module
        for index, name in enumerate(batch["id"]):
            one, sample = without_padding(prediction, batch, index)
            stem = flatten(name)
            if self._owners.setdefault(stem, name) != name:
                both = f"samples '{self._owners[stem]}' and '{name}'"
                raise DataError(f"{both} would both be {stem}.npz; write them with --save FOLDER")
            with atomic(folder / f"{stem}.npz", durable=False) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, allow_pickle=False, **_arrays(one, name))
            if self.pictures:
                write_png(folder / f"{stem}.png", panel(module.tasks, one, sample))


class SavePredictions(BasePredictionWriter):
    """Writes a folder per task, in a format that ``m2h evaluate`` and others read (``predict --save``).

    Every process writes the files of its own samples; a file is whole or not there. ``predictions.json`` comes last.

    Args:
        folder: The folder of predictions: new, or one that this callback wrote, whose files are then replaced.
        form: "files" or "seism"; see ``predictions/formats.py``.
    """

    def __init__(self, folder: str, form: SaveFormat = "files") -> None:
        super().__init__(write_interval="batch")
        self.folder = Path(folder).expanduser().absolute()
        self.form = form
        self.count = 0
        if runs.global_rank() == 0:
            check_folder(self.folder)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the folder, on rank 0, before any process writes in it."""
        self.count = 0
        if trainer.is_global_zero:
            start(self.folder)
        trainer.strategy.barrier("predictions-folder")

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the images of a batch.

        Raises:
            DataError: A prediction is NaN or infinite; the message names the sample.
        """
        for index, name in enumerate(batch["id"]):
            one, _ = without_padding(prediction, batch, index)
            write_prediction(self.folder, self.form, name, _arrays(one, name))
        self.count += len(batch["id"])

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what was written, on rank 0, when every process has written all of its files."""
        module: Any = pl_module
        data = getattr(trainer, "datamodule", None)
        count = trainer.strategy.reduce(torch.tensor(self.count, device=pl_module.device), reduce_op="sum")
        trainer.strategy.barrier("predictions-written")
        if not trainer.is_global_zero:
            return
        about = {
            **describe(self.form, list(module.tasks), module.facts),
            "data": {"name": module.facts["name"], **getattr(data, "description", {})},
            "split": "test",
            "samples": int(count),
            "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            "run": str(run_folder(trainer)),
            "git": runs.git_state(),
            "versions": runs.versions(),
            "time": runs.timestamp(),
        }
        finish(self.folder, runs.plain(about))
        rank_zero_info(f"predictions of {int(count)} samples: {self.folder} ({', '.join(module.tasks)})")


def _arrays(prediction: dict[str, Tensor], name: str) -> dict[str, np.ndarray]:
    """Return :func:`to_arrays`; its error names the sample."""
    try:
        return to_arrays(prediction)
    except DataError as error:
        raise DataError(f"sample '{name}': {error}") from error
