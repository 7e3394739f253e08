"""Trains a tiny network with every balancing method; alone, or as one of several processes of a distributed run.

Run by ``test_balancing_training.py``: ``python balancing_processes.py FOLDER``, with the variables that torchrun sets.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import SGD

from m2h_lightning.data.loader import make_loader
from m2h_lightning.data.raw import INVALID
from m2h_lightning.data.sample import to_contract
from m2h_lightning.data.transforms import EvalTransform
from m2h_lightning.module import M2HModule
from m2h_lightning.network import BackboneConfig, WMCAConfig
from m2h_lightning.objectives import BalancingConfig, ConsistencyConfig
from m2h_lightning.objectives.config import GRADIENT_BASED, LOSS_BASED
from samples import QUIET, Planes, PlaneScenes

METHODS = (*LOSS_BASED, *GRADIENT_BASED)
EPOCH = 2
"""Batches of an epoch."""


def steps(method: str) -> int:
    """Until the epochs before matter: dwa has two behind it in the fifth step, stch its warm-up in the third."""
    return 5 if method in ("dwa", "stch") else 3


class Plain(M2HModule):
    """The module with gradient descent: Adam would make much of differences in rounding."""

    def configure_optimizers(self):
        groups = [{"name": group["name"], "params": group["params"]} for group in self.parameter_groups()]
        learned = list(self.objective.balancer.parameters())
        groups += [{"name": "balancing", "params": learned}] if learned else []
        return SGD(groups, lr=0.02, momentum=0.9)


def module(method: str, **changes) -> Plain:
    L.seed_everything(3, verbose=False)
    arguments = {
        "tasks": ["depth", "normals", "edges"],
        "preset": "m2h-small",
        "channels": 8,
        "head_channels": 8,
        "backbone": BackboneConfig(name="test_convnext", pretrained=False, freeze=False),
        "wmca": WMCAConfig(heads=2, window_size=3, layers=1),
        "balancing": BalancingConfig(name=method, gradnorm_lr=0.2),
        "consistency": ConsistencyConfig(depth_normals={"weight": 0.1}),
        "facts": Planes().facts,
    }
    return Plain(**(arguments | changes))


@functools.cache  # made before there is another process with which the loader would share the samples
def batches(complete: bool) -> list[dict]:
    """Two batches of four samples.

    Args:
        complete: Whether every pixel has a label. Else the parts of a batch have unequal numbers of them, one sample
            lacks a label, and the later half of the other batch lacks one altogether.
    """
    scenes, transform = PlaneScenes(4 * EPOCH, 32, 32, seed=3), EvalTransform()
    loader = make_loader(scenes, transform, train=False, batch_size=4, workers=0, seed=0, classes=3)
    made = [to_contract(batch) for batch in loader]
    if not complete:
        made[0]["edges"][3] = INVALID["edges"]
        made[0]["depth"][2, :, :, :7] = INVALID["depth"]
        made[1]["normals"][2:] = INVALID["normals"]
    return made


class Loader:
    """Hands out the parts of batches that are one process's; goes on inside an epoch."""

    def __init__(self, parts: int = 1, mine: int | None = None, complete: bool = False) -> None:
        halves = []
        for batch in batches(complete):
            size = 4 // parts
            for part in range(parts):
                at = slice(part * size, (part + 1) * size)
                half = {key: value[at] for key, value in batch.items()}
                if all((value == INVALID["normals"]).all() for key, value in half.items() if key == "normals"):
                    del half["normals"]  # as a loader gives it whose samples all lack the label
                if mine is None or part == mine:
                    halves.append(half)
        self.batches, self.start, self.given = halves, 0, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict]:
        start, self.start = self.start, 0
        for index in range(start, len(self.batches)):
            self.given = index + 1
            yield self.batches[index]

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["given"]


class Weights(Callback):
    """Keeps the logged weights of every batch, and writes the checkpoint that is asked for."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.logged = path, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.endswith("weight")}
        self.logged.append(metrics)
        if self.path is not None and trainer.global_step == trainer.max_steps - 2:
            trainer.save_checkpoint(self.path)


def train(model: Plain, loader: Loader, checkpoint: Path | None = None, **settings) -> dict:
    """Train for some steps; return the parameters, the method's state and the logged weights of every batch.

    Args:
        model: What to train.
        loader: On what.
        checkpoint: Where to write one, two steps before the end, inside an epoch.
        settings: The trainer's.
    """
    start = settings.pop("ckpt_path", None)
    weights = Weights(checkpoint)
    own = {
        "max_epochs": -1,
        "max_steps": steps(model.objective.balancing.name),
        "callbacks": [weights, *settings.pop("callbacks", [])],
    }
    trainer = L.Trainer(**(QUIET | own | settings))
    trainer.fit(model, loader, ckpt_path=start, weights_only=True if start else None)
    parameters = {key: value.clone() for key, value in model.state_dict().items() if value.is_floating_point()}
    return {"parameters": parameters, "state": model.objective.balancer.state(), "weights": weights.logged}


class OverflowOnce(Callback):
    """Makes one gradient infinite in the first batch, on the second process only."""

    def on_fit_start(self, trainer, pl_module):
        if trainer.global_rank == 1:
            self.left = 1
            next(pl_module.net.mstr.parameters()).register_hook(self.spoil)

    def spoil(self, gradient):
        self.left -= 1
        return gradient * torch.inf if self.left == 0 else gradient


def scaled_precision(scale: float):
    """Lightning's plugin for float16 with its scaler; the network computes in bfloat16, as few CPUs know float16."""
    from lightning.pytorch.plugins import MixedPrecision

    class Scaled(MixedPrecision):
        def autocast_context_manager(self):
            return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)

    return Scaled("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000))


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rank = int(os.environ["LOCAL_RANK"])
    together = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    found = {method: train(module(method), Loader(2, rank), **together) for method in METHODS}
    plugin = scaled_precision(1024.0)
    found["overflow"] = train(
        module("upgrad"), Loader(2, rank), plugins=[plugin], callbacks=[OverflowOnce()], **together
    )
    found["overflow"]["scale"] = plugin.scaler.get_scale()
    torch.save(found, Path(sys.argv[1]) / f"{rank}.pt")
