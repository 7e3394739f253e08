"""Runs the real command line, in this process or in another, on plane scenes with the smallest network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from m2h_lightning.cli import main

TINY = """
model:
  preset: m2h-small
  channels: 8
  head_channels: 8
  backbone: {name: test_convnext, pretrained: false, freeze: false, lr_factor: 1.0}
  wmca: {heads: 2, window_size: 5}
data:
  class_path: samples.Planes
  init_args: {train: 4}
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 1
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  num_sanity_val_steps: 0
run: {wandb: disabled, tensorboard: false}
"""


def write(path: Path, text: str = TINY) -> str:
    path.write_text(text)
    return str(path)


def m2h(*words: object) -> int:
    return main([str(word) for word in words])


def only_run(root: Path, experiment: str = "tiny") -> Path:
    folders = list((root / "runs" / experiment).iterdir())
    assert len(folders) == 1, folders
    return folders[0]


def process_environment(cache: Path) -> dict[str, str]:
    """The environment of child processes; they share one cache of compiled modules, whatever this process was told."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "WANDB_MODE")}
    cache = Path(os.environ.get("PYTHONPYCACHEPREFIX", cache))
    return {**env, "PYTHONPYCACHEPREFIX": str(cache), "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}


def start(folder: Path, cache: Path, *words: object, log: Path | None = None) -> subprocess.Popen:
    """Start ``python -m m2h_lightning`` in ``folder``."""
    command = [sys.executable, "-m", "m2h_lightning", *(str(word) for word in words)]
    output = subprocess.PIPE if log is None else log.open("w")
    return subprocess.Popen(
        command, cwd=folder, env=process_environment(cache), stdout=output, stderr=subprocess.STDOUT, text=True
    )
