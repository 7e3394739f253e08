"""What all metrics share: additive statistics per image, from which every protocol's scores follow."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor
from torchmetrics import Metric

from m2h_lightning.errors import DataError
from m2h_lightning.metrics.settings import SUFFIXES

Sizes = Sequence[Sequence[int]]
"""Height and width of each image of a batch before padding at the right and the bottom."""

_COPIES = 8  # a power of two
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_Result = TypeVar("_Result")
_work: ContextVar[dict[Any, Any] | None] = ContextVar("work that metrics share", default=None)


@contextmanager
def share_work() -> Iterator[None]:
    """Let all metrics inside share what several of them compute of the same tensors: class maps, angles, masks.

    Tensors that are scored must not be changed in place inside; nothing is kept after it.
    """
    token = _work.set({})
    try:
        yield
    finally:
        _work.reset(token)


def shared(make: Callable[..., _Result], *arguments: Any) -> _Result:
    """Return ``make(*arguments)``: inside :func:`share_work` the result of the same call before, if there was one.

    Args:
        make: A function that is defined once, so not a lambda.
        arguments: Tensors, which are told apart by identity, and hashable values. The result must not be changed.
    """
    work = _work.get()
    if work is None:
        return make(*arguments)
    key = (make, *(id(value) if isinstance(value, Tensor) else value for value in arguments))
    if key not in work:
        # The arguments are kept beside the result: an id is only theirs as long as they live.
        work[key] = (make(*arguments), arguments)
    result: _Result = work[key][0]
    return result


def any_true(mask: Tensor) -> bool:
    """Return whether a boolean mask is true anywhere; on CPUs a small part of the time of ``any``."""
    return mask.numel() > 0 and bool(mask.view(torch.uint8).amax())


def zero_outside(values: Tensor, valid: Tensor) -> Tensor:
    """Return values where they are valid, and 0 elsewhere whatever stands there, NaN too.

    The bits are masked: ``torch.where`` goes value by value on CPUs and takes three times as long.

    Args:
        values: Floats or integers.
        valid: Boolean mask, broadcastable to ``values``.
    """
    kind = _INTEGERS[values.element_size()]
    return (values.view(kind) & -valid.view(torch.uint8).to(kind)).view(values.dtype)


def require_finite(values: Tensor, valid: Tensor, name: str) -> None:
    """Refuse a prediction that is NaN or infinite where it counts; a score of it would be NaN, or worse, a number.

    Args:
        values: Prediction, or one value per pixel that is finite only if the prediction is.
        valid: Boolean mask of the pixels that are scored; broadcastable to ``values``.
        name: What is predicted, for the message.

    Raises:
        DataError: With the number of such values.
    """
    if torch.isfinite(values.sum()):  # one quick pass; a sum is finite only if every part of it is
        return
    bad = ~torch.isfinite(values) & valid
    if any_true(bad):
        raise DataError(f"the prediction of {name} is NaN or infinite at {int(bad.sum())} scored pixels")


def require_probabilities(values: Tensor, valid: Tensor, name: str) -> None:
    """Refuse a prediction that is no probability where it counts.

    Args:
        values: Prediction of any shape.
        valid: Boolean mask of the scored pixels, of the same shape.
        name: What is predicted, for the message.

    Raises:
        DataError: A scored value is NaN or infinite, or outside [0, 1].
    """
    wrong = valid & ~((values >= 0) & (values <= 1))
    if any_true(wrong):
        require_finite(values, valid, name)
        raise DataError(
            f"the prediction of {name} is outside [0, 1] at {int(wrong.sum())} scored pixels; "
            "give probabilities, not logits"
        )


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
        index: Integer of 16 bits or more, B×…, in [0, bins) wherever ``valid``.
        valid: Boolean mask of the same shape.
        bins: Number of different values.

    Returns:
        int64 B×bins.
    """
    index = _numbered_from_1(index, valid)
    return torch.stack([torch.bincount(image, minlength=bins + 1)[1:] for image in index])


def sum_bins(values: Sequence[Tensor], index: Tensor, valid: Tensor, bins: int) -> Tensor:
    """Sum values by a number, image by image.

    Args:
        values: N fields B×…, anything where not ``valid``.
        index: Integer of 32 bits or more and the same shape, in [0, bins) wherever ``valid``.
        valid: Boolean mask of the same shape.
        bins: Number of different numbers.

    Returns:
        float64 B×N×bins.
    """
    index = _numbered_from_1(index, valid)
    # Neighbours, mostly of one bin, go to different copies of it: a processor need not wait for the sum just before.
    copies = torch.arange(index.shape[1], dtype=index.dtype, device=index.device).bitwise_and_(_COPIES - 1)
    index += copies.mul_(bins + 1)
    empty = torch.zeros(_COPIES * (bins + 1), dtype=torch.float64, device=index.device)
    # Not a weighted bincount, which has no deterministic form on GPUs.
    images = zip(index, *(field.double().flatten(1) for field in values), strict=True)
    sums = [torch.stack([empty.index_add(0, place, field) for field in fields]) for place, *fields in images]
    return torch.stack(sums).unflatten(2, (_COPIES, bins + 1)).sum(2)[..., 1:]


def _numbered_from_1(index: Tensor, valid: Tensor) -> Tensor:
    """Return bins from 1 on, and 0 for what is not valid: no boolean indexing, hence no wait for the device; B×N."""
    return ((index + 1) * valid.view(torch.uint8)).flatten(1)


@contextmanager
def unscored_is_no_fault() -> Iterator[None]:
    """Let ``compute`` be called on what was never scored: NaN is the answer, and torchmetrics would warn of each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The ``compute`` method of metric", UserWarning)
        yield


class ProtocolMetric(Metric):
    """A metric whose scores are functions of sums over pixels, under every protocol in one pass.

    A subclass gives the sums of each image to :meth:`add` and says which scores follow from sums (:meth:`scores`).
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
