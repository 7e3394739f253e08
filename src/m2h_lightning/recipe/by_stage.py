"""The part of the LightningModule that follows the stages of a run: what trains, at which rate, for how long."""

from __future__ import annotations

import gc
import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.nn.parallel import DistributedDataParallel

from m2h_lightning.errors import ConfigError
from m2h_lightning.network import M2HNet
from m2h_lightning.objectives import Objective
from m2h_lightning.objectives.settings import start_epochs
from m2h_lightning.recipe.optimizer import OptimizerConfig, make_optimizer
from m2h_lightning.recipe.stages import Timeline
from m2h_lightning.recipe.strategies import in_parts


class ByStage(L.LightningModule):
    """Hooks that take up each stage when it begins; without stages and unfreezing they change nothing.

    The optimiser holds all that ever trains from the start on. What is frozen has no gradient, and an optimiser passes
    over parameters without one: neither weight decay nor old averages move them.
    """

    timeline: Timeline
    objective: Objective
    net: M2HNet
    optimizer_config: OptimizerConfig
    _told: str | None = None

    def prepare_stages(self) -> None:
        """Check that the trainer can follow the stages.

        Raises:
            ConfigError: The length of the run fits neither the stages nor what is set for an epoch, or the strategy
                cuts the parameters to pieces by what trains when the run begins.
        """
        self._check_length(self.trainer.max_epochs, self.trainer.max_steps)
        strategy, freezes = self.trainer.strategy, self.timeline.freezes
        if len(set(map(str, freezes.values()))) > 1 and in_parts(strategy):
            raise ConfigError(
                f"trainer.strategy is {type(strategy).__name__}, which cannot change what trains while the run goes on "
                f"({', '.join(freezes)}); use ddp, or one value for the whole run"
            )

    def _check_length(self, max_epochs: int | None, max_steps: int | None) -> None:
        """Refuse stages and settings that do not fit the length of the run; a trial run of some batches is exempt."""
        if not getattr(self.trainer, "fast_dev_run", False):
            self.timeline.check_length(max_epochs, max_steps, start_epochs(self.objective.consistency))

    def on_train_start(self) -> None:
        """Take up the stage of the epoch: a run that is resumed inside one gets no :meth:`on_train_epoch_start`."""
        self._take_up_stage()

    def on_train_epoch_start(self) -> None:
        """Take up the stage of the epoch."""
        self._take_up_stage()

    def _take_up_stage(self) -> None:
        """Freeze what the stage asks for, and tell when it begins."""
        epoch = self.current_epoch
        freeze = self.timeline.freeze_at(epoch)
        if freeze != self.net.backbone.freeze:
            self.net.set_freeze(freeze)
            make_wrapper_anew(self.trainer.strategy)
        text, stage = self.timeline.describe(epoch), self.timeline.stage_at(epoch)
        if text is None or text == self._told:
            return
        self._told = text
        trainable = sum(p.numel() for p in self.net.parameters() if p.requires_grad) / 1e6
        consistency = ""
        if stage is not None and self.objective.consistency_weights:
            consistency = f", consistency {'on' if stage.consistency else 'off'}"
        rank_zero_info(f"{text} ({trainable:.2f} M trainable){consistency}")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the network's parameter groups: all that trains in any epoch."""
        return self.net.parameter_groups(list(self.timeline.freezes.values()))

    def configure_optimizers(self) -> Any:
        """Return the optimiser with its parameter groups and the schedule.

        Raises:
            ConfigError: The run has no end, or what is set for an epoch would never come.
        """
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ConfigError(
                "trainer.max_epochs and trainer.max_steps set no limit, but the learning-rate schedule needs the run's "
                "length; give one of them"
            )
        total = int(steps)
        self.trainer.fit_loop.setup_data()  # a limit in steps alone has made no loader yet
        batches = self.trainer.num_training_batches
        # A loader of unknown length is one epoch without end.
        per_epoch = total if math.isinf(batches) else math.ceil(batches / self.trainer.accumulate_grad_batches)
        per_epoch = max(1, per_epoch)
        self._check_length(math.ceil(total / per_epoch), None)  # a limit in steps, in epochs
        rate = self.objective.balancing.uncertainty_lr or self.optimizer_config.lr
        balancing = list(self.objective.balancer.parameters())
        optimizer = make_optimizer(self.optimizer_config, self.parameter_groups(), balancing, rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.timeline.lr_factor(step, total, per_epoch)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def make_wrapper_anew(strategy: Any) -> None:
    """Wrap the model of a distributed run again, after a change of what trains; other runs need nothing.

    ``DistributedDataParallel`` averages the gradients of the parameters that required one when it was made: those that
    train since then would drift apart from process to process, and for those frozen since then it would wait. Every
    process has to call this, between an optimiser step and the next forward pass.

    Args:
        strategy: The trainer's strategy.
    """
    wrapper = strategy.model
    if not isinstance(wrapper, DistributedDataParallel):
        return
    strategy.model = wrapper.module
    del wrapper
    gc.collect()  # the old wrapper's hooks on the parameters go with it, and two wrappers must not answer one gradient
    strategy.configure_ddp()
