"""Segmentation scores: intersection over union and accuracies, over all pixels and near borders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from m2h_lightning.errors import ConfigError
from m2h_lightning.labels import IGNORE
from m2h_lightning.metrics.class_maps import check_classes, confusion_matrices, overlap_scores, scored_labels
from m2h_lightning.metrics.protocol import ProtocolMetric, Sizes, count_bins


def _overlap_of(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean IoU over classes in target or prediction, and in the target, of confusion matrices …×C×C."""
    return overlap_scores(confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-2), confusion.sum(-1))


class SegmentationScore(ProtocolMetric):
    """Mean IoU and accuracies from confusion matrices.

    With ``IoU_c = TP_c / (TP_c + FP_c + FN_c)`` over pixels that are not labelled 255:

    * ``miou``: mean IoU over the classes that occur in target or prediction, of one confusion matrix over the whole set
      (the evaluation of InvPT and MTI-Net, which counts a class that occurs nowhere as 0: on a set with every class in
      it both agree).
    * ``miou_per_image``: image by image the mean IoU over the classes that occur in *that image's target*, then the
      mean over images (the evaluation of SwinMTL). A class seen only in the prediction lowers others, but does not
      count itself.
    * ``pixel_accuracy``: share of pixels with the right class; ``mean_accuracy``: mean over the classes in the target
      of the share of their pixels that is found.
    * ``classes_present`` (pooled only): number of classes in target or prediction, over which ``miou`` is the mean.
    * ``iou/<class>`` (pooled only, on request): IoU per class, spaces in names as ``_``; NaN for a class nowhere.

    As input to ``forward`` and ``update``: ``prediction`` class scores B×C×H×W or integer classes B×H×W, ``target``
    integer B×H×W, 255 = ignore.

    As output of ``compute``: a dict of float64 scalars in [0, 1], each mean also as ``…_per_image``.

    Args:
        classes: Class names, or their number C, 1 to 255.
        per_class: Whether to return the IoU of every class.
        per_batch: Whether to compute per-batch scores too.

    Raises:
        ConfigError: No classes, too many, or two of the same name.

    Example:
        >>> import torch
        >>> score = SegmentationScore(["wall", "floor mat"], per_class=True)
        >>> score.update(torch.tensor([[[0, 1], [1, 1]]]), torch.tensor([[[0, 0], [1, 255]]]))
        >>> {key: round(value.item(), 2) for key, value in score.compute().items() if "iou" in key}
        {'miou': 0.5, 'miou_per_image': 0.5, 'iou/wall': 0.5, 'iou/floor_mat': 0.5}
    """

    higher_is_better = True

    def __init__(
        self, classes: Sequence[str] | int, per_class: bool = False, per_batch: bool = False, **kwargs: Any
    ) -> None:
        names = [str(index) for index in range(classes)] if isinstance(classes, int) else list(classes)
        self.names = [name.replace(" ", "_") for name in names]
        self.classes = check_classes(len(names))
        if len(set(self.names)) != len(names):
            raise ConfigError(f"two classes have the same name: {', '.join(sorted(names))}")
        self.per_class = per_class
        super().__init__((self.classes, self.classes), torch.int64, per_batch, **kwargs)

    def update(self, prediction: Tensor, target: Tensor, sizes: Sizes | None = None) -> None:
        """Add a batch; ``sizes`` are not needed, since padding is labelled 255.

        Raises:
            DataError: Shapes that do not fit, labels that are no classes, or NaN at a scored pixel.
        """
        self.add(confusion_matrices(*scored_labels(prediction, target, self.classes), self.classes))

    def scores(self, sums: Tensor) -> dict[str, Tensor]:
        """Return mean IoU and accuracies of confusion matrices …×C×C."""
        hit, true = sums.diagonal(dim1=-2, dim2=-1).double(), sums.sum(-1).double()
        return {
            "miou": _overlap_of(sums)[0],
            "pixel_accuracy": hit.sum(-1) / true.sum(-1),
            "mean_accuracy": (hit / true).nanmean(-1),
        }

    def image_scores_of(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the scores of single images; their mIoU is over the classes in the target only."""
        return {**self.scores(sums), "miou": _overlap_of(sums)[1]}

    def details(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the number of classes that occur, and the IoU of each if asked for."""
        hit = sums.diagonal().double()
        iou = hit / (sums.sum(0) + sums.sum(1) - hit)
        result = {"classes_present": (~iou.isnan()).sum().double()}
        if self.per_class:
            result.update({f"iou/{name}": value for name, value in zip(self.names, iou, strict=True)})
        return result


def uniform_within(labels: Tensor, distance: int) -> Tensor:
    """Return where a square of labels holds one label only.

    Args:
        labels: uint8 H×W.
        distance: Half of the square's side, d ≥ 1: it reaches d pixels to each side of its centre.

    Returns:
        Boolean (H−2d)×(W−2d), for the centres whose square lies inside; there must be one.
    """
    low = high = labels
    for dim in (0, 1):
        # The extrema over n pixels, and over n pixels k ≤ n further on, give those over n + k: a few steps for any d.
        reach = 1
        while reach < 2 * distance + 1:
            step = min(reach, 2 * distance + 1 - reach)
            length = low.shape[dim] - step
            low = torch.minimum(low.narrow(dim, 0, length), low.narrow(dim, step, length))
            high = torch.maximum(high.narrow(dim, 0, length), high.narrow(dim, step, length))
            reach += step
    return low == high


def _sizes_of(target: Tensor, sizes: Sizes | None) -> list[tuple[int, int]]:
    """Return height and width of each image without its padding."""
    height, width = target.shape[-2:]
    return [(height, width)] * len(target) if sizes is None else [(int(h), int(w)) for h, w in sizes]


class TrimapIoU(ProtocolMetric):
    """Mean IoU of the pixels near the borders of the target's labels.

    A pixel takes part when a pixel with another label lies within ``width`` pixels of it in the target: in the square
    of side 2·width + 1 around it. Ignored pixels make borders too, as in PASCAL VOC where they *are* the borders, but
    are not scored; the padding and the frame of the image make none. (Kohli et al., IJCV 2009; DeepLab, Chen et al.,
    TPAMI 2018.) A wrong class far from all borders goes unseen: read it beside ``miou``.

    As input to ``forward`` and ``update``: ``prediction`` class scores B×C×H×W or integer classes B×H×W, ``target``
    integer B×H×W, 255 = ignore.

    As output of ``compute``: a dict with ``miou_trimap<width>`` and its ``_per_image``; classes are averaged as in
    :class:`SegmentationScore`; NaN when no target has a border.

    Args:
        classes: Number of classes C, 1 to 255.
        width: Distance from a border in pixels, at least 1.
        per_batch: Whether to compute per-batch scores too.

    Raises:
        ConfigError: A number of classes or a width out of range.

    Example:
        >>> import torch
        >>> score = TrimapIoU(classes=2, width=1)
        >>> score.update(torch.tensor([[[1, 0, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]]))
        >>> score.compute()["miou_trimap1"].item()
        1.0
    """

    higher_is_better = True

    def __init__(self, classes: int, width: int, per_batch: bool = False, **kwargs: Any) -> None:
        if width < 1:
            raise ConfigError(f"the width of a trimap is {width}; give at least 1 pixel")
        self.classes, self.width = check_classes(classes), width
        super().__init__((classes, classes), torch.int64, per_batch, **kwargs)

    def update(self, prediction: Tensor, target: Tensor, sizes: Sizes | None = None) -> None:
        """Add a batch; see :meth:`SegmentationScore.update`."""
        guess, true = scored_labels(prediction, target, self.classes)
        band = torch.zeros_like(true, dtype=torch.bool)
        for labels, near, (height, width) in zip(true, band, _sizes_of(target, sizes), strict=True):
            near[:height, :width] = _near_border(labels[:height, :width], self.width)
        self.add(confusion_matrices(guess, true, self.classes, band))

    def scores(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the mean IoU of confusion matrices …×C×C."""
        return {f"miou_trimap{self.width}": _overlap_of(sums)[0]}

    def image_scores_of(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the mean IoU over the classes in each image's band."""
        return {f"miou_trimap{self.width}": _overlap_of(sums)[1]}


def _near_border(labels: Tensor, distance: int) -> Tensor:
    """Return where another label lies within ``distance`` pixels, uint8 labels H×W, the frame being no border."""
    frame = torch.nn.functional.pad(labels[None, None].float(), [distance] * 4, mode="replicate")[0, 0]
    return ~uniform_within(frame.to(torch.uint8), distance)


class BoundaryIoU(ProtocolMetric):
    """Mean IoU of the boundary regions of classes (Cheng et al., "Boundary IoU", CVPR 2021), sensitive to thin errors.

    The boundary region of a class is the part of its mask that lies within d pixels of its contour: the pixels that
    ``d`` erosions of the mask by a 3×3 square remove, where what is outside the image is outside the mask. With G_d and
    P_d these regions of target and prediction, ``IoU_c = |G_d ∩ P_d| / |G_d ∪ P_d|``, and d is ``ratio`` of the image's
    diagonal, rounded, at least 1.

    Ignored pixels are taken out of both masks before; a perfect prediction hence scores 1 beside them. ``boundary_iou``
    sums pixels over the set, then averages over the classes in target or prediction; ``boundary_iou_per_image``
    averages the classes in each image's target, as :class:`SegmentationScore` does.

    All classes are found at once, from the smallest and the largest label in the square around a pixel.

    As input to ``forward`` and ``update``: ``prediction`` class scores B×C×H×W or integer classes B×H×W, ``target``
    integer B×H×W, 255 = ignore.

    As output of ``compute``: a dict with ``boundary_iou`` and ``boundary_iou_per_image``; NaN when not one pixel was
    valid.

    Args:
        classes: Number of classes C, 1 to 255.
        ratio: d as a share of the image's diagonal; the paper's 0.02.
        per_batch: Whether to compute per-batch scores too.

    Raises:
        ConfigError: A number of classes or a ratio out of range.

    Example:
        >>> import torch
        >>> target = torch.zeros(1, 9, 9, dtype=torch.long)
        >>> guess = target.clone()
        >>> guess[:, 0] = 1  # of 32 boundary pixels 9 are lost, and 7 new ones appear
        >>> score = BoundaryIoU(classes=2)
        >>> score.update(guess, target)
        >>> round(score.compute()["boundary_iou_per_image"].item(), 4) == round((32 - 9) / (32 + 7), 4)
        True
    """

    higher_is_better = True

    def __init__(self, classes: int, ratio: float = 0.02, per_batch: bool = False, **kwargs: Any) -> None:
        if not 0 < ratio < 1:
            raise ConfigError(f"the ratio of boundary IoU is {ratio}; give a share of the diagonal such as 0.02")
        self.classes, self.ratio = check_classes(classes), ratio
        super().__init__((3, classes), torch.int64, per_batch, **kwargs)

    def update(self, prediction: Tensor, target: Tensor, sizes: Sizes | None = None) -> None:
        """Add a batch; see :meth:`SegmentationScore.update`."""
        guess, true = scored_labels(prediction, target, self.classes)
        known = true != IGNORE
        guess = guess | (true == IGNORE).view(torch.uint8) * IGNORE  # 255 has all bits
        regions = []
        for labels in (true, guess):
            region = known.clone()
            for image, near, (height, width) in zip(labels, region, _sizes_of(target, sizes), strict=True):
                d = max(1, round(self.ratio * math.hypot(height, width)))
                if min(height, width) > 2 * d:  # else no pixel is farther than d from the outside
                    inner = near[d : height - d, d : width - d]
                    inner &= ~uniform_within(image[:height, :width], d)
            regions.append(region)
        in_true, in_guess = regions
        both = in_true & in_guess & (true == guess)
        counts = [(true, both), (guess, in_guess), (true, in_true)]
        self.add(torch.stack([count_bins(labels.int(), where, self.classes) for labels, where in counts], 1))

    def scores(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the mean IoU of counts …×3×C: shared, predicted and true boundary pixels."""
        return {"boundary_iou": overlap_scores(*sums.unbind(-2))[0]}

    def image_scores_of(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the mean IoU over the classes in each image's target."""
        return {"boundary_iou": overlap_scores(*sums.unbind(-2))[1]}
