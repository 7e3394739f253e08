"""An exponential moving average of the weights, kept beside those that train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from m2h_lightning.errors import ConfigError
from m2h_lightning.recipe.strategies import in_parts

CURRENT = "current_model_state"
"""Key of a checkpoint's training weights; ``state_dict`` holds the average there."""


def check_ema(decay: float | None) -> None:
    """Refuse a decay with which there is no average.

    Raises:
        ConfigError: It is not between 0 and 1.
    """
    if decay is not None and not 0 < decay < 1:
        raise ConfigError(f"model.ema is {decay}; give a decay above 0 and below 1, as 0.999, or null for no average")


def decay_at(decay: float, averaged: int) -> float:
    """Return the decay of an update: min(decay, (1 + n) / (10 + n)) after n updates.

    The first steps of a run are forgotten quickly, as in TensorFlow's ``ExponentialMovingAverage`` with
    ``num_updates``: with 0.999 from the start, a run of some hundred steps would be judged by what it began with.
    """
    return min(decay, (1 + averaged) / (10 + averaged))


class WeightEMA(WeightAveraging):
    """Lightning's weight averaging with an exponential average: validated, tested and stored as the model.

    Batch-norm statistics are averaged as the weights are; counters are copied. A checkpoint holds the average as its
    ``state_dict`` and the training weights beside it, so that a resumed run goes on with both.

    In four things it differs from Lightning's own ``EMAWeightAveraging``: the decay grows at first; the average lives
    where the module trains (Lightning makes it before the module is moved there, and leaves it on the CPU); checkpoints
    written while the average stands in the module, after training or inside a validation, still tell the two apart; and
    it leaves the module alone once training is over, when the same trainer tests or validates a checkpoint.

    Args:
        decay: Share of the average that an optimiser step leaves, above 0, below 1.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=True, multi_avg_fn=self._average)
        self.decay = decay
        self._shown = False  # the module holds the average, and the averaged model the training weights

    @torch.no_grad()
    def _average(self, averages: Sequence[Tensor], weights: Sequence[Tensor], averaged: Tensor | int) -> None:
        """Move averages of one kind and device towards the weights, in place."""
        if averages[0].is_floating_point():
            # A lerp of equal values is that value to the last bit: what is frozen stays what it was.
            torch._foreach_lerp_(list(averages), list(weights), 1 - decay_at(self.decay, int(averaged)))
        else:
            torch._foreach_copy_(list(averages), list(weights))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the module when training begins.

        Raises:
            ConfigError: The strategy cuts the weights into parts, of which no average can be kept.
        """
        if stage == "fit" and in_parts(trainer.strategy):
            raise ConfigError(
                f"model.ema: {type(trainer.strategy).__name__} keeps parts of the weights only; use trainer.strategy "
                "ddp, or set model.ema to null"
            )
        super().setup(trainer, pl_module, stage)
        self._shown = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the average to where the module trains."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module."""
        self._show(trainer, pl_module, True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the training weights back."""
        self._show(trainer, pl_module, False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module."""
        self._show(trainer, pl_module, True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module also when a resumed run had nothing left to train."""
        self._show(trainer, pl_module, True)

    def _show(self, trainer: Trainer, pl_module: LightningModule, average: bool) -> None:
        if trainer.state.fn == TrainerFn.FITTING and average != self._shown:
            self._swap_models(pl_module)
            self._shown = average

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the average as the model, and the training weights beside it."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._shown:
            checkpoint[CURRENT], checkpoint["state_dict"] = checkpoint["state_dict"], checkpoint[CURRENT]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take both up again when training goes on."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def store_average(self, checkpoint: dict[str, Any]) -> None:
        """Make the average the model of a checkpoint that was written without callbacks (``save_weights_only``)."""
        if CURRENT not in checkpoint and self._average_model is not None and not self._shown:
            prefix = "module."
            states = self._average_model.state_dict().items()
            checkpoint["state_dict"] = {k.removeprefix(prefix): v for k, v in states if k.startswith(prefix)}


def take_training_weights(checkpoint: dict[str, Any]) -> None:
    """Make the training weights the model of a checkpoint that has an average: a run without one goes on from those.

    Args:
        checkpoint: Content of the checkpoint; changed in place.
    """
    if CURRENT in checkpoint:
        checkpoint["state_dict"] = checkpoint[CURRENT]
        rank_zero_info("model.ema is null: training goes on from the checkpoint's training weights, not their average")
