"""Segmentation scores from one confusion matrix over the whole set (the pooled protocol)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from m2h_lightning.labels import IGNORE


def confusion_matrix(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """Count pixels by (true class, predicted class).

    Args:
        prediction: Predicted class per pixel, integer, any shape, values in [0, classes).
        target: True class, same shape; values outside [0, classes) are ignored.
        classes: Number of classes C.

    Returns:
        int64 matrix C×C, rows true, columns predicted.
    """
    valid = (target >= 0) & (target < classes)
    # Ignored pixels fall into one extra bin: no boolean indexing, hence no wait for the device.
    index = torch.where(valid, target * classes + prediction, classes * classes)
    return torch.bincount(index.flatten(), minlength=classes * classes + 1)[:-1].reshape(classes, classes)


class SegmentationScore(Metric):
    """mIoU and pixel accuracy, pooled: one confusion matrix over the whole set.

    ``IoU_c = TP_c / (TP_c + FP_c + FN_c)`` and ``miou`` is its mean over the classes that occur in target or
    prediction; pixels labelled 255 take no part. (Definition of the InvPT/MTI evaluation, which counts a class absent
    everywhere as 0; on a set where every class occurs both agree. ``torchmetrics.segmentation.MeanIoU`` averages per
    sample and is another quantity.)

    As input to ``forward`` and ``update``: ``prediction`` class scores B×C×H×W or classes B×H×W,
    ``target`` int64 B×H×W.

    As output of ``compute``: a dict with ``miou``, ``pixel_accuracy`` and ``classes_present``.

    Args:
        classes: Number of classes C.

    Example:
        >>> import torch
        >>> score = SegmentationScore(classes=2)
        >>> score.update(torch.tensor([[[0, 1], [1, 1]]]), torch.tensor([[[0, 0], [1, 255]]]))
        >>> round(score.compute()["miou"].item(), 4)
        0.5
    """

    higher_is_better = True
    full_state_update = False
    confusion: Tensor

    def __init__(self, classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = classes
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        if prediction.ndim == target.ndim + 1:
            # max().indices rather than argmax: several times faster on CPU over a strided class dimension.
            prediction = prediction.max(1).indices
        target = torch.where(target == IGNORE, self.classes, target)
        self.confusion += confusion_matrix(prediction, target, self.classes)

    def iou(self) -> Tensor:
        """Return the IoU of each class, float64, NaN for a class that occurs nowhere."""
        matrix = self.confusion.double()
        hit = matrix.diagonal()
        return hit / (matrix.sum(0) + matrix.sum(1) - hit)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores in [0, 1]; NaN when not one pixel was valid."""
        iou = self.iou()
        present = ~iou.isnan()
        return {
            "miou": iou.nanmean(),
            "pixel_accuracy": self.confusion.diagonal().sum().double() / self.confusion.sum(),
            "classes_present": present.sum().double(),
        }
