"""Calibration: whether a segmentation is right as often as it claims."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m2h_lightning.errors import ConfigError
from m2h_lightning.labels import IGNORE
from m2h_lightning.metrics.class_maps import class_map
from m2h_lightning.metrics.protocol import (
    ProtocolMetric,
    Sizes,
    count_bins,
    require_finite,
    require_same_shape,
    sum_bins,
)


class CalibrationError(ProtocolMetric):
    """Expected calibration error of the most probable class (Guo et al., ICML 2017).

    Pixels are put into M equal bins ((m − 1)/M, m/M] by their confidence, the largest softmax probability; then
    ``ece = Σ_m n_m/N · |accuracy_m − confidence_m|``, with the share of right pixels and the mean confidence of each
    bin. 0 is calibrated. An estimate: only every ``stride``-th row and column is looked at, from the first on, because
    neighbouring pixels say nearly the same; with fewer pixels, single images come out higher than the whole set.

    As input to ``forward`` and ``update``: ``prediction`` logits B×C×H×W, or integer classes B×H×W, which have no
    confidence and are left out; ``target`` integer B×H×W, 255 = ignore.

    As output of ``compute``: a dict with ``ece`` and ``ece_per_image`` in [0, 1]; NaN when no pixel with confidence was
    valid.

    Args:
        bins: M, at least 1.
        stride: Distance of the rows and columns that are looked at, at least 1; 1 takes every pixel.
        per_batch: Whether to compute per-batch scores too.

    Raises:
        ConfigError: Bins or stride below 1.

    Example:
        >>> import torch
        >>> error = CalibrationError(stride=1)
        >>> logits = torch.tensor([0.8, 0.2]).log().reshape(1, 2, 1, 1).expand(1, 2, 1, 2)
        >>> error.update(logits, torch.tensor([[[0, 1]]]))
        >>> round(error.compute()["ece"].item(), 4)  # 80 % sure, 50 % right
        0.3
    """

    higher_is_better = False

    def __init__(self, bins: int = 15, stride: int = 4, per_batch: bool = False, **kwargs: Any) -> None:
        if bins < 1 or stride < 1:
            raise ConfigError(f"calibration with {bins} bins and stride {stride}; give at least 1 for both")
        self.bins, self.stride = bins, stride
        super().__init__((3, bins), torch.float64, per_batch, **kwargs)

    def update(self, prediction: Tensor, target: Tensor, sizes: Sizes | None = None) -> None:
        """Add a batch; ``sizes`` are not needed, since padding is labelled 255.

        Raises:
            DataError: Shapes that do not fit, or logits that are NaN or infinite at a scored pixel.
        """
        if prediction.ndim == target.ndim:
            require_same_shape(prediction, target, "classes")
            return
        require_same_shape(prediction[:, 0], target, "classes")
        true = target[:, :: self.stride, :: self.stride].flatten(1)
        known = true != IGNORE
        guess, peak = (field[:, :: self.stride, :: self.stride].flatten(1) for field in class_map(prediction))
        require_finite(peak, known, "classes")
        # Classes last, as logits lie in memory: sums then run over neighbouring numbers.
        logits = prediction.permute(0, 2, 3, 1)[:, :: self.stride, :: self.stride].flatten(1, 2)
        # The largest softmax probability is 1 over the sum of the exponentials relative to it.
        confidence = (logits.float() - peak.float().unsqueeze(2)).exp_().sum(2).reciprocal()
        level = (confidence * self.bins).ceil().int().sub_(1)
        count = count_bins(level, known, self.bins)
        right = count_bins(level, known & (guess == true), self.bins)
        counts = torch.stack([count, right], 1).double()
        self.add(torch.cat([counts, sum_bins([confidence], level, known, self.bins)], 1))

    def scores(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the error of counts, right pixels and summed confidence per bin, …×3×bins."""
        count, right, sure = sums.unbind(-2)
        return {"ece": (right - sure).abs().sum(-1) / count.sum(-1)}
