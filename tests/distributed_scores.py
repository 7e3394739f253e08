"""Scores seven images with the evaluator in one of several processes; the first one prints the scores as JSON.

Run by ``test_distribution.py``: ``python distributed_scores.py RANK WORLD PORT``.
"""

from __future__ import annotations

import json
import os
import sys

import torch
import torch.distributed as dist

from m2h_lightning.data.loader import make_loader
from m2h_lightning.data.sample import to_contract
from m2h_lightning.data.transforms import EvalTransform
from m2h_lightning.metrics import MetricsConfig, WindowGrid
from m2h_lightning.tasks import Evaluator, build_tasks
from samples import Planes, PlaneScenes

COUNT = 7
"""Divides by neither 2 nor 4, and not by the batch size either."""


def predictions(batch: dict) -> dict[str, torch.Tensor]:
    """Wrong predictions that depend on the image alone, not on its place in a batch."""
    made: dict[str, list[torch.Tensor]] = {"semseg": [], "depth": [], "normals": [], "edges": []}
    for index, name in enumerate(batch["id"]):
        random = torch.Generator().manual_seed(int(name.rsplit("-", 1)[1]))
        noise = torch.rand(batch["depth"][index].shape, generator=random)
        classes = torch.where(noise[0] < 0.2, 1, batch["semseg"][index])
        made["semseg"].append(3.0 * torch.nn.functional.one_hot(classes, 3).permute(2, 0, 1) + noise)
        made["depth"].append(batch["depth"][index] * (0.8 + 0.5 * noise))
        normals = batch["normals"][index] + noise - 0.5
        made["normals"].append(torch.nn.functional.normalize(normals, dim=0))
        made["edges"].append((0.6 * batch["edges"][index] + 0.4 * noise).clamp(0, 1))
    return {name: torch.stack(maps) for name, maps in made.items()}


def scores() -> dict[str, float]:
    facts = Planes().facts
    config = MetricsConfig(odsf_test="exact", trimap=3, workers=0)
    evaluator = Evaluator(build_tasks(None, facts), config, facts, "test", details=True)
    scenes, transform = PlaneScenes(COUNT, seed=3), EvalTransform()
    loader = make_loader(scenes, transform, train=False, batch_size=2, workers=0, seed=0, classes=3)
    grid = WindowGrid(rows=(16.0, 32.0), columns=(20.0, 40.0), cell=(4.0, 4.0))
    for batch in map(to_contract, loader):
        evaluator.update(predictions(batch), batch, grid)
    return {key: float(value) for key, value in evaluator.compute().items()}


if __name__ == "__main__":
    rank, world, port = (int(word) for word in sys.argv[1:])
    torch.set_num_threads(1)
    if world > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=world)
    result = scores()
    if rank == 0:
        print(json.dumps(result))
    if world > 1:
        dist.destroy_process_group()
