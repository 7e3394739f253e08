"""Balancing by weights that are learned while training: uncertainty and FAMO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from m2h_lightning.objectives.base import Balancer, Moment
from m2h_lightning.objectives.losses import FLOOR, LogBalancer


class Uncertainty(Balancer):
    """Homoscedastic uncertainty: Σ ℓ_t e^(−s_t) / 2 + s_t / 2, log-variances s_t learned (Kendall et al., CVPR 2018).

    At its optimum s_t = log ℓ_t: every loss is divided by its own size. All s_t start at 0, every weight at 1/2. They
    are parameters in an optimiser group of their own, without weight decay, which would draw them to that start.

    A loss whose static weight is 0 takes no part: nothing would stop its s_t from falling.

    Args:
        terms: Names of the losses.
        weights: Their static weights, which the losses already carry.
    """

    def __init__(self, terms: Sequence[str], weights: Sequence[float]) -> None:
        super().__init__(terms)
        self.used = [weight > 0 for weight in weights]
        self.log_variances = nn.Parameter(torch.zeros(len(self.terms)))

    def forward(self, losses: Tensor, present: Tensor, moment: Moment) -> Tensor:
        """Return e^(−s) / 2, with the gradient on s."""
        return torch.where(self._part(present), (-self.log_variances).exp() / 2, 0.0)

    def regulariser(self, present: Tensor) -> Tensor:
        """Return Σ s_t / 2 over the losses present."""
        return torch.where(self._part(present), self.log_variances / 2, 0.0).sum()

    def _part(self, present: Tensor) -> Tensor:
        return present & torch.tensor(self.used, device=present.device)


class FAMO(LogBalancer):
    """Fast Adaptive Multitask Optimization: losses shall fall at equal rates (Liu et al., NeurIPS 2023).

    The update is that of c Σ z_t log ℓ_t with z = softmax(ξ) and c = 1 / Σ (z_t / ℓ_t): the weights c z_t / ℓ_t add up
    to 1. After it, the losses of the same batch tell how much each fell, δ_t = log ℓ_t − log ℓ_t′, and Adam (as in the
    paper, with decay added to the gradient) moves ξ by (∂z/∂ξ)ᵀ δ = z (δ − Σ z δ): who fell more than the average
    weighs less. With accumulated gradients the batch is the last one.

    Softmax and Adam run over the losses present; what belongs to an absent one rests.

    Args:
        terms: Names of the losses.
        lr: Learning rate of ξ; 0.025 in the paper.
        decay: Weight decay γ of ξ; 1e-3 in the paper.
    """

    repeats_forward = True

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, terms: Sequence[str], lr: float, decay: float) -> None:
        super().__init__(terms)
        self.lr, self.decay = lr, decay
        # Rows: ξ, Adam's two averages, the steps it made. No parameters: the run's optimiser must not move them.
        self.logits, self.first, self.second, self.steps = torch.zeros(4, len(self.terms))
        self.before, self.taking = torch.ones(len(self.terms)), torch.zeros(len(self.terms), dtype=torch.bool)

    def forward(self, losses: Tensor, present: Tensor, moment: Moment) -> Tensor:
        """Return c z / ℓ; keep the losses for :meth:`after_step`."""
        self.logits = self.logits.to(losses.device)
        self.taking, self.before = self.part(losses, present)
        pull = self._shares() / self.before
        return torch.where(self.taking, pull / pull.sum(), 0.0)

    def _shares(self) -> Tensor:
        """Return z over the losses that take part, 0 for the others."""
        shares = self.logits.masked_fill(~self.taking, -torch.inf).softmax(0)
        return torch.where(self.taking, shares, 0.0)

    def after_step(self, losses: Tensor, present: Tensor) -> None:
        """Move ξ by what the update did to the losses of the last batch."""
        shares = self._shares()
        fell = torch.where(self.taking, self.before.log() - losses.clamp(min=FLOOR).log(), 0.0)
        gradient = shares * (fell - (shares * fell).sum()) + self.decay * self.logits
        beta1, beta2 = self.BETAS
        old = [x.to(losses.device) for x in (self.first, self.second, self.steps)]
        first, second = beta1 * old[0] + (1 - beta1) * gradient, beta2 * old[1] + (1 - beta2) * gradient**2
        steps = old[2] + 1
        root = (second / (1 - beta2**steps)).sqrt() + self.EPSILON
        logits = self.logits - self.lr * (first / (1 - beta1**steps)) / root
        self.first, self.second, self.steps, self.logits = (
            torch.where(self.taking, new, before)
            for new, before in zip((first, second, steps, logits), (*old, self.logits), strict=True)
        )

    def state(self) -> dict[str, Any]:
        """Return ξ and the state of its Adam."""
        return {key: getattr(self, key).clone() for key in ("logits", "first", "second", "steps")}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` returned."""
        self.logits, self.first, self.second, self.steps = (
            state[key].clone() for key in ("logits", "first", "second", "steps")
        )

    @property
    def cost(self) -> str:
        """What the method costs."""
        return "one backward pass, and a second forward pass without gradient per optimiser step"
