"""Geometry on stored samples: crop, resize, flip and roll keep image, labels and K true to each other.

Everything happens in the compact types of ``data/raw.py``; floats are made last, on the device (``data/sample.py``).

Scaling an image is taken as a change of focal length: K is scaled with it, metric depth and normals stay as they are.
(Peers divide depth by the scale and leave K and normals alone, which tilts normals by up to 19.5° at scale 2; that
protocol is ``data.augment.legacy_scale_depth``.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import cv2
import numpy as np
import torch

from m2h_lightning.data.raw import CODED_INVALID_NORMAL, INVALID, LABELS, RawSample
from m2h_lightning.data.sample import Sample
from m2h_lightning.errors import DataError
from m2h_lightning.geometry import crop_intrinsics, flip_intrinsics, resize_intrinsics

MAPS = ("image", "semseg", "depth", "normals", "edges")
Transform = Callable[[RawSample, np.random.Generator], Sample]

# OpenCV's thread pool deadlocks in forked workers and fights with the data loader's own processes.
cv2.setNumThreads(0)


def unknown(key: str, dtype: np.dtype) -> float:
    """Return the number by which a stored map says "nothing known here"."""
    return CODED_INVALID_NORMAL if key == "normals" and dtype == np.uint8 else INVALID[key]


def crop_map(key: str, source: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Cut ``height``×``width`` pixels out of one map; what lies outside is filled with "nothing known".

    Args:
        key: Which map, one of ``MAPS``.
        source: The map, H×W or H×W×3.
        top: First row of the cut; may be negative.
        left: First column of the cut; may be negative.
        height: Rows of the result.
        width: Columns of the result.
    """
    H, W = source.shape[:2]
    rows = slice(max(top, 0), min(top + height, H))
    cols = slice(max(left, 0), min(left + width, W))
    part = source[rows, cols]
    if part.shape[:2] == (height, width):
        return part
    full = np.full((height, width, *source.shape[2:]), unknown(key, source.dtype), source.dtype)
    full[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left] = part
    return full


def _bits(source: np.ndarray) -> np.ndarray:
    """Return the map as OpenCV takes it: half floats as the 16-bit numbers they are stored as (rows may be apart)."""
    return source.view(np.uint16) if source.dtype == np.float16 else source


