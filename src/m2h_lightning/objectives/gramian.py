"""Balancing by the losses' gradients: from the Gramian G = J Jᵀ of T gradients to T weights.

No method needs more than G, whose entries are the products of the gradients: T×T numbers, equal on all processes.
"""

from __future__ import annotations

import importlib
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from m2h_lightning.errors import ConfigError
from m2h_lightning.objectives.base import GradientBalancer, Moment

TINY = 1e-12
"""Squared length, as a share of the mean one, below which a gradient counts as zero."""

PROJECTION_ORDER = 2
"""``purpose`` of pcgrad's draws in :meth:`.Moment.generator`."""


class GramianBalancer(GradientBalancer):
    """A method whose weights follow from the gradients alone.

    G is divided by its mean diagonal first: no method here depends on the losses' common scale. A zero gradient has no
    say: its term gets weight 1, which moves nothing, and the others are weighed without it.
    """

    def weigh(self, gramian: Tensor, losses: Tensor, terms: Sequence[str], moment: Moment) -> Tensor:
        """Return the weights; see :meth:`.GradientBalancer.weigh`. A solver that fails warns and gives ones."""
        weights = torch.ones_like(losses)
        lengths = gramian.diagonal()
        at = (lengths > TINY * lengths.mean()).nonzero().flatten().tolist()
        if len(at) < 2:
            return weights
        # In the order of their names: neither rounding nor a random choice then depends on the order of the tasks.
        at.sort(key=lambda i: terms[i])
        part = gramian[at][:, at]
        reason = "it gives no finite weights"
        try:
            found = self.solve(part / part.diagonal().mean(), moment)
        except Exception as error:  # whatever a solver raises: a step without balance is better than no run
            found, reason = torch.full((len(at),), torch.nan, dtype=weights.dtype), str(error) or type(error).__name__
        if not torch.isfinite(found).all():
            warnings.warn(
                f"{type(self).__name__} found no weights at step {moment.step}, all are 1 there: {reason}", stacklevel=2
            )
            return weights
        weights[at] = found.to(weights.dtype)
        return weights

    @abstractmethod
    def solve(self, gramian: Tensor, moment: Moment) -> Tensor:
        """Return the weights of at least two gradients, none zero, from G with mean diagonal 1."""


class TorchJD(GramianBalancer):
    """A method of torchjd (Quinton and Rey, arXiv 2406.16232).

    Args:
        terms: Names of the losses.
        method: Name in ``model.balancing.name``, for messages.
        weighting: Class in ``torchjd.aggregation``.
        mean: Whether torchjd's weights are those of a mean: they are then multiplied by T, so that equal weights are
            ones for every method, as loud as the static weights beside what is not balanced.
        options: Its arguments.

    Raises:
        ConfigError: torchjd, or a package this method needs in it, is not installed.
    """

    def __init__(self, terms: Sequence[str], method: str, weighting: str, mean: bool, **options: Any) -> None:
        super().__init__(terms)
        self.mean = mean
        try:
            # Late, as the package is optional.
            make = getattr(importlib.import_module("torchjd.aggregation"), weighting)
            self.weighting = make(**options)
        except ImportError as error:
            raise ConfigError(
                f"model.balancing.name: '{method}' needs packages that are not installed ({error}); "
                "pip install 'm2h-lightning[balancing]'"
            ) from error

    def solve(self, gramian: Tensor, moment: Moment) -> Tensor:
        """Return torchjd's weights."""
        # PCGrad draws the order of its projections from the global generator of the CPU: give it one of ours.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.set_state(moment.generator(PROJECTION_ORDER).get_state())
            weights = self.weighting(gramian)
        return weights * len(gramian) if self.mean else weights


class UPGrad(TorchJD):
    """The sum of the gradients' projections onto the cone where no loss rises (Quinton and Rey, arXiv 2406.16232).

    torchjd adds 1e-4 of G's trace to its diagonal, for products of rounded numbers: beside a gradient that is 50 times
    longer, a loss would not be protected any more. The products here are exact enough for much less.
    """

    regularisation = 1e-8

    def __init__(self, terms: Sequence[str]) -> None:
        super().__init__(terms, "upgrad", "UPGradWeighting", mean=True)
        self.weighting.projector.reg_eps = self.regularisation


class MGDA(GramianBalancer):
    """The shortest convex combination of the gradients, times T (Désidéri 2012; Sener and Koltun, NeurIPS 2018).

    min ½ ‖Jᵀα‖² over α ≥ 0, Σ α = 1. Not by Frank-Wolfe as in the paper (and in torchjd), which within a hundred steps
    ended up to 0.2 away from the solution, but exactly: over u ≥ 0, ‖Jᵀu‖² + (Σ u − 1)² is least at a multiple of α.
    """

    def solve(self, gramian: Tensor, moment: Moment) -> Tensor:
        """Return T·α."""
        from scipy.optimize import nnls  # late: not every command that imports this package needs it

        root = torch.cat([square_root(gramian), gramian.new_ones(1, len(gramian))])
        right = torch.zeros(len(root), dtype=root.dtype)
        right[-1] = 1
        found = torch.from_numpy(nnls(root.numpy(), right.numpy())[0])
        return found * (len(found) / found.sum())


