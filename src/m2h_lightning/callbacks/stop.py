"""Stops a training run at a signal, so that ``--run.resume`` goes on as if it had not been stopped."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from m2h_lightning.runs import folder as runs

_STATE = "m2h_stop"
_VALIDATION = "epoch_loop.val_loop.batch_progress"

EVERY = 16
"""Steps (or batches of an evaluation) between two questions to the other processes on a GPU, where asking makes the
host wait for the device."""


class Stopped(BaseException):
    """The run was told to stop. Like Ctrl-C no error, and not to be swallowed by who handles errors."""


class StopAtSignal(Callback):
    """On SIGUSR1 saves ``checkpoints/stopped.ckpt`` and raises :class:`Stopped`; nothing that was trained is lost.

    In training it saves after the running optimiser step; in a validation at once, such that the resumed run begins
    that validation anew. In the test nothing has to be saved: where no other checkpoint holds the end of training,
    one is written before the test begins. Before training a run of one process just ends.

    The signal may reach any of several processes; they agree with a collective of one number per optimiser step, and
    per batch of an evaluation as long as all of them have one: on GPUs every 16th of them.

    Args:
        test_follows: Whether training is followed by a test, which may be stopped too.
        checkpoints: Whether the run keeps checkpoints; if not, none is written before the test.
    """

    def __init__(self, test_follows: bool = False, checkpoints: bool = True) -> None:
        self.test_follows = test_follows
        self.checkpoints = checkpoints
        self._told = False
        self._at_once = False  # nothing is under way: the signal may end the run where it stands
        self._saved = False  # inside an epoch; only the row of the last step is still to be logged
        self._validating = False  # the checkpoint that is being saved stands before a validation
        self._validate_again = False  # the run was resumed from such a checkpoint
        self._common = 0  # batches of the running evaluation that every process has
        self._batch = 0

    @contextlib.contextmanager
    def listening(self, trainer: Trainer) -> Iterator[None]:
        """Wait for the signal; what it did before is restored in the end, but not where the run was stopped.

        A process that was stopped is about to end, and a second signal must not kill it while it closes its files.
        Where Lightning answers to the signal, by putting a job of SLURM back into the queue, that is left alone.
        """
        environment = trainer._accelerator_connector.cluster_environment
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        main = threading.current_thread() is threading.main_thread()
        if requeues or not main or not hasattr(signal, "SIGUSR1"):
            yield
            return
        self._told, self._at_once = False, trainer.world_size == 1
        after = signal.signal(signal.SIGUSR1, self._hear)
        try:
            yield
        except Stopped:
            after = signal.SIG_IGN
            raise
        finally:
            signal.signal(signal.SIGUSR1, after if after is not None else signal.SIG_DFL)

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        first, self._told = not self._told, True
        if first and self._at_once:
            raise Stopped

    def _agreed(self, trainer: Trainer) -> bool:
        """Whether any process was told to stop; all of them have to ask at the same point."""
        if trainer.world_size == 1:
            return self._told
        return trainer.strategy.reduce_boolean_decision(self._told, all=False)

    # ── training ────────────────────────────────────────────────────────────────────────────────────────────────────

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Come last of all callbacks: what the others do after a step, as averaging the weights, is to be saved too."""
        trainer.callbacks = [*(c for c in trainer.callbacks if c is not self), self]  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a stop leaves a checkpoint."""
        self._at_once = False

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save after an optimiser step; what follows an epoch's last one is left to the next hooks."""
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate() or loop.batch_progress.is_last_batch:
            return
        if trainer.global_step % _every(trainer) == 0 and self._agreed(trainer):
            self._save(trainer)
            self._saved = True

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop once the losses of the last step are logged."""
        if self._saved:
            raise Stopped

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See to it that a test can be stopped."""
        quick = bool(getattr(trainer, "fast_dev_run", False))
        if self.test_follows and self.checkpoints and not quick and not _on_disk(trainer):
            self._save(trainer)

    # ── evaluation ──────────────────────────────────────────────────────────────────────────────────────────────────

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before the validation of a training run, if told so meanwhile."""
        if not _inside_training(trainer):
            return
        if self._validate_again:  # the place that a resumed validation was given, see on_save_checkpoint
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset_on_restart()
            self._validate_again = False
        if self._saved or self._agreed(trainer):
            self._stop_validation(trainer)
        self._begin(trainer, trainer.num_val_batches)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop inside the validation of a training run."""
        if _inside_training(trainer) and self._told_in_evaluation(trainer):
            self._stop_validation(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count batches anew."""
        self._begin(trainer, trainer.num_test_batches)

    def on_test_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop the test after training."""
        if self._told_in_evaluation(trainer):
            raise Stopped

    def _begin(self, trainer: Trainer, batches: list[int | float]) -> None:
        count = torch.tensor(int(min(sum(batches), 2**62)), device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            count = trainer.strategy.reduce(count, reduce_op="min")
        self._common, self._batch = int(count), 0

    def _told_in_evaluation(self, trainer: Trainer) -> bool:
        """Whether to stop; where processes have unequal numbers of batches, they agree over those all have."""
        self._batch += 1
        return self._batch <= self._common and self._batch % _every(trainer) == 0 and self._agreed(trainer)

    def _stop_validation(self, trainer: Trainer) -> None:
        self._validating = True
        self._save(trainer)
        raise Stopped

    # ── the checkpoint ──────────────────────────────────────────────────────────────────────────────────────────────

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / runs.CHECKPOINTS / runs.STOPPED_CHECKPOINT)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mark a checkpoint of a stopped validation, so that Lightning begins the validation anew.

        It knows validations that stopped inside a step, and goes back to the batches that were completed: none here.
        Without such a mark it takes the validation for done.
        """
        if not self._validating:
            return
        progress = checkpoint["loops"]["fit_loop"][_VALIDATION]
        before = progress["total"]["completed"] - progress["current"]["completed"]  # of other validations of the epoch
        for name, done in (("total", before), ("current", 0)):
            progress[name].update(ready=done + 1, started=done + 1, processed=done, completed=done)
        progress["is_last_batch"] = False
        checkpoint[_STATE] = {"validate_again": True}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notice that a validation is to be begun anew."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._validate_again = validates_again(checkpoint)


@contextlib.contextmanager
def listening(trainer: Trainer) -> Iterator[None]:
    """Let the trainer's callback of this kind, if it has one, wait for the signal."""
    with contextlib.ExitStack() as stack:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StopAtSignal):
                stack.enter_context(callback.listening(trainer))
        yield


def validates_again(checkpoint: dict[str, Any]) -> bool:
    """Whether a run that goes on from this checkpoint begins with the validation that was stopped."""
    return bool(checkpoint.get(_STATE, {}).get("validate_again", False))


def stopped_text(folder: Path) -> str:
    """Return in one line what a stopped run says."""
    if not runs.checkpoint_candidates(folder):
        return "stopped by a signal before the first checkpoint; start anew"
    return f"stopped by a signal; continue with --run.resume {folder}"


def _every(trainer: Trainer) -> int:
    """Return the number of steps between two questions: each one, where asking costs nothing."""
    return 1 if trainer.world_size == 1 or trainer.strategy.root_device.type == "cpu" else EVERY


def _inside_training(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def _on_disk(trainer: Trainer) -> bool:
    """Whether a checkpoint of the last step was written from which training can go on."""
    return any(
        isinstance(callback, ModelCheckpoint)
        and not callback.save_weights_only
        and callback._last_global_step_saved == trainer.global_step
        and Path(callback._last_checkpoint_saved).exists()
        for callback in trainer.checkpoint_callbacks
    )
