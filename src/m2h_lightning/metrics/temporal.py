"""Temporal stability: do predictions of two consecutive frames agree about the points that both frames show?

True depth and camera poses say where a point of one frame lies in the next; nothing has to be tracked. Frames show one
static scene; depth is planar, in metres.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.geometry import back_project, resize_intrinsics
from m2h_lightning.labels import IGNORE
from m2h_lightning.metrics.protocol import ProtocolMetric, Sizes, require_finite

_SNAP = 1e-8
"""Pixels; a point this near to a pixel's centre lies on it: rounding never asks for a neighbour beyond the border."""

# Sums of a pair, by place.
_SUMS = (
    "pairs",
    "left_out",
    "known",
    "covered",
    "depths",
    "depth_absrel",
    "depth_square",
    "depth_flicker",
    "target_absrel",
    "target_square",
    "labels",
    "flips",
    "target_labels",
    "target_flips",
)


@dataclass(frozen=True)
class Frames:
    """One frame of each of B pairs: what is known of it, and what was predicted.

    Args:
        K: Intrinsics of the maps below, B×3×3; NaN = unknown.
        pose: Camera-to-world, B×4×4, metres, camera frame OpenCV; NaN = unknown. None: unknown for all.
        true_depth: True depth B×1×H×W, metres, 0 = unknown. None: unknown for all.
        depth: Predicted depth B×1×H×W, metres; None if not predicted.
        classes: Predicted classes, B×H×W or logits B×C×H×W; None if not predicted.
        labels: True classes B×H×W, 255 = unlabelled; None if there are none.
        sizes: Height and width of each map before padding; None = no padding.
    """

    K: Tensor
    pose: Tensor | None
    true_depth: Tensor | None
    depth: Tensor | None = None
    classes: Tensor | None = None
    labels: Tensor | None = None
    sizes: Sizes | None = None

    @classmethod
    def of(cls, batch: Mapping[str, Any], predictions: Mapping[str, Tensor]) -> Frames:
        """Take what is needed from a batch of the sample contract and from predictions at the labels' size.

        Args:
            batch: With ``K`` of the images; ``image_size`` and ``label_size`` (B×2), where they are there, say how much
                larger the labels are.
            predictions: "depth" B×1×H×W and "semseg" B×C×H×W or B×H×W; either may be absent.
        """
        K = batch["K"].double()
        sizes = batch.get("label_size")
        if sizes is not None and "image_size" in batch:
            scale = sizes.double() / batch["image_size"].double()
            K = torch.stack([resize_intrinsics(one, *by) for one, by in zip(K, scale.tolist(), strict=True)])
        return cls(
            K,
            batch.get("pose"),
            batch.get("depth"),
            predictions.get("depth"),
            predictions.get("semseg"),
            batch.get("semseg"),
            None if sizes is None else sizes.tolist(),
        )

    def known(self, index: int) -> bool:
        """Whether the camera and the depth of a frame are known."""
        if self.pose is None or self.true_depth is None:
            return False
        return bool(torch.isfinite(self.K[index]).all() and torch.isfinite(self.pose[index]).all())

    def cut(self, index: int, values: Tensor | None) -> Tensor | None:
        """Return one frame of a map B×…×H×W without its padding; None stays None."""
        if values is None:
            return None
        height, width = values.shape[-2:] if self.sizes is None else self.sizes[index]
        return values[index][..., :height, :width]


@dataclass(frozen=True)
class Warp:
    """Where the points of frame a lie in frame b: N points that both frames show.

    Args:
        pixels: Their places in frame a, int64 N, row · W + column.
        nearest: The nearest pixel in frame b, int64 N.
        corners: The four pixels around the point in frame b, int64 4×N.
        weights: Their bilinear weights, float64 4×N.
        depth: Depth of the points in frame b's camera, by frame a's true depth, float64 N, metres.
        slope: float64 N; at depth d along its ray in a, a point has the depth ``d · slope + shift`` in b.
        shift: Motion along b's optical axis, metres.
        known: Number of pixels of frame a whose true depth is known.
    """

    pixels: Tensor
    nearest: Tensor
    corners: Tensor
    weights: Tensor
    depth: Tensor
    slope: Tensor
    shift: float
    known: int

    def sample(self, values: Tensor) -> Tensor:
        """Return values of frame b (H·W) at the points, bilinear; N."""
        return torch.where(self.weights > 0, self.weights * values[self.corners], 0.0).sum(0)


