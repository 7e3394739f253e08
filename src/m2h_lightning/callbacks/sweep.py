"""Tells a sweep how a run fares while it trains, and stops the run where the sweep's rule gives it up."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from m2h_lightning.errors import ConfigError, MissingExtraError
from m2h_lightning.runs.cell import METRIC, PRUNER, STORAGE, STUDY, TRIAL

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import Trial


class ReportToStudy(Callback):
    """After each validation, reports a metric to the run's trial in an Optuna study; step = number of validations.

    Process 0 alone speaks to the storage. It asks the study's rule whether to give the run up, and all processes stop
    at the same place; the run then ends in good order, with the status "pruned". A run that has just trained its last
    epoch is not given up any more. Nothing but wrong settings ends a training here: while the storage cannot be
    reached, the values are kept, and reported after a later validation.

    Args:
        storage: URL of the storage.
        study: Name of the study.
        trial: Id of the trial in the storage.
        metric: Name of a validation metric, such as ``val/score``. A metric of the test is not reported: there is
            none during training.
        rule: W&B's ``early_terminate``: ``{type: hyperband, min_iter, eta}``; None never gives up.

    Raises:
        ConfigError: Runs are to be given up by a metric of the test.
    """

    def __init__(
        self, storage: str, study: str, trial: int, metric: str, rule: Mapping[str, Any] | None = None
    ) -> None:
        if rule is not None and metric.startswith("test/"):
            raise ConfigError(
                f"metric.name is {metric}, which is known after training only, but runs are to be given up "
                f"(early_terminate); use {metric.replace('test/', 'val/', 1)}"
            )
        self.storage, self.study, self.trial, self.metric, self.rule = storage, study, trial, metric, rule
        self.values: list[float] = []  # after each validation; NaN where the metric was not logged
        self.pruned_at: int | None = None
        self._opened: Trial | None = None
        self._warned = False

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ) -> ReportToStudy | None:
        """Return the callback as the worker of a sweep asks for it, or None outside of one.

        Raises:
            ConfigError: A variable is wrong.
        """
        if STORAGE not in env:
            return None
        try:
            rule = json.loads(env[PRUNER]) if env.get(PRUNER) else None
            return cls(env[STORAGE], env[STUDY], int(env[TRIAL]), env[METRIC], rule)
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"{STORAGE} is set, but {STUDY}, {TRIAL}, {METRIC} or {PRUNER} is missing or wrong ({error}); "
                f"m2h sweep worker sets them: unset {STORAGE} to train outside of a sweep"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Keep what was reported: a resumed run may belong to another trial, which knows nothing of it."""
        return {"values": list(self.values), "pruned_at": self.pruned_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` kept."""
        self.values = list(state_dict["values"])
        self.pruned_at = state_dict["pruned_at"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further where the run was given up before it was resumed."""
        if self.pruned_at is not None:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the metric and ask for the decision."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or self.metric.startswith("test/"):
            return
        value = trainer.callback_metrics.get(self.metric)
        if value is None and not self.values:
            there = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/"))) or "none"
            raise ConfigError(
                f"the validation logs no metric {self.metric} (there are {there}); change metric.name in the sweep file"
            )
        self.values.append(float("nan") if value is None else float(value))
        answer: bool | str = self._tell(trainer) if trainer.is_global_zero else False
        if trainer.world_size > 1:
            answer = trainer.strategy.broadcast(answer, src=0)
        if isinstance(answer, str):
            raise ConfigError(answer)
        if answer:
            self.pruned_at = len(self.values)
            trainer.should_stop = True
            rank_zero_info(f"the sweep's rule gives this run up after validation {self.pruned_at}")

    def _tell(self, trainer: Trainer) -> bool | str:
        """Report what the trial lacks.

        Returns:
            Whether the run is to be given up, or what is wrong with the settings.
        """
        try:
            self._opened = self._opened or self._open()
            given_up = False
            known = self._opened.storage.get_trial(self._opened._trial_id).intermediate_values
            for step, value in enumerate(self.values, 1):
                if step not in known:  # all of them, in order: the rule compares runs at certain steps
                    self._opened.report(value, step)
                    given_up = self.rule is not None and self._opened.should_prune()
            if given_up and not _trained(trainer):
                self._opened.set_user_attr("pruned_at", len(self.values))
                return True
        except (ConfigError, MissingExtraError) as error:
            return str(error)
        except Exception as error:  # DataError, or of any kind that a database's or a network's client raises
            self._opened = None
            if not self._warned:
                self._warned = True
                rank_zero_warn(
                    f"the sweep's storage cannot be reached ({type(error).__name__}: {' '.join(str(error).split())}); "
                    "training goes on, and values are reported later"
                )
        return False

    def _open(self) -> Trial:
        import optuna
        from optuna.samplers import RandomSampler

        from m2h_lightning.storages.url import open_storage

        study = optuna.load_study(
            study_name=self.study,
            storage=open_storage(self.storage, Path.cwd()),
            sampler=RandomSampler(),  # values were drawn by the worker; any other one would prepare to draw
            pruner=_pruner(self.rule),
        )
        return optuna.trial.Trial(study, self.trial)


def _pruner(rule: Mapping[str, Any] | None) -> BasePruner:
    """Return Optuna's form of W&B's rule: one bracket of successive halving, asynchronous."""
    from optuna.pruners import NopPruner, SuccessiveHalvingPruner

    if rule is None:
        return NopPruner()
    if rule.get("type") != "hyperband":
        raise ConfigError(f"early_terminate: the type {rule.get('type')!r} is not known; use hyperband")
    return SuccessiveHalvingPruner(min_resource=int(rule["min_iter"]), reduction_factor=int(rule.get("eta", 3)))


def _trained(trainer: Trainer) -> bool:
    """Whether the validation that ends is the last one."""
    if 0 <= trainer.max_steps <= trainer.global_step:
        return True
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        return False
    last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    return bool(last) and trainer.current_epoch + 1 >= trainer.max_epochs
