"""Losses between predictions of one image: each asks two tasks, or depth and the picture, to tell of the same scene.

None of them needs a label, so images without labels train them too. Where there are labels, these choose the pixels
that count; elsewhere the predictions do, through masks that carry no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from m2h_lightning.errors import ConfigError
from m2h_lightning.labels import IGNORE
from m2h_lightning.objectives.config import ConsistencyConfig
from m2h_lightning.objectives.consistency_terms import depth_normals_loss, edges_semseg_loss, smoothness_loss
from m2h_lightning.tasks import Depth, Edges, Task
from m2h_lightning.tasks.base import Agree


def check_depth_unit(tasks: Mapping[str, Task], terms: Sequence[str]) -> None:
    """Refuse normals of a depth that is not in metres: disparity has none without the camera's baseline.

    Args:
        tasks: The trained tasks by name.
        terms: The consistency losses that are switched on, such as "consistency/depth_normals".

    Raises:
        ConfigError: Depth and normals shall agree, and depth has another unit.
    """
    unit = getattr(tasks.get("depth"), "unit", "m")
    if "consistency/depth_normals" in terms and unit != "m":
        raise ConfigError(
            f"model.consistency.depth_normals.weight is above 0, but this data set's depth is in {unit} and only depth "
            "in metres has normals; set the weight to 0 or choose metric depth (data.depth_target)"
        )


def consistency_losses(
    tasks: Mapping[str, Task],
    raw: Mapping[str, Tensor],
    batch: Mapping[str, Any],
    config: ConsistencyConfig,
    terms: Sequence[str],
    agree: Agree | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return per consistency loss its value, float32 with a graph, and whether any pixel took part.

    Everything is computed in float32, whatever the type of ``raw``: steps between neighbouring pixels are small
    differences of large numbers. No operation in it is one that autocast would compute in less.

    Args:
        tasks: The trained tasks by name.
        raw: Raw maps of the network, B×channels×H×W.
        batch: A batch of the sample contract; labels may be missing.
        config: Settings of the losses.
        terms: Which of them to compute: "consistency/depth_normals", "consistency/edges_semseg" or
            "consistency/smoothness".
        agree: See :func:`.tasks.base.masked_mean`; called once per term, whatever the labels.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    if not terms:
        return found
    inside = image_pixels(tasks, batch)
    if "consistency/depth_normals" in terms:
        depth, normals = (tasks[name].activate(raw[name]) for name in ("depth", "normals"))
        truth = batch["depth"] if "depth" in batch else torch.zeros_like(depth)
        found["consistency/depth_normals"] = depth_normals_loss(
            depth, normals, truth, batch["K"], inside, config.depth_normals, agree
        )
    if "consistency/edges_semseg" in terms:
        edges = tasks["edges"]
        assert isinstance(edges, Edges)
        labels = batch["semseg"] if "semseg" in batch else torch.full_like(inside, IGNORE, dtype=torch.int64)
        found["consistency/edges_semseg"] = edges_semseg_loss(
            raw["edges"], raw["semseg"], labels, inside, edges.positive_weight, config.edges_semseg, agree
        )
    if "consistency/smoothness" in terms:
        task = tasks["depth"]
        assert isinstance(task, Depth)
        depth = task.activate(raw["depth"])
        # Disparity is inverse depth already, up to a factor that cancels.
        inverse = 1 / depth if task.unit == "m" else depth
        found["consistency/smoothness"] = smoothness_loss(inverse, batch["image"], inside, agree)
    return found


def image_pixels(tasks: Mapping[str, Task], batch: Mapping[str, Any]) -> Tensor:
    """Return the pixels that show something, B×H×W: neither a batch's padding nor what lies around a cut-out image.

    A crop larger than its image is filled up, and only labels tell where: there all of them are unknown. So in an image
    with any label the smallest box counts that holds all that the trained tasks know; in one without any, all of it.

    Args:
        tasks: The trained tasks by name.
        batch: A batch of the sample contract.
    """
    height, width = batch["image"].shape[-2:]
    device = batch["image"].device
    known = torch.zeros(len(batch["image"]), height, width, dtype=torch.bool, device=device)
    for name, task in tasks.items():
        if name in batch:
            known |= task.valid_pixels(batch[name]).reshape(known.shape)
    known |= ~known.flatten(1).any(1)[:, None, None]
    sizes = batch["image_size"].to(device)
    sides = []
    for dim, length in ((2, height), (1, width)):
        filled = known.any(dim)
        reached = (filled.cumsum(1) > 0) & (filled.flip(1).cumsum(1).flip(1) > 0)
        sides.append(reached & (torch.arange(length, device=device) < sizes[:, 2 - dim, None]))
    return sides[0][:, :, None] & sides[1][:, None, :]