class NashMTL(GramianBalancer):
    """The Nash bargaining solution: G α = 1/α, α > 0 (Navon et al., ICML 2022, equation 2).

    It is the minimum of the convex ½ αᵀGα − Σ log α, which a damped Newton method finds to full precision. torchjd's
    class solves a series of approximations with a solver that is no longer maintained, starting from its last answer: a
    state which no checkpoint would hold. Theirs clips the length of the update; that is left to
    ``trainer.gradient_clip_val``.

    What is solved is the same equation for the cosines C of the gradients, C β = 1/β, and α_t = β_t / ‖g_t‖: the method
    is blind to the scale of each loss. With G of mean diagonal 1 the update has the length of a sum of T orthogonal
    gradients, for which all weights are 1.
    """

    damping = 1e-5
    """Added to the diagonal of C: opposite gradients would ask for infinite weights."""
    steps = 200

    def solve(self, gramian: Tensor, moment: Moment) -> Tensor:
        """Return α.

        Raises:
            RuntimeError: No convergence.
        """
        lengths = gramian.diagonal().sqrt()
        matrix = gramian / lengths.outer(lengths) + self.damping * torch.eye(len(gramian), dtype=gramian.dtype)
        weights = torch.ones_like(lengths)
        for _ in range(self.steps):
            slope = matrix @ weights - 1 / weights
            move = torch.linalg.solve(matrix + torch.diag(weights**-2), -slope)
            # The Newton decrement of a self-concordant function: a step of 1 / (1 + decrement) stays above 0 and always
            # descends; full steps converge quadratically once it is small (Nesterov and Nemirovskii).
            decrement = float((-slope @ move).clamp(min=0).sqrt())
            weights = weights + move * (1.0 if decrement < 0.25 else 1 / (1 + decrement))
            if decrement < 1e-9:
                return weights / lengths
        raise RuntimeError(f"no convergence in {self.steps} steps")


class GradNorm(GradientBalancer):
    """Learned weights w that make all losses fall at the same rate (Chen et al., ICML 2018).

    With gradient lengths n_t, n̄ the mean of w_t n_t, and r_t = ℓ_t / ℓ_t(0) over the mean of these ratios: w descends
    on Σ |w_t n_t − n̄ r_t^α|, the target taken as constant, and is scaled back to its former sum, T in all. The step
    itself uses w from before the update. Lengths count in units of their mean, so that the rate does not depend on the
    losses' common scale. The paper takes the gradients on the last shared layer; here they are those on all shared
    parameters, and w weighs these alone, as in the other methods.

    Args:
        terms: Names of the losses.
        alpha: How strongly slow losses are favoured.
        lr: Learning rate of w.
    """

    floor = 1e-3
    """Smallest weight before scaling: descent must not turn a loss around."""

    def __init__(self, terms: Sequence[str], alpha: float, lr: float) -> None:
        super().__init__(terms)
        self.alpha, self.lr = alpha, lr
        self.weights = torch.ones(len(self.terms), dtype=torch.float64)
        self.first = torch.zeros(len(self.terms), dtype=torch.float64)  # ℓ(0); 0 until a loss was seen

    def weigh(self, gramian: Tensor, losses: Tensor, terms: Sequence[str], moment: Moment) -> Tensor:
        """Return the weights; see :meth:`.GradientBalancer.weigh`. Absent losses keep theirs."""
        at = [self.terms.index(name) for name in terms]
        self.first[at] = torch.where(self.first[at] > 0, self.first[at], losses)
        used = self.weights[at]
        lengths = gramian.diagonal().clamp(min=0).sqrt()
        lengths = lengths / lengths.mean().clamp(min=1e-300)
        mean = (used * lengths).mean()
        # A loss that was 0 from its first time on has not fallen: ratio 1.
        ratios = torch.where(self.first[at] > 0, losses / self.first[at].clamp(min=1e-300), 1.0)
        if mean > 0 and ratios.sum() > 0:
            target = (ratios / ratios.mean()) ** self.alpha
            slope = lengths * torch.sign(used * lengths - mean * target)
            moved = (used - self.lr * slope).clamp(min=self.floor)
            self.weights[at] = moved * (used.sum() / moved.sum())
        return used

    def state(self) -> dict[str, Any]:
        """Return w and ℓ(0)."""
        return {"weights": self.weights.clone(), "first": self.first.clone()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over w and ℓ(0)."""
        self.weights, self.first = state["weights"].clone(), state["first"].clone()


def square_root(gramian: Tensor) -> Tensor:
    """Return R with RᵀR = G, T×T."""
    values, vectors = torch.linalg.eigh(gramian)
    return (vectors * values.clamp(min=0).sqrt()).T
