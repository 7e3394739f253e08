"""Depth: metres along the optical axis (or the data set's other unit), bounded by the data set's range."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from m2h_lightning.errors import ConfigError
from m2h_lightning.metrics import DepthError, MetricsConfig
from m2h_lightning.metrics.depth import UNIT_NAMES
from m2h_lightning.tasks.base import Agree, Task, masked_mean
from m2h_lightning.tasks.colours import turbo


class Depth(Task):
    """Planar depth in metres, B×1×H×W, smooth and strictly inside (min_depth, max_depth).

    ``d = min · (max/min)^σ(z)``: log-linear between the bounds, so that an equal step of z is an equal *relative* step
    of depth, and the gradient lives everywhere. (ReLU(z) + ε, as in the released code, is dead where z < 0 and ignores
    the upper bound.)

    Loss: scale-invariant log error per image, √(mean δ² − λ mean² δ) with δ = log d − log d* (Eigen et al., NIPS 2014),
    plus the L1 error in metres. Headline: pooled RMSE, with the unit in its name.

    Where a data set's depth is disparity or inverse depth, its unit takes the place of metres everywhere.

    Args:
        min_depth: Lower bound, metres, above 0.
        max_depth: Upper bound, metres.
        si_lambda: λ of the scale-invariant loss, 0 (plain log RMSE) to 1 (invariant).
        l1_weight: Weight of the L1 term, 1/m.
        si_weight: Weight of the scale-invariant term; 0 leaves plain L1, as in the InvPT protocol.
        unit: "m", or "px" (disparity), or "1/m".
    """

    name = "depth"
    headline = "rmse_m"
    higher_is_better = False

    def __init__(
        self,
        min_depth: float,
        max_depth: float,
        si_lambda: float = 0.5,
        l1_weight: float = 0.5,
        si_weight: float = 1.0,
        unit: str = "m",
    ) -> None:
        if not 0 < min_depth < max_depth:
            raise ConfigError(f"depth range ({min_depth}, {max_depth}) {unit} is not 0 < min < max")
        if si_weight == l1_weight == 0:
            raise ConfigError("model.losses: depth_si_weight and depth_l1_weight are both 0; depth would learn nothing")
        self.min_depth, self.max_depth = min_depth, max_depth
        self.si_lambda, self.l1_weight, self.si_weight = si_lambda, l1_weight, si_weight
        self.unit = unit
        self.headline = f"rmse_{UNIT_NAMES[unit]}"

    @property
    def channels(self) -> int:
        """One."""
        return 1

    def activate(self, raw: Tensor) -> Tensor:
        """Return depth in metres, B×1×H×W."""
        low, high = math.log(self.min_depth), math.log(self.max_depth)
        # float32 whatever the autocast: the exponent of a bfloat16 number carries 1 % steps.
        # The sigmoid rounds to 0 and 1 far out; shrinking it by 2e-6 keeps depth strictly inside its bounds.
        share = 1e-6 + (1 - 2e-6) * torch.sigmoid(raw.float())
        return torch.exp(low + (high - low) * share)

    def valid_pixels(self, target: Tensor) -> Tensor:
        """Pixels with known depth, B×1×H×W."""
        return target > 0

    def loss(self, raw: Tensor, target: Tensor, agree: Agree | None = None) -> Tensor:
        """Return the scale-invariant log loss plus weighted L1 over pixels with known depth.

        Args:
            raw: B×1×H×W.
            target: Metres B×1×H×W, 0 = invalid.
            agree: See :func:`.base.masked_mean`.
        """
        depth = self.activate(raw)
        valid = self.valid_pixels(target)
        delta = torch.where(valid, depth.log() - torch.where(valid, target, 1.0).log(), 0.0).flatten(1)
        count = valid.flatten(1).sum(1)
        mean = delta.sum(1) / count.clamp(min=1)
        variance = (delta**2).sum(1) / count.clamp(min=1) - self.si_lambda * mean**2
        # The floor under the root bounds its gradient at a perfect fit.
        invariant = masked_mean(torch.sqrt(variance.clamp(min=0) + 1e-6), count > 0, agree)
        return self.si_weight * invariant + self.l1_weight * masked_mean((depth - target).abs(), valid, agree)

    def metrics(self, config: MetricsConfig, dataset: str, stage: str, details: bool) -> dict[str, Metric]:
        """Return the depth errors; with details also by range of depth."""
        error = DepthError(self.unit, crop=config.crop, cap=config.cap, ranges=details, per_batch=config.per_batch)
        return {"error": error}

    def picture(self, prediction: Tensor, target: Tensor | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Colour near to far on a logarithmic scale, the same for both; unknown depth is black."""
        guess = prediction[0].float().cpu().numpy()
        truth = None if target is None else target[0].cpu().numpy()
        known = guess if truth is None or not (truth > 0).any() else truth[truth > 0]
        low, high = np.log(np.percentile(known, 2)), np.log(np.percentile(known, 98))

        def colour(depth: np.ndarray) -> np.ndarray:
            share = (np.log(np.maximum(depth, 1e-6)) - low) / max(high - low, 1e-6)
            return turbo(share) * (depth > 0)[..., None].astype(np.uint8)

        return colour(guess), None if truth is None else colour(truth)
