"""Surface normals: unit vectors in the camera frame."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from m2h_lightning.metrics import MetricsConfig, NormalError
from m2h_lightning.tasks.base import Agree, Task, masked_mean


class Normals(Task):
    """Surface normals, B×3×H×W, unit length *after* the final resize (resizing unit vectors shortens them).

    Loss: masked 1 − cos, or L1 between unit vectors. Headline: pooled mean angular error in degrees.

    Args:
        loss_kind: "cosine" or "l1".
    """

    name = "normals"
    headline = "mean_deg"
    higher_is_better = False
    default_weight = 2.0

    def __init__(self, loss_kind: Literal["cosine", "l1"] = "cosine") -> None:
        self.loss_kind = loss_kind

    @property
    def channels(self) -> int:
        """x, y and z."""
        return 3

    def activate(self, raw: Tensor) -> Tensor:
        """Return unit vectors, B×3×H×W."""
        return F.normalize(raw.float(), dim=1, eps=1e-6)

    def valid_pixels(self, target: Tensor) -> Tensor:
        """Pixels with a known normal, B×H×W; a vector shorter than 0.5 stands for "unknown"."""
        return target.norm(dim=1) >= 0.5

    def loss(self, raw: Tensor, target: Tensor, agree: Agree | None = None) -> Tensor:
        """Return the mean over pixels with a known normal.

        Args:
            raw: B×3×H×W, any length.
            target: Unit vectors B×3×H×W, 0 = invalid.
            agree: See :func:`.base.masked_mean`.
        """
        normals = self.activate(raw)
        valid = self.valid_pixels(target)
        truth = F.normalize(target, dim=1, eps=1e-6)
        if self.loss_kind == "l1":
            return masked_mean((normals - truth).abs().sum(1), valid, agree)
        return masked_mean(1 - (normals * truth).sum(1), valid, agree)

    def metrics(self, config: MetricsConfig, dataset: str, stage: str, details: bool) -> dict[str, Metric]:
        """Return the angular errors."""
        return {"error": NormalError(per_batch=config.per_batch)}

    def picture(self, prediction: Tensor, target: Tensor | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Colour (x, −y, −z) from [−1, 1] to [0, 255]: red right, green up, blue to the camera; unknown is black."""

        def colour(normals: Tensor) -> np.ndarray:
            known = normals.norm(dim=0, keepdim=True) >= 0.5
            signs = torch.tensor([1.0, -1.0, -1.0]).reshape(3, 1, 1)
            rgb = ((normals.float().cpu() * signs) * 127.5 + 127.5) * known.cpu()
            return rgb.clamp(0, 255).byte().permute(1, 2, 0).numpy()

        return colour(prediction), None if target is None else colour(target)
