"""Edges: the probability that a pixel lies on a border of the data set's edge rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m2h_lightning.errors import ConfigError
from m2h_lightning.metrics import EdgeFScore
from m2h_lightning.tasks.base import Task, masked_mean


class Edges(Task):
    """Edge detection. Raw map: logits B×1×H×W; prediction: probability in [0, 1].

    Loss: binary cross-entropy with weight w on edge pixels and 1 − w on others (w = 0.95 in the InvPT protocol).
    Headline: best pixel-exact F-score.

    Args:
        positive_weight: w, between 0 and 1.
    """

    name = "edges"
    headline = "f_pixel"
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

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """Return the weighted binary cross-entropy over labelled pixels.

        Args:
            raw: Logits B×1×H×W.
            target: {0, 1}, 255 = ignore, B×1×H×W.
        """
        valid = self.valid_pixels(target)
        truth = torch.where(valid, target, 0.0)
        weight = torch.where(truth > 0.5, self.positive_weight, 1 - self.positive_weight)
        return masked_mean(F.binary_cross_entropy_with_logits(raw.float(), truth, weight, reduction="none"), valid)

    def score(self) -> Any:
        """Return the pixel-exact F-score."""
        return EdgeFScore()

    def picture(self, prediction: Tensor, target: Tensor | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Draw edges dark on white; ignored pixels are white."""

        def draw(edges: Tensor) -> np.ndarray:
            level = 255 - (edges[0].float().clamp(0, 1) * 255).byte().cpu().numpy()
            return np.repeat(level[..., None], 3, axis=-1)

        return draw(prediction), None if target is None else draw(torch.where(target <= 1, target, 0.0))
