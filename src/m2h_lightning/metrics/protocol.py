"""What all metrics share: additive statistics per image, from which every protocol's scores follow."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from m2h_lightning.errors import DataError
from m2h_lightning.metrics.settings import SUFFIXES

Sizes = Sequence[Sequence[int]]
"""Height and width of each image of a batch before padding at the right and the bottom."""


def require_finite(values: Tensor, valid: Tensor, name: str) -> None:
    """Refuse a prediction that is NaN or infinite where it counts; a score of it would be NaN, or worse, a number.

    Args:
        values: Prediction, or one value per pixel that is finite only if the prediction is.
        valid: Boolean mask of the pixels that are scored; broadcastable to ``values``.
        name: What is predicted, for the message.

    Raises:
        DataError: With the number of such values.
    """
    bad = ~torch.isfinite(values) & valid
    if bad.any():
        raise DataError(f"the prediction of {name} is NaN or infinite at {int(bad.sum())} scored pixels")


def require_same_shape(prediction: Tensor, target: Tensor, name: str) -> None:
    """Refuse a prediction whose shape is not the label's; broadcasting would score it against the wrong pixels.

    Args:
        prediction: Prediction of any shape.
        target: Label.
        name: What is predicted, for the message.

    Raises:
        DataError: With both shapes.
    """
    if prediction.shape != target.shape:
        raise DataError(
            f"the prediction of {name} has shape {tuple(prediction.shape)}, its label {tuple(target.shape)}; "
            "resize predictions to the labels' size"
        )


def count_bins(index: Tensor, valid: Tensor, bins: int) -> Tensor:
    """Count the values of each image.

    Args:
        index: Integer B×…, in [0, bins) wherever ``valid``.
        valid: Boolean mask of the same shape.
        bins: Number of different values.

    Returns:
        int64 B×bins.
    """
    # What is not valid falls into one bin more: no boolean indexing, hence no wait for the device.
    index = torch.where(valid, index, bins).flatten(1)
    return torch.stack([torch.bincount(image, minlength=bins + 1)[:bins] for image in index])


def sum_bins(values: Tensor, index: Tensor, valid: Tensor, bins: int) -> Tensor:
    """Sum values by a number, image by image.

    Args:
        values: B×…, anything where not ``valid``.
        index: Integer of the same shape, in [0, bins) wherever ``valid``.
        valid: Boolean mask of the same shape.
        bins: Number of different numbers.

    Returns:
        float64 B×bins.
    """
    index = torch.where(valid, index, bins).flatten(1)
    empty = torch.zeros(bins + 1, dtype=torch.float64, device=values.device)
    # Not a weighted bincount, which has no deterministic form on GPUs.
    images = zip(index, values.double().flatten(1), strict=True)
    return torch.stack([empty.index_add(0, place, value)[:bins] for place, value in images])


class ProtocolMetric(Metric):
    """A metric whose scores are functions of sums over pixels, under every protocol in one pass.

    A subclass says which sums an image has (:meth:`statistics`) and which scores follow from sums (:meth:`scores`).
    Pooled scores are those of the sums over all images; per-image scores are means over the images on which they are
    defined (not NaN); per-batch scores, if asked for, are means over batches. All states add up: over batches, and over
    the processes of a distributed run, whatever the number of images of each.

    As output of ``compute``: a dict of float64 scalars, ``name`` and ``name_per_image`` (and ``name_per_batch``) for
    every name of :meth:`scores`; NaN where nothing was scored. Scores of :meth:`details` are pooled only.

    A subclass sets what its :meth:`scores` read before it calls this constructor, which asks them for their names.

    Args:
        shape: Shape of the statistics of one image.
        dtype: int64 for counts, float64 for sums.
        per_batch: Whether to compute per-batch scores too.
    """

    full_state_update = False
    sums: Tensor

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float64, per_batch: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.per_batch = per_batch
        self.add_state("sums", torch.zeros(*shape, dtype=dtype), dist_reduce_fx="sum")
        self._names = list(self.scores(torch.zeros(*shape, dtype=dtype)))
        for group in ("image", "batch") if per_batch else ("image",):
            self.add_state(f"{group}_scores", torch.zeros(len(self._names), dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{group}_count", torch.zeros(len(self._names), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def scores(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the scores that follow from sums.

        Args:
            sums: *…×shape*, summed over any set of pixels.

        Returns:
            By name, float64 *…*; NaN where they are not defined. The names do not depend on the values.
        """

    def image_scores_of(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the scores of single images; not :meth:`scores` only where the protocol defines them otherwise."""
        return self.scores(sums)

    def details(self, sums: Tensor) -> dict[str, Tensor]:
        """Return further scores of the whole set; none by default."""
        return {}

    def add(self, statistics: Tensor) -> None:
        """Add the statistics of a batch, B×shape."""
        # Not in place, here and below: a state that was reset in inference mode may be added to outside of it.
        self.sums = self.sums + statistics.sum(0)
        self._add_scores("image", self.image_scores_of(statistics))
        if self.per_batch:
            self._add_scores("batch", {k: v[None] for k, v in self.scores(statistics.sum(0)).items()})

    def _add_scores(self, group: str, scores: dict[str, Tensor]) -> None:
        values = torch.stack([scores[name].double() for name in self._names])  # names × images
        known = ~values.isnan()
        total, count = f"{group}_scores", f"{group}_count"
        setattr(self, total, getattr(self, total) + torch.where(known, values, 0.0).sum(1))
        setattr(self, count, getattr(self, count) + known.sum(1))

    def compute(self) -> dict[str, Tensor]:
        """Return the scores over everything added so far."""
        result = {name: value.double() for name, value in self.scores(self.sums).items()}
        for group in ("image", "batch") if self.per_batch else ("image",):
            means = getattr(self, f"{group}_scores") / getattr(self, f"{group}_count")
            suffix = SUFFIXES[f"per_{group}"]
            result.update({f"{name}{suffix}": mean for name, mean in zip(self._names, means, strict=True)})
        return {**result, **self.details(self.sums)}
