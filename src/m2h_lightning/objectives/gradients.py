"""The gradient of each loss on the parameters that several tasks share, and one step's gradient made of them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch
import torch.distributed as dist
from torch import Tensor, nn

from m2h_lightning.objectives.base import GradientBalancer, Moment
from m2h_lightning.objectives.objective import StepLosses
from m2h_lightning.objectives.processes import mean_over_processes, world_size

CHUNK = 2**22
"""Columns of J that are turned to float64 at once."""


def task_gradients(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the gradient of every loss on the parameters, as this process sees it; the graph stays usable.

    Take losses of their own, as ``StepLosses.losses`` has them: entries of one stacked tensor would each send zeros
    through the graphs of all others.

    Args:
        losses: T scalars with their graph.
        parameters: What to differentiate by, P numbers in all.

    Returns:
        float32 (float64 where a parameter is), T×P, detached; zeros where a loss does not reach a parameter.
    """
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        rows.append(flat(found, parameters))
    return torch.stack(rows)


def flat(gradients: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return gradients as one vector, float32 or float64; None counts as zeros."""
    kind = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).detach().reshape(-1).to(kind)
            for g, p in zip(gradients, parameters, strict=True)
        ]
    )


def gramian(rows: Tensor) -> Tensor:
    """Return J Jᵀ in float64 on the CPU, T×T, of J, T×P."""
    where = "cpu" if rows.device.type == "mps" else rows.device  # which has no float64
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=where)
    for part in rows.split(CHUNK, dim=1):
        exact = part.to(device=where, dtype=torch.float64)
        total += exact @ exact.T
    return total.cpu()


class StepGradients:
    """Collects the losses' gradients over the batches of one optimiser step, and makes the step's gradient of them.

    In :meth:`add` every parameter's ``.grad`` gets the plain sum of all gradients, as one backward pass would give it;
    the gradients on the shared parameters are kept one by one beside it. In :meth:`finish` everything is averaged over
    the processes (DistributedDataParallel must not do it), and the shared parameters get Σ w_t g_t + the gradient of
    what is not balanced.

    Args:
        terms: Names of the balanced losses.
        shared: Trainable parameters that several of them reach, P numbers.
        own: The other trainable ones.
        rest: Whether there are losses that are not balanced.
    """

    def __init__(
        self, terms: Sequence[str], shared: Sequence[nn.Parameter], own: Sequence[nn.Parameter], rest: bool
    ) -> None:
        self.terms, self.shared, self.own = list(terms), list(shared), list(own)
        self.passes = len(self.terms) + rest
        self._rows: Tensor | None = None  # passes×P; what is not balanced comes last
        self._losses: dict[str, list[float]] = {}  # of the terms that were present, one per batch
        self._static: dict[str, float] = {}

    def add(self, step: StepLosses, factor: Tensor) -> None:
        """Differentiate the losses of a batch; frees its graph.

        Args:
            step: Its losses.
            factor: What the losses are multiplied by: the scale of float16, the share of one of several batches.
        """
        everything = [*self.shared, *self.own]
        # To the host in one go: each number for itself would wait for the device anew.
        table = torch.stack([torch.stack([step.weights[name], step.means[name]]) for name in step.losses])
        numbers = dict(zip(step.losses, table.tolist(), strict=True))
        present = step.present
        passes = [[name] for name in step.balanced if present[name]]
        rest = [name for name in step.losses if name not in step.balanced and present[name]]
        passes += [rest] if rest else []
        for i, names in enumerate(passes):
            found = torch.autograd.grad(
                [step.losses[name] for name in names],
                everything,
                # Static weight times factor, as the gradient the pass starts from: float16 must not underflow.
                grad_outputs=[(step.weights[name] * factor).to(step.losses[name]) for name in names],
                retain_graph=i < len(passes) - 1,
                allow_unused=True,
            )
            self._keep(found, -1 if names is rest else self.terms.index(names[0]))
        for parameter in everything:
            if parameter.grad is None:  # reached by an absent loss alone: zero, as multiplying the loss by zero gives
                parameter.grad = torch.zeros_like(parameter)
        for name in step.balanced:
            if present[name]:
                self._static[name], mean = numbers[name]
                self._losses.setdefault(name, []).append(mean)

    @torch.no_grad()
    def _keep(self, found: Sequence[Tensor | None], row: int) -> None:
        """Add the gradients of one pass to ``.grad``, and those of shared parameters to a row."""
        for parameter, gradient in zip([*self.shared, *self.own], found, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                # A copy: autograd may hand out one tensor for two parameters.
                parameter.grad = gradient.detach().clone()
            else:
                parameter.grad += gradient
        if self.shared:
            vector = flat(found[: len(self.shared)], self.shared)
            if self._rows is None:
                self._rows = vector.new_zeros(self.passes, len(vector))
            self._rows[row] += vector

    def agree_on_overflow(self) -> None:
        """Make all processes see a gradient that is not finite on one of them, so that all skip the step."""
        parameters = [*self.shared, *self.own]
        if world_size() == 1 or not parameters:
            return
        finite = torch.stack([torch.isfinite(p.grad).all() for p in parameters if p.grad is not None]).all()
        if mean_over_processes(finite.to(torch.float32)) < 1:
            first = parameters[0]
            first.grad = torch.full_like(first, torch.nan)

    @torch.no_grad()
    def finish(self, balancer: GradientBalancer, moment: Moment, scale: float = 1.0) -> dict[str, float] | None:
        """Put the step's gradient into ``.grad``.

        Args:
            balancer: Finds the weights.
            moment: When.
            scale: What the collected gradients are multiplied by still; those in ``.grad`` are no longer.

        Returns:
            What every loss that was present is multiplied by on the shared parameters, static weight included; None
            where a gradient is not finite: the plain sum is left then, as if nothing were balanced.
        """
        _average([p.grad for p in self.own if p.grad is not None])
        terms = [name for name in self.terms if name in self._losses]
        if self._rows is None:
            return dict(self._static)
        rows = self._rows
        if scale != 1:
            rows /= scale
        _average([rows])
        products = gramian(rows)
        if world_size() > 1:  # one Gramian for all, should equal rows give another one on other hardware
            products = mean_over_processes(products.to(rows.device)).cpu()
        weights = torch.ones(len(rows), dtype=torch.float64)
        finite = bool(torch.isfinite(products).all())
        if finite and terms:
            at = [self.terms.index(name) for name in terms]
            losses = torch.tensor([fmean(self._losses[name]) for name in terms], dtype=torch.float64)
            weights[at] = balancer.weigh(products[at][:, at], losses, terms, moment)
        combined = weights.to(rows) @ rows
        start = 0
        for parameter in self.shared:
            end = start + parameter.numel()
            assert parameter.grad is not None
            parameter.grad.copy_(combined[start:end].view(parameter.shape))
            start = end
        if not finite:
            return None
        return {name: float(weights[self.terms.index(name)]) * self._static[name] for name in terms}


def _average(tensors: Sequence[Tensor]) -> None:
    """Average tensors over all processes, in place and in one message; every process has to call it alike."""
    processes = world_size()
    if processes == 1 or not tensors:
        return
    if len(tensors) == 1:
        dist.all_reduce(tensors[0])
        tensors[0] /= processes
        return
    together = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(together)
    together /= processes
    start = 0
    for tensor in tensors:
        tensor.copy_(together[start : start + tensor.numel()].view(tensor.shape))
        start += tensor.numel()
