"""How the numbers of one Hypersim frame become ours: rays, intrinsics, planar depth, normals, tonemap. NumPy only."""

from __future__ import annotations

import numpy as np

from m2h_lightning.data.sources.axes import apply_axes

AXES = "x,-y,-z"
"""Hypersim's camera frame (x right, y up, z backward) to OpenCV's."""

_LARGEST = 65504.0  # of float16, in which colours are stored: what an infinite one stands for


def view_rays(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the viewing ray of every pixel centre in the camera frame OpenCV, not normalised.

    ``ray = M · [u, v, 1]`` with u = (j + ½)/W · 2 − 1 to the right and v = 1 − (i + ½)/H · 2 upward; then y and z
    change their sign. u and v are relative: any size of the same picture will do.

    Args:
        matrix: M_cam_from_uv, 3×3.
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        float64 rays (3, H, W).
    """
    u = (np.arange(width) + 0.5) / width * 2 - 1
    v = 1 - (np.arange(height) + 0.5) / height * 2
    opencv = np.diag([1.0, -1.0, -1.0]) @ matrix
    return np.stack([row[0] * u[None, :] + row[1] * v[:, None] + row[2] for row in opencv])


def intrinsics(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return K with ``K⁻¹ [u, v, 1]`` along the ray of the pixel whose centre is (u, v), and K[2, 2] = 1.

    For a camera that is not tilted this is a pinhole matrix with fx = W/(2·M00). With a tilted image plane the last row
    is not (0, 0, 1), and still every pixel has its exact ray.

    Args:
        matrix: M_cam_from_uv, 3×3.
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        float64 3×3.
    """
    uv_from_pixel = np.array([[2 / width, 0, 1 / width - 1], [0, -2 / height, 1 - 1 / height], [0, 0, 1]])
    K = np.linalg.inv(np.diag([1.0, -1.0, -1.0]) @ matrix @ uv_from_pixel)
    return K / K[2, 2]


def planar_depth(distance: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Return planar depth, float32 H×W, of distances to the camera's centre; 0 where not known.

    Args:
        distance: Metres, H×W; NaN, infinite, 0 and negative are not known.
        rays: As :func:`view_rays` returns them.
    """
    known = np.isfinite(distance) & (distance > 0) & (rays[2] > 0)
    cosine = rays[2] / np.sqrt((rays * rays).sum(0))
    return np.where(known, np.where(known, distance, 0.0) * cosine, 0.0).astype(np.float32)


def facing_normals(stored: np.ndarray, rays: np.ndarray, axes: str = AXES) -> np.ndarray:
    """Return unit normals in the camera frame OpenCV that face the camera, float32 H×W×3; 0 where not known.

    Args:
        stored: H×W×3; not finite or shorter than ½ is not known, other lengths are made 1.
        rays: As :func:`view_rays` returns them: the side that faces the camera differs from pixel to pixel.
        axes: Which stored channel, with which sign, is x, y and z.
    """
    finite = np.isfinite(stored).all(-1, keepdims=True)
    normals = apply_axes(np.where(finite, stored, 0.0), axes)
    length = np.sqrt((normals * normals).sum(-1))
    away = np.einsum("hwc,chw->hw", normals, rays) > 0
    factor = np.where(length >= 0.5, np.where(away, -1.0, 1.0) / np.maximum(length, 0.5), 0.0)
    return normals * factor[..., None].astype(np.float32)


def tonemap(colour: np.ndarray, entity: np.ndarray) -> np.ndarray:
    """Return the picture, uint8 H×W×3, of linear light by the rule of Hypersim's scene_generate_images_tonemap.py.

    The 90th percentile of brightness .3 R + .59 G + .11 B over pixels that show something becomes 0.8 after gamma 2.2.
    The percentile is that of NumPy's "linear" rule on sorted values, computed here: NumPy's own differs in the last
    digits between versions.

    Args:
        colour: Linear R, G, B, H×W×3; NaN becomes 0 and infinity float16's largest number first.
        entity: Number of the rendered object, H×W; −1 shows nothing.
    """
    light = np.nan_to_num(colour.astype(np.float32), nan=0.0, posinf=_LARGEST, neginf=0.0)
    brightness = 0.3 * light[..., 0] + 0.59 * light[..., 1] + 0.11 * light[..., 2]
    scale = 1.0
    shown = brightness[entity != -1]
    if shown.size:
        position = 0.9 * (shown.size - 1)
        below = int(position)
        above = min(below + 1, shown.size - 1)
        ordered = np.partition(shown, (below, above)).astype(np.float64)
        percentile = ordered[below] + (position - below) * (ordered[above] - ordered[below])
        scale = 0.8**2.2 / percentile if percentile >= 1e-4 else 0.0
    picture = np.maximum(light * np.float32(scale), 0.0) ** np.float32(1 / 2.2)
    return np.rint(np.minimum(picture, 1.0) * 255).astype(np.uint8)
