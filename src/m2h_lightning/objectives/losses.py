"""Balancing by the losses' values, without parameters of its own: one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from m2h_lightning.objectives.base import Balancer, Moment

FLOOR = 1e-8
"""Smallest loss that is divided by or whose logarithm is taken (the ε of LibMTL and torchjd)."""

RANDOM_WEIGHTS = 1
"""``purpose`` of rlw's draws in :meth:`Moment.generator`."""


class Static(Balancer):
    """The static weights alone: Σ ℓ_t."""

    def forward(self, losses: Tensor, present: Tensor, moment: Moment) -> Tensor:
        """Return ones."""
        return present.to(losses.dtype)


class EpochMeans:
    """Mean of each loss per epoch, over the steps in which it was present, as float64.

    It moves on by itself when a step of a later epoch arrives, so that it depends on no hook, and a run that resumes
    at the border of two epochs moves on as the uninterrupted one does.

    Attributes:
        history: Means of the last epoch but one and of the last epoch, 2×T; NaN where a loss never was present.

    Args:
        count: Number of losses T.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._start()

    def _start(self) -> None:
        self.epoch = 0
        self.sums, self.steps = torch.zeros(2, self.count, dtype=torch.float64)
        self.history = torch.full((2, self.count), torch.nan, dtype=torch.float64)

    def to_epoch(self, epoch: int, device: torch.device) -> None:
        """Finish all epochs before ``epoch``; an earlier one than before means that training starts anew."""
        if epoch < self.epoch:
            self._start()
        self.sums, self.steps, self.history = (x.to(device) for x in (self.sums, self.steps, self.history))
        for _ in range(min(3, epoch - self.epoch)):
            # An epoch without a step leaves 0/0 = NaN: no mean.
            self.history = torch.stack([self.history[1], self.sums / self.steps])
            self.sums, self.steps = torch.zeros_like(self.sums), torch.zeros_like(self.steps)
        self.epoch = epoch

    def add(self, losses: Tensor, present: Tensor) -> None:
        """Add a step's losses to the running epoch.

        Losses that are not finite stop the run; they must not get into the checkpoint that may be written then.
        """
        counted = present & losses.isfinite()
        self.sums = self.sums + torch.where(counted, losses, 0.0).double()
        self.steps = self.steps + counted

    def state(self) -> dict[str, Any]:
        """Return sums, steps, epoch and history."""
        return {
            "epoch": self.epoch,
            "sums": self.sums.clone(),
            "steps": self.steps.clone(),
            "history": self.history.clone(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` returned."""
        self.epoch = int(state["epoch"])
        self.sums, self.steps, self.history = (state[key].clone() for key in ("sums", "steps", "history"))


