"""Stages of one run: what is trained, how fast and with which losses, from which epoch on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from m2h_lightning.errors import ConfigError
from m2h_lightning.network.config import parse_freeze, plain_freeze
from m2h_lightning.recipe.schedule import ScheduleConfig


@dataclass
class StageConfig:
    """One stage of a run; stages follow one another, each with its own warm-up and decay of the learning rate.

    Args:
        name: Name of the stage, for the log ("pretrain", "finetune").
        epochs: Its length in epochs.
        lr: Peak learning rate; null takes ``model.optimizer.lr``. Other rates (of balancing) change by the same factor.
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
        if not self.name.strip():
            raise ConfigError("model.stages: a stage without a name; give one, such as pretrain or finetune")
        if self.epochs < 1:
            raise ConfigError(f"model.stages: stage '{self.name}' has {self.epochs} epochs; give at least 1")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ConfigError(f"model.stages: stage '{self.name}' has lr {self.lr}; it must be above 0")
        if self.freeze is not None:
            parse_freeze(self.freeze, f"model.stages: freeze of stage '{self.name}'")


class Timeline:
    """Says for every epoch and step what the stages ask for.

    Without stages a run is one stage of as many epochs as the trainer runs.

    Args:
        stages: The stages in order, or None.
        schedule: Learning-rate schedule of each stage.
        lr: ``model.optimizer.lr``, the rate on which factors are based.
        freeze: ``model.backbone.freeze``.
        unfreeze: ``model.backbone.unfreeze``: what to train of the backbone from an epoch on, by epoch.

    Raises:
        ConfigError: Stages and ``unfreeze`` both say what of the backbone trains.
    """

    def __init__(
        self,
        stages: Sequence[StageConfig] | None,
        schedule: ScheduleConfig,
        lr: float,
        freeze: bool | str,
        unfreeze: Mapping[int, bool | str] | None = None,
    ) -> None:
        self.stages = list(stages or [])
        self.schedule, self.lr, self.freeze = schedule, lr, freeze
        self.unfreeze = dict(sorted((unfreeze or {}).items()))
        self._ends = list(accumulate(stage.epochs for stage in self.stages))
        both = [stage.name for stage in self.stages if stage.freeze is not None and self.unfreeze]
        if both:
            raise ConfigError(
                f"model.backbone.unfreeze and freeze of stage '{both[0]}' (model.stages) both say what of the backbone "
                "trains; keep one of them"
            )

    @property
    def epochs(self) -> int | None:
        """Epochs of all stages; None without stages."""
        return self._ends[-1] if self.stages else None

    def _number(self, epoch: int) -> int:
        """Return the number of an epoch's stage, from 0."""
        return next((i for i, end in enumerate(self._ends) if epoch < end), len(self.stages) - 1)

    def _first_epoch(self, number: int) -> int:
        return self._ends[number] - self.stages[number].epochs

    def stage_at(self, epoch: int) -> StageConfig | None:
        """Return the stage of an epoch (the last one for any epoch after it); None without stages."""
        return self.stages[self._number(epoch)] if self.stages else None

    def freeze_at(self, epoch: int) -> bool | str:
        """Return what of the backbone is frozen in an epoch, as ``model.backbone.freeze`` says it."""
        stage = self.stage_at(epoch)
        if stage is not None and stage.freeze is not None:
            return stage.freeze
        begun = [value for begin, value in self.unfreeze.items() if begin <= epoch]
        return begun[-1] if begun else self.freeze

    @property
    def freezes(self) -> dict[str, bool | str]:
        """Every value that ``model.backbone.freeze`` takes in the course of the run, by the key that sets it."""
        found: dict[str, bool | str] = {}
        for stage in self.stages:
            if stage.freeze is not None:
                found[f"model.stages: freeze of stage '{stage.name}'"] = stage.freeze
        if not self.stages or any(stage.freeze is None for stage in self.stages):
            found["model.backbone.freeze"] = self.freeze
        return found | {f"model.backbone.unfreeze.{epoch}": value for epoch, value in self.unfreeze.items()}

    def acting_since(self, epoch: int, start_epoch: int) -> int | None:
        """Return the epoch from which on a consistency loss has acted without a break; None where it does not act.

        Args:
            epoch: The epoch that is asked about.
            start_epoch: First epoch in which the loss may act.
        """
        if epoch < start_epoch:
            return None
        if not self.stages:
            return start_epoch
        number = self._number(epoch)
        if not self.stages[number].consistency:
            return None
        while number > 0 and self.stages[number - 1].consistency:
            number -= 1
        return max(start_epoch, self._first_epoch(number))

    def strength(self, epoch: float, start_epoch: int, ramp: float) -> float:
        """Return the share, 0 to 1, with which a consistency loss acts now.

        Args:
            epoch: Epochs since the run began, with the fraction of the running one.
            start_epoch: First epoch in which the loss may act.
            ramp: Epochs over which it rises linearly from the first one in which it acts; again after a stage without.
        """
        since = self.acting_since(int(epoch), start_epoch)
        if since is None:
            return 0.0
        return 1.0 if ramp <= 0 else min(1.0, (epoch - since) / ramp)

    def lr_factor(self, step: int, total: int, steps_per_epoch: int) -> float:
        """Return the factor on the base learning rate at an optimiser step.

        Args:
            step: Optimiser steps done.
            total: Optimiser steps of the whole run.
            steps_per_epoch: Optimiser steps of one epoch.
        """
        if not self.stages:
            return self.schedule.factor(step, total)
        number = self._number(step // steps_per_epoch)
        stage = self.stages[number]
        done = step - self._first_epoch(number) * steps_per_epoch
        return (
            self.schedule.factor(done, stage.epochs * steps_per_epoch)
            * (self.lr if stage.lr is None else stage.lr)
            / self.lr
        )

    def describe(self, epoch: int) -> str | None:
        """Return what holds in an epoch, for the log; the same words in all epochs in which nothing changes.

        None where neither stages nor ``unfreeze`` have said anything yet.
        """
        freeze = f"backbone freeze {plain_freeze(self.freeze_at(epoch))}"
        stage = self.stage_at(epoch)
        if stage is not None:
            lr = self.lr if stage.lr is None else stage.lr
            return f"stage {stage.name}: {self._span(self._number(epoch))}, lr {lr:g}, {freeze}"
        begun = [begin for begin in self.unfreeze if begin <= epoch]
        return f"from epoch {begun[-1]} on: {freeze}" if begun else None

    def _span(self, number: int) -> str:
        first, last = self._first_epoch(number), self._ends[number] - 1
        return f"epochs {first}–{last}" if last > first else f"epoch {first}"

    def check_length(
        self,
        max_epochs: int | None,
        max_steps: int | None,
        starts: Mapping[str, int],
        place: Callable[[str], str] = lambda key: "",
    ) -> None:
        """Refuse a run whose length does not fit, and settings for epochs that never come.

        Args:
            max_epochs: ``trainer.max_epochs``; None and -1 stand for no limit of its own.
            max_steps: ``trainer.max_steps``; None and -1 stand for no limit.
            starts: ``start_epoch`` of the consistency losses that are switched on, by the name of their section.
            place: Returns where a key was written, for messages.

        Raises:
            ConfigError: The trainer runs longer or shorter than the stages, or a consistency loss or an unfreezing
                begins after the last epoch.
        """
        stages = f"model.stages{place('model.stages')}"
        if self.epochs is not None:
            parts = ", ".join(f"{stage.name} {stage.epochs}" for stage in self.stages)
            if max_steps not in (None, -1):
                raise ConfigError(
                    f"trainer.max_steps is {max_steps}{place('trainer.max_steps')}, but {stages} says how long the run "
                    f"is, in epochs ({parts}); leave max_steps out"
                )
            if max_epochs not in (None, self.epochs):
                raise ConfigError(
                    f"trainer.max_epochs is {max_epochs}{place('trainer.max_epochs')}, but {stages} has {self.epochs} "
                    f"epochs ({parts}); leave max_epochs out or change the stages"
                )
        epochs = max_epochs if self.epochs is None else self.epochs
        if epochs is None or epochs < 0:
            return
        for epoch in self.unfreeze:
            if epoch >= epochs:
                key = f"model.backbone.unfreeze.{epoch}"
                raise ConfigError(f"{key}{place(key)}: the run has {epochs} epochs, counted from 0; unfreeze earlier")
        for section, start in starts.items():
            if any(self.acting_since(epoch, start) is not None for epoch in range(start, epochs)):
                continue
            key = f"model.consistency.{section}.start_epoch"
            reason = f"the run has {epochs} epochs, counted from 0"
            if start < epochs:
                reason = f"no stage of {stages} from then on has consistency: true"
            raise ConfigError(
                f"{key} is {start}{place(key)}, but {reason}: the loss would never act; start it earlier or set its "
                "weight to 0"
            )
