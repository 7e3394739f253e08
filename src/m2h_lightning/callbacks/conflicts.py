"""Do the tasks pull shared weights the same way? Measures the losses' gradients on a block while a run trains."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from m2h_lightning.callbacks.heatmap import Table, draw_tables
from m2h_lightning.callbacks.pictures import send_picture, write_png
from m2h_lightning.callbacks.run_folder import run_folder
from m2h_lightning.errors import ConfigError, did_you_mean
from m2h_lightning.module import M2HModule
from m2h_lightning.network import M2HNet
from m2h_lightning.objectives.gradients import gramian, task_gradients
from m2h_lightning.objectives.objective import StepLosses
from m2h_lightning.objectives.processes import mean_over_processes
from m2h_lightning.recipe.strategies import in_parts
from m2h_lightning.runs.folder import PICTURES

BLOCKS = ("mstr", "wmca", "msf", "backbone", "shared")

_SUMS = ("counts", "conflicts", "cosines", "similarities")  # T×T each, over all measurements
_RED, _WHITE, _BLUE, _GREEN = (178, 24, 43), (247, 247, 247), (33, 102, 172), (27, 120, 55)


def compare(gradients: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare gradients pair by pair.

    Args:
        gradients: T×P.

    Returns:
        Lengths, T; cosines, T×T, NaN where one has no length; magnitude similarities 2‖a‖‖b‖/(‖a‖² + ‖b‖²), T×T, 1
        for equal lengths (Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, definition 2).
    """
    products = gramian(gradients).numpy()
    squares = np.diag(products)
    lengths = np.sqrt(squares)
    scales = np.outer(lengths, lengths)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.where(scales > 0, np.clip(products / scales, -1, 1), np.nan)
        similarities = np.where(scales > 0, 2 * scales / (squares[:, None] + squares), np.nan)
    return lengths, cosines, similarities


def block_parameters(net: M2HNet, block: str) -> list[nn.Parameter]:
    """Return the parameters of a shared block that train now; of the backbone those of its last such unit."""
    if block == "shared":
        return net.shared_parameters()
    if block == "backbone":
        for name in reversed(net.backbone.units):
            found = [p for p in net.backbone.model.get_submodule(name).parameters() if p.requires_grad]
            if found:
                return found
        return []
    module = getattr(net, block)
    return [] if module is None else [p for p in module.parameters() if p.requires_grad]


