"""Numbers of each stored map: type, range, unknown pixels, values that should not be."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from m2h_lightning.data.raw import INVALID
from m2h_lightning.data.verify.problems import Finding

MAPS = ("image", "semseg", "depth", "normals", "edges", "instance")


@dataclass
class MapTally:
    """Range of one map over samples. ``low``, ``high`` and ``mean`` are of the known pixels, as decoded."""

    samples: int = 0
    pixels: int = 0
    unknown: int = 0
    not_finite: int = 0
    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0
    values: int = 0
    """Known numbers that ``total`` sums: channels count."""
    dtypes: Counter[str] = field(default_factory=Counter)

    def add(self, other: MapTally) -> None:
        """Add the tally of other samples."""
        for name in ("samples", "pixels", "unknown", "not_finite", "total", "values", "dtypes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def mean(self) -> float:
        """Mean of the known numbers; NaN when there is none."""
        return self.total / self.values if self.values else math.nan

    @property
    def unknown_share(self) -> float:
        """Share of the pixels without a label."""
        return self.unknown / self.pixels if self.pixels else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the report."""
        return {
            "samples": self.samples,
            "stored as": dict(sorted(self.dtypes.items())),
            "min": self.low,
            "max": self.high,
            "mean": self.mean,
            "unknown_share": self.unknown_share,
            "not_finite": self.not_finite,
        }


def tally_map(key: str, stored: np.ndarray, decoded: np.ndarray) -> MapTally:
    """Count one map of one sample.

    Args:
        key: Which map.
        stored: As read, for its type.
        decoded: With float32 depth and normals.
    """
    array, not_finite = decoded, 0
    if decoded.dtype.kind == "f":
        bad = ~np.isfinite(decoded)
        not_finite = int(bad.sum())
        if not_finite:
            array = np.where(bad, 0.0, decoded)
    if key == "image":
        unknown = 0
    elif key == "normals":
        unknown = int((np.einsum("hwc,hwc->hw", array, array) < 0.25).sum())
    else:
        unknown = int((array == INVALID.get(key, 0.0)).sum())
    pixels = int(np.prod(array.shape[:2]))
    channels = array.size // max(pixels, 1)
    known = array if key in ("image", "normals") or not unknown else array[array != INVALID.get(key, 0.0)]
    values = (pixels - unknown) * channels if key == "normals" else known.size
    return MapTally(
        samples=1,
        pixels=pixels,
        unknown=unknown,
        not_finite=not_finite,
        low=float(known.min()) if known.size else math.inf,
        high=float(known.max()) if known.size else -math.inf,
        total=float(known.sum(dtype=np.float64)),  # unknown normals are 0 and add nothing
        values=values,
        dtypes=Counter([stored.dtype.name]),
    )


def judge_maps(maps: dict[str, MapTally], tasks: tuple[str, ...], samples: int) -> list[Finding]:
    """Say which maps are missing, all unknown, or of several types.

    Args:
        maps: Tally of each map.
        tasks: Labels that the set says it has.
        samples: Number of samples that could be read.
    """
    found = []
    for key in (*("image",), *tasks):
        tally = maps.get(key, MapTally())
        if samples and not tally.samples:
            found.append(
                Finding("problem", key, f"no sample has {key}, though the set should", "see what the folder lacks")
            )
        elif tally.samples < samples:
            lack = samples - tally.samples
            found.append(Finding("warning", key, f"{lack} of {samples} samples have no {key} (a partial label)"))
        if tally.pixels and tally.unknown == tally.pixels:
            found.append(Finding("problem", key, f"{key} is unknown in every pixel of every sample", "wrong files?"))
        if len(tally.dtypes) > 1:
            found.append(Finding("note", key, f"{key} is stored in several types: {dict(tally.dtypes)}"))
    return found
