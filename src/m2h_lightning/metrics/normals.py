"""Angular errors of surface normals, pooled over all valid pixels of the set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

_BINS_PER_DEGREE = 100


def angle_deg(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the angle between two vector fields in degrees.

    ``2·atan2(‖p̂ − ĝ‖, ‖p̂ + ĝ‖)`` of the normalised vectors, which keeps its precision near 0° where acos loses it.

    Args:
        prediction: B×3×H×W, any length.
        target: B×3×H×W, any length.

    Returns:
        float64 angles in [0, 180], B×H×W.
    """
    p = torch.nn.functional.normalize(prediction.double(), dim=1)
    g = torch.nn.functional.normalize(target.double(), dim=1)
    return torch.rad2deg(2 * torch.atan2((p - g).norm(dim=1), (p + g).norm(dim=1)))


class NormalError(Metric):
    """Angular error of normals: mean, median, and shares below 11.25°, 22.5° and 30°, pooled over valid pixels.

    A pixel is valid where the target's length is at least 0.5: files that cannot store zero encode "invalid" as a
    short vector. The median comes from a histogram of 0.01° bins: exact to 0.01°, additive over processes, and of a
    size that does not grow with the set.

    As input to ``forward`` and ``update``: ``prediction`` and ``target`` B×3×H×W in the camera frame.

    As output of ``compute``: a dict of float64 scalars: ``mean_deg``, ``median_deg``, ``within_11.25``,
    ``within_22.5``, ``within_30``; NaN when not one pixel was valid.

    Example:
        >>> import torch
        >>> up, right = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
        >>> error = NormalError()
        >>> error.update(up.reshape(1, 3, 1, 1), right.reshape(1, 3, 1, 1))
        >>> round(error.compute()["mean_deg"].item(), 3)
        90.0
    """

    higher_is_better = False
    full_state_update = False
    histogram: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        bins = 180 * _BINS_PER_DEGREE + 1
        self.add_state("histogram", torch.zeros(bins, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        valid = target.norm(dim=1) >= 0.5
        angle = angle_deg(prediction, target)
        self.total += torch.where(valid, angle, 0.0).sum()
        index = (angle * _BINS_PER_DEGREE).long().clamp_(0, len(self.histogram) - 1)
        index = torch.where(valid, index, len(self.histogram))
        self.histogram += torch.bincount(index.flatten(), minlength=len(self.histogram) + 1)[:-1]

    def compute(self) -> dict[str, Tensor]:
        """Return the errors over everything added so far."""
        cumulative = self.histogram.cumsum(0)
        count = cumulative[-1]
        middle = torch.searchsorted(cumulative, (count + 1) // 2).double()
        median = (middle + 0.5) / _BINS_PER_DEGREE
        result = {
            "mean_deg": self.total / count,
            "median_deg": torch.where(count > 0, median, torch.nan),
        }
        for limit in (11.25, 22.5, 30):
            result[f"within_{limit}"] = cumulative[int(limit * _BINS_PER_DEGREE) - 1].double() / count
        return result
