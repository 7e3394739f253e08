"""The losses between predictions as functions of maps; ``consistency.py`` joins them with tasks and batches."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from m2h_lightning.data.sample import IMAGENET_STD
from m2h_lightning.geometry import normals_from_depth
from m2h_lightning.labels import IGNORE
from m2h_lightning.objectives.config import DepthNormalsConfig, EdgesSemsegConfig
from m2h_lightning.tasks import masked_mean
from m2h_lightning.tasks.base import Agree

FLOOR = 0.01
"""Soft boundaries keep this distance from 0 and 1 inside logarithms, whose slope is then at most 1/FLOOR."""


def depth_normals_loss(
    depth: Tensor,
    normals: Tensor,
    truth: Tensor,
    intrinsics: Tensor,
    inside: Tensor,
    config: DepthNormalsConfig,
    agree: Agree | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the mean of 1 − cos between predicted normals and those of the predicted depth, and whether any counted.

    Normals of depth are the cross product of central differences of the back-projected depth (GeoNet, Qi et al., CVPR
    2018), with the camera of the image as every transform left it. A pixel counts if none of its four neighbours lies
    across an occlusion edge. Between two pixels of known depth the labels say so, that a network cannot choose its own
    pixels; elsewhere the prediction does. Images whose camera is not known are left out.

    Args:
        depth: Predicted depth B×1×H×W, metres, above 0.
        normals: Predicted unit normals B×3×H×W.
        truth: True depth B×1×H×W, metres, 0 = unknown.
        intrinsics: K of the images, B×3×3; NaN = unknown.
        inside: Boolean B×H×W, see :func:`.consistency.image_pixels`.
        config: Settings.
        agree: See :func:`.tasks.base.masked_mean`.

    Returns:
        Scalar in [0, 2], exactly 0 where no pixel counts, and a Boolean scalar.
    """
    depth, truth = depth[:, 0], truth[:, 0]
    seen = torch.isfinite(intrinsics).flatten(1).all(1)
    # A NaN would reach the gradient through the mask too: such an image gets some camera, and no pixel.
    any_camera = torch.eye(3, dtype=intrinsics.dtype, device=intrinsics.device)
    camera = torch.where(seen[:, None, None], intrinsics, any_camera)
    valid = inside & seen[:, None, None] & _smooth_around(depth.detach(), truth, inside, config.max_step)
    depth = depth.detach() if config.detach == "depth" else depth
    normals = normals.detach() if config.detach == "normals" else normals
    of_depth, _ = normals_from_depth(depth, camera.to(depth.dtype), max_step=torch.inf)
    return masked_mean(1 - (of_depth * normals).sum(1), valid, agree), valid.any()


def _smooth_around(depth: Tensor, truth: Tensor, inside: Tensor, max_step: float) -> Tensor:
    """Return the pixels whose four neighbours lie in the image, none across an occlusion edge; all B×H×W."""
    height, width = depth.shape[-2:]

    def cut(top: int, left: int) -> tuple[slice, slice, slice]:
        return slice(None), slice(top, top + height - 2), slice(left, left + width - 2)

    here = cut(1, 1)
    smooth = torch.ones_like(inside[here])
    for there in (cut(1, 2), cut(1, 0), cut(2, 1), cut(0, 1)):
        known = (truth[here] > 0) & (truth[there] > 0)
        centre = torch.where(known, truth[here], depth[here])
        neighbour = torch.where(known, truth[there], depth[there])
        smooth &= inside[there] & ((neighbour - centre).abs() <= max_step * centre)
    return F.pad(smooth, (1, 1, 1, 1))


