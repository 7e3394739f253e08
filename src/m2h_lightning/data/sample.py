"""The sample contract: what a data set returns, what a training sample is, and how samples become a batch."""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from torch import Tensor

from m2h_lightning.data.raw import INVALID, LABELS
from m2h_lightning.errors import DataError


class Sample(TypedDict, total=False):
    """A training sample, and with a leading batch dimension (lists for ``id``) a batch. Absent labels are absent keys.

    ``image`` float32 3×H×W, ImageNet-normalised · ``semseg`` int64 H×W, 255 = ignore · ``depth`` float32 1×H×W metres,
    0 = invalid · ``normals`` float32 3×H×W unit, camera frame (x right, y down, z forward, facing the camera),
    0 = invalid · ``edges`` float32 1×H×W in {0, 1}, 255 = ignore · ``K`` float32 3×3 of *this* image after every
    transform · ``id`` · ``size`` int64 (H, W) of the original image.
    """

    image: Tensor
    semseg: Tensor
    depth: Tensor
    normals: Tensor
    edges: Tensor
    K: Tensor
    id: str
    size: Tensor


def _filled(key: str, like: Sample, height: int, width: int) -> Tensor:
    """Return a map of ``key`` that says "nothing known", for a batch of ``height``×``width``."""
    shape = {"semseg": (height, width), "depth": (1, height, width), "edges": (1, height, width)}.get(
        key, (3, height, width)
    )
    dtype = torch.int64 if key == "semseg" else torch.float32
    return torch.full(shape, INVALID[key], dtype=dtype, device=like["image"].device)


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Stack samples into a batch.

    Samples of different sizes are padded at the right and the bottom, and labels that only some samples have are
    filled, both with the "nothing known" value of the map, which every loss and metric leaves out. A label that no
    sample has stays absent.

    Args:
        samples: At least one sample.

    Returns:
        The batch: tensors with a leading dimension B; ``id`` a list of B strings.

    Raises:
        DataError: When the batch is empty, or two samples carry the same map in different layouts.
    """
    if not samples:
        raise DataError("a batch without samples: the data set is empty")
    height = max(s["image"].shape[-2] for s in samples)
    width = max(s["image"].shape[-1] for s in samples)
    batch: dict[str, Any] = {"id": [s["id"] for s in samples]}
    for key in ("image", *LABELS):
        if not any(key in s for s in samples):
            continue
        maps = []
        for sample in samples:
            part: Tensor | None = sample.get(key)  # type: ignore[assignment]
            if part is None or part.shape[-2:] != (height, width):
                full = _filled(key, sample, height, width)
                if part is not None:
                    if part.shape[:-2] != full.shape[:-2]:
                        raise DataError(f"sample '{sample['id']}': {key} has shape {tuple(part.shape)}")
                    full[..., : part.shape[-2], : part.shape[-1]] = part
                part = full
            maps.append(part)
        batch[key] = torch.stack(maps)
    batch["K"] = torch.stack([s["K"] for s in samples])
    batch["size"] = torch.stack([s["size"] for s in samples])
    return batch
