"""Semantic segmentation: class scores per pixel."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from m2h_lightning.labels import IGNORE, class_palette
from m2h_lightning.metrics import BoundaryIoU, CalibrationError, MetricsConfig, SegmentationScore, TrimapIoU
from m2h_lightning.tasks.base import Agree, Task, masked_mean


class Semseg(Task):
    """Semantic segmentation. Raw map and prediction: logits B×C×H×W; every channel is a real class, none is "unknown".

    Loss: cross-entropy over pixels not labelled 255. Headline: pooled mIoU.

    Args:
        classes: Class names.
        label_smoothing: Share of the target mass spread over all classes.
    """

    name = "semseg"
    headline = "miou"
    higher_is_better = True

    def __init__(self, classes: list[str], label_smoothing: float = 0.0) -> None:
        self.classes = list(classes)
        self.label_smoothing = label_smoothing
        self._palette = class_palette(len(self.classes))

    @property
    def channels(self) -> int:
        """One channel per class."""
        return len(self.classes)

    def activate(self, raw: Tensor) -> Tensor:
        """Return the logits as they are: B×C×H×W."""
        return raw

    def valid_pixels(self, target: Tensor) -> Tensor:
        """Labelled pixels, B×H×W."""
        return target != IGNORE

    def loss(self, raw: Tensor, target: Tensor, agree: Agree | None = None) -> Tensor:
        """Return the mean cross-entropy over labelled pixels.

        Args:
            raw: Logits B×C×H×W.
            target: int64 B×H×W, 255 = ignore.
            agree: See :func:`.base.masked_mean`.
        """
        valid = self.valid_pixels(target)
        # Classes last, as the network's maps lie in memory: the softmax then runs over neighbouring numbers.
        per_pixel = F.cross_entropy(
            raw.permute(0, 2, 3, 1).flatten(0, 2).float(),
            target.flatten(),
            ignore_index=IGNORE,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return masked_mean(per_pixel, valid.flatten(), agree)

    def metrics(self, config: MetricsConfig, dataset: str, stage: str, details: bool) -> dict[str, Metric]:
        """Return IoU and accuracies; with details also per class, at boundaries, and the calibration error."""
        metrics: dict[str, Metric] = {"score": SegmentationScore(self.classes, details, per_batch=config.per_batch)}
        if config.trimap is not None:
            metrics["trimap"] = TrimapIoU(self.channels, config.trimap, per_batch=config.per_batch)
        if details:
            metrics["boundary"] = BoundaryIoU(self.channels, per_batch=config.per_batch)
            metrics["calibration"] = CalibrationError()
        return metrics

    def picture(self, prediction: Tensor, target: Tensor | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Colour classes with the palette; ignored pixels are black."""
        guess = self._palette[prediction.max(0).indices.cpu().numpy()]
        return guess, None if target is None else self._palette[target.cpu().numpy()]
