"""Class maps: from logits to labels, once per batch, and the checks that all segmentation metrics share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.labels import IGNORE
from m2h_lightning.metrics.protocol import any_true, count_bins, require_finite, shared

_BLOCK = 1 << 13


def check_classes(classes: int) -> int:
    """Return the number of classes, refusing those that bytes with 255 for "ignore" cannot number.

    Raises:
        ConfigError: Not in 1 to 255.
    """
    if not 1 <= classes <= IGNORE:
        raise ConfigError(f"{classes} classes cannot be scored; labels are bytes, so give 1 to {IGNORE} classes")
    return classes


def class_map(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class of the largest logit per pixel, and that logit.

    Args:
        logits: B×C×H×W.

    Returns:
        uint8 classes B×H×W, and the largest logits B×H×W: NaN or infinite where a logit is NaN or +∞, or all are −∞.
    """
    # At 40 classes the arg max costs more than what follows: metrics share one.
    return shared(_largest, logits)


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return uint8 class and value of the largest logit, B×H×W each; the first of equal ones."""
    logits = logits.detach()
    rows = logits.permute(0, 2, 3, 1)
    if logits.device.type != "cpu" or logits.dtype != torch.float32 or not rows.is_contiguous():
        peak, label = logits.max(1)
        return label.to(torch.uint8), peak
    # On a CPU, with the classes of a pixel side by side: the largest value first, which is quick, and then where it
    # is; in blocks that stay in the cache. Two thirds of the time of max().
    peak = torch.empty(rows.shape[:3])
    label = torch.empty(rows.shape[:3], dtype=torch.uint8)
    flat, values, labels = rows.view(-1, rows.shape[-1]), peak.view(-1, 1), label.view(-1).numpy()
    for start in range(0, len(flat), _BLOCK):
        block = slice(start, start + _BLOCK)
        torch.amax(flat[block], 1, keepdim=True, out=values[block])
        labels[block] = np.equal(flat[block].numpy(), values[block].numpy()).argmax(1)
    return label, peak


def scored_labels(prediction: Tensor, target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return predicted and true classes as bytes, checked.

    Args:
        prediction: Logits B×C×H×W or integer classes B×H×W.
        target: Integer labels B×H×W, 255 = ignore.
        classes: Number of classes C, at most 255.

    Returns:
        uint8 predicted and true classes, B×H×W each; where the target is 255 the prediction is anything.

    Raises:
        DataError: Shapes that do not fit; a label or a predicted class at a scored pixel that is none of the C;
            logits that are NaN, +∞, or −∞ for all classes at a scored pixel (−∞ for some only means "never").
    """
    return shared(_scored_labels, prediction, target, classes)


def _scored_labels(prediction: Tensor, target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    batch, *size = target.shape
    if tuple(prediction.shape) not in ((batch, *size), (batch, classes, *size)):
        raise DataError(
            f"the prediction of classes is {tuple(prediction.shape)}; for labels {tuple(target.shape)} and {classes} "
            f"classes it must be {(batch, classes, *size)} logits or {(batch, *size)} classes"
        )
    known = target != IGNORE
    wrong = known & ~_is_class(target, classes)
    if any_true(wrong):
        raise DataError(
            f"a segmentation label is {int(target[wrong].max())}; expected 0 to {classes - 1}, or {IGNORE} for ignored"
        )
    if prediction.ndim == target.ndim:
        if prediction.is_floating_point():
            raise DataError(f"the prediction of classes is {prediction.dtype} without class dimension; give integers")
        wrong = known & ~_is_class(prediction, classes)
        if any_true(wrong):
            raise DataError(
                f"the predicted class is {int(prediction[wrong].max())} or the like at {int(wrong.sum())} scored "
                f"pixels; expected 0 to {classes - 1}"
            )
        guess = prediction.to(torch.uint8)
    else:
        guess, peak = class_map(prediction)
        require_finite(peak, known, "classes")
    return guess, target.to(torch.uint8)


def _is_class(labels: Tensor, classes: int) -> Tensor:
    """Return where labels number a class; a comparison with a negative number is needless for bytes."""
    inside = labels < classes
    return inside if labels.dtype == torch.uint8 else inside & (labels >= 0)


def confusion_matrices(guess: Tensor, true: Tensor, classes: int, scored: Tensor | None = None) -> Tensor:
    """Count pixels by true and predicted class, image by image.

    Args:
        guess: uint8 predicted classes B×H×W.
        true: uint8 true classes B×H×W; 255 is left out.
        classes: Number of classes C.
        scored: Boolean mask B×H×W of the pixels that count; None counts all that are known.

    Returns:
        int64 B×C×C, rows true, columns predicted.
    """
    known = true != IGNORE if scored is None else scored & (true != IGNORE)
    pair = true.int().mul_(classes).add_(guess)
    return count_bins(pair, known, classes * classes).unflatten(1, (classes, classes))


def overlap_scores(hit: Tensor, predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean IoU by both conventions.

    Args:
        hit: Pixels of each class that prediction and target share, …×C.
        predicted: Pixels predicted as each class, …×C.
        true: Pixels labelled with each class, …×C.

    Returns:
        float64 means over the classes that occur in target or prediction, and over those in the target; NaN where
        there are none.
    """
    hit, predicted, true = hit.double(), predicted.double(), true.double()
    iou = hit / (predicted + true - hit)
    return iou.nanmean(-1), torch.where(true > 0, iou, torch.nan).nanmean(-1)
