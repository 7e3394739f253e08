"""Depth errors: over all valid pixels, per image, and per range of true depth."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.metrics.protocol import (
    ProtocolMetric,
    Sizes,
    count_bins,
    require_finite,
    require_same_shape,
    sum_bins,
    zero_outside,
)

UNIT_NAMES = {"m": "m", "px": "px", "1/m": "per_m"}
"""How a unit of depth is written in the name of a metric: metres, pixels of disparity, inverse metres."""

RANGE_EDGES: dict[str, tuple[float, ...]] = {
    "m": (1, 2, 4, 8, 16, 32, 64),
    "px": (2, 4, 8, 16, 32, 64, 128),
    "1/m": (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1),
}
"""Where ranges of true depth meet, per unit: powers of two, so that an error relative to depth weighs alike in each."""

EIGEN_SIZE, EIGEN_ROWS, EIGEN_COLUMNS = (480, 640), slice(45, 471), slice(41, 601)
"""The crop of NYUv2 images in which Eigen et al. (NIPS 2014) score depth."""

_BLOCK = 1 << 17
_NAMES = ("count", "square", "relative", "square_relative", "log", "log_square", "log_absolute", "d1", "d2", "d3")


class DepthError(ProtocolMetric):
    """Depth errors of p against d*, with e = p − d* and δ = ln p − ln d*, averaged over the valid pixels.

    ``rmse_m`` = √mean e² · ``absrel`` = mean |e|/d* · ``sqrel`` = mean e²/d* · ``log_rmse`` = √mean δ² · ``log10`` =
    mean |δ|/ln 10 · ``silog`` = 100·√(mean δ² − (mean δ)²), which no factor on the whole prediction changes (KITTI's
    scale; SwinMTL subtracts half the square and has no 100) · ``delta1``, ``delta2``, ``delta3``: share of pixels with
    max(p/d*, d*/p) below 1.25, 1.25², 1.25³.

    The unit stands in the name: disparities give ``rmse_px``, inverse depth ``rmse_per_m``, and never share a column
    with metres. (``sqrel`` has the unit of depth too.)

    Pooled scores average over all valid pixels of the set (InvPT); the ``_per_image`` ones over each image, then over
    images (SwinMTL, and most papers on depth alone). With as many valid pixels in each image the latter is the smaller
    RMSE, always (Jensen). There is no median scaling.

    As input to ``forward`` and ``update``: ``prediction`` and ``target`` B×1×H×W in ``unit``, target 0 = invalid.

    As output of ``compute``: a dict of float64 scalars; NaN when not one pixel was valid.

    Args:
        unit: "m", "px" or "1/m".
        crop: "eigen" scores rows 45–470 and columns 41–600 of labels of 480×640 only; "none" scores all.
        cap: Labels from this value on take no part, and predictions are clamped to it; None caps nothing.
        ranges: Whether to return ``rmse_<unit>_by_range/<a>-<b>`` and ``absrel_by_range/<a>-<b>`` over the pixels with
            a ≤ d* < b (pooled only) for the powers of two of :data:`RANGE_EDGES`.
        per_batch: Whether to compute per-batch scores too.

    Raises:
        ConfigError: An unknown unit or crop, or a cap that is not above 0.

    Example:
        >>> import torch
        >>> error = DepthError()
        >>> error.update(torch.full((1, 1, 1, 2), 3.0), torch.tensor([[[[2.0, 0.0]]]]))
        >>> error.compute()["rmse_m"].item()
        1.0
    """

    higher_is_better = False

    def __init__(
        self,
        unit: str = "m",
        crop: str = "none",
        cap: float | None = None,
        ranges: bool = False,
        per_batch: bool = False,
        **kwargs: Any,
    ) -> None:
        if unit not in UNIT_NAMES:
            raise ConfigError(f"the unit of depth is {unit!r}; choose from {', '.join(UNIT_NAMES)}")
        if crop not in ("none", "eigen"):
            raise ConfigError(f"metrics.crop is {crop!r}; choose from none, eigen")
        if cap is not None and not cap > 0:
            raise ConfigError(f"metrics.cap is {cap}; give a depth above 0, or null")
        self.unit, self.crop, self.cap = unit, crop, cap
        self.edges = RANGE_EDGES[unit] if ranges else ()
        # One flat row per image: the sums over all pixels, then count, square and relative sums of every range.
        length = len(_NAMES) + (3 * (len(self.edges) + 1) if ranges else 0)
        super().__init__((length,), torch.float64, per_batch, **kwargs)

    def update(self, prediction: Tensor, target: Tensor, sizes: Sizes | None = None) -> None:
        """Add a batch; ``sizes`` only matter to the crop, since padding is 0.

        Raises:
            DataError: Shapes that do not fit; a prediction at a scored pixel that is NaN, infinite, 0 or negative.
            ConfigError: The Eigen crop is asked for and the labels are not 480×640.
        """
        require_same_shape(prediction, target, "depth")
        if self.crop == "eigen":
            for size in [target.shape[-2:]] if sizes is None else sizes:
                if tuple(size) != EIGEN_SIZE:
                    raise ConfigError(
                        f"metrics.crop is 'eigen', which is defined for depth labels of 480×640, but these are "
                        f"{int(size[0])}×{int(size[1])}; set metrics.crop: none"
                    )
            prediction, target = (x[..., EIGEN_ROWS, EIGEN_COLUMNS] for x in (prediction, target))
        prediction, target = prediction.flatten(1), target.flatten(1)
        # False for a NaN. An infinite label is as little known as 0.
        valid = (target > 0) & (target < (math.inf if self.cap is None else self.cap))
        # A pixel that is not valid gets two equal depths: it adds 0 to all but counts.
        unknown = (~valid).view(torch.uint8)
        guess, true = (zero_outside(depth, valid).add_(unknown) for depth in (prediction, target))
        low, high = guess.aminmax()
        if not (low > 0 and high < math.inf):  # NaN is neither
            require_finite(guess, valid, "depth")
            count = int((guess <= 0).sum())
            raise DataError(
                f"the prediction of depth is 0 or negative at {count} scored pixels; depth must be positive"
            )
        # In blocks that stay in a processor's cache.
        blocks = zip(*(part.split(_BLOCK, 1) for part in (guess, true, valid)), strict=True)
        self.add(torch.stack([self._sums_of(*block) for block in blocks]).sum(0))

    def _sums_of(self, guess: Tensor, true: Tensor, valid: Tensor) -> Tensor:
        """Return the sums B×length over pixels B×N; depths are equal where not valid."""
        guess, true = guess.double(), true.double()
        if self.cap is not None:
            guess = guess.clamp(max=self.cap)
        error, ratio, inverse = guess - true, guess / true, true / guess
        square, relative, log = error.square(), error / true, ratio.log()
        worst = torch.maximum(ratio, inverse, out=inverse)
        count = valid.sum(1).double()
        rows = [count, square.sum(1), relative.abs().sum(1), error.mul_(relative).sum(1), log.sum(1)]
        rows += [log.square().sum(1), log.abs_().sum(1)]
        # Where not valid the ratio is 1, which is close. A comparison that writes numbers takes half the time.
        far = valid.shape[1] - count
        rows += [torch.lt(worst, 1.25**power, out=log).sum(1) - far for power in (1, 2, 3)]
        if not self.edges:
            return torch.stack(rows, 1)
        index, bins = self._range_of(true), len(self.edges) + 1
        sums = sum_bins([square, relative.abs_()], index, valid, bins).flatten(1)
        return torch.cat([torch.stack(rows, 1), count_bins(index, valid, bins).double(), sums], 1)

    def _range_of(self, true: Tensor) -> Tensor:
        """Return the number of the range in which depth (float64, above 0) lies: 0 below the first edge."""
        # Edges are consecutive powers of two: the exponent of a number tells between which it lies, exactly. Of a
        # float64 above 0 it is what stands before the 52 bits of the fraction, plus 1022.
        exponent = (true.view(torch.int64) >> 52).int()
        return exponent.sub_(1022 + math.frexp(self.edges[0])[1] - 1).clamp_(0, len(self.edges))

    def scores(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the errors of sums …×length."""
        part = dict(zip(_NAMES, sums[..., : len(_NAMES)].unbind(-1), strict=True))
        mean = {name: part[name] / part["count"] for name in _NAMES[1:]}
        return {
            f"rmse_{UNIT_NAMES[self.unit]}": mean["square"].sqrt(),
            "absrel": mean["relative"],
            "sqrel": mean["square_relative"],
            "log_rmse": mean["log_square"].sqrt(),
            "log10": mean["log_absolute"] / math.log(10),
            "silog": 100 * (mean["log_square"] - mean["log"].square()).clamp(min=0).sqrt(),
            **{f"delta{power}": mean[f"d{power}"] for power in (1, 2, 3)},
        }

    def details(self, sums: Tensor) -> dict[str, Tensor]:
        """Return RMSE and relative error per range of true depth, if asked for."""
        if not self.edges:
            return {}
        count, square, relative = sums[len(_NAMES) :].unflatten(0, (3, -1))
        bounds = [f"{edge:g}" for edge in (0, *self.edges, math.inf)]
        result = {}
        for name, values in ((f"rmse_{UNIT_NAMES[self.unit]}", (square / count).sqrt()), ("absrel", relative / count)):
            for low, high, value in zip(bounds[:-1], bounds[1:], values, strict=True):
                result[f"{name}_by_range/{low}-{high}"] = value
        return result
