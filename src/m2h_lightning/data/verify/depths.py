"""Depth values: percentiles over all samples, and what their size says about the unit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from m2h_lightning.data.raw import DepthCode
from m2h_lightning.data.verify.problems import Finding

_DECADES, _PER_DECADE = (-5, 7), 200  # 1.2 % per bin
_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_STEP = 4  # every fourth pixel of every fourth row: percentiles need no more


def _no_counts() -> np.ndarray:
    return np.zeros((_DECADES[1] - _DECADES[0]) * _PER_DECADE, np.int64)


@dataclass
class DepthTally:
    """Depth in the unit that was read, metres if all is well."""

    counts: np.ndarray = field(default_factory=_no_counts)
    """Logarithmic histogram."""
    negative: int = 0
    whole: bool = True
    """All known values were whole numbers."""
    high: float = 0.0

    def add(self, other: DepthTally) -> None:
        """Add the tally of other samples."""
        self.counts = self.counts + other.counts
        self.negative += other.negative
        self.whole = self.whole and other.whole
        self.high = max(self.high, other.high)

    def percentile(self, percent: float) -> float:
        """Return a percentile to about 1 %; NaN when no depth is known."""
        total = int(self.counts.sum())
        if not total:
            return math.nan
        index = int(np.searchsorted(np.cumsum(self.counts), percent / 100 * total, side="left"))
        return float(10 ** (_DECADES[0] + (min(index, len(self.counts) - 1) + 0.5) / _PER_DECADE))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the report."""
        return {"max": self.high, **{f"p{percent}": self.percentile(percent) for percent in _PERCENTILES}}


def metres(depth: np.ndarray, code: DepthCode | None, target: str) -> np.ndarray:
    """Return depth in metres, float32, 0 where unknown, whatever the set's target is.

    Args:
        depth: As stored.
        code: How to decode it, if it is coded.
        target: What plain float depth means in this set.
    """
    if code is not None:
        return replace(code, target="metric").decode(depth) if code.baseline_fx else code.decode(depth)
    depth = depth.astype(np.float32, copy=False)
    if target != "metric":  # of a disparity only the shape is known, not the size
        return np.where(depth > 0, 1.0 / np.where(depth > 0, depth, 1.0), 0.0).astype(np.float32)
    return depth


def tally_depth(depth: np.ndarray) -> DepthTally:
    """Count the depth of one sample, (H, W) with 0 = unknown."""
    thin = depth[::_STEP, ::_STEP]
    known = thin[np.isfinite(thin) & (thin > 0)].astype(np.float64)
    tally = DepthTally(negative=int((depth < 0).sum()))
    if known.size:
        bins = ((np.log10(known) - _DECADES[0]) * _PER_DECADE).astype(np.int64)
        tally.counts = np.bincount(np.clip(bins, 0, len(tally.counts) - 1), minlength=len(tally.counts))
        tally.whole = bool((known == np.rint(known)).all())
        tally.high = float(known.max())
    return tally


def judge_depth(tally: DepthTally, depth_range: tuple[float, float]) -> list[Finding]:
    """Say what the size of the numbers looks like.

    Args:
        tally: Over all samples.
        depth_range: Nearest and farthest depth of the set, metres.
    """
    found = []
    if tally.negative:
        found.append(
            Finding("problem", "depth", f"{tally.negative} pixels have negative depth", "unknown depth is stored as 0")
        )
    median, (low, high) = tally.percentile(50), depth_range
    if math.isnan(median):
        return found
    size = f"median {median:.4g}, largest {tally.high:.4g}, the set reaches from {low:g} to {high:g} m"

    def suspect(what: str, mend: str) -> None:
        found.append(Finding("problem", "depth", f"depth looks {what}: {size}", mend))

    if tally.whole and tally.high <= 255 and median > high:
        suspect("like an 8-bit picture", "take the depth itself, in metres, not a picture for viewing")
    elif median > 80 * high:
        suspect("like millimetres", "divide by 1000: depth is metres")
    elif median > 8 * high:
        suspect("like centimetres", "divide by 100: depth is metres")
    elif median > high:
        suspect("too large", "is it another unit, a disparity, or another data set?")
    elif tally.whole and tally.high >= 2:
        suspect("rounded to whole metres", "was it converted through an integer type?")
    elif median < low:
        suspect("too small", "is it another unit, or an inverse depth?")
    elif tally.high <= 1.001 and high >= 5:
        suspect(
            "scaled to 0…1, or inverse",
            "take the depth in metres, not a normalised one; of an inverse depth take 1/depth",
        )
    return found
