"""Planes in small blocks of a depth map, under each idea of what "depth" might be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from m2h_lightning.geometry import pixel_rays

IDEAS = ("planar", "distance", "inverse", "divided")
"""What depth may be: z; the distance along the ray; 1/z (a disparity differs by a factor, which turns no plane); or z
that was taken for a distance and made planar a second time."""


@dataclass(frozen=True)
class Blocks:
    """Rays of an image cut into square blocks of ``size`` pixels; all arrays (rows, cols) or (rows·size, cols·size)."""

    size: int
    length: np.ndarray
    """Length of each pixel's ray (x, y, 1)."""
    x: np.ndarray
    """Ray x of each pixel minus its block's mean; ``y`` alike."""
    y: np.ndarray
    mx: np.ndarray
    my: np.ndarray
    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray
    centre_rays: np.ndarray
    """Ray of the pixel in the middle of each block, (rows, cols, 3)."""


def block_means(values: np.ndarray, size: int) -> np.ndarray:
    """Return the mean of each size×size block of (H, W, …); rows and columns left over are dropped."""
    rows, cols = values.shape[0] // size, values.shape[1] // size
    whole = values[: rows * size, : cols * size]
    return whole.reshape(rows, size, cols, size, *values.shape[2:]).mean(axis=(1, 3))


@lru_cache(maxsize=8)
def _blocks(intrinsics: bytes, height: int, width: int, size: int) -> Blocks:
    x, y, _ = pixel_rays(np.frombuffer(intrinsics).reshape(3, 3), height, width)
    x, y = x[: height // size * size, : width // size * size], y[: height // size * size, : width // size * size]
    mx, my = block_means(x, size), block_means(y, size)
    length = np.sqrt(x * x + y * y + 1)
    middle = np.s_[size // 2 :: size, size // 2 :: size]
    rays = np.stack([x[middle], y[middle], np.ones_like(mx)], -1)
    x, y = x - _spread(mx, size), y - _spread(my, size)
    # float32 is enough for what is centred, and is what makes each sample cheap.
    return Blocks(
        size,
        length.astype(np.float32),
        x.astype(np.float32),
        y.astype(np.float32),
        mx,
        my,
        block_means(x * x, size),
        block_means(y * y, size),
        block_means(x * y, size),
        rays.astype(np.float32),
    )


def _spread(means: np.ndarray, size: int) -> np.ndarray:
    return np.repeat(np.repeat(means, size, 0), size, 1)


def blocks_of(K: np.ndarray, shape: tuple[int, int], size: int) -> Blocks:
    """Return the blocks of an image; kept, because most sets have one camera.

    Args:
        K: Intrinsics, (3, 3).
        shape: Height and width.
        size: Side of a block, pixels.
    """
    return _blocks(np.ascontiguousarray(K, np.float64).tobytes(), *shape, size)


def smooth_blocks(depth: np.ndarray, size: int, max_step: float = 0.05) -> np.ndarray:
    """Return which blocks hold neither unknown depth nor a jump, bool (rows, cols).

    Jumps are relative differences between neighbours, so that the answer is the same whatever the depth may be.

    Args:
        depth: (H, W), 0 = unknown.
        size: Side of a block, pixels.
        max_step: Largest relative difference that is no jump.
    """
    broken: np.ndarray = ~(depth > 0)
    near = np.where(broken, np.float32(1), depth)
    log = np.log(near)
    limit = np.log1p(max_step)
    broken[:, 1:] |= np.abs(np.diff(log, axis=1)) > limit
    broken[1:] |= np.abs(np.diff(log, axis=0)) > limit
    rows, cols = depth.shape[0] // size, depth.shape[1] // size
    blocks = broken[: rows * size, : cols * size].reshape(rows, size, cols, size)
    return np.logical_not(blocks.any(axis=(1, 3)))


def _inverse_z(depth: np.ndarray, length: np.ndarray, idea: str) -> np.ndarray:
    if idea == "inverse":
        return depth
    if idea == "distance":
        return length / depth
    return 1 / (depth * length) if idea == "divided" else 1 / depth


def fit_planes(depth: np.ndarray, blocks: Blocks, idea: str) -> tuple[np.ndarray, np.ndarray]:
    """Fit a plane to each block: on a plane 1/z is linear in the ray (x, y, 1).

    Args:
        depth: (H, W), known wherever the answer is used.
        blocks: Of the same image.
        idea: One of ``IDEAS``.

    Returns:
        Unit normals that face the camera (rows, cols, 3), and the mean square of what 1/z deviates from the plane,
        relative to its mean square (rows, cols).
    """
    height, width = blocks.x.shape
    depth = depth[:height, :width]
    safe = np.where(depth > 0, depth, np.float32(1))
    w = _inverse_z(safe, blocks.length, idea)
    mw = block_means(w, blocks.size).astype(np.float64)
    centred = w - _spread(mw.astype(np.float32), blocks.size)
    xw, yw = block_means(blocks.x * centred, blocks.size), block_means(blocks.y * centred, blocks.size)
    determinant = blocks.xx * blocks.yy - blocks.xy**2
    a = (blocks.yy * xw - blocks.xy * yw) / determinant
    b = (blocks.xx * yw - blocks.xy * xw) / determinant
    normals = -np.stack([a, b, mw - a * blocks.mx - b * blocks.my], -1)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-30)
    rest = block_means(centred * centred, blocks.size) - a * xw - b * yw
    return normals, np.maximum(rest, 0.0) / np.maximum(mw * mw, 1e-30)
