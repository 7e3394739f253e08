"""Pixel-exact edge scores: quick, strict, and not odsF."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class EdgeFScore(Metric):
    """Best F-score of an edge map over one threshold for the whole set, counted pixel by pixel.

    ``F = 2PR/(P+R)`` at the best of ``bins − 1`` thresholds on the edge probability. A predicted edge pixel counts only
    where the target has one: no tolerance, no thinning. This is *not* odsF, which matches thinned edges within a
    distance; it is a lower, cheaper figure for following a training run.

    As input to ``forward`` and ``update``: ``prediction`` edge probability B×1×H×W in [0, 1], ``target`` B×1×H×W in
    {0, 1}, 255 = ignore.

    As output of ``compute``: a dict of float64 scalars: ``f_pixel``, ``precision``, ``recall`` and ``threshold`` at the
    best F; NaN when the targets hold no edge.

    Args:
        bins: Number of probability bins.

    Example:
        >>> import torch
        >>> score = EdgeFScore()
        >>> score.update(torch.tensor([[[[0.9, 0.8, 0.1]]]]), torch.tensor([[[[1.0, 0.0, 0.0]]]]))
        >>> score.compute()["f_pixel"].item()
        1.0
    """

    higher_is_better = True
    full_state_update = False
    counts: Tensor

    def __init__(self, bins: int = 100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bins = bins
        self.add_state("counts", torch.zeros(2, bins, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        level = (prediction * self.bins).long().clamp_(0, self.bins - 1)
        index = torch.where(target <= 1, target.long() * self.bins + level, 2 * self.bins)
        self.counts += torch.bincount(index.flatten(), minlength=2 * self.bins + 1)[:-1].reshape(2, -1)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores over everything added so far."""
        # Pixels at or above each threshold: a reversed cumulative sum over the probability bins.
        false_positive, true_positive = self.counts.flip(1).cumsum(1).flip(1).double()
        edges = true_positive[0]
        precision = true_positive / (true_positive + false_positive).clamp(min=1)
        recall = true_positive / edges
        f = 2 * true_positive / (true_positive + false_positive + edges)
        best = f.nan_to_num(-1).argmax()
        return {
            "f_pixel": torch.where(edges > 0, f[best], torch.nan),
            "precision": precision[best],
            "recall": recall[best],
            "threshold": best.double() / self.bins,
        }
