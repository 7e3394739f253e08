"""``python -m m2h_lightning.sweeps.planning.probe -- WORDS``: measures some steps of ``m2h fit WORDS``, prints JSON.

Everything that a run writes goes to a temporary folder, which is removed; data that are rendered on first use stay
where the run would look for them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sized
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from m2h_lightning.callbacks.run_folder import peak_memory_mb
from m2h_lightning.cli import one_line
from m2h_lightning.commands.arguments import Arguments
from m2h_lightning.commands.training import TrainingCLI, run_cli
from m2h_lightning.errors import ConfigError, M2HError
from m2h_lightning.runs import folder as runs
from m2h_lightning.sweeps.planning.cost import Measured, extrapolate
from m2h_lightning.sweeps.planning.fit_reading import prepare

WARM_UP, STEPS, VALIDATION = 2, 8, 2
"""Training batches that are not counted, those that are, and validation batches (of which the first is not)."""

LONGEST_S = 120.0
"""Seconds of training after which fewer steps have to do."""


class _Enough(Exception):
    """Ends a training run from within."""


class Clock(Callback):
    """Takes the times of validation batches (in Lightning's sanity check) and training batches; then ends the run."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.setup_s = 0.0
        self.steps: list[float] = []
        self.validation: list[float] = []
        self.val_end_s = 0.0
        self._mark = self._first = 0.0

    def _now(self) -> float:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()  # a step is over when the GPU has done it
        return time.monotonic()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the end of the preparations."""
        self._mark = self._now()
        self.setup_s = self._mark - self.began

    def on_validation_batch_end(self, *_: Any) -> None:
        """Note how long a batch took, its loading included."""
        now = self._now()
        self.validation.append(now - self._mark)
        self._mark = now

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how long the metrics took beside their batches."""
        self.val_end_s = self._now() - self._mark

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the first step begins; loaders are started before."""
        self._mark = self._now()
        if not self._first:
            self._first = self._mark
            self.setup_s += 0.0 if self.setup_s else self._mark - self.began

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Note how long a batch took, its loading included.

        Raises:
            _Enough: Enough was measured.
        """
        now = self._now()
        self.steps.append(now - self._mark)
        self._mark = now
        if len(self.steps) >= WARM_UP + STEPS or now - self._first > LONGEST_S:
            raise _Enough

    def measured(self, trainer: Trainer, test_batches: int) -> Measured:
        """Return the times and the schedule they are of."""
        steps = self.steps[WARM_UP:] or self.steps[-1:]
        validation = self.validation[1:] or self.validation or [0.0]
        given = trainer.val_check_batch
        every = int(trainer.num_training_batches if given is None or given == float("inf") else given)
        epochs, steps_limit = trainer.max_epochs, trainer.max_steps
        return Measured(
            self.setup_s,
            statistics.median(steps),
            statistics.median(validation),
            self.val_end_s,
            int(trainer.num_training_batches),
            None if epochs is None or epochs < 0 else epochs,
            None if steps_limit is None or steps_limit < 0 else steps_limit * trainer.accumulate_grad_batches,
            int(sum(trainer.num_val_batches)),
            every,
            trainer.check_val_every_n_epoch,
            test_batches,
        )


class ProbeCLI(TrainingCLI):
    """Trains as ``fit`` does until enough was measured."""

    quiet = True
    found: dict[str, Any]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with a look at validation before training, whatever the run has."""
        self.clock = Clock()
        trainer = super().instantiate_trainer(**{**kwargs, "num_sanity_val_steps": VALIDATION})
        trainer.callbacks.insert(0, self.clock)  # type: ignore[attr-defined]
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        with contextlib.suppress(_Enough):  # the way in which the clock ends a run
            self.trainer.fit(self.model, datamodule=self.datamodule)
        if not self.clock.steps:
            raise ConfigError("training made no step, so there is nothing to measure")
        measured = self.clock.measured(self.trainer, self._test_batches())
        self.found.update(seconds=extrapolate(measured), peak_memory_mb=peak_memory_mb(self.trainer), **vars(measured))

    def _test_batches(self) -> int:
        if not self.options.run.test:
            return 0
        self.datamodule.setup("test")
        loader: Any = self.datamodule.test_dataloader()
        count = len(loader) if isinstance(loader, Sized) else 0
        limit = self.trainer.limit_test_batches
        return min(count, int(limit) if isinstance(limit, int) else int(count * limit))


def main(words: list[str]) -> int:
    """Measure, print JSON as the last line; return the exit code."""
    folder = tempfile.mkdtemp(prefix="m2h-probe-")
    own = ["--run.root", folder, "--run.experiment", "probe", "--run.id", "probe", "--run.wandb", "disabled"]
    found: dict[str, Any] = {}
    try:
        prepare()
        run_cli(type("ProbeCLI", (ProbeCLI,), {"found": found}), Arguments.read("fit", [*words, *own]))
    except M2HError as error:
        print(one_line(error), file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if runs.global_rank() == 0:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:] if sys.argv[1:2] == ["--"] else sys.argv[1:]))