def warp(
    depth_a: Tensor, depth_b: Tensor, K_a: Tensor, K_b: Tensor, pose_a: Tensor, pose_b: Tensor, tolerance: float
) -> Warp:
    """Find the points of frame a that frame b shows too.

    A point is kept if it lies within frame b and if the true depth of b there is its own: else something is in front of
    it. Depth between pixels is interpolated as 1/depth, which is linear in the image on a plane.

    Args:
        depth_a: True depth of a, H×W, metres, 0 = unknown.
        depth_b: True depth of b.
        K_a: Intrinsics of a, 3×3.
        K_b: Intrinsics of b.
        pose_a: Camera-to-world of a, 4×4.
        pose_b: Camera-to-world of b.
        tolerance: Largest difference between the point's depth and the true depth of b, as a share of the former.
    """
    depth_a, depth_b = depth_a.double(), depth_b.double()
    height, width = depth_b.shape
    motion = torch.linalg.inv(pose_b.double()) @ pose_a.double()
    start = torch.nonzero(depth_a.flatten() > 0).squeeze(1)
    rays = back_project(torch.ones_like(depth_a), K_a.double()).flatten(1)[:, start]
    true_a = depth_a.flatten()[start]
    points = motion[:3, :3] @ (rays * true_a) + motion[:3, 3:]
    image = K_b.double() @ points
    # The third component is the depth, up to a factor above 0 for tilted image planes.
    front = (points[2] > 0) & (image[2] > 0)
    column, row = (image[:2] / torch.where(front, image[2], 1.0)).unbind()
    column, row = (torch.where((x - x.round()).abs() < _SNAP, x.round(), x) for x in (column, row))
    inside = front & (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
    start, column, row, z = start[inside], column[inside], row[inside], points[2][inside]
    left, top = column.floor(), row.floor()
    x, y = column - left, row - top
    weights = torch.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x])
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    corners = torch.stack([top * width + left, top * width + right, bottom * width + left, bottom * width + right])
    corners = corners.long()
    true_b = depth_b.flatten()
    unknown = ((true_b[corners] <= 0) & (weights > 0)).any(0)
    there = 1.0 / torch.where(weights > 0, weights / true_b[corners], 0.0).sum(0)
    seen = ~unknown & ((there - z).abs() <= tolerance * z)
    nearest = (row.round() * width + column.round()).long()
    slope = (motion[2, :3] @ rays)[inside]
    return Warp(
        start[seen],
        nearest[seen],
        corners[:, seen],
        weights[:, seen],
        z[seen],
        slope[seen],
        float(motion[2, 3]),
        int((depth_a > 0).sum()),
    )


