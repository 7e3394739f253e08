"""Trains three stages in two processes; each leaves, as JSON, the gradients of every epoch by parameter.

Run by ``test_stages.py``: ``python staged_processes.py FOLDER PORT``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch import Callback

from m2h_lightning.network import BackboneConfig
from m2h_lightning.objectives import BalancingConfig
from m2h_lightning.recipe import StageConfig
from samples import Planes, tiny_module

FREEZES = ("last_1", True, "last_3")


class Gradients(Callback):
    """Notes a number per parameter that has a gradient, in every epoch, and which images this process saw."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, str]] = []
        self.images: list[str] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        named = pl_module.net.backbone.named_parameters()
        self.epochs.append({name: p.grad.double().sum().item().hex() for name, p in named if p.grad is not None})

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.images += batch["id"]


def train(method: str) -> tuple[Gradients, L.LightningModule]:
    L.seed_everything(0, verbose=False)
    module = tiny_module(
        backbone=BackboneConfig(name="test_convnext", pretrained=False, freeze=False),
        stages=[StageConfig(str(i), 1, freeze=freeze) for i, freeze in enumerate(FREEZES)],
        balancing=BalancingConfig(name=method),
        tasks=["depth", "normals"],
    )
    watch = Gradients()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=len(FREEZES),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[watch],
    )
    trainer.fit(module, Planes(train=4))
    return watch, module


def work(rank: int, folder: Path, port: str) -> None:
    """Be one of the two processes; leave what it saw in a file."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    os.environ |= {"NODE_RANK": "0", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    runs = {name: train(method) for name, method in (("stages", "static"), ("by gradient", "gradnorm"))}
    module = runs["stages"][1]
    seen = {
        "images": runs["stages"][0].images,
        "gradients": {name: watch.epochs for name, (watch, _) in runs.items()},
        "trained": [len(module.net.backbone.trainable_names(freeze)) for freeze in FREEZES],
        "weights": {name: p.double().sum().item().hex() for name, p in module.net.named_parameters()},
    }
    (folder / f"{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Forked after the imports, which take longer than all the rest; nothing has been computed yet.
    processes = [
        multiprocessing.get_context("fork").Process(
            target=work, args=(rank, Path(sys.argv[1]), sys.argv[2]), daemon=True
        )
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))
