"""What a balancing method is: losses (and gradients) in, one weight per loss out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Moment(NamedTuple):
    """When a step happens; with the seed all that a random choice may depend on, so that every process draws the same.

    Attributes:
        epoch: Epoch, from 0.
        step: Optimiser steps done.
        seed: Seed of the run.
        epochs: Epochs done, with the fraction of the running one.
    """

    epoch: int = 0
    step: int = 0
    seed: int = 0
    epochs: float = 0.0

    def generator(self, purpose: int) -> torch.Generator:
        """Return a CPU generator that depends on seed and step alone; ``purpose`` keeps different uses apart."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.step) * 16 + purpose)


class Balancer(nn.Module, ABC):
    """Turns the losses of a step into weights: the update is the gradient of Σ w_t ℓ_t (+ :meth:`regulariser`).

    Writing every method in this form, with the weights taken as constants, makes it linear in the losses. That is what
    makes two processes with half a batch each compute what one computes with the whole.

    Losses arrive detached, as means over all processes, with their static weights. Absent ones (no label in the whole
    batch, or not drawn) have ``present`` False; their weight must be 0 and they must not move the others'.

    Args:
        terms: Names of the losses, in the order of all tensors.
    """

    by_gradient: ClassVar[bool] = False
    """Whether the method needs the gradient of each loss on the shared parameters."""

    repeats_forward: ClassVar[bool] = False
    """Whether the method wants the losses of the same batch again after the update (:meth:`after_step`)."""

    def __init__(self, terms: Sequence[str]) -> None:
        super().__init__()
        self.terms = list(terms)

    @abstractmethod
    def forward(self, losses: Tensor, present: Tensor, moment: Moment) -> Tensor:
        """Return the weights.

        Args:
            losses: float32, one per term, detached.
            present: Boolean, one per term.
            moment: When.

        Returns:
            Weights ≥ 0, one per term; they carry gradients only where they are parameters.
        """

    def regulariser(self, present: Tensor) -> Tensor | None:
        """Return what is added to Σ w_t ℓ_t, or None for nothing."""
        return None

    def after_step(self, losses: Tensor, present: Tensor) -> None:
        """Take the same batch's losses after the update; only called where ``repeats_forward``."""

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the parameters: plain numbers and tensors."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` returned."""

    @property
    def cost(self) -> str:
        """What the method costs beyond one forward and one backward pass, for the log."""
        return "one backward pass"


class GradientBalancer(Balancer):
    """A method that weighs by the losses' gradients on the shared parameters.

    The update of the shared parameters is Σ w_t g_t; a task's own parameters get their own loss's gradient, unweighted
    (as in torchjd's ``mtl_backward`` and LibMTL).
    """

    by_gradient = True

    def __init__(self, terms: Sequence[str]) -> None:
        super().__init__(terms)
        self.passes, self.shared_size = len(self.terms), 0

    def forward(self, losses: Tensor, present: Tensor, moment: Moment) -> Tensor:
        """Return ones: what the total loss of a step shows. The weights come from :meth:`weigh`."""
        return present.to(losses.dtype)

    @abstractmethod
    def weigh(self, gramian: Tensor, losses: Tensor, terms: Sequence[str], moment: Moment) -> Tensor:
        """Return the weights of the losses that are present.

        Args:
            gramian: G = J Jᵀ of the gradients averaged over processes and accumulated batches, float64 T×T on the CPU.
            losses: The losses as they are, without static weights, detached, T, float64 on the CPU.
            terms: Their names: those of ``self.terms`` that are present, in that order.
            moment: When.

        Returns:
            float64, T, on the CPU. Ones mean: as with the static weights alone.
        """

    def will_differentiate(self, passes: int, size: int) -> None:
        """Take note of what the steps cost, for the log.

        Args:
            passes: Backward passes of a batch.
            size: Numbers in the shared parameters that train.
        """
        self.passes, self.shared_size = passes, size

    @property
    def cost(self) -> str:
        """Backward passes, and the memory in which their gradients are kept (float32)."""
        plural = "es" if self.passes > 1 else ""
        kept = self.passes * self.shared_size * 4 / 1e6
        return (
            f"{self.passes} backward pass{plural} over the shared part instead of 1, "
            f"{self.passes} × {self.shared_size / 1e6:.2f} M gradients kept ({kept:.0f} MB)"
        )
