"""Samples whose every value is known in closed form."""

from __future__ import annotations

import numpy as np


def plane_sample(height: int, width: int, normal=(0.3, -0.4, -0.85), seed: int = 0) -> dict:
    """A raw sample of one tilted plane: everything about it is known in closed form."""
    from m2h_lightning.geometry import pixel_rays

    rng = np.random.default_rng(seed)
    K = np.array([[0.9 * width, 0, 0.48 * width], [0, 0.95 * width, 0.53 * height], [0, 0, 1]], np.float64)
    n = np.asarray(normal, np.float64)
    n = n / np.linalg.norm(n)
    rays = pixel_rays(K, height, width)
    denominator = np.einsum("c,chw->hw", n, rays)
    depth = (-3.0 / denominator).astype(np.float32)
    return {
        "image": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        "semseg": rng.integers(0, 5, (height, width)).astype(np.uint8),
        "depth": depth,
        "normals": np.broadcast_to(n.astype(np.float32), (height, width, 3)).copy(),
        "edges": (rng.random((height, width)) < 0.1).astype(np.uint8),
        "K": K,
        "id": f"plane-{seed}",
    }
