"""Samples whose every value is known in closed form."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
from torch.utils.data import Dataset

from m2h_lightning.data.base import BaseDataModule


def plane_sample(height: int, width: int, normal=(0.3, -0.4, -0.85), seed: int = 0) -> dict:
    """A raw sample of one tilted plane: everything about it is known in closed form."""
    from m2h_lightning.geometry import pixel_rays

    rng = np.random.default_rng(seed)
    K = np.array([[0.9 * width, 0, 0.48 * width], [0, 0.95 * width, 0.53 * height], [0, 0, 1]], np.float64)
    n = np.asarray(normal, np.float64)
    n = n / np.linalg.norm(n)
    rays = pixel_rays(K, height, width)
    denominator = np.einsum("c,chw->hw", n, rays)
    depth = (-3.0 / denominator).astype(np.float32)
    return {
        "image": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        "semseg": rng.integers(0, 5, (height, width)).astype(np.uint8),
        "depth": depth,
        "normals": np.broadcast_to(n.astype(np.float32), (height, width, 3)).copy(),
        "edges": (rng.random((height, width)) < 0.1).astype(np.uint8),
        "K": K,
        "id": f"plane-{seed}",
    }


class PlaneScenes(Dataset):
    """Tilted planes whose label, brightness and normal belong together: something a tiny network can learn."""

    def __init__(self, count: int, height: int = 48, width: int = 64, seed: int = 0) -> None:
        self.count, self.height, self.width, self.seed = count, height, width, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng((self.seed, index))
        left = plane_sample(self.height, self.width, (rng.uniform(-0.4, 0.0), 0.0, -1.0), seed=index)
        right = plane_sample(self.height, self.width, (rng.uniform(0.2, 0.5), 0.3, -1.0), seed=index)
        border = int(rng.integers(self.width // 4, 3 * self.width // 4))
        for key in ("depth", "normals"):
            left[key][:, border:] = right[key][:, border:]
        left["semseg"] = np.zeros((self.height, self.width), np.uint8)
        left["semseg"][:, border:] = 2
        left["edges"] = np.zeros_like(left["semseg"])
        left["edges"][:, border] = 1
        shade = np.where(left["semseg"] == 2, 190, 70).astype(np.uint8)
        left["image"] = np.repeat(shade[..., None], 3, -1) + rng.integers(0, 20, (1, 1, 3)).astype(np.uint8)
        left["id"] = f"scene-{self.seed}-{index}"
        return left


class Planes(BaseDataModule):
    """A data module of plane scenes in memory."""

    name = "planes"
    classes = ("dark", "none", "bright")
    depth_range = (0.1, 20.0)
    tasks = ("semseg", "depth", "normals", "edges")
    edge_rule = "the border of the planes"

    def __init__(self, train: int = 6, crop=(32, 32), batch_size: int = 2, workers: int = 0, **settings) -> None:
        super().__init__(crop=crop, batch_size=batch_size, workers=workers, **settings)
        self.train = train

    def dataset(self, split: str) -> PlaneScenes:
        return PlaneScenes(self.train if split == "train" else 3, seed={"train": 0, "val": 1, "test": 2}[split])


def tiny_module(**changes):
    """A real M2HModule of the smallest size, for the plane scenes."""
    from m2h_lightning.module import M2HModule
    from m2h_lightning.network import BackboneConfig, WMCAConfig

    arguments = {
        "preset": "m2h-small",
        "channels": 8,
        "head_channels": 8,
        "backbone": BackboneConfig(name="test_convnext", pretrained=False, freeze=False, lr_factor=1.0),
        "wmca": WMCAConfig(heads=2, window_size=5),
        "facts": Planes().facts,
    }
    return M2HModule(**(arguments | changes))


QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
}
"""Settings of a trainer that writes and says nothing."""


class Crash(L.Callback):
    """Dies once, after as many steps as the file ``crash-after`` says."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        order = Path("crash-after")
        if order.is_file() and trainer.global_step >= int(order.read_text()):
            order.unlink()
            raise RuntimeError("out of luck")
