"""Camera geometry: intrinsics under crop, resize and flip; back-projection; normals from depth.

Conventions, everywhere in the package:

* Camera frame OpenCV: x right, y down, z forward, metres. Depth is planar: the z coordinate, not the ray length.
* The centre of pixel (row ``i``, column ``j``) is the image point ``(u, v) = (j, i)``; its ray is ``K⁻¹ [u, v, 1]``.
* A visible surface normal faces the camera: ``n · ray < 0``.
* K is the pinhole matrix with last row (0, 0, 1), or, for a tilted image plane (Hypersim's tilt-shift cameras), any
  invertible matrix: the same formulas hold, and every pixel keeps its exact ray. A K of NaN says: not known.

The functions take NumPy arrays or torch tensors and return the same kind; torch is not imported for arrays, so that
commands which need no network stay light.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

Array = TypeVar("Array", bound=Any)  # np.ndarray or torch.Tensor


def _is_numpy(x: Any) -> bool:
    return isinstance(x, (np.ndarray, np.generic))


def _stack(parts: list[Any], axis: int) -> Any:
    if _is_numpy(parts[0]):
        return np.stack(parts, axis)
    import torch

    return torch.stack(parts, axis)


def _copy(x: Array) -> Array:
    return x.copy() if _is_numpy(x) else x.clone()


def crop_intrinsics(K: Array, top: float, left: float) -> Array:
    """Return the intrinsics after cutting ``top`` rows and ``left`` columns off (negative: padding).

    Args:
        K: Intrinsics, (..., 3, 3).
        top: Rows removed at the top.
        left: Columns removed on the left.
    """
    K = _copy(K)
    K[..., 0, :] -= left * K[..., 2, :]
    K[..., 1, :] -= top * K[..., 2, :]
    return K


def resize_intrinsics(K: Array, scale_y: float, scale_x: float) -> Array:
    """Return the intrinsics after resizing by ``scale_y`` and ``scale_x`` (new size / old size).

    Pixel *areas* are what a resize maps (``align_corners=False``), so the principal point moves by half a pixel:
    ``u' = (u + ½)·s − ½``.

    Args:
        K: Intrinsics, (..., 3, 3).
        scale_y: New height over old height.
        scale_x: New width over old width.
    """
    K = _copy(K)
    K[..., 0, :] = K[..., 0, :] * scale_x + (0.5 * scale_x - 0.5) * K[..., 2, :]
    K[..., 1, :] = K[..., 1, :] * scale_y + (0.5 * scale_y - 0.5) * K[..., 2, :]
    return K


def flip_intrinsics(K: Array, width: int) -> Array:
    """Return the intrinsics after a left-right flip of an image ``width`` pixels wide: ``cx' = (W − 1) − cx``.

    The mirrored scene is seen with the same positive focal length; a skew term changes its sign.

    Args:
        K: Intrinsics, (..., 3, 3).
        width: Image width in pixels.
    """
    # Mirrored pixels times mirrored scene: both the first row and the first column change their sign.
    K = _copy(K)
    K[..., 0, :] = (width - 1) * K[..., 2, :] - K[..., 0, :]
    K[..., :, 0] = -K[..., :, 0]
    return K


def pixel_rays(K: Array, height: int, width: int) -> Array:
    """Return the viewing ray of every pixel centre, scaled to ``z = 1``.

    Args:
        K: Intrinsics, (..., 3, 3).
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        Rays (x, y, 1) in the camera frame, (..., 3, H, W).
    """
    u: Any
    v: Any
    if _is_numpy(K):
        u, v = np.arange(width, dtype=K.dtype), np.arange(height, dtype=K.dtype)
    else:
        import torch

        u = torch.arange(width, dtype=K.dtype, device=K.device)
        v = torch.arange(height, dtype=K.dtype, device=K.device)
    inverse = _adjugate(K)  # up to a factor, which cancels below

    def row(index: int) -> Any:
        a, b, c = (inverse[..., index, column, None, None] for column in range(3))
        return a * u[None, :] + b * v[:, None] + c

    z = row(2)
    return _stack([row(0) / z, row(1) / z, z / z], -3)


def _adjugate(K: Any) -> Any:
    """Return the adjugate of 3×3 matrices: their inverse times their determinant, in plain arithmetic."""

    def minor(row: int, col: int) -> Any:
        (r0, r1), (c0, c1) = ([i for i in range(3) if i != skip] for skip in (row, col))
        return (-1) ** (row + col) * (K[..., r0, c0] * K[..., r1, c1] - K[..., r0, c1] * K[..., r1, c0])

    return _stack([_stack([minor(col, row) for col in range(3)], -1) for row in range(3)], -2)


def back_project(depth: Array, K: Array) -> Array:
    """Return the 3-D point of every pixel.

    Args:
        depth: Planar depth in metres, (..., H, W).
        K: Intrinsics, (..., 3, 3).

    Returns:
        Points in the camera frame, metres, (..., 3, H, W).
    """
    if _is_numpy(depth):
        return pixel_rays(K, *depth.shape[-2:]) * depth[..., None, :, :]
    return pixel_rays(K.to(depth.dtype), *depth.shape[-2:]) * depth.unsqueeze(-3)


def normals_from_depth(depth: Array, K: Array, max_step: float = 0.05) -> tuple[Array, Array]:
    """Return surface normals from central differences of the back-projected depth, and where they can be trusted.

    ``n = normalise(∂X/∂v × ∂X/∂u)`` for X = depth · K⁻¹[u, v, 1], which faces the camera for a visible surface
    (MODEL.md 4; GeoNet, Qi et al., CVPR 2018).

    Args:
        depth: Planar depth in metres, 0 = invalid, (..., H, W).
        K: Intrinsics, (..., 3, 3).
        max_step: Largest relative depth difference to each of the four neighbours; a larger one is an occlusion edge.

    Returns:
        Unit normals (..., 3, H, W), zero where not valid, and the boolean validity (..., H, W): a one-pixel border,
        invalid depth and occlusion edges are not valid.
    """
    points = back_project(depth, K)
    du = points[..., :, 1:-1, 2:] - points[..., :, 1:-1, :-2]
    dv = points[..., :, 2:, 1:-1] - points[..., :, :-2, 1:-1]
    nx = dv[..., 1, :, :] * du[..., 2, :, :] - dv[..., 2, :, :] * du[..., 1, :, :]
    ny = dv[..., 2, :, :] * du[..., 0, :, :] - dv[..., 0, :, :] * du[..., 2, :, :]
    nz = dv[..., 0, :, :] * du[..., 1, :, :] - dv[..., 1, :, :] * du[..., 0, :, :]
    centre = depth[..., 1:-1, 1:-1]
    neighbours = (depth[..., 1:-1, 2:], depth[..., 1:-1, :-2], depth[..., 2:, 1:-1], depth[..., :-2, 1:-1])
    valid_centre = centre > 0
    for neighbour in neighbours:
        valid_centre = valid_centre & (neighbour > 0) & (abs(neighbour - centre) <= max_step * centre)
    # Squares of metres over pixels are tiny: the floor keeps the gradient of the root finite where points coincide.
    length = (nx * nx + ny * ny + nz * nz + 1e-24) ** 0.5
    inner = _stack([nx / length, ny / length, nz / length], -3)
    if _is_numpy(depth):
        normals = np.zeros((*depth.shape[:-2], 3, *depth.shape[-2:]), inner.dtype)
        valid = np.zeros(depth.shape, bool)
        normals[..., 1:-1, 1:-1] = inner * valid_centre[..., None, :, :]
        valid[..., 1:-1, 1:-1] = valid_centre
        return normals, valid  # type: ignore[return-value]
    import torch.nn.functional as F

    return F.pad(inner * valid_centre.unsqueeze(-3), (1, 1, 1, 1)), F.pad(valid_centre, (1, 1, 1, 1))  # type: ignore[return-value]


def plane_normals(depth: np.ndarray, K: np.ndarray, radii: tuple[int, ...] = (4, 2, 1), max_step: float = 0.05) -> Any:
    """Return surface normals by fitting a plane to the depth around each pixel: labels for sets that have none.

    On a plane n·X = −d, inverse depth is linear in the ray (x, y, 1): 1/z = a·x + b·y + c with n ∝ −(a, b, c). The fit
    is least squares over a square window; each pixel takes the largest window that holds no depth discontinuity, so
    that sensor noise is averaged where that is possible.

    Args:
        depth: Planar depth in metres, 0 = invalid, (H, W).
        K: Intrinsics, (3, 3).
        radii: Half sizes of the windows, the largest first.
        max_step: Largest relative depth difference between neighbours; a larger one is a discontinuity.

    Returns:
        float32 unit normals (H, W, 3) that face the camera; 0 where no window is free of gaps and discontinuities.
    """
    import cv2

    height, width = depth.shape
    x, y, _ = pixel_rays(np.asarray(K, np.float64), height, width)
    known = depth > 0
    w = np.where(known, 1.0 / np.where(known, depth, 1.0), 0.0).astype(np.float64)
    broken = ~known
    for axis in (0, 1):
        step = np.abs(np.diff(depth, axis=axis)) > max_step * np.minimum(*_neighbours(depth, axis))
        first, second = _neighbours(broken, axis)  # views: marking them marks both sides of the step
        first |= step
        second |= step
    normals = np.zeros((height, width, 3), np.float64)
    todo = np.ones((height, width), bool)
    for radius in radii:
        size = (2 * radius + 1, 2 * radius + 1)

        def mean(values: np.ndarray, size: tuple[int, int] = size) -> np.ndarray:
            return cv2.boxFilter(values, cv2.CV_64F, size, borderType=cv2.BORDER_CONSTANT)

        whole = mean((~broken).astype(np.float64)) > 1 - 0.5 / (size[0] * size[1])  # no gap, not cut by the border
        # Sums about each window's mean: differences of large numbers would eat the digits.
        mx, my, mw = mean(x), mean(y), mean(w)
        xx, yy, xy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
        xw, yw = mean(x * w) - mx * mw, mean(y * w) - my * mw
        determinant = xx * yy - xy * xy
        use = todo & whole & (determinant > 0)
        safe = np.where(use, determinant, 1.0)
        a, b = (yy * xw - xy * yw) / safe, (xx * yw - xy * xw) / safe
        plane = -np.stack([a, b, mw - a * mx - b * my], -1)
        normals[use] = plane[use]
        todo &= ~use
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    return np.where(length > 0, normals / np.where(length > 0, length, 1.0), 0.0).astype(np.float32)


def _neighbours(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return views of all pixels but the last, and all but the first, along ``axis``."""
    return (array[:-1], array[1:]) if axis == 0 else (array[:, :-1], array[:, 1:])
