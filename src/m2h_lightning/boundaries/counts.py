"""Counts of matched boundary pixels of one image at every threshold: the job of a working process."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from m2h_lightning.boundaries.maps import THRESHOLDS, from_levels, region_boundaries, suppress_non_maxima, thin
from m2h_lightning.boundaries.matching import Matching


@dataclass(frozen=True)
class Image:
    """One image's prediction and label.

    Args:
        levels: uint8 H×W, ``round(255 p)``.
        labels: uint8 H×W in {0, 1}, 255 = ignore.
    """

    levels: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Count:
    """Counts boundary pixels of images.

    Args:
        max_dist: Tolerance as a share of the image's diagonal.
        exact: Whether to thin and match at every threshold, as the benchmark does, beside the fast way.
    """

    max_dist: float
    exact: bool

    def __call__(self, image: Image) -> np.ndarray:
        """Count one image.

        Returns:
            int64 M×T×4, for the fast way and, if asked for, the exact one: at every threshold the true pixels with a
            partner and all of them, the predicted pixels with a partner and all of them (cntR, sumR, cntP, sumP).
        """
        maps = prepare(image, self.max_dist)
        return np.stack([count_fast(*maps), count_exact(*maps)] if self.exact else [count_fast(*maps)])


def prepare(image: Image, max_dist: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Do what comes before thresholds.

    Returns:
        The arguments of :func:`count_exact`.
    """
    known = image.labels != 255
    truth = thin(region_boundaries(image.labels == 1)) & known
    return suppress_non_maxima(from_levels(image.levels)), truth, known, max_dist * float(np.hypot(*truth.shape))


def count_exact(edges: np.ndarray, truth: np.ndarray, known: np.ndarray, radius: float) -> np.ndarray:
    """Threshold, thin and match at every threshold.

    Args:
        edges: float32 H×W after non-maximum suppression.
        truth: bool H×W, thin.
        known: bool H×W; predictions elsewhere are dropped after thinning.
        radius: Largest distance of a pair in pixels.

    Returns:
        int64 T×4.
    """
    lines: list[np.ndarray] = []
    size = -1
    for threshold in THRESHOLDS:
        mask = edges > threshold
        if (pixels := int(mask.sum())) != size:  # maps only lose pixels: as many are the same ones
            size, line = pixels, np.flatnonzero(thin(mask) & known)
        lines.append(line)
    possible = np.unique(np.concatenate(lines))
    matching = Matching(possible, truth, radius)
    counts = np.zeros((len(THRESHOLDS), 4), dtype=np.int64)
    counts[:, 1] = truth.sum()
    previous = None
    # Downwards: predictions mostly come in addition, so most partners stay.
    for index in reversed(range(len(THRESHOLDS))):
        if lines[index] is not previous:
            previous = lines[index]
            active = np.zeros(len(possible), dtype=bool)
            active[np.searchsorted(possible, previous)] = True
            matching.keep(active)
            matching.add(np.flatnonzero(active & ~matching.assigned()))
            pairs = int(matching.assigned().sum())
        counts[index, [0, 2]] = pairs
        counts[index, 3] = len(lines[index])
    return counts


def count_fast(edges: np.ndarray, truth: np.ndarray, known: np.ndarray, radius: float) -> np.ndarray:
    """Thin once, at the lowest threshold, and match while the threshold falls; arguments as in :func:`count_exact`.

    A prediction that has a partner keeps one, and one that has found none stays without, so each is searched once.
    """
    pixels = np.flatnonzero(thin(edges > THRESHOLDS[0]) & known)
    # The number of thresholds below each pixel's value.
    above = np.searchsorted(THRESHOLDS, edges.reshape(-1)[pixels], side="left")
    matching = Matching(pixels, truth, radius)
    order = np.argsort(-above, kind="stable")
    stops = np.searchsorted(-above[order], -np.arange(len(THRESHOLDS)), side="left")
    counts = np.zeros((len(THRESHOLDS), 4), dtype=np.int64)
    counts[:, 1] = truth.sum()
    done = pairs = 0
    for index in reversed(range(len(THRESHOLDS))):
        stop = int(stops[index])
        if stop > done:
            pairs += matching.add(order[done:stop])
            done = stop
        counts[index] = pairs, counts[index, 1], pairs, stop
    return counts
