"""The sample contract: what a training sample is, and how samples become a batch (stored ones: ``data/raw.py``)."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from m2h_lightning.data.raw import CODED_INVALID_NORMAL, INVALID, LABELS
from m2h_lightning.errors import DataError


class Sample(TypedDict, total=False):
    """A training sample, and with a leading batch dimension (lists for ``id``) a batch. Absent labels are absent keys.

    ``image`` float32 3×H×W, ImageNet-normalised · ``semseg`` int64 H×W, 255 = ignore · ``depth`` float32 1×H×W metres,
    0 = invalid · ``normals`` float32 3×H×W unit, camera frame (x right, y down, z forward, facing the camera),
    0 = invalid · ``edges`` float32 1×H×W in {0, 1}, 255 = ignore · ``K`` float32 3×3 of *this* image after every
    transform, all NaN where the camera is not known · ``id`` · ``size`` int64 (H, W) of the original image ·
    ``image_size`` and ``label_size`` int64 (H, W) of this image and of its labels before a batch pads them; in
    evaluation the image may be smaller than its labels, in training they are alike · ``pose`` float64 4×4
    camera-to-world, metres, never in training; absent where it is not known, and NaN in a batch where others have one.

    Loaders yield the same keys and shapes in compact types; ``to_contract`` makes the types above of them. Lightning
    calls it through the data module once a batch is on its device.
    """

    image: Tensor
    semseg: Tensor
    depth: Tensor
    normals: Tensor
    edges: Tensor
    K: Tensor
    id: str
    size: Tensor
    image_size: Tensor
    label_size: Tensor
    pose: Tensor


IMAGENET_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
IMAGENET_STD = np.array((0.229, 0.224, 0.225), np.float32)


def to_contract(batch: dict[str, Any]) -> dict[str, Any]:
    """Turn a compact batch (or sample) into the contract's types, on the device where it lies.

    Bytes travel from the loading processes and to the device; floats are made here. What already has its type stays as
    it is.

    Args:
        batch: Maps in the shapes of the contract, with or without a leading batch dimension.

    Returns:
        The same keys; nothing of ``batch`` is changed.
    """
    out = dict(batch)
    if "image" in out and out["image"].dtype == torch.uint8:
        mean, std = (
            torch.from_numpy(255 * values).to(out["image"].device).view(3, 1, 1)
            for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        out["image"] = out["image"].float().sub_(mean).div_(std)
    if "normals" in out and out["normals"].dtype == torch.uint8:
        normals = out["normals"].float().mul_(2 / 255).sub_(1)
        length = normals.square().sum(-3, keepdim=True).sqrt_()
        out["normals"] = normals.mul_(torch.where(length >= 0.5, length.reciprocal(), 0.0))
    if "semseg" in out:
        out["semseg"] = out["semseg"].long()
    for key in ("depth", "edges"):
        if key in out:
            out[key] = out[key].float()
    return out


def _filled(key: str, like: Tensor, height: int, width: int) -> Tensor:
    """Return a map of ``key`` that says "nothing known", H×W, 1×H×W or 3×H×W, in the type of ``like``."""
    value = CODED_INVALID_NORMAL if key == "normals" and like.dtype == torch.uint8 else INVALID[key]
    if key in ("image", "normals"):
        return torch.full((height, width, 3), value, dtype=like.dtype).permute(2, 0, 1)
    return torch.full((height, width) if key == "semseg" else (1, height, width), value, dtype=like.dtype)


def _stack(maps: list[Tensor]) -> Tensor:
    """Stack maps; colours that are last in memory stay so, which is what ``channels_last`` means.

    In a loading process ``default_collate`` stacks right into the memory that is shared with the training process.
    """
    if maps[0].ndim == 3 and maps[0].stride(0) == 1 and maps[0].shape[0] > 1:
        return default_collate([part.permute(1, 2, 0) for part in maps]).permute(0, 3, 1, 2)
    return default_collate(maps)


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Stack samples into a batch.

    Images of different sizes are padded at the right and the bottom, labels likewise, and labels that only some samples
    have are filled, all with the "nothing known" value of the map, which every loss and metric leaves out. A label that
    no sample has stays absent.

    Args:
        samples: At least one sample.

    Returns:
        The batch: tensors with a leading dimension B; ``id`` a list of B strings.

    Raises:
        DataError: When the batch is empty, or two samples carry the same map in different layouts.
    """
    if not samples:
        raise DataError("a batch without samples: the data set is empty")
    batch: dict[str, Any] = {"id": [s["id"] for s in samples]}
    for key in ("image", *LABELS):
        like: Tensor | None = next((s[key] for s in samples if key in s), None)  # type: ignore[literal-required]
        if like is None:
            continue
        # Labels of a batch share one size, which is the images' own unless evaluation resized these.
        own: Any = "image_size" if key == "image" else "label_size"
        sizes = [s[own] for s in samples]  # type: ignore[literal-required]
        height, width = torch.stack(sizes).amax(0).tolist()
        maps = []
        for sample in samples:
            part: Tensor | None = sample.get(key)  # type: ignore[assignment]
            if part is None or part.shape[-2:] != (height, width):
                full = _filled(key, like, height, width)
                if part is not None:
                    if part.shape[:-2] != full.shape[:-2] or part.dtype != full.dtype:
                        raise DataError(f"sample '{sample['id']}': {key} is {part.dtype} {tuple(part.shape)}")
                    full[..., : part.shape[-2], : part.shape[-1]] = part
                part = full
            maps.append(part)
        batch[key] = _stack(maps)
    batch["K"] = torch.stack([s["K"] for s in samples])
    for key in ("size", "image_size", "label_size"):
        batch[key] = torch.stack([s[key] for s in samples])  # type: ignore[literal-required]
    if any("pose" in s for s in samples):
        unknown = torch.full((4, 4), torch.nan, dtype=torch.float64)
        batch["pose"] = torch.stack([s.get("pose", unknown) for s in samples])
    return batch