class GradientConflicts(L.Callback):
    """Logs how the gradients of the losses on a shared block relate, and draws it into ``pictures/conflicts.png``.

    Every ``every`` optimiser steps, of the step's first batch: per pair of losses the cosine, the magnitude similarity
    and the conflict rate (share of all measurements since the run began in which the cosine was below 0), and per loss
    the length of its gradient. Losses count as the balancing method sees them: with their static weights. Without a
    label (or a gradient) in a measurement a loss is left out of it. A measurement costs one backward pass per loss
    down to the block, and the memory of one gradient of the block per loss.

    Args:
        every: Optimiser steps from one measurement to the next.
        block: "mstr" (token reassembly), "msf" and "wmca" (both shared where WMCA is on), "backbone" (the last of its
            units that trains), or "shared": all parameters that several tasks reach.

    Raises:
        ConfigError: A value is wrong.
    """

    def __init__(self, every: int = 50, block: str = "mstr") -> None:
        if every < 1:
            raise ConfigError(f"GradientConflicts.every is {every}; give optimiser steps, at least 1")
        if block not in BLOCKS:
            raise ConfigError(
                f"GradientConflicts.block: unknown '{block}', use one of {', '.join(BLOCKS)}"
                f"{did_you_mean(block, BLOCKS)}"
            )
        self.every, self.block = every, block
        self.names: list[str] = []
        self._active = False
        self._last = -1  # optimiser step of the last measurement
        self._clear()

    def _clear(self) -> None:
        """Forget all measurements."""
        size = (len(self.names), len(self.names))
        self.counts, self.conflicts = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.cosines, self.similarities = np.zeros(size), np.zeros(size)
        self.measured = 0

    def check(self, module: M2HModule) -> None:
        """Refuse a block that the network does not have, that never trains, or that no two tasks share.

        Raises:
            ConfigError: Which, why, and the blocks that can be chosen.
        """
        net = module.net
        problems = {
            "wmca": "model.wmca.enabled is false" if net.wmca is None else None,
            "msf": "model.wmca.enabled is false: every task has its own" if net.wmca is None else None,
            "backbone": None if self._backbone_trains(module) else "nothing of it trains (model.backbone.freeze)",
        }
        if problems.get(self.block):
            usable = [block for block in BLOCKS if not problems.get(block)]
            raise ConfigError(
                f"GradientConflicts.block is '{self.block}', but {problems[self.block]}; use {' or '.join(usable)}"
            )

    @staticmethod
    def _backbone_trains(module: M2HModule) -> bool:
        """Tell whether any part of the backbone trains in any epoch of the run."""
        return any(module.net.backbone.trainable_names(value) for value in module.timeline.freezes.values())

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check block and strategy; with one task, as in a single-task baseline, say that nothing is measured.

        Raises:
            ConfigError: The block cannot be measured, or the strategy keeps parts of the parameters on each process.
        """
        if stage != "fit":
            return
        assert isinstance(pl_module, M2HModule)
        self._active = len(pl_module.tasks) > 1
        if not self._active:
            rank_zero_info(f"GradientConflicts: nothing to compare, {' '.join(pl_module.tasks)} is trained alone")
            return
        self.check(pl_module)
        strategy = trainer.strategy
        if in_parts(strategy):
            raise ConfigError(
                f"GradientConflicts needs whole parameters on every process; {type(strategy).__name__} "
                "(trainer.strategy) keeps parts: use ddp, or take the callback out"
            )
        if pl_module.compile_network:
            # A compiled backward pass would reuse memory that the next one through the same graph needs.
            torch._functorch.config.donated_buffer = False
        self.names = [_short(name) for name in pl_module.objective.terms]
        self._clear()

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Measure, while the graph of the step is there."""
        step = trainer.global_step
        if not self._active or step % self.every or step == self._last:
            return
        self._last = step
        assert isinstance(pl_module, M2HModule)
        values = self._measure(pl_module)
        for logger in trainer.loggers if values else ():
            # Not through self.log, which keeps only the steps that trainer.log_every_n_steps picks.
            logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=step)

    def _measure(self, module: M2HModule) -> dict[str, float]:
        losses = module.step_losses
        parameters = block_parameters(module.net, self.block)
        terms = _terms(losses)
        if not parameters or not terms:  # a stage in which the block is frozen; a batch without labels
            return {}
        # fp16 gradients need the loss scale as in training, lest small ones become 0; lengths are divided by it.
        scale = module.loss_scale or 1.0
        gradients = task_gradients([loss * scale for loss in terms.values()], parameters)
        gradients = mean_over_processes(gradients)
        if not torch.isfinite(gradients).all():  # a step that the scaler skips
            return {}
        lengths, cosines, similarities = compare(gradients)
        self.measured += 1
        values = {f"conflicts/norm/{name}": float(n) / scale for name, n in zip(terms, lengths, strict=True)}
        for (i, first), (j, second) in combinations(enumerate(terms), 2):
            if np.isnan(cosines[i, j]):
                continue
            self._count(first, second, float(cosines[i, j]), float(similarities[i, j]))
            pair, a, b = f"{first}-{second}", self.names.index(first), self.names.index(second)
            values[f"conflicts/cosine/{pair}"] = float(cosines[i, j])
            values[f"conflicts/similarity/{pair}"] = float(similarities[i, j])
            values[f"conflicts/rate/{pair}"] = float(self.conflicts[a, b] / self.counts[a, b])
        return values

    def _count(self, first: str, second: str, cosine: float, similarity: float) -> None:
        a, b = self.names.index(first), self.names.index(second)
        for place in ((a, b), (b, a)):
            self.counts[place] += 1
            self.conflicts[place] += cosine < 0
            self.cosines[place] += cosine
            self.similarities[place] += similarity

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the picture anew."""
        if not self.measured or not trainer.is_global_zero:
            return
        picture = self.picture(trainer.global_step)
        write_png(run_folder(trainer) / PICTURES / "conflicts.png", picture)
        send_picture(trainer, "pictures/conflicts", picture)

    def picture(self, step: int) -> np.ndarray:
        """Return the means over all measurements as three tables, uint8 RGB."""
        with np.errstate(invalid="ignore"):
            cosines, similarities, rates = (
                np.where(self.counts > 0, sums / self.counts, np.nan)
                for sums in (self.cosines, self.similarities, self.conflicts)
            )
        # Gradients of many numbers are nearly orthogonal: with colours up to ±1 most pictures would be white.
        largest = float(np.nanmax(np.abs(cosines), initial=0.0))
        reach = next(limit for limit in (0.1, 0.2, 0.5, 1.0) if largest <= limit)
        tables = [
            Table("cosine, mean (below 0: they disagree)", cosines, (-reach, reach), (_RED, _WHITE, _BLUE), "{:+.2f}"),
            Table("magnitude similarity, mean (1: equally long)", similarities, (0, 1), (_WHITE, _GREEN), "{:.2f}"),
            Table("conflict rate (share with cosine below 0)", rates, (0, 1), (_WHITE, _RED), "{:.0%}"),
        ]
        times = f"{self.measured} measurement{'s' if self.measured > 1 else ''}"
        return draw_tables(self.names, tables, f"gradients on {self.block}: {times} in {step} steps")

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, so that the rate of a resumed run goes on."""
        sums = {key: torch.from_numpy(getattr(self, key).copy()) for key in _SUMS}
        return {"block": self.block, "names": list(self.names), "measured": self.measured, "last": self._last, **sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the sums of the same losses on the same block; others are forgotten, with a line that says so."""
        if not self._active:
            return
        if (state_dict["block"], state_dict["names"]) != (self.block, self.names):
            rank_zero_info(
                f"GradientConflicts: {', '.join(self.names)} on {self.block} are counted from here: the checkpoint's "
                f"counts are of {', '.join(state_dict['names'])} on {state_dict['block']}"
            )
            return
        self.measured, self._last = state_dict["measured"], state_dict["last"]
        for key in _SUMS:
            setattr(self, key, state_dict[key].numpy().copy())


def _short(term: str) -> str:
    return term.removeprefix("consistency/")


def _terms(step: StepLosses) -> dict[str, Tensor]:
    """Return the losses that take part in a step, times their static weights, each with a graph of its own."""
    return {_short(name): step.static[name] * loss for name, loss in step.losses.items() if step.present[name]}
