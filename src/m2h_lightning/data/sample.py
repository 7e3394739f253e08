"""The sample contract: what a data set returns, what a training sample is, and how samples become a batch."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from m2h_lightning.errors import DataError
from m2h_lightning.labels import IGNORE

LABELS = ("semseg", "depth", "normals", "edges")
"""Dense labels of the contract, in the order of every table."""

INVALID: dict[str, float] = {"image": 0.0, "semseg": IGNORE, "depth": 0.0, "normals": 0.0, "edges": IGNORE}
"""The value by which each map says "nothing known here"; padding and missing labels of a mixed batch use it."""


class RawSample(TypedDict, total=False):
    """A sample as stored: NumPy, compact types. A label the data set lacks is an absent key.

    ``image`` uint8 H×W×3 RGB · ``semseg`` uint8 H×W train ids, 255 = ignore · ``depth`` float32 H×W metres (planar z),
    0 = invalid · ``normals`` float32 H×W×3 unit, camera frame, 0 = invalid · ``edges`` uint8 H×W {0, 1}, 255 = ignore ·
    ``K`` float64 3×3 · ``id`` unique within the data set.
    """

    image: np.ndarray
    semseg: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    edges: np.ndarray
    K: np.ndarray
    id: str


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


def check_raw(raw: RawSample, classes: int) -> None:
    """Refuse a stored sample that breaks the contract; cheap enough for every sample.

    Args:
        raw: The stored sample.
        classes: Number of semantic classes of the data set.

    Raises:
        DataError: Naming the sample, the map and what is wrong.
    """
    height, width = raw["image"].shape[:2]
    shapes = {"image": (height, width, 3), "normals": (height, width, 3)}
    for key in ("image", *LABELS):
        if key in raw and raw[key].shape != shapes.get(key, (height, width)):  # type: ignore[literal-required]
            raise DataError(
                f"sample '{raw['id']}': {key} has shape {raw[key].shape}, "  # type: ignore[literal-required]
                f"expected {shapes.get(key, (height, width))}"
            )
    if "semseg" in raw:
        labels = raw["semseg"][raw["semseg"] != IGNORE]
        if labels.size and not 0 <= labels.min() <= labels.max() < classes:
            wrong = int(labels.max() if labels.max() >= classes else labels.min())
            raise DataError(f"sample '{raw['id']}': semseg holds label {wrong}; expected 0..{classes - 1} or {IGNORE}")


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
