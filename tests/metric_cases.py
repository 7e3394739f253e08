"""Batches for the per-pixel metrics, and what every metric has to satisfy whatever it measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from m2h_lightning.metrics import (
    BoundaryIoU,
    CalibrationError,
    DepthError,
    EdgeFScore,
    NormalError,
    ProtocolMetric,
    SegmentationScore,
    TrimapIoU,
)

CLASSES, HEIGHT, WIDTH = 5, 11, 13
Batch = tuple[Tensor, Tensor, list[tuple[int, int]]]


@dataclass(frozen=True)
class Case:
    """A metric and the batches that it scores."""

    make: Callable[..., ProtocolMetric]
    draw: Callable[[np.random.Generator, int], Batch]


def _blocky(rng: np.random.Generator, images: int) -> np.ndarray:
    """Class maps in patches, with noise: real borders, at which whole classes may be missing."""
    coarse = rng.integers(0, CLASSES, (images, 3, 4))
    maps = coarse.repeat(4, 1).repeat(4, 2)[:, :HEIGHT, :WIDTH]
    noise = rng.random(maps.shape) < 0.05
    return np.where(noise, rng.integers(0, CLASSES, maps.shape), maps)


def _sizes(rng: np.random.Generator, images: int) -> list[tuple[int, int]]:
    """One image fills the batch, others are smaller."""
    others = [(int(rng.integers(1, HEIGHT + 1)), int(rng.integers(1, WIDTH + 1))) for _ in range(images - 1)]
    return [(HEIGHT, WIDTH), *others]


def _padded(prediction: np.ndarray, target: np.ndarray, sizes: list[tuple[int, int]], empty: float) -> Batch:
    """Pad as batches are padded; predictions there are NaN, which must not matter to anybody."""
    prediction, target = torch.from_numpy(prediction), torch.from_numpy(target)
    for guess, true, (height, width) in zip(prediction, target, sizes, strict=True):
        for outside in ((..., slice(height, None), slice(None)), (..., slice(width, None))):
            guess[outside], true[outside] = torch.nan, empty
    return prediction, target, sizes


def draw_semseg(rng: np.random.Generator, images: int = 3) -> Batch:
    """Logits that are mostly right; 255 where nothing is known, on a whole image too."""
    true = _blocky(rng, images)
    logits = rng.normal(size=(images, CLASSES, HEIGHT, WIDTH)).astype(np.float32)
    logits += 2 * (np.arange(CLASSES)[:, None, None] == true[:, None])
    true[rng.random(true.shape) < 0.1] = 255
    if images > 2 and rng.random() < 0.3:
        true[-1] = 255
    return _padded(logits, true, _sizes(rng, images), 255)


def draw_depth(rng: np.random.Generator, images: int = 3) -> Batch:
    """Depths over several ranges; a third is not known."""
    true = np.exp(rng.uniform(-2, 4.5, (images, 1, HEIGHT, WIDTH))).astype(np.float32)
    guess = true * np.exp(rng.normal(scale=0.4, size=true.shape)).astype(np.float32)
    true[rng.random(true.shape) < 0.3] = 0
    return _padded(guess, true, _sizes(rng, images), 0)


def draw_normals(rng: np.random.Generator, images: int = 3) -> Batch:
    """Unit targets, some of a PNG's "zero" length; predictions of any length."""
    true = rng.normal(size=(images, 3, HEIGHT, WIDTH))
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    guess = (true + rng.normal(scale=0.5, size=true.shape)) * rng.uniform(0.1, 3)
    true *= np.where(rng.random((images, 1, HEIGHT, WIDTH)) < 0.2, 0.004, 1.0)
    return _padded(guess.astype(np.float32), true.astype(np.float32), _sizes(rng, images), 0)


def draw_edges(rng: np.random.Generator, images: int = 3) -> Batch:
    """Probabilities that are higher on edges; some pixels are ignored."""
    true = (rng.random((images, 1, HEIGHT, WIDTH)) < 0.3).astype(np.float32)
    guess = np.clip(0.4 * true + 0.7 * rng.random(true.shape), 0, 1).astype(np.float32)
    true[rng.random(true.shape) < 0.1] = 255
    return _padded(guess, true, _sizes(rng, images), 255)


CASES = {
    "semseg": Case(lambda **options: SegmentationScore(CLASSES, per_class=True, **options), draw_semseg),
    "trimap": Case(lambda **options: TrimapIoU(CLASSES, 2, **options), draw_semseg),
    "boundary": Case(lambda **options: BoundaryIoU(CLASSES, **options), draw_semseg),
    "calibration": Case(lambda **options: CalibrationError(stride=2, **options), draw_semseg),
    "depth": Case(lambda **options: DepthError(ranges=True, **options), draw_depth),
    "depth capped": Case(lambda **options: DepthError(cap=10, **options), draw_depth),
    "normals": Case(lambda **options: NormalError(**options), draw_normals),
    "edges": Case(lambda **options: EdgeFScore(**options), draw_edges),
}


def score(metric: ProtocolMetric, *batches: Batch) -> dict[str, float]:
    """Score batches from nothing."""
    metric.reset()
    for batch in batches:
        metric.update(*batch)
    return {key: float(value) for key, value in metric.compute().items()}


def part(batch: Batch, index: int | slice) -> Batch:
    """Some images of a batch, padding and all."""
    index = slice(index, index + 1) if isinstance(index, int) else index
    return tuple(item[index] for item in batch)  # type: ignore[return-value]


def cut_out(batch: Batch, index: int) -> Batch:
    """One image of a batch without padding, as a batch of its own."""
    prediction, target, sizes = part(batch, index)
    (height, width) = sizes[0]
    return prediction[..., :height, :width], target[..., :height, :width], sizes


def reduced(metric: ProtocolMetric, *others: ProtocolMetric) -> dict[str, float]:
    """What processes compute together: every state gathered from all and reduced as torchmetrics does."""
    for state, reduction in metric._reductions.items():
        setattr(metric, state, reduction(torch.stack([getattr(m, state) for m in (metric, *others)])))
    metric._computed, metric._update_count = None, 1
    return {key: float(value) for key, value in metric.compute().items()}
