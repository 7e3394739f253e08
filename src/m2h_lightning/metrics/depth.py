"""Depth errors pooled over all valid pixels of the set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

UNIT_NAMES = {"m": "m", "px": "px", "1/m": "per_m"}
"""How a unit of depth is written in the name of a metric: metres, pixels of disparity, inverse metres."""


class DepthError(Metric):
    """Pooled depth errors: ``rmse_m`` = √(Σ(d−d*)² / N), ``absrel`` = Σ(|d−d*|/d*)/N, ``log_rmse``, ``delta1``.

    The name of the first carries the unit: disparities give ``rmse_px``, inverse depth ``rmse_per_m``; they never stand
    in one column with metres.

    N counts every valid pixel (d* > 0) of the set; no Eigen crop, no cap, no median scaling (InvPT evaluation).
    ``delta1`` is the share of pixels with max(d/d*, d*/d) < 1.25. Averaging per image gives smaller numbers: another
    protocol.

    As input to ``forward`` and ``update``: ``prediction`` and ``target`` B×1×H×W in ``unit``, target 0 = invalid.

    As output of ``compute``: a dict of float64 scalars; NaN when not one pixel was valid.

    Args:
        unit: "m", "px" or "1/m".

    Example:
        >>> import torch
        >>> error = DepthError()
        >>> error.update(torch.full((1, 1, 1, 2), 3.0), torch.tensor([[[[2.0, 0.0]]]]))
        >>> error.compute()["rmse_m"].item()
        1.0
    """

    higher_is_better = False
    full_state_update = False
    sums: Tensor

    def __init__(self, unit: str = "m", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unit = unit
        self.add_state("sums", torch.zeros(5, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        valid = target > 0
        true = torch.where(valid, target, 1.0).double()
        guess = torch.where(valid, prediction, 1.0).double()
        log = guess.log() - true.log()
        parts = [
            valid,
            (guess - true) ** 2,
            (guess - true).abs() / true,
            log**2,
            valid & (log.abs() < torch.log(torch.tensor(1.25, dtype=torch.float64))),
        ]
        self.sums += torch.stack([part.sum(dtype=torch.float64) for part in parts])

    def compute(self) -> dict[str, Tensor]:
        """Return the errors over everything added so far."""
        count, square, relative, log_square, close = self.sums.unbind()
        return {
            f"rmse_{UNIT_NAMES[self.unit]}": (square / count).sqrt(),
            "absrel": relative / count,
            "log_rmse": (log_square / count).sqrt(),
            "delta1": close / count,
        }
