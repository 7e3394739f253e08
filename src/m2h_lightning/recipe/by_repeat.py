"""The part of the LightningModule that shows a batch again, after the update, to a balancing method that wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.network import M2HNet
from m2h_lightning.objectives import Objective
from m2h_lightning.objectives.second_look import untouched_statistics
from m2h_lightning.recipe.strategies import in_parts


class ByRepeat(L.LightningModule):
    """Hooks for methods that ``repeats_forward``; with any other they change nothing."""

    objective: Objective
    net: M2HNet
    _seen: tuple[dict[str, Any], dict[str, float]] | None = None  # last batch of an optimiser step, and its strengths

    def _not_finite(self, means: Mapping[str, Tensor], batch: dict[str, Any], when: str) -> DataError:
        """Return the error for a loss that is NaN or infinite."""
        raise NotImplementedError

    def prepare_by_repeat(self) -> None:
        """Check that the network can be used outside of a training step.

        Raises:
            ConfigError: The strategy gathers the weights for that only.
        """
        strategy = self.trainer.strategy
        if self.objective.balancer.repeats_forward and in_parts(strategy):
            raise ConfigError(
                f"model.balancing.name: '{self.objective.balancing.name}' looks at each batch again after the update; "
                f"{type(strategy).__name__} (trainer.strategy) keeps parts of the weights only: use ddp, or another "
                "method"
            )

    def keep_for_second_look(self, batch: dict[str, Any], strengths: dict[str, float]) -> None:
        """Keep the batch of a training step, and with which strengths its consistency losses act."""
        if self.objective.balancer.repeats_forward:
            self._seen = (batch, strengths)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Make the step; then show the method what it did to the losses of the last batch.

        Here and not when the batch ends: checkpoints are written before the module hears of that.

        Raises:
            DataError: A loss is NaN or infinite after the update.
        """
        super().optimizer_step(*arguments, **options)
        if self._seen is None:
            return
        (batch, strengths), self._seen = self._seen, None
        with torch.no_grad(), self.trainer.precision_plugin.train_step_context(), untouched_statistics(self.net):
            means = self.objective.look_again(self.net(batch["image"]), batch, strengths)
        if not torch.isfinite(torch.stack(list(means.values()))).all():
            raise self._not_finite(means, batch, "the same batch after the update")