def resize_map(key: str, source: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize one map.

    The image is bilinear, and area-averaged where it shrinks by more than half (between half and full size bilinear
    weights reach every stored pixel, at a quarter of the time); labels take the nearest pixel *centre*
    (OpenCV's plain nearest mode is off by up to half a pixel). A thin edge survives shrinking: a new pixel is an edge
    when an edge line covers at least half of what it could cover of it.
    """
    H, W = source.shape[:2]
    if (height, width) == (H, W):
        return source
    size = (width, height)
    shrink = height < H or width < W
    if key == "image":
        how = cv2.INTER_AREA if height < 0.5 * H or width < 0.5 * W else cv2.INTER_LINEAR
        return cv2.resize(_bits(source), size, interpolation=how)
    out = cv2.resize(_bits(source), size, interpolation=cv2.INTER_NEAREST_EXACT).view(source.dtype)
    if key == "edges" and shrink:
        covered = cv2.resize((source == 1) * np.uint8(255), size, interpolation=cv2.INTER_AREA)
        edge = covered >= 0.5 * 255 * min(height / H, width / W)
        out = np.where(edge, np.uint8(1), np.where(out == INVALID["edges"], np.uint8(255), np.uint8(0)))
    return out


def flip_map(key: str, source: np.ndarray) -> np.ndarray:
    """Mirror one map left and right; normals' x changes its sign."""
    out = cv2.flip(_bits(source), 1).view(source.dtype)
    if key == "normals":
        out[..., 0] = 255 - out[..., 0] if out.dtype == np.uint8 else -out[..., 0]
    return out


def roll_map(key: str, source: np.ndarray, K: np.ndarray, degrees: float) -> np.ndarray:
    """Turn one map with the camera rolled about its optical axis; planar depth keeps its values, normals turn.

    The image of a rotation is the homography K·R·K⁻¹, so that K stays what it was (Hartley and Zisserman, *Multiple
    View Geometry*, 13.1.3).

    Args:
        key: Which map, one of ``MAPS``.
        source: The map.
        K: Intrinsics 3×3, known.
        degrees: Angle; positive turns the picture clockwise.
    """
    a = np.radians(degrees)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    homography = K @ turn @ np.linalg.inv(K)
    H, W = source.shape[:2]
    fill = unknown(key, source.dtype)
    out = cv2.warpPerspective(
        _bits(source),
        homography,
        (W, H),
        flags=cv2.INTER_LINEAR if key == "image" else cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(fill,) * 4,
    ).view(source.dtype)
    if key == "normals":
        # About the middle of the code, 127.5, so that what is unknown (the middle itself) stays unknown.
        middle = 127.5 if out.dtype == np.uint8 else 0.0
        turned = (out.astype(np.float32) - middle) @ turn.T.astype(np.float32) + middle
        out = np.clip(np.rint(turned), 0, 255).astype(np.uint8) if out.dtype == np.uint8 else turned
    return out


def _each(sample: RawSample, function: Callable[[str, np.ndarray], np.ndarray], K: np.ndarray) -> RawSample:
    """Return the sample with ``function`` applied to each of its maps, and with intrinsics ``K``; the pose stays."""
    out: dict[str, Any] = {**sample}
    out.update({key: function(key, out[key]) for key in MAPS if key in out})
    out["K"] = K
    return out  # type: ignore[return-value]


def crop(sample: RawSample, top: int, left: int, height: int, width: int) -> RawSample:
    """Cut out ``height``×``width`` pixels of a whole sample; see :func:`crop_map`."""
    K = crop_intrinsics(sample["K"], top, left)
    return _each(sample, lambda key, source: crop_map(key, source, top, left, height, width), K)


def resize(sample: RawSample, height: int, width: int) -> RawSample:
    """Resize all maps and K with them; metric depth and normals keep their values; see :func:`resize_map`."""
    H, W = sample["image"].shape[:2]
    if (height, width) == (H, W):
        return sample
    K = resize_intrinsics(sample["K"], height / H, width / W)
    return _each(sample, lambda key, source: resize_map(key, source, height, width), K)


def flip(sample: RawSample) -> RawSample:
    """Mirror left and right: normals' x changes sign, cx becomes (W − 1) − cx; no camera sees that: the pose goes."""
    return _each(_without_pose(sample), flip_map, flip_intrinsics(sample["K"], sample["image"].shape[1]))


def roll(sample: RawSample, degrees: float) -> RawSample:
    """Roll the camera about its optical axis; its pose is dropped; see :func:`roll_map`.

    Raises:
        DataError: The sample's K is not known.
    """
    K = sample["K"]
    if not np.isfinite(K).all():
        raise DataError(f"sample '{sample['id']}': turning needs the camera's K; set data.augment.rotate to 0")
    return _each(_without_pose(sample), lambda key, source: roll_map(key, source, K, degrees), K)


def _without_pose(sample: RawSample) -> RawSample:
    return {key: value for key, value in sample.items() if key != "pose"}  # type: ignore[return-value]


def to_sample(raw: RawSample, size: tuple[int, int]) -> Sample:
    """Turn a stored sample into compact tensors: what travels from a loading process to the device.

    Args:
        raw: The sample after every transform.
        size: Height and width of the original image.

    Returns:
        In the shapes of the contract: ``image``, ``semseg``, ``edges`` uint8, ``depth`` float32, ``normals`` uint8 or
        float32; ``to_contract`` makes the contract's types of them. ``pose`` float64 where the sample has one.

    Raises:
        DataError: When a map holds NaN or infinity, naming the sample and the map.
    """
    image_size = raw["image"].shape[:2]
    sample: dict[str, Any] = {
        "K": torch.from_numpy(np.asarray(raw["K"], np.float32)),
        "id": raw["id"],
        "size": torch.tensor(size),
        "image_size": torch.tensor(image_size),
        "label_size": torch.tensor(next((raw[key].shape[:2] for key in LABELS if key in raw), image_size)),  # type: ignore[literal-required]
    }
    if "pose" in raw:
        sample["pose"] = torch.from_numpy(np.array(raw["pose"], np.float64))
    for key in MAPS:
        if key not in raw:
            continue
        array: np.ndarray = raw[key]  # type: ignore[literal-required]
        if key == "depth":
            code = raw.get("depth_code")
            array = array.astype(np.float32, copy=False) if code is None else code.decode(array)
        # A sum is finite unless a part is not: cheaper than a look at each pixel.
        if array.dtype.kind == "f" and not np.isfinite(array.sum(dtype=np.float64)):
            raise DataError(f"sample '{raw['id']}': {key} holds NaN or infinity; mark unknown pixels as 0")
        if not array.flags.c_contiguous or not array.flags.writeable:
            array = array.copy()
        # Colours last in memory, first in shape: no copy here, and channels-last batches after collation.
        tensor = torch.from_numpy(array)
        sample[key] = tensor.permute(2, 0, 1) if key in ("image", "normals") else tensor
        if key in ("depth", "edges"):
            sample[key] = tensor[None]
    return sample  # type: ignore[return-value]


class EvalTransform:
    """Keep the stored size, or shrink the image to ``size``; no augmentation.

    Args:
        size: Height and width the image is resized to; None keeps the stored size.
        labels: "own" leaves labels at their own size, at which predictions are then scored; "input" resizes them with
            the image.
    """

    def __init__(self, size: tuple[int, int] | None = None, labels: Literal["own", "input"] = "own") -> None:
        self.size = size
        self.labels = labels

    def __call__(self, raw: RawSample, rng: np.random.Generator) -> Sample:
        """Return the sample; ``rng`` is not used."""
        original = raw["image"].shape[:2]
        if self.size is None:
            return to_sample(raw, original)
        if self.labels == "input":
            return to_sample(resize(raw, *self.size), original)
        image: RawSample = {"image": raw["image"], "K": raw["K"], "id": raw["id"]}
        return to_sample({**raw, **resize(image, *self.size)}, original)
