"""How predictions are scored: the named protocols and their options. No torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from m2h_lightning.errors import ConfigError

Protocol = Literal["pooled", "per_image", "per_batch"]
PROTOCOLS: tuple[Protocol, ...] = ("pooled", "per_image", "per_batch")

SUFFIXES: dict[str, str] = {"pooled": "", "per_image": "_per_image", "per_batch": "_per_batch"}
"""What a protocol adds to the name of a metric; ``pooled`` is the name itself."""

NYUD_MAX_DIST, MAX_DIST = 0.011, 0.0075
"""Tolerance of boundary matching, as a share of the image's diagonal: on NYUDv2, and on every other set (SEISM)."""

MAX_TRIMAP = 1000
"""Widest band around label borders in pixels; papers use up to some tens."""


@dataclass
class MetricsConfig:
    """How predictions are scored. Every score is computed under ``pooled`` and ``per_image`` in one pass.

    Args:
        protocol: Which protocol heads tables and is compared. "pooled": summed over all pixels of the set before
            dividing (InvPT, ATRC, MTI-Net, MTMamba, TaskPrompter). "per_image": scored image by image, then averaged
            over the images that have the label (SwinMTL). "per_batch": scored batch by batch, then averaged; depends on
            the batch size and on the number of processes, offered only to show how far it drifts (M2H's published
            code); adds metrics named ``…_per_batch``.
        crop: "eigen" scores depth in rows 45–470 and columns 41–600 of 480×640 labels only; "none" scores all.
        cap: Depth labels from this value on take no part and predictions are clamped to it (10 on NYUDv2, 80 outdoors
            where papers cap); null caps nothing. In the data set's unit.
        trimap: Also score classes within this many pixels of a label border, as ``miou_trimap<n>``; null does not.
        odsf_val: Boundary scores in validation: "fast" (thinned once instead of at each threshold; named
            ``odsf_fast``), "exact", or "none", which leaves the pixel-exact F alone.
        odsf_test: The same in the test. "exact" runs the fast mode beside it, so that their difference is known.
        max_dist: Tolerance of boundary matching as a share of the diagonal; null takes 0.011 on NYUDv2 and 0.0075
            elsewhere.
        workers: Processes that match boundaries, per training process; null takes this machine's cores for large images
            and none for small ones, 0 none.
        details: When to compute scores per class and per range of depth, boundary IoU, calibration, consistency between
            tasks and window seams: in the "test" (and in a validate command), "always", or "never".
    """

    protocol: Protocol = "pooled"
    crop: Literal["none", "eigen"] = "none"
    cap: float | None = None
    trimap: int | None = None
    odsf_val: Literal["fast", "exact", "none"] = "fast"
    odsf_test: Literal["fast", "exact", "none"] = "exact"
    max_dist: float | None = None
    workers: int | None = None
    details: Literal["test", "always", "never"] = "test"

    def __post_init__(self) -> None:
        """Check the values."""
        for key, choices in (
            ("protocol", PROTOCOLS),
            ("crop", ("none", "eigen")),
            ("odsf_val", ("fast", "exact", "none")),
            ("odsf_test", ("fast", "exact", "none")),
            ("details", ("test", "always", "never")),
        ):
            if getattr(self, key) not in choices:
                raise ConfigError(f"metrics.{key} is {getattr(self, key)!r}; choose from {', '.join(choices)}")
        if self.cap is not None and not 0 < self.cap < math.inf:
            raise ConfigError(f"metrics.cap is {self.cap}; give a depth above 0, or null")
        if self.trimap is not None and not 1 <= self.trimap <= MAX_TRIMAP:
            raise ConfigError(f"metrics.trimap is {self.trimap}; give 1 to {MAX_TRIMAP} pixels, or null")
        if self.max_dist is not None and not 0 < self.max_dist < 1:
            raise ConfigError(f"metrics.max_dist is {self.max_dist}; give a share of the diagonal such as 0.0075")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"metrics.workers is {self.workers}; give at least 0, or null")

    @property
    def per_batch(self) -> bool:
        """Whether ``…_per_batch`` scores are computed too."""
        return self.protocol == "per_batch"

    def tolerance(self, dataset: str) -> float:
        """Return the tolerance of boundary matching on a data set, by its name, as a share of the diagonal."""
        if self.max_dist is not None:
            return self.max_dist
        return NYUD_MAX_DIST if dataset.startswith("nyud") else MAX_DIST

    def odsf(self, stage: str) -> str:
        """Return the mode of the boundary scores in "val" or "test"."""
        return self.odsf_test if stage == "test" else self.odsf_val

    def describe(self, dataset: str) -> dict[str, Any]:
        """Return everything that decides what a score means, for ``result.json``: the options, with defaults resolved.

        ``workers`` and ``details`` are left out: no value depends on them.
        """
        chosen = {key: value for key, value in asdict(self).items() if key not in ("workers", "details")}
        return {**chosen, "max_dist": self.tolerance(dataset)}
