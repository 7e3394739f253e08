"""The objective of a training step: losses of tasks and of consistency, weighed by the balancing method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from m2h_lightning.data.raw import INVALID
from m2h_lightning.objectives.base import Moment
from m2h_lightning.objectives.build import build_balancer
from m2h_lightning.objectives.config import BalancingConfig, ConsistencyConfig
from m2h_lightning.objectives.consistency import check_depth_unit, consistency_losses
from m2h_lightning.objectives.processes import mean_over_processes
from m2h_lightning.objectives.settings import check_balancing, check_consistency
from m2h_lightning.tasks import Task

SAMPLING = 0
"""``purpose`` of the tasks' draws in :meth:`Moment.generator`."""


@dataclass
class StepLosses:
    """The losses of one step.

    Attributes:
        losses: Every term's own loss, float32 scalar with its graph: tasks, then ``consistency/…``; 0 without label.
        means: The same, detached, averaged over processes.
        present: Whether any process has a label (and the term was drawn, and acts in this epoch).
        static: Static weight of each term, for consistency losses times their strength now.
        weights: The factor of each term in ``total``, detached: the static weight times the method's.
        balanced: Names of the terms that the balancing method weighs.
        total: What is minimised, as a scalar with its graph.
    """

    losses: dict[str, Tensor]
    means: dict[str, Tensor]
    present: dict[str, bool]
    static: dict[str, float]
    weights: dict[str, Tensor]
    balanced: list[str]
    total: Tensor


