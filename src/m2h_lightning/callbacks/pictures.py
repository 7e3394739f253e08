"""Panels of a fixed set of validation images after each epoch: image, and prediction beside target per task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from m2h_lightning.callbacks.run_folder import run_folder
from m2h_lightning.data.sample import IMAGENET_MEAN, IMAGENET_STD
from m2h_lightning.errors import ConfigError
from m2h_lightning.files import atomic
from m2h_lightning.runs.folder import PICTURES
from m2h_lightning.tasks import Task

_GAP = 4
_HEADER = 22
_WIDTH = 250


def photograph(image: Tensor) -> np.ndarray:
    """Undo the normalisation of an image 3×H×W; return uint8 RGB H×W×3."""
    rgb = image.float().cpu().numpy().transpose(1, 2, 0) * IMAGENET_STD + IMAGENET_MEAN
    return (np.clip(rgb, 0, 1) * 255).round().astype(np.uint8)


def write_line(canvas: np.ndarray, text: str, left: int, top: int, width: int) -> None:
    """Write one line of at most ``width`` pixels, its base line at ``top``."""
    scale = min(0.45, 0.45 * width / (8.0 * len(text)))
    cv2.putText(canvas, text, (left, top), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)


def panel(tasks: dict[str, Task], prediction: dict[str, Tensor], sample: dict[str, Any]) -> np.ndarray:
    """Draw one sample: the image, then a column per task with the prediction above its target.

    Images narrower than about 250 pixels are enlarged by a whole factor.

    Args:
        tasks: The tasks, in the order of the columns.
        prediction: Activated predictions without batch dimension.
        sample: A sample of the contract; a task without label gets an empty cell.

    Returns:
        uint8 RGB picture.
    """
    image = photograph(sample["image"])
    height, width = next(iter(prediction.values())).shape[-2:]
    if image.shape[:2] != (height, width):  # predictions are at their labels' size
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    factor = max(1, round(_WIDTH / image.shape[1]))
    height, width = factor * image.shape[0], factor * image.shape[1]
    blank = np.full_like(image, 235)
    columns = [("image", image, blank)]
    for name, task in tasks.items():
        guess, truth = task.picture(prediction[name], sample.get(name))
        columns.append((name, guess, blank if truth is None else truth))
    canvas = np.full((_HEADER + 2 * height + 3 * _GAP, len(columns) * (width + _GAP) + _GAP, 3), 255, np.uint8)
    second = _HEADER + height + _GAP
    for index, (name, top, bottom) in enumerate(columns):
        left = _GAP + index * (width + _GAP)
        write_line(canvas, name if name == "image" else f"{name}: prediction, target", left, 15, width)
        for start, part in ((_HEADER, top), (second, bottom)):
            canvas[start : start + height, left : left + width] = part.repeat(factor, 0).repeat(factor, 1)
    write_line(canvas, sample["id"], 2 * _GAP, second + 20, width - 2 * _GAP)
    return canvas


def without_padding(
    predictions: dict[str, Tensor], batch: dict[str, Any], index: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the predictions and the sample of one image, cut to the sizes they had before the batch padded them.

    Args:
        predictions: Per task B×C×H×W, at the labels' size.
        batch: A batch of the sample contract.
        index: Which image.
    """
    h, w = batch["label_size"][index].tolist()
    height, width = batch["image_size"][index].tolist()
    sample = {key: value[index] for key, value in batch.items()}
    sample |= {key: sample[key][..., :h, :w] for key in predictions if key in sample}
    sample["image"] = sample["image"][:, :height, :width]
    return {key: value[index, :, :h, :w] for key, value in predictions.items()}, sample


def write_png(path: Path, rgb: np.ndarray) -> None:
    """Write a picture under a temporary name and rename it: a reader never sees half of it."""
    ok, data = cv2.imencode(".png", rgb[..., ::-1])
    if not ok:
        raise OSError(f"could not encode {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path, durable=False) as temporary:
        temporary.write_bytes(data.tobytes())


def send_picture(trainer: L.Trainer, key: str, rgb: np.ndarray) -> None:
    """Show a picture in every logger that takes images."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, rgb, trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(key, [rgb], step=None)


class PicturePanels(L.Callback):
    """Writes panels into ``pictures/`` of the run folder and to every logger that shows images.

    The same images each time: the first ``count`` of the validation set, or of the test set in testing.

    Args:
        count: Number of images, 1 to 8.
        every_n_epochs: Draw after each n-th epoch; the last epoch is always drawn.
    """

    def __init__(self, count: int = 4, every_n_epochs: int = 1) -> None:
        if not 1 <= count <= 8:
            raise ConfigError(f"PicturePanels.count is {count}; give 1 to 8")
        if every_n_epochs < 1:
            raise ConfigError(f"PicturePanels.every_n_epochs is {every_n_epochs}; give at least 1")
        self.count = count
        self.every_n_epochs = every_n_epochs
        self._panels: list[np.ndarray] = []

    def _wanted(self, trainer: L.Trainer) -> bool:
        last = trainer.max_epochs is not None and trainer.current_epoch + 1 >= trainer.max_epochs
        return (
            trainer.is_global_zero
            and not trainer.sanity_checking
            and (last or trainer.testing or (trainer.current_epoch + 1) % self.every_n_epochs == 0)
        )

    def _collect(self, trainer: L.Trainer, module: Any, outputs: Any, batch: dict[str, Any]) -> None:
        if not self._wanted(trainer):
            return
        for index in range(min(self.count - len(self._panels), len(batch["id"]))):
            prediction, sample = without_padding(outputs, batch, index)
            self._panels.append(panel(module.tasks, prediction, sample))

    def _write(self, trainer: L.Trainer, stage: str) -> None:
        panels, self._panels = self._panels, []
        if not panels or not self._wanted(trainer):
            return
        folder = run_folder(trainer) / PICTURES
        name = f"{stage}-epoch{trainer.current_epoch:03d}" if stage == "val" else stage
        for index, picture in enumerate(panels):
            write_png(folder / f"{name}-{index}.png", picture)
            send_picture(trainer, f"pictures/{stage}-{index}", picture)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start a new set of panels."""
        self._panels = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first images."""
        self._collect(trainer, pl_module, outputs, batch)

    # Collecting is the same in both stages; only the names of the files differ.
    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the panels."""
        self._write(trainer, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the panels."""
        self._write(trainer, "test")
