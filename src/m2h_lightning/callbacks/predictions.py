"""Writes what ``predict`` predicts: one ``.npz`` and one picture per image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from m2h_lightning.callbacks.pictures import panel, write_png
from m2h_lightning.callbacks.run_folder import run_folder
from m2h_lightning.files import atomic
from m2h_lightning.runs.folder import PREDICTIONS


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

    Args:
        pictures: Whether to write the pictures beside the arrays.
    """

    def __init__(self, pictures: bool = True) -> None:
        super().__init__(write_interval="batch")
        self.pictures = pictures

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
        """Write the images of a batch; every process writes its own."""
        folder = run_folder(trainer) / PREDICTIONS
        folder.mkdir(parents=True, exist_ok=True)
        module: Any = pl_module
        resized = getattr(getattr(trainer, "datamodule", None), "eval_size", None) is not None
        for index, name in enumerate(batch["id"]):
            # A batch of images of different sizes was padded at the right and the bottom.
            height, width = batch["image"].shape[-2:] if resized else batch["size"][index].tolist()
            one = {key: value[index, :, :height, :width] for key, value in prediction.items()}
            stem = re.sub(r"[^\w.-]+", "_", name)
            with atomic(folder / f"{stem}.npz", durable=False) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, allow_pickle=False, **to_arrays(one))
            if self.pictures:
                maps = {
                    key: batch[key][index][..., :height, :width] for key in ("image", *module.tasks) if key in batch
                }
                sample = {**maps, "id": name}
                write_png(folder / f"{stem}.png", panel(module.tasks, one, sample))
