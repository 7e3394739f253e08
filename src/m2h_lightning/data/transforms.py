"""From a stored sample to a training sample: geometry on compact types first, photometry, then float tensors.

Scaling an image is taken as a change of focal length: K is scaled with it, metric depth and normals stay as they are.
(Peers divide depth by the scale and leave K and normals alone, which tilts normals by up to 19.5° at scale 2.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch

from m2h_lightning.data.raw import INVALID, RawSample
from m2h_lightning.data.sample import Sample
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.geometry import crop_intrinsics, flip_intrinsics, resize_intrinsics

IMAGENET_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
IMAGENET_STD = np.array((0.229, 0.224, 0.225), np.float32)

_MAPS = ("image", "semseg", "depth", "normals", "edges")
Transform = Callable[[RawSample, np.random.Generator], Sample]

# OpenCV's thread pool deadlocks in forked workers and fights with the data loader's own processes.
cv2.setNumThreads(0)


@dataclass
class AugmentConfig:
    """Augmentation of training samples.

    Args:
        scale: Range of the random scale; 1 keeps the stored size. K is scaled with the image.
        flip: Probability of a left-right flip.
        brightness: Largest relative change of brightness; 0 switches it off.
        contrast: Largest relative change of contrast; 0 switches it off.
        saturation: Largest relative change of saturation; 0 switches it off.
        hue: Largest shift of hue, as a share of the colour circle; 0 switches it off.
    """

    scale: list[float] = field(default_factory=lambda: [0.75, 1.5])
    flip: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05

    def __post_init__(self) -> None:
        """Check the ranges."""
        if len(self.scale) != 2 or not 0.1 <= self.scale[0] <= self.scale[1] <= 10:
            raise ConfigError(f"data.augment.scale is {self.scale}; give [low, high] with 0.1 <= low <= high <= 10")
        for key in ("flip", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"data.augment.{key} is {getattr(self, key)}; give a number between 0 and 1")
        if not 0 <= self.hue <= 0.5:
            raise ConfigError(f"data.augment.hue is {self.hue}; give a number between 0 and 0.5")


def crop(sample: RawSample, top: int, left: int, height: int, width: int) -> RawSample:
    """Cut out ``height``×``width`` pixels; what lies outside the image is filled with "nothing known".

    Args:
        sample: The stored sample.
        top: First row of the cut; may be negative.
        left: First column of the cut; may be negative.
        height: Rows of the result.
        width: Columns of the result.
    """
    H, W = sample["image"].shape[:2]
    rows = slice(max(top, 0), min(top + height, H))
    cols = slice(max(left, 0), min(left + width, W))
    inside = rows.stop - rows.start == height and cols.stop - cols.start == width
    out: dict[str, Any] = dict(sample)
    for key in _MAPS:
        if key not in sample:
            continue
        source = out[key]
        part = source[rows, cols]
        if not inside:
            full = np.full((height, width, *source.shape[2:]), INVALID[key], source.dtype)
            full[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left] = part
            part = full
        out[key] = part
    out["K"] = crop_intrinsics(sample["K"], top, left)
    return out  # type: ignore[return-value]


def resize(sample: RawSample, height: int, width: int) -> RawSample:
    """Resize all maps to ``height``×``width`` and K with them; metric depth and normals keep their values.

    The image is area-averaged when it shrinks and bilinear when it grows; labels take the nearest pixel *centre*
    (OpenCV's plain nearest mode is off by up to half a pixel). A thin edge survives shrinking: a new pixel is an edge
    when an edge line covers at least half of what it could cover of it.
    """
    H, W = sample["image"].shape[:2]
    if (height, width) == (H, W):
        return sample
    size = (width, height)
    scale_y, scale_x = height / H, width / W
    shrink = scale_y < 1 or scale_x < 1
    out: dict[str, Any] = dict(sample)
    out["image"] = cv2.resize(
        np.ascontiguousarray(sample["image"]), size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    )
    for key in ("semseg", "depth", "normals", "edges"):
        if key in sample:
            out[key] = cv2.resize(np.ascontiguousarray(out[key]), size, interpolation=cv2.INTER_NEAREST_EXACT)
    if "edges" in sample and shrink:
        covered = cv2.resize((sample["edges"] == 1).astype(np.float32), size, interpolation=cv2.INTER_AREA)
        edge = covered >= 0.5 * min(scale_x, scale_y, 1.0)
        out["edges"] = np.where(edge, 1, np.where(out["edges"] == INVALID["edges"], 255, 0)).astype(np.uint8)
    out["K"] = resize_intrinsics(sample["K"], scale_y, scale_x)
    return out  # type: ignore[return-value]


def flip(sample: RawSample) -> RawSample:
    """Mirror left and right: normals' x changes sign, cx becomes (W − 1) − cx."""
    out: dict[str, Any] = dict(sample)
    for key in _MAPS:
        if key in sample:
            out[key] = out[key][:, ::-1]
    if "normals" in sample:
        out["normals"] = out["normals"] * np.array((-1, 1, 1), np.float32)
    out["K"] = flip_intrinsics(sample["K"], sample["image"].shape[1])
    return out  # type: ignore[return-value]


def to_sample(raw: RawSample, size: tuple[int, int]) -> Sample:
    """Turn a stored sample into tensors of the sample contract.

    Args:
        raw: The sample after every transform.
        size: Height and width of the original image.

    Raises:
        DataError: When a map holds NaN or infinity, naming the sample and the map.
    """
    image = (raw["image"].astype(np.float32) / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
    sample: dict[str, Any] = {
        "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
        "K": torch.from_numpy(np.asarray(raw["K"], np.float32)),
        "id": raw["id"],
        "size": torch.tensor(size),
    }
    if "semseg" in raw:
        sample["semseg"] = torch.from_numpy(raw["semseg"].astype(np.int64))
    for key in ("depth", "normals", "edges"):
        if key not in raw:
            continue
        array = np.asarray(raw[key], np.float32)
        if not np.isfinite(array).all():
            raise DataError(f"sample '{raw['id']}': {key} holds NaN or infinity; mark unknown pixels as 0")
        array = array.transpose(2, 0, 1) if key == "normals" else array[None]
        sample[key] = torch.from_numpy(np.ascontiguousarray(array))
    return sample  # type: ignore[return-value]


def import_albumentations() -> Any:
    """Import albumentations without letting it ask a server for a newer version, which hangs an offline node."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


class EvalTransform:
    """Keep the stored size, or shrink to ``size``; no augmentation.

    Args:
        size: Height and width to resize to; None keeps the stored size.
    """

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        self.size = size

    def __call__(self, raw: RawSample, rng: np.random.Generator) -> Sample:
        """Return the sample; ``rng`` is not used."""
        original = raw["image"].shape[:2]
        return to_sample(resize(raw, *self.size) if self.size else raw, original)


class TrainTransform:
    """Random scale and crop, flip and colour jitter. Everything random comes from the generator that is passed in.

    Args:
        size: Height and width of the crop.
        augment: What to draw.
    """

    def __init__(self, size: tuple[int, int], augment: AugmentConfig) -> None:
        self.size = size
        self.augment = augment
        self._jitter: Any = None
        if self._jitters:
            # Now, in the parent: wandb watches imports, and its watch fails in a forked worker.
            import_albumentations()

    @property
    def _jitters(self) -> bool:
        a = self.augment
        return bool(a.brightness or a.contrast or a.saturation or a.hue)

    def _photometry(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self._jitters:
            return image
        if self._jitter is None:
            A, a = import_albumentations(), self.augment
            self._jitter = A.Compose(
                [
                    A.ColorJitter(
                        brightness=(1 - a.brightness, 1 + a.brightness),
                        contrast=(1 - a.contrast, 1 + a.contrast),
                        saturation=(1 - a.saturation, 1 + a.saturation),
                        hue=(-a.hue, a.hue),
                        p=1.0,
                    )
                ]
            )
        self._jitter.set_random_seed(int(rng.integers(2**31)))
        return self._jitter(image=image)["image"]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the built pipeline behind: it is made again in the worker."""
        return {**self.__dict__, "_jitter": None}

    def __call__(self, raw: RawSample, rng: np.random.Generator) -> Sample:
        """Return a training sample of the crop's size."""
        H, W = original = raw["image"].shape[:2]
        height, width = self.size
        scale = float(np.exp(rng.uniform(*np.log(self.augment.scale))))
        # The window in source pixels. Cropping before resizing touches only the pixels that are used.
        rows, cols = max(1, round(height / scale)), max(1, round(width / scale))
        top = self._offset(H, rows, rng)
        left = self._offset(W, cols, rng)
        raw = resize(crop(raw, top, left, rows, cols), height, width)
        if rng.random() < self.augment.flip:
            raw = flip(raw)
        raw = {**raw, "image": self._photometry(np.ascontiguousarray(raw["image"]), rng)}
        return to_sample(raw, original)

    @staticmethod
    def _offset(length: int, window: int, rng: np.random.Generator) -> int:
        """Place a window inside ``length`` where it fits; around it (negative offset: padding) where it does not."""
        slack = length - window
        return int(rng.integers(min(slack, 0), max(slack, 0) + 1))
