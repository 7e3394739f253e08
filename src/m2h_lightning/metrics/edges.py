"""Pixel-exact edge scores: quick, strict, and not odsF."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m2h_lightning.errors import ConfigError
from m2h_lightning.metrics.protocol import ProtocolMetric, Sizes, count_bins, require_probabilities, require_same_shape


class EdgeFScore(ProtocolMetric):
    """Best F-score of an edge map over the thresholds 0, 1/bins, 2/bins, …, counted pixel by pixel.

    ``F = 2PR/(P+R)``; a pixel is predicted to be an edge when its probability, rounded down to a multiple of 1/bins, is
    at least the threshold, and counts only where the target has an edge: no tolerance, no thinning. This is *not* odsF,
    which matches thinned edges within a distance; it is a lower, cheaper figure for following a training run.

    Pooled scores are those of the one threshold that is best for the whole set; the ``_per_image`` ones take each
    image's own best threshold, then the mean over the images that have an edge. They are therefore the higher as a
    rule, and ``f_pixel_threshold_per_image`` is the mean of those thresholds.

    As input to ``forward`` and ``update``: ``prediction`` edge probability B×1×H×W in [0, 1], ``target`` B×1×H×W in
    {0, 1}, 255 = ignore.

    As output of ``compute``: a dict of float64 scalars: ``f_pixel``, precision and recall at its threshold as
    ``f_pixel_precision`` and ``f_pixel_recall``, and ``f_pixel_threshold`` itself; NaN when the targets hold no edge.

    Args:
        bins: Number of probability bins, at least 1.
        per_batch: Whether to compute per-batch scores too.

    Raises:
        ConfigError: Bins below 1.

    Example:
        >>> import torch
        >>> score = EdgeFScore()
        >>> score.update(torch.tensor([[[[0.9, 0.8, 0.1]]]]), torch.tensor([[[[1.0, 0.0, 0.0]]]]))
        >>> score.compute()["f_pixel"].item()
        1.0
    """

    higher_is_better = True

    def __init__(self, bins: int = 100, per_batch: bool = False, **kwargs: Any) -> None:
        if bins < 1:
            raise ConfigError(f"the pixel-exact edge score has {bins} bins; give at least 1")
        self.bins = bins
        super().__init__((2, bins), torch.int64, per_batch, **kwargs)

    def update(self, prediction: Tensor, target: Tensor, sizes: Sizes | None = None) -> None:
        """Add a batch; ``sizes`` are not needed, since padding is labelled 255.

        Raises:
            DataError: Shapes that do not fit, or a prediction at a scored pixel that is NaN or no probability.
        """
        require_same_shape(prediction, target, "edges")
        known = target <= 1
        require_probabilities(prediction, known, "edges")
        level = (prediction.float() * self.bins).int().clamp_(max=self.bins - 1)
        index = level.add_((target > 0.5).view(torch.uint8), alpha=self.bins)
        self.add(count_bins(index, known, 2 * self.bins).unflatten(1, (2, self.bins)))

    def scores(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the scores at the best threshold of counts …×2×bins, of pixels without and with an edge."""
        # Pixels at or above each threshold: a reversed cumulative sum over the probability bins.
        false_positive, true_positive = sums.flip(-1).cumsum(-1).flip(-1).double().unbind(-2)
        edges = true_positive[..., :1]
        found = true_positive + false_positive
        f = 2 * true_positive / (found + edges)
        best = f.nan_to_num(-1).argmax(-1, keepdim=True)
        at_best = {
            "f_pixel": f.gather(-1, best),
            "f_pixel_precision": (true_positive / found).gather(-1, best),
            "f_pixel_recall": (true_positive / edges).gather(-1, best),
            "f_pixel_threshold": best.double() / self.bins,
        }
        return {name: torch.where(edges > 0, value, torch.nan).squeeze(-1) for name, value in at_best.items()}
