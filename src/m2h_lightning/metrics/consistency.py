"""Consistency between tasks: do two predictions of one image describe the same scene?

Each score stands beside the same score of the labels (``…_target_…``), which no method can be asked to beat: labels are
measured, not made for each other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m2h_lightning.errors import DataError
from m2h_lightning.geometry import resize_intrinsics
from m2h_lightning.labels import IGNORE
from m2h_lightning.metrics.class_maps import class_map
from m2h_lightning.metrics.normals import Vectors, angle_of_planes, known_normals, planar
from m2h_lightning.metrics.protocol import (
    ProtocolMetric,
    Sizes,
    any_true,
    require_finite,
    require_same_shape,
    zero_outside,
)


def finite_where(values: Tensor, valid: Tensor, name: str) -> Tensor:
    """Return values that are finite everywhere: those outside ``valid`` that are not become 0.

    Args:
        values: Prediction.
        valid: Boolean mask of the scored pixels, broadcastable to ``values``.
        name: What is predicted, for the message.

    Raises:
        DataError: A scored value is NaN or infinite.
    """
    if torch.isfinite(values.sum()):  # one pass; a sum is finite only if every part of it is
        return values
    require_finite(values, valid, name)
    return zero_outside(values, valid)


def normals_of_depth(depth: Tensor, intrinsics: Tensor, stride: int = 1) -> Vectors:
    """Return the normals of :func:`.geometry.normals_from_depth`, of any length, for all pixels but the outermost.

    With g = (z₊ − z₋)/(z₊ + z₋) of the left and right, and of the upper and lower neighbours, the cross product of the
    two central differences of z·K⁻¹[u, v, 1] is a multiple of Kᵀ(g_u, g_v, −1 − u·g_u − v·g_v): a third of the work of
    points and their differences, and one formula for pinhole cameras and tilted image planes.

    Args:
        depth: Planar depth H×W, above 0.
        intrinsics: K, 3×3, of the pixels of ``depth``.
        stride: Take every stride-th row only, from the second on.

    Returns:
        Normals ⌈(H−2)/stride⌉×(W−2) that face the camera.
    """
    height, width = depth.shape
    k = intrinsics.double()
    u = torch.arange(width, dtype=torch.float64, device=depth.device)
    v = torch.arange(height, dtype=torch.float64, device=depth.device)[:, None]
    if not torch.equal(k[2], k.new_tensor([0.0, 0.0, 1.0])):
        # A tilted image plane: the third coordinate of K⁻¹[u, v, 1] is not 1, and depth counts in multiples of it.
        across, down, constant = torch.linalg.inv(k)[2]
        depth = depth / (across * u + down * v + constant).to(depth.dtype)
    k = k * torch.linalg.det(k).sign()
    left, right, above, below = _neighbours(depth, stride)
    gu, gv = (right - left).div_(right + left), (below - above).div_(below + above)
    columns, rows = (
        [(k[axis, c] - k[2, c] * at).to(depth.dtype) for c in range(3)]
        for axis, at in ((0, u[1:-1]), (1, v[1:-1:stride]))
    )
    x, y, z = ((gu * columns[c]).addcmul_(gv, rows[c]).sub_(k[2, c].to(depth.dtype)) for c in range(3))
    return x, y, z


def _neighbours(values: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the left, right, upper and lower neighbours of all pixels but the outermost, of every stride-th row."""
    return values[1:-1:stride, :-2], values[1:-1:stride, 2:], values[:-2:stride, 1:-1], values[2::stride, 1:-1]


def smooth_pixels(depth: Tensor, max_step: float, stride: int = 1) -> Tensor:
    """Return where depth is known and all four neighbours are within a share ``max_step`` of it.

    Shapes: H×W → ⌈(H−2)/stride⌉×(W−2), boolean.
    """
    left, right, above, below = _neighbours(depth, stride)
    centre = depth[1:-1:stride, 1:-1]
    farthest = torch.maximum(torch.maximum(left, right), torch.maximum(above, below))
    nearest = torch.minimum(torch.minimum(left, right), torch.minimum(above, below))
    return (centre > 0) & (farthest <= (1 + max_step) * centre) & (nearest >= (1 - max_step) * centre)


