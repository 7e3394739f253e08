"""A scene in closed form: planes and a sphere whose every label follows from K by a formula, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from m2h_lightning.data.synthesis.layouts import LayoutSample
from m2h_lightning.labels import IGNORE, NYU40_CLASSES

# (class, normal that faces the camera, distance of the plane from the camera): n · X = −distance, OpenCV axes.
PLANES = (
    ("floor", (0.02, -1.0, -0.05), 1.3),
    ("wall", (0.10, 0.03, -1.0), 4.0),
    ("wall", (0.95, 0.0, -0.30), 1.7),
    ("ceiling", (0.0, 1.0, 0.02), 1.25),
    ("cabinet", (-1.0, 0.0, -0.15), 2.1),
)
SPHERES = (("chair", (0.35, 0.45, 2.4), 0.55), ("chair", (-0.62, 0.62, 2.0), 0.30), ("person", (-0.2, -0.1, 3.0), 0.45))


def pinhole(height: int, width: int, focal: float = 0.9) -> np.ndarray:
    """K with centre and aspect slightly off, so that mixed-up axes show."""
    return np.array([[focal * width, 0, 0.52 * width], [0, 1.02 * focal * width, 0.47 * height], [0, 0, 1.0]])


def tilt_shift(height: int, width: int) -> np.ndarray:
    """A general K: the image plane is tilted about both axes and has skew."""
    K = pinhole(height, width)
    K[0, 1] = 0.02 * width
    K[2, :2] = 0.06, -0.09
    return K


def rays_of(K: np.ndarray, height: int, width: int) -> np.ndarray:
    """K⁻¹ [u, v, 1] at z = 1, (3, H, W) float64; written here on its own, as a check of the package's."""
    v, u = np.mgrid[:height, :width].astype(np.float64)
    rays = np.linalg.solve(K, np.stack([u, v, np.ones_like(u)]).reshape(3, -1)).reshape(3, height, width)
    return rays / rays[2]


def analytic_scene(K: np.ndarray, height: int, width: int, shift: float = 0.0) -> dict[str, np.ndarray]:
    """Closed-form ``depth``, ``normals``, ``semseg`` and ``instance`` (no gaps), depth and normals in float64.

    Args:
        K: 3×3, general.
        height: Pixels.
        width: Pixels.
        shift: Moves the spheres to the right, metres: another frame of the scene.
    """
    rays = rays_of(K, height, width)
    depth = np.full((height, width), np.inf)
    normals = np.zeros((height, width, 3))
    semseg = np.full((height, width), IGNORE, np.uint8)
    instance = np.zeros((height, width), np.int32)

    def put(number: int, label: str, z: np.ndarray, n: np.ndarray) -> None:
        nearer = (z > 0) & (z < depth)
        depth[nearer], normals[nearer] = z[nearer], np.broadcast_to(n, normals.shape)[nearer]
        semseg[nearer], instance[nearer] = NYU40_CLASSES.index(label), number

    for number, (label, normal, distance) in enumerate(PLANES, 1):
        n = np.asarray(normal) / np.linalg.norm(normal)
        with np.errstate(divide="ignore"):
            put(number, label, -distance / np.einsum("c,chw->hw", n, rays), n)
    for number, (label, centre, radius) in enumerate(SPHERES, len(PLANES) + 1):
        c = np.asarray(centre) + np.array([shift, 0, 0])
        a, b = (rays * rays).sum(0), np.einsum("c,chw->hw", c, rays)
        root = b * b - a * (c @ c - radius * radius)
        z = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, -1.0)
        put(number, label, z, ((rays * z) - c[:, None, None]).transpose(1, 2, 0) / radius)
    assert np.isfinite(depth).all()
    assert (np.einsum("hwc,chw->hw", normals, rays) < 0).all()
    return {"depth": depth, "normals": normals, "semseg": semseg, "instance": instance}


def borders_of(semseg: np.ndarray, instance: np.ndarray) -> np.ndarray:
    """Edges by "label or object differs from the right or lower neighbour"; 255 where unlabelled."""
    edges = np.zeros(semseg.shape, np.uint8)
    known = semseg != IGNORE
    for i, j in np.argwhere(known):
        for y, x in ((i, j + 1), (i + 1, j)):
            if y < semseg.shape[0] and x < semseg.shape[1] and known[y, x]:
                edges[i, j] |= (semseg[i, j], instance[i, j]) != (semseg[y, x], instance[y, x])
    edges[~known] = IGNORE
    return edges


def analytic_image(scene: dict[str, np.ndarray], seed: int = 0) -> np.ndarray:
    """A picture of the scene, uint8 H×W×3: one colour per object, shaded by its normal, bright enough for 8 bits."""
    tones = np.random.default_rng(seed).integers(120, 256, (64, 3))
    shade = 0.7 + 0.3 * np.clip(-scene["normals"][..., 2] + 0.3 * scene["normals"][..., 0], 0, 1)
    return np.clip(tones[scene["instance"]] * shade[..., None], 0, 255).astype(np.uint8)


def analytic_sample(
    id: str, scene: str, split: str, height: int = 48, width: int = 64, K: np.ndarray | None = None, frame: int = 0
) -> LayoutSample:
    """A sample of the scene with hard cases: unlabelled pixels, unknown depth and unknown normals.

    Rows 0 and 1 are unlabelled up to the middle; a block in the lower left corner has neither depth nor normals.
    """
    K = pinhole(height, width) if K is None else K
    maps = analytic_scene(K, height, width, 0.15 * frame)
    image = analytic_image(maps, frame)
    maps["semseg"][:2, : width // 2] = IGNORE
    maps["instance"][:2, : width // 2] = 0
    maps["depth"][-5:, :7] = 0
    maps["normals"][-5:, :7] = 0
    maps["instance"][-5:, :7] = 0
    edges = borders_of(maps["semseg"], maps["instance"])
    return LayoutSample(image=image, edges=edges, K=K, id=id, scene=scene, split=split, **maps)


def grey(sample: LayoutSample) -> LayoutSample:
    """The sample in shades of grey."""
    return replace(sample, image=np.repeat(sample.image[..., 1:2], 3, -1))