class TemporalStability(ProtocolMetric):
    """Agreement of the predictions of two consecutive frames a and b about the points that both show.

    A pixel x of a is moved to y in b by its *true* depth d*_a and the poses. It is scored if y lies within b and the
    true depth of b at y is the moved point's own z* up to ``tolerance`` (occlusion), and b's depth is known there.

    * ``temporal/depth_absrel``: the predicted point of a, at depth d_a(x) on the ray of x, moved into b's camera has a
      depth z; mean of |z − d_b(y)| / z*. ``temporal/depth_rmse_m``: root mean square of z − d_b(y), metres. This is the
      error with which predictions of two frames meet in one map. It is not free of the error of single frames: with
      d = s·d* throughout, z − d_b = (1 − s)·t_z for a motion t_z along the optical axis.
    * ``temporal/depth_flicker``: mean of |e_b(y) − e_a(x)| for the relative error e = d/d* − 1: the change of the error
      alone. A constant factor costs nothing, and a prediction that equals the labels has exactly 0.
    * ``temporal/label_flip_rate``: share of points whose predicted class differs between x and the pixel nearest to y;
      where there are labels, of the points whose labels are known and equal in both frames.
    * ``temporal/target_…``: the same numbers of the labels themselves: what their noise, the poses' and the grid of
      pixels cost.
    * ``temporal/covered_share``: scored pixels of a, of those with known depth. ``temporal/pairs`` counts pairs,
      ``temporal/pairs_left_out`` those without pose, K or depth, which count nowhere else.

    Sampling in b: 1/d* and d/d* are interpolated bilinearly between the four pixels around y (on a plane 1/depth is
    linear in the image, and neither mixes depths across a border in d); classes are taken from the nearest pixel.

    Pooled scores weigh every point of the set equally, per-image scores every pair. The warping error is that of Lai et
    al. (Learning Blind Video Temporal Consistency, ECCV 2018), with true motion instead of estimated flow: numbers made
    with flow are others.

    As input to ``forward`` and ``update``: :class:`Frames` of a and of b.

    As output of ``compute``: a dict of float64 scalars; NaN where no point was scored. Lower is better except for the
    share and the counts.

    Args:
        tolerance: Of the occlusion test, as a share of the depth.
        per_batch: See :class:`ProtocolMetric`.

    Raises:
        ConfigError: The tolerance is not between 0 and 1.
        DataError: A predicted depth is NaN or infinite at a scored pixel, or a logit at any.

    Example:
        >>> import torch
        >>> K = torch.tensor([[[8.0, 0, 3.5], [0, 8, 2.5], [0, 0, 1]]])
        >>> pose = torch.eye(4)[None]
        >>> true = torch.full((1, 1, 6, 8), 2.0)
        >>> stability = TemporalStability()
        >>> stability.update(Frames(K, pose, true, depth=1.1 * true), Frames(K, pose, true, depth=1.2 * true))
        >>> round(stability.compute()["temporal/depth_flicker"].item(), 4)
        0.1
    """

    higher_is_better = False

    def __init__(self, tolerance: float = 0.03, per_batch: bool = False, **kwargs: Any) -> None:
        if not 0 < tolerance < 1:
            raise ConfigError(f"tolerance is {tolerance}; give a share of the depth such as 0.03")
        super().__init__((len(_SUMS),), per_batch=per_batch, **kwargs)
        self.tolerance = tolerance

    def update(self, first: Frames, second: Frames) -> None:
        """Add B pairs."""
        pairs = [self._pair(first, second, index) for index in range(len(first.K))]
        sums = [[float(pair.get(key, 0.0)) for key in _SUMS] for pair in pairs]
        self.add(torch.tensor(sums, dtype=torch.float64, device=self.sums.device))

    def _pair(self, first: Frames, second: Frames, index: int) -> dict[str, Any]:
        if not (first.known(index) and second.known(index)):
            return {"left_out": 1.0}
        assert first.pose is not None
        assert second.pose is not None
        true_a, true_b = first.cut(index, first.true_depth), second.cut(index, second.true_depth)
        assert true_a is not None
        assert true_b is not None
        true_a, true_b = true_a[0].double(), true_b[0].double()
        poses = first.pose[index], second.pose[index]
        at = warp(true_a, true_b, first.K[index], second.K[index], *poses, self.tolerance)
        out: dict[str, Any] = {"pairs": 1.0, "known": at.known, "covered": len(at.pixels)}
        true_at = 1.0 / at.sample(torch.where(true_b > 0, true_b, torch.inf).reciprocal().flatten())
        target = at.depth - true_at
        out |= {"target_absrel": (target / at.depth).abs().sum(), "target_square": target.square().sum()}
        depth_a, depth_b = first.cut(index, first.depth), second.cut(index, second.depth)
        if depth_a is not None and depth_b is not None:
            depth_a = depth_a[0].double().flatten()[at.pixels]
            ratio = at.sample((depth_b[0].double() / torch.where(true_b > 0, true_b, 1.0)).flatten())
            error = depth_a * at.slope + at.shift - ratio * true_at
            change = ratio - depth_a / true_a.flatten()[at.pixels]
            require_finite(error + change, torch.ones_like(error, dtype=torch.bool), "depth")
            out |= {
                "depths": len(error),
                "depth_absrel": (error.abs() / at.depth).sum(),
                "depth_square": error.square().sum(),
                "depth_flicker": change.abs().sum(),
            }
        return out | self._labels(first, second, index, at)

    def _labels(self, first: Frames, second: Frames, index: int, at: Warp) -> dict[str, Any]:
        out: dict[str, Any] = {}
        agree = torch.ones_like(at.pixels, dtype=torch.bool)
        label_a, label_b = first.cut(index, first.labels), second.cut(index, second.labels)
        if label_a is not None and label_b is not None:
            label_a, label_b = label_a.flatten()[at.pixels], label_b.flatten()[at.nearest]
            labelled = (label_a != IGNORE) & (label_b != IGNORE)
            agree = labelled & (label_a == label_b)
            out |= {"target_labels": labelled.sum(), "target_flips": (labelled & ~agree).sum()}
        class_a, class_b = first.cut(index, first.classes), second.cut(index, second.classes)
        if class_a is not None and class_b is not None:
            flipped = _classes(class_a)[at.pixels] != _classes(class_b)[at.nearest]
            out |= {"labels": agree.sum(), "flips": (flipped & agree).sum()}
        return out

    def scores(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the scores; see :class:`ProtocolMetric`."""
        of = dict(zip(_SUMS, sums.unbind(-1), strict=True))
        return {
            "temporal/depth_absrel": of["depth_absrel"] / of["depths"],
            "temporal/depth_rmse_m": (of["depth_square"] / of["depths"]).sqrt(),
            "temporal/depth_flicker": of["depth_flicker"] / of["depths"],
            "temporal/label_flip_rate": of["flips"] / of["labels"],
            "temporal/target_depth_absrel": of["target_absrel"] / of["covered"],
            "temporal/target_depth_rmse_m": (of["target_square"] / of["covered"]).sqrt(),
            "temporal/target_label_flip_rate": of["target_flips"] / of["target_labels"],
            "temporal/covered_share": of["covered"] / of["known"],
        }

    def details(self, sums: Tensor) -> dict[str, Tensor]:
        """Return how many pairs were scored, and how many could not be."""
        return {"temporal/pairs": sums[0], "temporal/pairs_left_out": sums[1]}


def _classes(prediction: Tensor) -> Tensor:
    """Return the classes of one frame, H·W, of classes H×W or logits C×H×W."""
    if prediction.ndim == 2:
        return prediction.flatten()
    require_finite(prediction, torch.ones_like(prediction, dtype=torch.bool), "semseg")
    return prediction.argmax(0).flatten()


def temporal_scores(
    frame: Callable[[int], tuple[Mapping[str, Any], Mapping[str, Tensor]]],
    pairs: Sequence[tuple[int, int]],
    tolerance: float = 0.03,
) -> dict[str, Tensor]:
    """Score pairs of frames that are read as they are needed; only the last one is kept.

    Args:
        frame: Returns the batch (of one sample, contract types) and the predictions at the labels' size of a position.
        pairs: Positions, as ``data.sources.sequence.consecutive`` lists them.
        tolerance: Of the occlusion test.

    Returns:
        The scores of :class:`TemporalStability`, without those of a task that was never predicted.

    Raises:
        DataError: A prediction is NaN or infinite at a scored pixel; the message names both samples.
    """
    metric = TemporalStability(tolerance)
    kept: tuple[int, Frames, str] | None = None
    predicted: set[str] = set()

    def read(position: int) -> tuple[int, Frames, str]:
        if kept is not None and kept[0] == position:
            return kept
        batch, predictions = frame(position)
        predicted.update(predictions)
        return position, Frames.of(batch, predictions), ", ".join(batch["id"])

    for a, b in pairs:
        first, kept = read(a), None
        second = read(b)
        try:
            metric.update(first[1], second[1])
        except DataError as error:
            raise DataError(f"{error}; samples {first[2]}, {second[2]}") from error
        kept = second
    absent = [
        *(["temporal/depth_"] if "depth" not in predicted else []),
        *(["temporal/label_"] if "semseg" not in predicted else []),
    ]
    return {key: value for key, value in metric.compute().items() if not key.startswith(tuple(absent))}