class DepthNormalConsistency(ProtocolMetric):
    """Mean angle between the normals of the predicted depth and the predicted normals, in degrees.

    Normals of depth are those of :func:`.geometry.normals_from_depth` (cross product of central differences of the
    back-projected depth), with the camera matrix brought to the labels' size. Pixels are chosen by the *labels* alone:
    where the true depth is known and differs by less than ``max_step`` from that of the four neighbours (no occlusion
    edge), and the true normal is known. So no method chooses its own pixels: depth that is smooth where it should not
    be, or rough where the surface is smooth, counts in full.

    ``depth_normals_target_deg`` is the same between the labels, on the same pixels: what sensor noise, the method by
    which the normal labels were made and rounding leave over.

    An image whose camera is not known (K of NaN), or that lacks one of both labels, is left out. Depth has to be in
    metres; disparity has no normals without the camera's baseline.

    As input to ``update``: ``predictions`` with "depth" B×1×H×W and "normals" B×3×H×W of any length, ``batch`` with the
    labels of the same names, "K" B×3×3 of the *image*, "image_size" and "label_size" B×2.

    As output of ``compute``: a dict of float64 scalars in [0, 180], ``consistency/depth_normals_deg`` and
    ``consistency/depth_normals_target_deg``, each pooled and ``…_per_image``; NaN when no pixel was scored. A normal
    without length counts 90°.

    Args:
        max_step: Largest relative step of the true depth to a neighbour on a smooth surface.
        stride: Score every stride-th row, the same ones for every method: neighbouring rows tell almost the same, and
            half of them cost half. 1 scores all.
        per_batch: Whether to compute per-batch scores too.

    Raises:
        DataError: A scored prediction is NaN, infinite or a depth not above 0, or does not fit its label.

    Example:
        >>> import torch
        >>> facing = torch.tensor([0.0, 0.0, -1.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
        >>> batch = {"depth": torch.full((1, 1, 4, 4), 2.0), "normals": facing, "K": torch.eye(3)[None]}
        >>> batch |= {"image_size": torch.tensor([[4, 4]]), "label_size": torch.tensor([[4, 4]])}
        >>> metric = DepthNormalConsistency()
        >>> metric.update({"depth": torch.full((1, 1, 4, 4), 3.0), "normals": -facing}, batch)
        >>> metric.compute()["consistency/depth_normals_deg"].item()
        180.0
    """

    higher_is_better = False

    def __init__(self, max_step: float = 0.05, stride: int = 2, per_batch: bool = False, **kwargs: Any) -> None:
        self.max_step, self.stride = max_step, stride
        super().__init__((3,), per_batch=per_batch, **kwargs)

    def update(
        self, predictions: dict[str, Tensor], batch: dict[str, Any], sizes: Sizes | None = None, grid: Any = None
    ) -> None:
        """Add a batch; one without both labels is left out. ``sizes`` and ``grid`` are not needed."""
        if any(name not in predictions or name not in batch for name in ("depth", "normals")):
            return
        for name in ("depth", "normals"):
            require_same_shape(predictions[name], batch[name], name)
        scale = batch["label_size"].double() / batch["image_size"].double()
        intrinsics = resize_intrinsics(batch["K"].double(), scale[:, :1], scale[:, 1:])
        known = torch.isfinite(intrinsics).all(-1).all(-1).tolist()
        statistics = self.sums.new_zeros(len(known), 3)
        maps = (
            *(field for source in (predictions, batch) for field in (source["depth"][:, 0], planar(source["normals"]))),
            known_normals(batch["normals"]),
            intrinsics,
        )
        for index in range(len(known)):
            if known[index]:
                statistics[index] = self._image(*(field[index] for field in maps))
        self.add(statistics)

    def _image(
        self,
        depth: Tensor,
        normals: Tensor,
        true_depth: Tensor,
        true_normals: Tensor,
        facing: Tensor,
        intrinsics: Tensor,
    ) -> Tensor:
        """Return the summed angles of prediction and labels, and the number of pixels.

        Depth H×W, normals 3×H×W, and H×W where the true normal is known.
        """
        depth, true_depth = depth.float(), true_depth.float()
        if min(depth.shape) < 3:
            return self.sums.new_zeros(3)
        rows, columns = slice(1, -1, self.stride), slice(1, -1)
        inner, true_inner = (field[:, rows, columns].float() for field in (normals, true_normals))
        valid = smooth_pixels(true_depth, self.max_step, self.stride) & facing[rows, columns]
        # Neighbours of a scored pixel have a known true depth too: this asks for all that is used, and a bit more.
        depth = finite_where(depth, true_depth > 0, "depth")
        if depth.min() <= 0:
            low = (depth <= 0) & (true_depth > 0)
            if any_true(low):
                raise DataError(f"the prediction of depth is not above 0 at {int(low.sum())} scored pixels")
        inner = finite_where(inner, valid, "normals")
        share = valid.view(torch.uint8).float()
        sums = []
        for z, n in ((depth, inner), (true_depth, true_inner)):
            # What is not finite here lies where a depth is not known: scored predictions are finite, as asked above.
            angle = angle_of_planes(normals_of_depth(z, intrinsics, self.stride), n.unbind())  # type: ignore[arg-type]
            sums.append(angle.nan_to_num_(0.0).mul_(share).sum(dtype=torch.float64))
        return torch.stack([*sums, share.sum(dtype=torch.float64)])

    def scores(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the mean angles of sums …×3."""
        prediction, target, count = sums.unbind(-1)
        return {
            "consistency/depth_normals_deg": prediction / count,
            "consistency/depth_normals_target_deg": target / count,
        }


def label_boundaries(labels: Tensor, known: Tensor) -> Tensor:
    """Return the pixels whose right or lower neighbour has another label, where both are known; H×W, boolean."""
    found = torch.zeros_like(known)
    found[:, :-1] |= (labels[:, 1:] != labels[:, :-1]) & known[:, 1:] & known[:, :-1]
    found[:-1] |= (labels[1:] != labels[:-1]) & known[1:] & known[:-1]
    return found


def spread(levels: Tensor, reach: int) -> Tensor:
    """Return the largest value within a square that reaches ``reach`` pixels to each side; uint8 H×W, outside is 0."""
    wide = F.pad(levels, (reach, reach, reach, reach))
    for dim in (0, 1):
        # The maxima over n pixels, and over n pixels k ≤ n further on, give those over n + k: few steps for any reach.
        have, want = 1, 2 * reach + 1
        while have < want:
            step = min(have, want - have)
            length = wide.shape[dim] - step
            wide = torch.maximum(wide.narrow(dim, 0, length), wide.narrow(dim, step, length))
            have += step
    return wide


class EdgeSegmentationAgreement(ProtocolMetric):
    """F-score between predicted edges and the boundaries of the predicted classes, at the best threshold.

    Edges are the pixels whose edge probability reaches a threshold; class boundaries are the pixels whose right or
    lower neighbour has another predicted class. "Near" is a square that reaches d = max(1, round(``ratio`` · diagonal))
    pixels to each side. Precision is the share of edge pixels near a class boundary, recall the share of boundary
    pixels near an edge pixel. F = 2PR/(P+R) is the best over thresholds 1/``bins`` … (``bins`` − 1)/``bins``: one for
    all images when pooled, each image's own in ``…_per_image``. Thick edges are not thinned and pixels are not matched
    one to one: this is cheap, additive, and not odsF.

    ``edges_semseg_target_f`` is the same between the labels. Read the score beside it: edge labels are not pure class
    boundaries. Those of NYUDv2 run between instances and parts too, Cityscapes' between instances.

    Only pixels with both labels take part: where either is 255 a pixel is no edge and no boundary and vouches for none;
    a boundary needs both of its pixels. On NYUDv2 unlabelled gaps between objects hide some boundaries this way,
    equally for every method. Images without one of both labels are left out.

    As input to ``update``: ``predictions`` with "edges" B×1×H×W in [0, 1] and "semseg" logits B×C×H×W or classes B×H×W,
    ``batch`` with the labels of the same names.

    As output of ``compute``: a dict of float64 scalars in [0, 1], ``consistency/edges_semseg_f`` and
    ``consistency/edges_semseg_target_f``, each pooled and ``…_per_image``; 0 where edges meet no boundary, NaN where
    there is neither edge nor boundary.

    Args:
        ratio: Tolerance as a share of the image's diagonal; 0.0075 is BSDS's.
        bins: Number of probability bins, 2 to 100.
        per_batch: Whether to compute per-batch scores too.

    Raises:
        DataError: A scored prediction is NaN or infinite, or does not fit its label.

    Example:
        >>> import torch
        >>> classes = torch.tensor([[[0, 0, 1, 1]]])
        >>> batch = {"semseg": classes, "edges": torch.tensor([[[[0.0, 1.0, 0.0, 0.0]]]])}
        >>> metric = EdgeSegmentationAgreement()
        >>> metric.update({"semseg": classes, "edges": torch.tensor([[[[0.1, 0.8, 0.1, 0.1]]]])}, batch)
        >>> metric.compute()["consistency/edges_semseg_f"].item()
        1.0
    """

    higher_is_better = True

    def __init__(self, ratio: float = 0.0075, bins: int = 100, per_batch: bool = False, **kwargs: Any) -> None:
        self.ratio, self.bins = ratio, bins  # two histograms share the 256 values of a byte, hence at most 100 bins
        super().__init__((3 * bins + 4,), torch.int64, per_batch, **kwargs)

    def update(
        self, predictions: dict[str, Tensor], batch: dict[str, Any], sizes: Sizes | None = None, grid: Any = None
    ) -> None:
        """Add a batch; one without both labels is left out. ``grid`` is not needed."""
        if any(name not in predictions or name not in batch for name in ("edges", "semseg")):
            return
        labels = predictions["semseg"]
        classes = class_map(labels)[0] if labels.ndim == 4 else labels
        for name, prediction in (("edges", predictions["edges"]), ("semseg", classes)):
            require_same_shape(prediction, batch[name], name)
        if sizes is None:
            sizes = [classes.shape[-2:]] * len(classes)
        statistics = []
        for index, (height, width) in enumerate(sizes):
            maps = (predictions["edges"][index, 0], batch["edges"][index, 0], classes[index], batch["semseg"][index])
            statistics.append(self._image(*(field[:height, :width] for field in maps)))
        self.add(torch.stack(statistics))

    def _image(self, edges: Tensor, true_edges: Tensor, classes: Tensor, true_classes: Tensor) -> Tensor:
        """Return histograms of edge probability (off and near boundaries, around boundaries) and the labels' counts."""
        true_classes = true_classes.to(torch.uint8)
        known = (true_classes != IGNORE) & (true_edges <= 1)
        share = known.to(torch.uint8)
        reach = max(1, round(self.ratio * (edges.shape[0] ** 2 + edges.shape[1] ** 2) ** 0.5))
        edges = finite_where(edges, known, "edges")
        level = (edges * self.bins).clamp_(0, self.bins - 1).to(torch.uint8) * share
        boundary = label_boundaries(classes, known).to(torch.uint8)
        off = 2 * self.bins
        at = torch.bincount((level + spread(boundary, reach) * share * self.bins + (1 - share) * off).flatten())
        around = torch.bincount((spread(level, reach) * boundary + (1 - boundary) * off).flatten())
        edge = (true_edges > 0.5).to(torch.uint8) * share
        true_boundary = label_boundaries(true_classes, known).to(torch.uint8)
        target = [
            (edge * spread(true_boundary, reach)).sum(),
            edge.sum(),
            (true_boundary * spread(edge, reach)).sum(),
            true_boundary.sum(),
        ]
        at, around = (F.pad(counts, (0, off))[:length] for counts, length in ((at, off), (around, self.bins)))
        return torch.cat([at, around, torch.stack(target)])

    def scores(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the F-scores of counts …×(3·bins + 4)."""
        off, near, around, target = sums.split([self.bins, self.bins, self.bins, 4], -1)
        boundary = around.sum(-1, keepdim=True)
        # Counts at or above each threshold but 0, at which every pixel were an edge.
        off, near, around = (counts.flip(-1).cumsum(-1).flip(-1)[..., 1:] for counts in (off, near, around))
        best = _f_score(near, off + near, around, boundary).nan_to_num(-1).amax(-1)
        hit, edge, found, true_boundary = target.unbind(-1)
        return {
            "consistency/edges_semseg_f": torch.where(best >= 0, best, torch.nan),
            "consistency/edges_semseg_target_f": _f_score(hit, edge, found, true_boundary),
        }


def _f_score(hit: Tensor, edge: Tensor, found: Tensor, boundary: Tensor) -> Tensor:
    """Return F of precision hit/edge and recall found/boundary; 0 if only one of both exists, NaN if neither does."""
    precision, recall = hit.double() / edge.clamp(min=1), found.double() / boundary.clamp(min=1)
    f = 2 * precision * recall / (precision + recall).clamp(min=1e-30)
    return torch.where((edge > 0) | (boundary > 0), f, torch.nan)
