"""Stages of one run: what is trained, how fast and with which losses, from which epoch on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from m2h_lightning.errors import ConfigError
from m2h_lightning.recipe.schedule import ScheduleConfig


@dataclass
class StageConfig:
    """One stage of a run; stages follow one another, each with its own warm-up and decay of the learning rate.

    Args:
        name: Name of the stage, for the log ("pretrain", "finetune").
        epochs: Its length in epochs.
        lr: Peak learning rate; null takes ``model.optimizer.lr``.
        freeze: What of the backbone trains, as ``model.backbone.freeze``, which null takes.
        consistency: Whether the consistency losses of ``model.consistency`` act in this stage.
    """

    name: str
    epochs: int
    lr: float | None = None
    freeze: bool | str | None = None
    consistency: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if self.epochs < 1:
            raise ConfigError(f"model.stages: stage '{self.name}' has {self.epochs} epochs; give at least 1")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ConfigError(f"model.stages: stage '{self.name}' has lr {self.lr}; it must be above 0")


class Timeline:
    """Says for every epoch and step what the stages ask for.

    Without stages a run is one stage of as many epochs as the trainer runs.

    Args:
        stages: The stages in order, or None.
        schedule: Learning-rate schedule of each stage.
        lr: ``model.optimizer.lr``, the rate on which factors are based.
        freeze: ``model.backbone.freeze``.
        unfreeze: ``model.backbone.unfreeze``: what to train of the backbone from an epoch on, by epoch.
    """

    def __init__(
        self,
        stages: Sequence[StageConfig] | None,
        schedule: ScheduleConfig,
        lr: float,
        freeze: bool | str,
        unfreeze: dict[int, bool | str] | None = None,
    ) -> None:
        self.stages = list(stages or [])
        self.schedule, self.lr, self.freeze = schedule, lr, freeze
        self.unfreeze = {int(epoch): value for epoch, value in (unfreeze or {}).items()}

    @property
    def epochs(self) -> int | None:
        """Epochs of all stages; None without stages."""
        return sum(stage.epochs for stage in self.stages) or None

    def stage_at(self, epoch: int) -> StageConfig | None:
        """Return the stage of an epoch (the last one for any epoch after it); None without stages."""
        raise NotImplementedError

    def freeze_at(self, epoch: int) -> bool | str:
        """Return what of the backbone is frozen in an epoch, as ``model.backbone.freeze`` says it."""
        return self.freeze

    def strength(self, epoch: float, start_epoch: int, ramp: float) -> float:
        """Return the share, 0 to 1, with which a consistency loss acts.

        Args:
            epoch: Epochs since the run began, with the fraction of the running one.
            start_epoch: First epoch in which the loss may act.
            ramp: Epochs over which it rises linearly from the first one in which it acts.
        """
        if epoch < start_epoch:
            return 0.0
        return 1.0 if ramp <= 0 else min(1.0, (epoch - start_epoch) / ramp)

    def lr_factor(self, step: int, total: int, steps_per_epoch: int) -> float:
        """Return the factor on the base learning rate at an optimiser step.

        Args:
            step: Optimiser steps done.
            total: Optimiser steps of the whole run.
            steps_per_epoch: Optimiser steps of one epoch.
        """
        return self.schedule.factor(step, total)
