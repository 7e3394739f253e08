"""The part of the LightningModule that lets a balancing method make a step's gradient of the losses' own gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from m2h_lightning.errors import ConfigError
from m2h_lightning.network import M2HNet
from m2h_lightning.objectives import GradientBalancer, Moment, Objective, StepLosses
from m2h_lightning.objectives.gradients import StepGradients
from m2h_lightning.recipe.strategies import in_parts


class ByGradient(L.LightningModule):
    """Hooks for gradient-based balancing under automatic optimisation; with any other method they change nothing.

    The gradients of a window of accumulated batches live exactly as long as ``.grad``: from ``on_before_zero_grad`` to
    ``on_before_optimizer_step``, which comes after float16's scale is taken off and before gradients are clipped.
    """

    objective: Objective
    net: M2HNet
    _step: StepLosses | None
    _gradients: StepGradients | None = None

    def _moment(self) -> Moment:
        """Return when the running training step happens."""
        raise NotImplementedError

    @property
    def by_gradient(self) -> GradientBalancer | None:
        """The balancing method if it weighs by gradients."""
        balancer = self.objective.balancer
        return balancer if isinstance(balancer, GradientBalancer) else None

    def prepare_by_gradient(self) -> None:
        """Check that the trainer can work this way, and tell the method what a step costs; call it before compiling.

        Raises:
            ConfigError: The strategy keeps only parts of the gradients on each process.
        """
        balancer, strategy = self.by_gradient, self.trainer.strategy
        if balancer is None:
            return
        if in_parts(strategy):
            raise ConfigError(
                f"model.balancing.name: '{self.objective.balancing.name}' needs whole gradients on every process; "
                f"{type(strategy).__name__} (trainer.strategy) keeps none: use ddp, or a method of one backward pass"
            )
        self.count_cost()
        # A compiled backward pass would reuse memory that the next one through the same graph needs.
        torch._functorch.config.donated_buffer = False

    def count_cost(self) -> None:
        """Tell a gradient-based method what a step costs with what trains now; others know."""
        if self.by_gradient is not None:
            gradients = self._new_gradients()
            self.by_gradient.will_differentiate(gradients.passes, sum(p.numel() for p in gradients.shared))

    def _new_gradients(self) -> StepGradients:
        objective = self.objective
        training = [p for p in self.parameters() if p.requires_grad]
        # A single task and the consistency losses balanced against it share all there is.
        alone = len(objective.tasks) == 1 and len(objective.balanced) > 1
        shared = training if alone else self.net.shared_parameters()
        inside = {id(p) for p in shared}
        rest = any(name not in objective.balanced for name in objective.terms)
        return StepGradients(objective.balanced, shared, [p for p in training if id(p) not in inside], rest)

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Start anew, as ``.grad`` does."""
        if self.by_gradient is not None:
            self._gradients = self._new_gradients()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Take the averaging of gradients over processes off DistributedDataParallel."""
        self._leave_gradients_alone()

    def _leave_gradients_alone(self) -> None:
        wrapper = self.trainer.strategy.model
        if self.by_gradient is not None and isinstance(wrapper, DistributedDataParallel):
            wrapper.require_backward_grad_sync = False
            wrapper.require_forward_param_sync = True  # buffers still come from the first process

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate the losses one by one; ``loss`` only tells what their sum was multiplied by."""
        if self.by_gradient is None:
            super().backward(loss, *args, **kwargs)
            return
        assert self._step is not None
        assert self._gradients is not None
        (factor,) = torch.autograd.grad(loss, self._step.total, retain_graph=True)
        self._gradients.add(self._step, factor)
        if self.loss_scale is not None:
            self._gradients.agree_on_overflow()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Weigh the gradients, and log the weights."""
        balancer = self.by_gradient
        if balancer is None:
            return
        assert self._gradients is not None
        weights = self._gradients.finish(balancer, self._moment(), self.loss_scale or 1.0)
        self._gradients = None  # T gradients are a lot of memory
        for name, weight in (weights or {}).items():
            self.log(f"train/{name}/weight", weight)
        self._leave_gradients_alone()  # validation may follow: its buffers come from the first process too

    @property
    def loss_scale(self) -> float | None:
        """What float16 training multiplies the loss by now; None in other precisions."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return None if scaler is None else float(scaler.get_scale())

    def _weights_to_log(self, step: StepLosses) -> Sequence[str]:
        """Return the losses whose weight is known before the backward pass."""
        return [name for name in step.weights if self.by_gradient is None or name not in step.balanced]
