"""Means with intervals, paired differences and Holm's correction: what seeds allow to be said. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from m2h_lightning.errors import ConfigError

LEVEL = 0.95
"""Confidence of every interval."""

ALPHA = 0.05
"""A corrected p-value below it is called a difference."""

_ROUNDING = 1e-12
"""Spread, as a share of the values, below which they are equal: what is left is rounding of the subtraction."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % interval (Student's t).

    Args:
        values: One value per seed, at least one.

    Returns:
        Mean and half width in the unit of the values; the half width is NaN with fewer than two values.

    Example:
        >>> mean, half = interval([1.0, 2.0, 3.0])
        >>> round(mean, 3), round(half, 3)
        (2.0, 2.484)
    """
    if len(values) < 2:
        return statistics.fmean(values), math.nan
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), float(half)


@dataclass(frozen=True)
class Paired:
    """The difference of two variants over the seeds that both have.

    Args:
        mean: Mean of the differences, ours − theirs.
        half: Half width of its 95 % interval; NaN with one pair.
        p: p-value of the two-sided paired t-test; None with one pair, or where all differences are equal: without any
            spread the test is not defined.
        n: Number of pairs.
    """

    mean: float
    half: float
    p: float | None
    n: int


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Compare two variants run with the same seeds.

    Args:
        ours: Values of one variant, at least one.
        theirs: Values of the other one, in the same order of seeds.

    Raises:
        ConfigError: There are none, or not equally many.

    Example:
        >>> result = paired([1.0, 2.0, 4.0], [0.5, 1.0, 2.0])
        >>> round(result.mean, 3), round(result.p, 3)
        (1.167, 0.118)
    """
    if len(ours) != len(theirs) or not ours:
        raise ConfigError(f"a paired comparison needs the same seeds on both sides, not {len(ours)} and {len(theirs)}")
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, half = interval(gaps)
    if len(gaps) < 2:
        return Paired(mean, half, None, 1)
    spread = statistics.stdev(gaps)
    if spread <= _ROUNDING * max(abs(value) for value in (*ours, *theirs)):
        return Paired(mean, 0.0, None, len(gaps))
    t = mean / (spread / math.sqrt(len(gaps)))
    return Paired(mean, half, float(2 * stats.t.sf(abs(t), len(gaps) - 1)), len(gaps))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for their number by Holm's step-down method, which bounds the chance of any false finding.

    The smallest of m is multiplied by m, the next one by m − 1, and so on; none becomes smaller than one before it,
    nor larger than 1. It holds whatever the dependence between the comparisons.

    Args:
        p_values: One per comparison; None stays None and does not count.

    Returns:
        The corrected values in the same order.

    Example:
        >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[index] = largest
    return corrected
