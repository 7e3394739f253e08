"""Do stored normals agree with the depth? The search over the 48 conventions of axes, and over what depth may be.

The mean angle decides, never the median: in pictures with one dominant plane the median ties conventions that differ
only in where the other planes go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from m2h_lightning.data.sources.axes import ALL_AXES, parse_axes
from m2h_lightning.data.verify.planes import IDEAS, block_means, blocks_of, fit_planes, smooth_blocks

IDENTITY, _MINUS = ALL_AXES.index("x,y,z"), ALL_AXES.index("-x,-y,-z")
MARGIN, SHARE = 2.0, 1.15
"""A convention is clearly better if its mean angle is smaller by this many degrees and by this factor."""
FIT = 30.0
"""Degrees. Normals that are no better than this under any convention have nothing to do with the depth."""
_BLOCKS_PER_SAMPLE = 1024


def _signed_choices() -> np.ndarray:
    """Columns that pick, from the nine products s_j·d_i, the dot product of each convention: (9, 48)."""
    choices = np.zeros((3, 3, len(ALL_AXES)))
    for index, axes in enumerate(ALL_AXES):
        for camera, (channel, sign) in enumerate(zip(*parse_axes(axes), strict=True)):
            choices[camera, channel, index] = sign
    return choices.reshape(9, len(ALL_AXES))


_CHOICES = _signed_choices()


def _no_sums() -> np.ndarray:
    return np.zeros((2, len(IDEAS), len(ALL_AXES)))


@dataclass
class AxesTally:
    """Sums of angles between loaded normals and those of the depth, degrees."""

    sums: np.ndarray = field(default_factory=_no_sums)
    """[as loaded, turned to the camera] × idea of depth × convention. A reader that turns every normal to the camera
    hides the sign of a wrong convention pixel by pixel; the second row undoes that."""
    count: int = 0
    samples: int = 0
    no_camera: int = 0
    """Samples with depth and normals whose K is not known."""
    away: int = 0
    """Normals that face away from the camera, of ``seen``."""
    seen: int = 0
    lengths: int = 0
    not_unit: int = 0
    """Normals that are not of length one, of ``lengths``."""
    own: dict[str, float] = field(default_factory=dict)
    """Mean angle of each sample under the convention it was loaded with, planar depth."""

    def add(self, other: AxesTally) -> None:
        """Add the tally of other samples."""
        for name in ("sums", "count", "samples", "no_camera", "away", "seen", "lengths", "not_unit"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.own.update(other.own)


def angle_sums(stored: np.ndarray, derived: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Return the summed angle in degrees between normals under each convention and derived ones.

    Args:
        stored: Unit normals (N, 3).
        derived: Unit normals (N, 3) that face the camera.
        rays: Viewing ray of each (N, 3).

    Returns:
        (2, 48): as they are, and after turning each to the camera.
    """
    count = len(stored)
    cosines = (derived[:, :, None] * stored[:, None, :]).reshape(count, 9) @ _CHOICES
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    away = (rays[:, :, None] * stored[:, None, :]).reshape(count, 9) @ _CHOICES > 0
    return np.stack([angles.sum(0), np.where(away, 180 - angles, angles).sum(0)])


