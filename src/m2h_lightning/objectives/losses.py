"""Balancing by the losses' values: one backward pass."""

from __future__ import annotations

from torch import Tensor

from m2h_lightning.objectives.base import Balancer, Moment


class Static(Balancer):
    """The static weights alone: Σ ℓ_t."""

    def forward(self, losses: Tensor, present: Tensor, moment: Moment) -> Tensor:
        """Return ones."""
        return present.to(losses.dtype)
