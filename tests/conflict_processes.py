"""Trains two steps in one of two processes, without and with measuring; prints what it found as JSON.

Run by ``test_conflicts.py``: ``python conflict_processes.py FOLDER``, with the variables that torchrun sets.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning as L
import torch

from m2h_lightning.callbacks import GradientConflicts
from m2h_lightning.runs.loggers import RunCSVLogger, read_rows
from samples import Planes, tiny_module


def train(folder: Path, callbacks: list[L.Callback]) -> dict[str, torch.Tensor]:
    """Return the weights after two steps of two images, one in each process."""
    folder.mkdir(exist_ok=True)
    L.seed_everything(0, verbose=False)
    module = tiny_module()
    run = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        limit_val_batches=0,
        logger=RunCSVLogger(folder),
        log_every_n_steps=50,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    run.fit(module, Planes(train=4, batch_size=1))
    return module.state_dict()


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    plain = train(root / "plain", [])
    measured = train(root / "measured", [GradientConflicts(every=1, block="shared")])
    same = all(torch.equal(plain[key], measured[key]) for key in plain)
    rows = read_rows(root / "measured" / "metrics.csv")[1]
    print("RESULT", json.dumps({"same": same, "rows": [row for row in rows if row["conflicts/norm/depth"]]}))