def edges_semseg_loss(
    edge_logits: Tensor,
    semseg_logits: Tensor,
    labels: Tensor,
    inside: Tensor,
    positive_weight: float,
    config: EdgesSemsegConfig,
    agree: Agree | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the mean divergence of edge probability and soft class boundary, and whether any pixel counted.

    With posteriors p, the boundary at x is b = max over the right and the lower neighbour x′, the rule by which edge
    labels are drawn, of 1 − Σ p(x)p(x′) (the chance that classes drawn at both differ) or
    of ½ Σ |p(x) − p(x′)| (the total variation; GSCNN, Takikawa et al., ICCV 2019, uses the gradient of p likewise). The
    maximum, as both neighbours tell of the same unsure pixel: 1 − Π(1 − b) would count its doubt twice.

    The edge probability is e = σ(z − log(w/(1 − w))): training with weight w on edges and 1 − w on others adds that
    much to the logit of a calibrated probability.

    Each side is the target of the other, by binary cross-entropy less the entropy of the target, which is 0 where both
    agree: ½ [KL(b‖e) + KL(e‖b)] with no gradient into targets. Where one side is detached, the other's term counts in
    full. In the second term, e and b are drawn ``FLOOR`` away from 0 and 1.

    A pixel counts if two labelled classes lie within ``config.band`` of it; edges of other kinds (between objects of a
    class, between parts) are left alone so, and unlabelled gaps between objects are bridged. In an image without class
    labels the predicted classes take their place.

    Args:
        edge_logits: B×1×H×W.
        semseg_logits: B×C×H×W.
        labels: Classes B×H×W, 255 = unknown.
        inside: Boolean B×H×W, see :func:`.consistency.image_pixels`.
        positive_weight: w of the edge loss, between 0 and 1.
        config: Settings.
        agree: See :func:`.tasks.base.masked_mean`.

    Returns:
        Scalar ≥ 0, exactly 0 where no pixel counts, and a Boolean scalar.
    """
    if config.detach == "edges":
        edge_logits = edge_logits.detach()
    if config.detach == "semseg":
        semseg_logits = semseg_logits.detach()
    valid = (inside[:, 1:, :-1] & inside[:, :-1, 1:] & inside[:, :-1, :-1]).contiguous()
    if config.band > 0:
        valid &= _near_borders(labels, semseg_logits.detach(), config.band)[:, :-1, :-1]
    boundary = _soft_boundary(semseg_logits, config.boundary)
    kind = torch.promote_types(edge_logits.dtype, torch.float32)
    logits = edge_logits[:, 0, :-1, :-1].to(kind) - math.log(positive_weight / (1 - positive_weight))
    terms = []
    if config.detach != "edges":
        terms.append(_divergence(boundary.detach(), F.logsigmoid(logits), F.logsigmoid(-logits)))
    if config.detach != "semseg":
        edge, drawn = (FLOOR + (1 - 2 * FLOOR) * share for share in (torch.sigmoid(logits.detach()), boundary))
        terms.append(_divergence(edge, drawn.log(), torch.log1p(-drawn)))
    return masked_mean(sum(terms[1:], terms[0]) / len(terms), valid, agree), valid.any()


def _soft_boundary(logits: Tensor, kind: str) -> Tensor:
    """Return soft boundaries in [0, 1] of logits B×C×H×W, for all pixels but the last row and column."""
    # ½ Σ |p − p′| = 1 − Σ min(p, p′): neither kind keeps more than the posteriors for the backward pass.
    overlap = torch.mul if kind == "disagreement" else torch.minimum
    alike = []
    for image in logits.unbind():  # one by one, as products and their gradients are as large as the posteriors
        # Classes last, as the network's maps lie in memory.
        posteriors = image.permute(1, 2, 0).softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        here, right, below = posteriors[:-1, :-1], posteriors[:-1, 1:], posteriors[1:, :-1]
        alike.append(torch.minimum(overlap(here, right).sum(-1), overlap(here, below).sum(-1)))
    return (1 - torch.stack(alike)).clamp(0, 1)  # rounding may put a sum of posteriors just above 1


def _near_borders(labels: Tensor, logits: Tensor, reach: int) -> Tensor:
    """Return the pixels with two classes in the square that reaches ``reach`` pixels to each side, B×H×W."""
    known = labels != IGNORE
    labelled = known.flatten(1).any(1)
    if not labelled.all():
        labels = torch.where(labelled[:, None, None], labels, logits.argmax(1))
        known = known | ~labelled[:, None, None]

    def highest(values: Tensor) -> Tensor:
        for size, padding in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):
            values = F.max_pool2d(values, size, 1, padding)
        return values

    classes = labels.to(torch.float32)[:, None]
    known = known[:, None]
    # Unknown pixels are lower than any class, and then higher than any: they win neither.
    return (highest(classes.where(known, -1)) > -highest((-classes).where(known, -IGNORE)))[:, 0]


def _divergence(target: Tensor, log_yes: Tensor, log_no: Tensor) -> Tensor:
    """Return per pixel the cross-entropy of a Bernoulli prediction less the entropy of its target, all B×H×W."""
    rest = 1 - target
    entropy = torch.xlogy(target, target) + torch.xlogy(rest, rest)
    return entropy - target * log_yes - rest * log_no


def smoothness_loss(
    inverse: Tensor, image: Tensor, inside: Tensor, agree: Agree | None = None
) -> tuple[Tensor, Tensor]:
    """Return the mean of |∂ᵤd*| e^(−|∂ᵤI|) + |∂ᵥd*| e^(−|∂ᵥI|), and whether any pixel counted.

    d* is the inverse depth over its mean in the image, so that no depth is favoured for being far (Godard et al., CVPR
    2017 and ICCV 2019). Differences are those to the right and to the lower neighbour; |∂I| is the mean over colours of
    the image in [0, 1].

    Args:
        inverse: Inverse depth B×1×H×W, above 0, in any unit.
        image: ImageNet-normalised B×3×H×W.
        inside: Boolean B×H×W, see :func:`.consistency.image_pixels`.
        agree: See :func:`.tasks.base.masked_mean`.

    Returns:
        Scalar ≥ 0, exactly 0 where no pixel counts, and a Boolean scalar.
    """
    inverse = inverse[:, 0]
    mean = inverse.where(inside, 0.0).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    inverse = inverse / mean.where(mean > 0, 1.0)[:, None, None]
    colours = image.to(inverse.dtype) * torch.as_tensor(IMAGENET_STD, device=image.device).view(3, 1, 1)
    here, steps = (..., slice(-1), slice(-1)), inverse.new_zeros(())
    for there in ((..., slice(-1), slice(1, None)), (..., slice(1, None), slice(-1))):
        contrast = (colours[there] - colours[here]).abs().mean(1)
        steps = steps + (inverse[there] - inverse[here]).abs() * torch.exp(-contrast)
    valid = inside[:, 1:, :-1] & inside[:, :-1, 1:] & inside[:, :-1, :-1]
    return masked_mean(steps, valid, agree), valid.any()