def tally_axes(depth: np.ndarray, normals: np.ndarray, K: np.ndarray, id: str, independent: bool) -> AxesTally:
    """Compare the normals of one sample with its depth.

    Args:
        depth: Metres, or any other idea of depth, (H, W), 0 = unknown.
        normals: Unit, camera frame as loaded, (H, W, 3), 0 = unknown.
        K: Intrinsics (3, 3); NaN = not known.
        id: Of the sample.
        independent: The normals were not made from this very depth; else only their facing is looked at.
    """
    tally = AxesTally()
    height, width = depth.shape
    size = int(np.clip(min(height, width) // 48, 3, 16))
    centres = normals[size // 2 :: size, size // 2 :: size][: height // size, : width // size]
    lengths = np.linalg.norm(centres, axis=-1)
    known = lengths > 0.5
    tally.lengths, tally.not_unit = int(known.sum()), int((known & (np.abs(lengths - 1) > 0.02)).sum())
    if not np.isfinite(K).all():
        tally.no_camera = 1
        return tally
    blocks = blocks_of(K, (height, width), size)
    tally.seen = tally.lengths
    tally.away = int((known & (np.einsum("hwc,hwc->hw", centres, blocks.centre_rays) > 0)).sum())
    if not independent:
        return tally
    full = block_means(normals, size)
    length = np.linalg.norm(full, axis=-1)
    # A mean of length one: no unknown pixel and one orientation in the block.
    use = np.flatnonzero(smooth_blocks(depth, size) & (length > 0.97))
    use = use[:: len(use) // _BLOCKS_PER_SAMPLE + 1]
    if not len(use):
        return tally
    stored = (full / np.maximum(length, 1e-9)[..., None]).reshape(-1, 3)[use].astype(np.float64)
    rays = blocks.centre_rays.reshape(-1, 3)[use]
    for index, idea in enumerate(IDEAS):
        tally.sums[:, index] = angle_sums(stored, fit_planes(depth, blocks, idea)[0].reshape(-1, 3)[use], rays)
    tally.count, tally.samples = len(use), 1
    tally.own[id] = float(tally.sums[0, 0, IDENTITY] / len(use))
    return tally


@dataclass(frozen=True)
class AxesVerdict:
    """What the search found; angles are means in degrees."""

    state: str
    """"agree", "axes", "depth", "both", "facing", "ambiguous" or "no fit"."""
    convention: str
    """The best convention of the normals as loaded, of the best idea of depth."""
    mean: float
    runner_up: str
    runner_up_mean: float
    identity_mean: float
    """Under the convention in use and planar depth."""
    idea: str
    """The best idea of depth."""
    turned: bool
    """The reader turns normals to the camera, and the axes were found below that."""
    tied: tuple[str, ...] = ()
    """Other conventions that cannot be told from the best."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the report."""
        return {**self.__dict__, "tied": list(self.tied)}


def _clearly(better: float, worse: float) -> bool:
    return worse - better > MARGIN and worse > SHARE * better


def decide(tally: AxesTally) -> AxesVerdict | None:
    """Decide from the pooled sums; None when there was nothing to compare."""
    if not tally.count:
        return None
    means = tally.sums / tally.count
    identity = float(means[0, 0, IDENTITY])
    # The plain explanation wins unless another is clearly better: as loaded before turned, planar before the rest.
    turned, idea = 0, 0
    for candidate in ((1, 0), *((row, other) for row in (0, 1) for other in range(1, len(IDEAS)))):
        if _clearly(means[candidate].min(), means[turned, idea].min()):
            turned, idea = candidate
    errors = means[turned, idea]
    order = sorted(range(len(errors)), key=lambda index: (errors[index], index))
    best = order[0]
    rivals = order[1:]
    if turned:  # a convention and its opposite are the same after turning: keep the one with fewer minus signs
        pair = [index for index in order if abs(errors[index] - errors[best]) < 1e-6]
        best = min(pair, key=lambda index: (ALL_AXES[index].count("-"), index))
        rivals = [index for index in order if index != best and not _opposite(index, best)]
    tied = tuple(ALL_AXES[index] for index in rivals if not _clearly(errors[best], errors[index]))
    same = not turned and (best == IDENTITY or not _clearly(errors[best], errors[IDENTITY]))
    if same and best != IDENTITY:
        tied = tuple(axes for axes in (ALL_AXES[best], *tied) if axes != ALL_AXES[IDENTITY])
        best = IDENTITY
    if errors[best] > FIT:
        state = "no fit"
    elif turned and best in (IDENTITY, _MINUS) and not idea:
        best, state = IDENTITY, "facing"
    elif same:
        state = "depth" if idea else ("ambiguous" if tied else "agree")
    else:
        state = "both" if idea else "axes"
    runner_up = next(index for index in order if index != best and not (turned and _opposite(index, best)))
    return AxesVerdict(
        state,
        ALL_AXES[best],
        float(errors[best]),
        ALL_AXES[runner_up],
        float(errors[runner_up]),
        identity,
        IDEAS[idea],
        bool(turned),
        tied,
    )


def _opposite(first: int, second: int) -> bool:
    (order, signs), (other, other_signs) = parse_axes(ALL_AXES[first]), parse_axes(ALL_AXES[second])
    return order == other and all(a == -b for a, b in zip(signs, other_signs, strict=True))
