"""Keeps the run folder true: random states in every checkpoint, metrics cut at a resume, the result at the end."""

from __future__ import annotations

import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from m2h_lightning.callbacks.stop import validates_again
from m2h_lightning.data.loader import ResumableDataLoader
from m2h_lightning.module import M2HModule
from m2h_lightning.runs import folder as runs
from m2h_lightning.runs.loggers import RunCSVLogger, define_wandb_axes
from m2h_lightning.runs.machine import processor

STATE_KEY = "m2h_run"


def run_folder(trainer: Trainer) -> Path:
    """Return the run folder of a trainer; the same on every rank. Only rank 0 may write in it."""
    return Path(trainer.default_root_dir)


class RunFolder(Callback):
    """Makes a resumed run repeat the uninterrupted one, tells loggers the configuration, writes ``result.json``.

    The random states of every process travel in the checkpoint as plain tensors. A checkpoint saved at the end of an
    epoch is restored before the next epoch's data order is drawn, one saved inside an epoch after it.

    Args:
        folder: The run folder.
        config: The configuration as plain nested mappings.
        resumed: Whether the run continues in its own folder.
    """

    def __init__(self, folder: Path, config: dict[str, Any], resumed: bool = False) -> None:
        self.folder = folder
        self.config = config
        self.resumed = resumed
        self._configured = False
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._metrics_before: dict[str, float] = {}
        self._states: list[dict[str, Any]] = []
        self._loader: dict[str, int] | None = None
        self._mid_epoch = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand every logger the same flat configuration, once; ``config.yaml`` was written with the folder."""
        if self._configured or not trainer.is_global_zero:
            return
        self._configured = True
        for logger in trainer.loggers:
            logger.log_hyperparams(runs.plain(runs.flatten(self.config)))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the random states of all processes; every process comes here, whichever writes the file."""
        loader = trainer.train_dataloader
        states: list[Any] = [rng_state()]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            states = [None] * dist.get_world_size()
            dist.all_gather_object(states, rng_state())
        checkpoint[STATE_KEY] = {
            "rng": states,
            "mid_epoch": not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch,
            "loader": loader.state_dict() if isinstance(loader, ResumableDataLoader) else None,
            "seconds": self.seconds,
            "metrics": {name: float(value) for name, value in self.metrics(trainer).items()},
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over what :meth:`on_save_checkpoint` stored, and cut ``metrics.csv`` where the checkpoint stands."""
        if trainer.state.fn != "fit":
            return
        state = checkpoint.get(STATE_KEY, {})
        self._mid_epoch = bool(state.get("mid_epoch", False))
        self._states = state.get("rng", [])
        self._loader = state.get("loader")
        if not self.resumed:  # a new run that goes on from another run's checkpoint: files of its own
            return
        self._seconds_before = float(state.get("seconds", 0.0))
        self._metrics_before = state.get("metrics", {})
        for logger in trainer.loggers:
            if isinstance(logger, RunCSVLogger):
                logger.keep_before(int(checkpoint["global_step"]), validates_again(checkpoint))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random states before the data order of the next epoch is drawn."""
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            define_wandb_axes(trainer.loggers)
        if not self._mid_epoch:
            self._restore(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random states inside an epoch, whose data order was drawn before the checkpoint."""
        if not self._mid_epoch:
            return
        # Lightning restores a loader's place only where nobody asked for the number of steps before; a schedule does.
        if self._loader is not None and isinstance(trainer.train_dataloader, ResumableDataLoader):
            trainer.train_dataloader.load_state_dict(self._loader)
        self._mid_epoch = False
        self._restore(trainer)

    def _restore(self, trainer: Trainer) -> None:
        if not self._states:
            return
        if len(self._states) == trainer.world_size:
            set_rng_state(self._states[trainer.global_rank])
        else:
            rank_zero_warn(
                f"the checkpoint is of {len(self._states)} processes, this run has {trainer.world_size}: it continues, "
                "but not with the same random numbers"
            )
        self._states = []

    @property
    def seconds(self) -> float:
        """Wall time of the run in seconds, earlier incarnations up to their last checkpoint included."""
        return self._seconds_before + time.monotonic() - self._started

    def metrics(self, trainer: Trainer) -> dict[str, Any]:
        """Return the metrics at the end of training; those of a validation before a resume are in the checkpoint."""
        return {**self._metrics_before, **trainer.callback_metrics}

    @staticmethod
    def progress(trainer: Trainer) -> dict[str, Any]:
        """Return how far training came, and how far it was to go."""
        budget = {"max_epochs": trainer.max_epochs, "max_steps": trainer.max_steps}
        return {"epochs": trainer.current_epoch, "steps": trainer.global_step, "budget": budget}

    def write_result(
        self,
        trainer: Trainer,
        verb: str,
        metrics: dict[str, float],
        progress: dict[str, Any],
        pruned_at: int | None = None,
    ) -> None:
        """Write ``result.json``; the last thing a successful run does, on rank 0 only.

        Args:
            trainer: The trainer after its work.
            verb: ``fit``, ``validate``, ``test`` or ``predict``.
            metrics: Final metrics by their ``stage/task/metric`` name.
            progress: What :meth:`progress` returned after training; empty for the other verbs.
            pruned_at: Number of the validation after which a sweep gave the run up; None where it came to its end.
        """
        module, data = trainer.lightning_module, getattr(trainer, "datamodule", None)
        parameters = list(module.parameters())
        runs.write_json(
            self.folder / runs.RESULT,
            {
                **({"status": "finished"} if pruned_at is None else {"status": "pruned", "pruned_at": pruned_at}),
                "command": verb,
                "experiment": self.folder.parent.name,
                "run": self.folder.name,
                "metrics": runs.nested_metrics(metrics),
                **scoring(module, metrics),
                **progress,
                "fast_dev_run": bool(getattr(trainer, "fast_dev_run", False)),
                "seed": self.config.get("seed_everything"),
                "config_hash": runs.config_hash(self.config),
                "data": {"module": type(data).__name__, **getattr(data, "description", {})},
                "network": network(module),
                "parameters": {
                    "total": sum(parameter.numel() for parameter in parameters),
                    "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
                },
                "wall_time_s": round(self.seconds, 2),
                "peak_memory_mb": peak_memory_mb(trainer),
                "device": device(trainer),
                "git": runs.git_state(),
                "versions": runs.versions(),
                "time": runs.timestamp(),
            },
        )
        (self.folder / runs.FAILURE).unlink(missing_ok=True)
        (self.folder / runs.CHECKPOINTS / runs.STOPPED_CHECKPOINT).unlink(missing_ok=True)


def scoring(module: Any, metrics: dict[str, float]) -> dict[str, Any]:
    """Return what ``result.json`` says of how the run was scored: enough to know what may stand beside it.

    Args:
        module: The module of the run.
        metrics: Final metrics by their ``stage/task/metric`` name; tells the stage whose headlines count.
    """
    if not isinstance(module, M2HModule):
        return {}
    stage = "test" if "test/loss" in metrics else "val"
    return {
        "tasks": list(module.tasks),
        "evaluation": module.metrics_config.describe(module.facts["name"]),
        "headlines": module.evaluator(stage).headlines,
    }


def network(module: Any) -> dict[str, Any] | None:
    """Return what ``result.json`` says of the network, or None for a module of another kind."""
    if not isinstance(module, M2HModule):
        return None
    backbone = module.hparams["backbone"]
    return {
        "preset": module.hparams["preset"],
        "channels": module.hparams["channels"],
        "wmca": module.hparams["wmca"],
        "ggfm": module.hparams["ggfm"],
        "backbone": {key: backbone[key] for key in ("name", "freeze")} | {"weights": module.backbone_weights},
        "init_weights": module.init_weights,
    }


def rng_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators as tensors and plain numbers."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None,
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what :func:`rng_state` returned."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def device(trainer: Trainer) -> dict[str, Any]:
    """Return what the run ran on."""
    root = trainer.strategy.root_device
    name = torch.cuda.get_device_name(root) if root.type == "cuda" else processor()
    return {
        "type": root.type,
        "name": name,
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
        "threads": torch.get_num_threads(),
    }


def peak_memory_mb(trainer: Trainer) -> dict[str, float]:
    """Return the peak memory of rank 0 in MB (10⁶ bytes): of the process and, on a GPU, of its allocations."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB on Linux
    peak = {"host": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)}
    root = trainer.strategy.root_device
    if root.type == "cuda":
        peak["device"] = round(torch.cuda.max_memory_allocated(root) / 1e6, 1)
    return peak