class Objective(nn.Module):
    """Computes the losses of a batch and their weighted sum.

    Args:
        tasks: The trained tasks by name.
        loss_weights: Static weight per task.
        balancing: Balancing method.
        consistency: Consistency losses.

    Raises:
        ConfigError: A setting names a task that is not trained, or a package is missing.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        loss_weights: Mapping[str, float],
        balancing: BalancingConfig,
        consistency: ConsistencyConfig,
    ) -> None:
        super().__init__()
        check_balancing(balancing, list(tasks))
        self.consistency_weights = check_consistency(consistency, list(tasks))
        check_depth_unit(tasks, list(self.consistency_weights))
        self.tasks = dict(tasks)
        self.loss_weights = dict(loss_weights)
        self.balancing, self.consistency = balancing, consistency
        self.terms = [*self.tasks, *self.consistency_weights]
        self.balanced = self.terms if balancing.over == "all" else list(self.tasks)
        static = self._static_weights()
        self.balancer = build_balancer(balancing, self.balanced, [static[name] for name in self.balanced])

    def task_losses(self, raw: Mapping[str, Tensor], batch: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return per task the loss and whether this process has a label for it.

        A task without label in the batch has the loss of a label that is unknown everywhere: zero, but with a graph,
        so that every process of a distributed run has gradients for the same parameters.

        Args:
            raw: Raw maps of the network, B×channels×H×W.
            batch: A batch of the sample contract.
        """
        found = {}
        for name, task in self.tasks.items():
            target = batch[name] if name in batch else unknown_label(name, raw[name])
            found[name] = (
                task.loss(raw[name], target, mean_over_processes if self.training else None),
                task.valid_pixels(target).any(),
            )
        return found

    def consistency_losses(
        self, raw: Mapping[str, Tensor], batch: Mapping[str, Any], terms: Sequence[str]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return per consistency loss in ``terms`` its value and whether any pixel took part."""
        agree = mean_over_processes if self.training else None
        return consistency_losses(self.tasks, raw, batch, self.consistency, terms, agree)

    def forward(
        self,
        raw: Mapping[str, Tensor],
        batch: Mapping[str, Any],
        moment: Moment,
        strengths: Mapping[str, float] | None = None,
    ) -> StepLosses:
        """Return the losses of a training batch and their weighted sum.

        Args:
            raw: Raw maps of the network, B×channels×H×W.
            batch: A batch of the sample contract.
            moment: When.
            strengths: Share, 0 to 1, with which each consistency loss acts now; missing ones act in full.
        """
        strengths = {name: (strengths or {}).get(name, 1.0) for name in self.consistency_weights}
        losses, means, labelled = self._measured(raw, batch, strengths)
        names = list(losses)
        present = labelled & self._drawn(names, moment, means.device)
        static = {
            name: weight * strengths.get(name, 1.0) for name, weight in self._static_weights().items() if name in losses
        }
        factors = means.new_tensor([static[name] for name in names])
        at, columns = self._places(names)
        every_mean, every_present = self._for_balancer(names, means, present)
        chosen = self.balancer(every_mean, every_present, moment)
        # What is not balanced counts once. A term that does not take part is multiplied by zero, not left out: its
        # parameters keep (zero) gradients.
        balance = torch.ones_like(means).index_copy(0, torch.tensor(at, device=means.device), chosen[columns]) * present
        total = (balance * torch.stack([static[name] * losses[name] for name in names])).sum()
        extra = self.balancer.regulariser(every_present)
        if extra is not None:
            total = total + extra
        weights = factors * balance.detach()
        return StepLosses(
            losses=losses,
            means=dict(zip(names, means.unbind(), strict=True)),
            present=dict(zip(names, present.tolist(), strict=True)),
            static=static,
            weights=dict(zip(names, weights.unbind(), strict=True)),
            balanced=[name for name in self.balanced if name in losses],
            total=total,
        )

    @torch.no_grad()
    def look_again(
        self,
        raw: Mapping[str, Tensor],
        batch: Mapping[str, Any],
        strengths: Mapping[str, float] | None = None,
    ) -> dict[str, Tensor]:
        """Hand a method that ``repeats_forward`` the losses of the same batch after the update.

        Args:
            raw: Raw maps of the updated network, B×channels×H×W.
            batch: The batch of the last :meth:`forward`.
            strengths: As they were given there.

        Returns:
            The losses, averaged over processes.
        """
        strengths = {name: (strengths or {}).get(name, 1.0) for name in self.consistency_weights}
        losses, means, labelled = self._measured(raw, batch, strengths)
        self.balancer.after_step(*self._for_balancer(list(losses), means, labelled))
        return dict(zip(losses, means.unbind(), strict=True))

    def _measured(
        self, raw: Mapping[str, Tensor], batch: Mapping[str, Any], strengths: Mapping[str, float]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the losses that act, their means over processes, and whether any process has a label for them."""
        found = self.task_losses(raw, batch)
        found |= self.consistency_losses(raw, batch, [term for term, strength in strengths.items() if strength > 0])
        losses = {name: loss for name, (loss, _) in found.items()}
        seen = torch.stack([has.to(torch.float32) for _, has in found.values()])
        # One message for both: a loss is finite or not, and present or not, on all processes alike.
        shared = mean_over_processes(torch.cat([torch.stack(list(losses.values())).detach(), seen]))
        return losses, shared[: len(losses)], shared[len(losses) :] > 0

    def _for_balancer(self, names: list[str], means: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses and presence in the order of ``balanced``, as the balancing method sees them.

        Consistency losses have their full weight here, and their strength only in the sum: a ramp is no fall or rise
        of a loss, and methods that are blind to a loss's scale would undo it.
        """
        static = self._static_weights()
        at, columns = self._places(names)
        every_mean = means.new_zeros(len(self.balanced))
        every_mean[columns] = (means * means.new_tensor([static[name] for name in names]))[at]
        every_present = torch.zeros(len(self.balanced), dtype=torch.bool, device=means.device)
        every_present[columns] = present[at]
        return every_mean, every_present

    def _places(self, names: list[str]) -> tuple[list[int], list[int]]:
        """Return where the balanced ones among these terms stand: in ``names``, and in ``balanced``."""
        balanced = [name for name in self.balanced if name in names]
        return [names.index(name) for name in balanced], [self.balanced.index(name) for name in balanced]

    def _static_weights(self) -> dict[str, float]:
        """Return the weight of every term before any balancing, consistency losses in full."""
        return {**self.loss_weights, **self.consistency_weights}

    def _drawn(self, names: list[str], moment: Moment, device: torch.device) -> Tensor:
        """Return which terms take part in this step, by ``model.balancing.sampling``; consistency losses always do.

        Each task is drawn with its own probability, once per optimiser step: alike on all processes and in all batches
        whose gradients are accumulated. If none was drawn the one that came closest takes part. The losses are not
        divided by the probabilities: a task that is drawn half of the time has half of the say, which is the point.
        """
        sampling = self.balancing.sampling
        drawn = dict.fromkeys(self.tasks, True)
        if sampling:
            # By name: which task gets which number must not depend on their order.
            order = sorted(self.tasks)
            numbers = torch.rand(len(order), generator=moment.generator(SAMPLING)).tolist()
            distance = {task: number / sampling.get(task, 1.0) for task, number in zip(order, numbers, strict=True)}
            reach = max(1.0, min(distance.values()))
            drawn = {task: value < 1 or value == reach for task, value in distance.items()}
        return torch.tensor([drawn.get(name, True) for name in names], device=device)


def unknown_label(task: str, raw: Tensor) -> Tensor:
    """Return a label that is unknown everywhere, in the layout of the sample contract.

    Args:
        task: "semseg", "depth", "normals" or "edges".
        raw: The task's raw map, B×channels×H×W.
    """
    batch, channels, height, width = raw.shape
    if task == "semseg":
        return torch.full((batch, height, width), int(INVALID[task]), dtype=torch.int64, device=raw.device)
    return torch.full((batch, channels, height, width), INVALID[task], device=raw.device)