class DWA(Balancer):
    """Dynamic Weight Average: a loss that falls slowly weighs more (Liu et al., CVPR 2019).

    λ_t = K·softmax(r_t / T) with r_t = L̄_t(e−1) / L̄_t(e−2), ratio of the epoch means of the last two epochs. A loss
    without a mean in both (the first two epochs; never labelled in one of them; its mean was 0) has no ratio: its
    weight is 1, and the other K share theirs without it.

    Args:
        terms: Names of the losses.
        temperature: T; larger is closer to equal weights.
    """

    def __init__(self, terms: Sequence[str], temperature: float) -> None:
        super().__init__(terms)
        self.temperature = temperature
        self.means = EpochMeans(len(self.terms))

    def forward(self, losses: Tensor, present: Tensor, moment: Moment) -> Tensor:
        """Return the weights of the epoch, the same in all its steps; add the losses to its means."""
        self.means.to_epoch(moment.epoch, losses.device)
        older, newer = self.means.history
        rates = newer / older
        rated = rates.isfinite()
        shares = (rates / self.temperature).masked_fill(~rated, -torch.inf).softmax(0)
        weights = torch.where(rated, rated.sum() * shares, 1.0)
        self.means.add(losses, present)
        return torch.where(present, weights, 0.0).to(losses.dtype)

    def state(self) -> dict[str, Any]:
        """Return the running epoch's sums and the means of the two before."""
        return self.means.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` returned."""
        self.means.load_state(state)


class RLW(Balancer):
    """Random Loss Weighting: n·softmax(x), x ~ N(0, 1) anew in every optimiser step (Lin et al., TMLR 2022).

    The paper's weights add up to 1. Times n, the number of losses that are present, a loss weighs 1 on average,
    however many others have a label; learning rate, clipping and consistency losses then mean what they mean under
    static weights.

    All processes, and all accumulated batches of an optimiser step, draw the same.
    """

    def __init__(self, terms: Sequence[str]) -> None:
        super().__init__(terms)
        # By name: the order of the losses must not decide which of them gets which number.
        self.rank = [sorted(self.terms).index(name) for name in self.terms]

    def forward(self, losses: Tensor, present: Tensor, moment: Moment) -> Tensor:
        """Return the weights of the optimiser step."""
        drawn = torch.randn(len(self.terms), generator=moment.generator(RANDOM_WEIGHTS))[self.rank]
        shares = drawn.to(losses).masked_fill(~present, -torch.inf).softmax(0)
        return torch.where(present, present.sum() * shares, 0.0)


class LogBalancer(Balancer):
    """A method that works on the logarithms of the losses, and so is blind to the scale of each.

    Its weights fall as 1/ℓ_t. A loss of exactly 0 has nothing to gain (its static weight is 0, or it is at its
    minimum) and no logarithm: it takes no part. Below :data:`FLOOR` a loss counts as that.

    With accumulated gradients each batch is weighed by its own losses: nothing here is linear in them.
    """

    @staticmethod
    def part(losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return which losses take part (Boolean), and all losses, none below :data:`FLOOR`."""
        return present & (losses > 0), losses.clamp(min=FLOOR)


class GLS(LogBalancer):
    """Geometric Loss Strategy: (Π ℓ_t)^(1/n) over the n losses present (Chennupati et al., CVPRW 2019).

    The derivative, which is the weight, is GLS / (n ℓ_t).
    """

    def forward(self, losses: Tensor, present: Tensor, moment: Moment) -> Tensor:
        """Return the derivative of the geometric mean."""
        taking, losses = self.part(losses, present)
        logs, count = losses.log(), taking.sum()
        mean = torch.where(taking, logs, 0.0).sum() / count
        return torch.where(taking, (mean - logs).exp() / count, 0.0)


class LogSum(LogBalancer):
    """Σ w_t log L_t, with the static weights as factors of the logarithms (used by MTMamba, Lin et al., ECCV 2024).

    Losses arrive as ℓ_t = w_t L_t; the gradient w_t ∇L_t / L_t is that of ℓ_t times w_t / ℓ_t.

    Args:
        terms: Names of the losses.
        weights: Their static weights w_t, at least 0.
    """

    def __init__(self, terms: Sequence[str], weights: Sequence[float]) -> None:
        super().__init__(terms)
        self.weights = [float(weight) for weight in weights]

    def forward(self, losses: Tensor, present: Tensor, moment: Moment) -> Tensor:
        """Return the derivatives of the weighted logarithms."""
        taking, floored = self.part(losses, present)
        return torch.where(taking, losses.new_tensor(self.weights) / floored, 0.0)


class STCH(LogBalancer):
    """Smooth Tchebycheff scalarisation of the logarithms: a soft maximum (Lin et al., ICML 2024).

    n μ log Σ exp(log(ℓ_t / z_t) / μ), as its authors (and LibMTL) use it for networks; z_t is the mean of the loss in
    the last epoch of the warm-up. The weight is its derivative n p_t / ℓ_t, p = softmax(log(ℓ / z) / μ) over the n
    losses present that have a scale. In the warm-up Σ log ℓ_t is minimised, weight 1 / ℓ_t, which is also the limit
    of STCH for large μ: the scale of the gradients does not jump when the warm-up ends. A loss that was never present
    in the last warm-up epoch goes on so until its first epoch is over, whose mean becomes its scale.

    Args:
        terms: Names of the losses.
        mu: Smoothing μ; smaller is closer to the largest ratio ℓ_t / z_t alone.
        warmup: Epochs of warm-up; 0 compares the losses as they are, z_t = 1.
    """

    def __init__(self, terms: Sequence[str], mu: float, warmup: int) -> None:
        super().__init__(terms)
        self.mu, self.warmup = mu, warmup
        self.means = EpochMeans(len(self.terms))
        self.scale = torch.full((len(self.terms),), torch.nan if warmup else 1.0, dtype=torch.float64)

    def forward(self, losses: Tensor, present: Tensor, moment: Moment) -> Tensor:
        """Return the derivative of the soft maximum, or of the sum of logarithms in the warm-up."""
        if moment.epoch < self.means.epoch and self.warmup:  # training starts anew
            self.scale = torch.full_like(self.scale, torch.nan)
        self.means.to_epoch(moment.epoch, losses.device)
        self.scale = self.scale.to(losses.device)
        if moment.epoch >= self.warmup:
            last = self.means.history[1]
            self.scale = torch.where(self.scale.isnan() & (last > 0), last, self.scale)
        self.means.add(losses, present)
        taking, floored = self.part(losses, present)
        scaled = taking & ~self.scale.isnan()
        ratios = (floored / self.scale).log() / self.mu
        shares = ratios.masked_fill(~scaled, -torch.inf).softmax(0)
        weights = torch.where(scaled, scaled.sum() * shares, 1.0).to(losses.dtype) / floored
        return torch.where(taking, weights, 0.0)

    def state(self) -> dict[str, Any]:
        """Return the scale, and the means from which it comes."""
        return {**self.means.state(), "scale": self.scale.clone()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` returned."""
        self.means.load_state(state)
        self.scale = state["scale"].clone()
