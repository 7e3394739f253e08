"""Angular errors of surface normals: over all valid pixels, and per image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from m2h_lightning.metrics.protocol import (
    ProtocolMetric,
    Sizes,
    count_bins,
    require_finite,
    require_same_shape,
    shared,
    zero_outside,
)

LIMITS = (11.25, 22.5, 30)
"""Angles in degrees whose shares are reported (Eigen & Fergus, ICCV 2015)."""

Vectors = tuple[Tensor, Tensor, Tensor]
"""x, y and z of a field of vectors, of one shape each."""

_BINS_PER_DEGREE = 100
_BINS = 180 * _BINS_PER_DEGREE + 1
_BLOCK = 1 << 16


def angle_deg(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle between two vector fields in degrees.

    ``atan2(‖a × b‖, a · b)``: unlike acos of the cosine it keeps its precision near 0° and 180°, and no length needs to
    be known. In float64, where squares of products of float32 numbers neither overflow nor vanish.

    Args:
        first: B×3×H×W, any length, finite.
        second: B×3×H×W, any length, finite.

    Returns:
        float64 angles in [0, 180], B×H×W: 90 where one vector has length 0, as it points nowhere.
    """
    # In blocks that stay in a processor's cache: half the time of whole images.
    pairs = zip(first.flatten(2).split(_BLOCK, 2), second.flatten(2).split(_BLOCK, 2), strict=True)
    angles = [angle_of_planes(*(part.double().unbind(1) for part in pair)) for pair in pairs]
    return torch.cat(angles, 1).unflatten(1, first.shape[2:])


def angle_of_planes(a: Vectors, b: Vectors) -> Tensor:
    """Return the angle between vectors given by their planes, in their own precision; see :func:`angle_deg`.

    Exact near 0° and 180° in float32 too.
    """
    (ax, ay, az), (bx, by, bz) = a, b
    square: Tensor | None = None
    for p, q, r, s in ((ay, bz, az, by), (az, bx, ax, bz), (ax, by, ay, bx)):
        # Products and their difference, each rounded alone: of equal vectors nothing is left, unlike of a fused step.
        part = (p * q).sub_(r * s)
        square = part.square_() if square is None else square.addcmul_(part, part)
    assert square is not None
    sine, cosine = square.sqrt_(), (ax * bx).addcmul_(ay, by).addcmul_(az, bz)
    # A cosine of 0 is 90° whatever the sine, but for atan2(0, 0) = 0°, which a vector without length would get.
    sine.add_((cosine == 0).view(torch.uint8))
    return torch.atan2(sine, cosine).mul_(180 / math.pi)


def planar(vectors: Tensor) -> Tensor:
    """Return vectors B×3×H×W plane by plane in memory, float32 or float64: batches and networks keep x, y, z together.

    Inside :func:`.protocol.share_work` all metrics get the same tensor.
    """
    return shared(_planar, vectors)


def _planar(vectors: Tensor) -> Tensor:
    return (vectors if vectors.dtype == torch.float64 else vectors.float()).contiguous()


def known_normals(target: Tensor) -> Tensor:
    """Return where true normals have a length of at least 0.5, and hence are known; B×3×H×W → B×H×W.

    Inside :func:`.protocol.share_work` all metrics get the same tensor.
    """
    return shared(_known_normals, target)


def _known_normals(target: Tensor) -> Tensor:
    x, y, z = planar(target).unbind(1)
    square = (x * x).addcmul_(y, y).addcmul_(z, z)
    return (square >= 0.25) & (square < math.inf)


def normal_angles(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the angles between predicted and true normals where the latter are known.

    Inside :func:`.protocol.share_work` all metrics get the same tensor.

    Args:
        prediction: B×3×H×W, any length.
        target: B×3×H×W.

    Returns:
        float64 degrees B×H×W, 0 where the target is not known.

    Raises:
        DataError: Shapes that do not fit, or a prediction that is NaN or infinite at a scored pixel.
    """
    return shared(_normal_angles, prediction, target)


def _normal_angles(prediction: Tensor, target: Tensor) -> Tensor:
    require_same_shape(prediction, target, "normals")
    valid = known_normals(target)
    guess, true = planar(prediction), planar(target)
    if not torch.isfinite(guess.sum()):
        require_finite(guess.double().sum(1), valid, "normals")
    # What is not finite outside of these pixels makes an angle of NaN there, which becomes 0 as the others do.
    return zero_outside(angle_deg(guess, true), valid)


class NormalError(ProtocolMetric):
    """Angles between predicted and true normals over the valid pixels.

    ``mean_deg``, ``rmse_deg`` = √mean angle², ``median_deg``, and ``within_11.25``, ``within_22.5``, ``within_30``: the
    shares of pixels with a smaller angle. Each is pooled over all valid pixels of the set (InvPT's mErr is the pooled
    mean) and, as ``…_per_image``, averaged over images.

    A pixel is valid where the target's length is at least 0.5: files that cannot store zero encode "invalid" as a
    short vector. A predicted vector of length 0 at a valid pixel counts as 90°: it is no answer, and an untrained
    network should not gain by it. The median comes from a histogram of 0.01° bins: the middle of the bin of the lower
    median, so exact to 0.005°, additive over processes, and of a size that does not grow with the set.

    As input to ``forward`` and ``update``: ``prediction`` (any length) and ``target`` B×3×H×W in the camera frame.

    As output of ``compute``: a dict of float64 scalars; NaN when not one pixel was valid.

    Args:
        per_batch: Whether to compute per-batch scores too.

    Example:
        >>> import torch
        >>> up, right = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
        >>> error = NormalError()
        >>> error.update(up.reshape(1, 3, 1, 1), right.reshape(1, 3, 1, 1))
        >>> round(error.compute()["mean_deg"].item(), 3)
        90.0
    """

    higher_is_better = False

    def __init__(self, per_batch: bool = False, **kwargs: Any) -> None:
        # Sum, sum of squares, and the histogram, which also counts.
        super().__init__((2 + _BINS,), torch.float64, per_batch, **kwargs)

    def update(self, prediction: Tensor, target: Tensor, sizes: Sizes | None = None) -> None:
        """Add a batch; ``sizes`` are not needed, since padding has length 0.

        Raises:
            DataError: Shapes that do not fit, or a prediction that is NaN or infinite at a scored pixel.
        """
        angle, valid = normal_angles(prediction, target).flatten(1), known_normals(target)
        index = (angle * _BINS_PER_DEGREE).int().clamp_(max=_BINS - 1)
        # The norm's square rather than the squares' sum: no second image of float64.
        sums = torch.stack([angle.sum(1), torch.linalg.vector_norm(angle, dim=1).square()], 1)
        self.add(torch.cat([sums, count_bins(index, valid.flatten(1), _BINS).double()], 1))

    def scores(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the errors of sums …×(2 + bins)."""
        cumulative = sums[..., 2:].cumsum(-1)
        count = cumulative[..., -1]
        middle = torch.searchsorted(cumulative, ((count + 1) / 2).floor().unsqueeze(-1)).squeeze(-1)
        return {
            "mean_deg": sums[..., 0] / count,
            "median_deg": torch.where(count > 0, (middle + 0.5) / _BINS_PER_DEGREE, torch.nan).double(),
            "rmse_deg": (sums[..., 1] / count).sqrt(),
            **{f"within_{limit}": cumulative[..., int(limit * _BINS_PER_DEGREE) - 1] / count for limit in LIMITS},
        }
