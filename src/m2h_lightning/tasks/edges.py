"""Edges: the probability that a pixel lies on a border of the data set's edge rule."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from m2h_lightning.errors import ConfigError
from m2h_lightning.metrics import BoundaryScore, EdgeFScore, MetricsConfig
from m2h_lightning.tasks.base import Agree, Task, masked_mean


class Edges(Task):
    """Edge detection. Raw map: logits B×1×H×W; prediction: probability in [0, 1].

    Loss: binary cross-entropy with weight w on edge pixels and 1 − w on others (w = 0.95 in the InvPT protocol).
    Headline: odsF (its fast form in validation); the best pixel-exact F-score where that is switched off.

    Args:
        positive_weight: w, between 0 and 1.
    """

    name = "edges"
    headline = "odsf"
    higher_is_better = True
    default_weight = 5.0

    def __init__(self, positive_weight: float = 0.95) -> None:
        if not 0 < positive_weight < 1:
            raise ConfigError(f"model.losses.edges_positive_weight is {positive_weight}; it must be between 0 and 1")
        self.positive_weight = positive_weight

    @property
    def channels(self) -> int:
        """One."""
        return 1

    def activate(self, raw: Tensor) -> Tensor:
        """Return edge probabilities B×1×H×W."""
        return torch.sigmoid(raw.float())

    def valid_pixels(self, target: Tensor) -> Tensor:
        """Pixels labelled 0 or 1, B×1×H×W."""
        return target <= 1

    def loss(self, raw: Tensor, target: Tensor, agree: Agree | None = None) -> Tensor:
        """Return the weighted binary cross-entropy over labelled pixels.

        Args:
            raw: Logits B×1×H×W.
            target: {0, 1}, 255 = ignore, B×1×H×W.
            agree: See :func:`.base.masked_mean`.
        """
        valid = self.valid_pixels(target)
        truth = torch.where(valid, target, 0.0)
        weight = torch.where(truth > 0.5, self.positive_weight, 1 - self.positive_weight)
        per_pixel = F.binary_cross_entropy_with_logits(raw.float(), truth, weight, reduction="none")
        return masked_mean(per_pixel, valid, agree)

    def metrics(self, config: MetricsConfig, dataset: str, stage: str, details: bool) -> dict[str, Metric]:
        """Return the pixel-exact F-score and, unless they are switched off, the boundary scores."""
        metrics: dict[str, Metric] = {"pixel": EdgeFScore(per_batch=config.per_batch)}
        mode = config.odsf(stage)
        if mode != "none":
            metrics["boundary"] = BoundaryScore(config.tolerance(dataset), mode, workers=config.workers)
        return metrics

    def headline_in(self, config: MetricsConfig, stage: str) -> str:
        """Return odsF where the stage computes it exactly, its fast form, or the pixel-exact F."""
        return {"exact": "odsf", "fast": "odsf_fast", "none": "f_pixel"}[config.odsf(stage)]

    def has_protocols(self, metric: str) -> bool:
        """Boundary scores are of the whole set by definition: one threshold, counts summed over images."""
        return not metric.startswith("odsf")

    def picture(self, prediction: Tensor, target: Tensor | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Draw edges dark on white; ignored pixels are white."""

        def draw(edges: Tensor) -> np.ndarray:
            level = 255 - (edges[0].float().clamp(0, 1) * 255).byte().cpu().numpy()
            return np.repeat(level[..., None], 3, axis=-1)

        return draw(prediction), None if target is None else draw(torch.where(target <= 1, target, 0.0))
