"""Render all samples of one room."""

from __future__ import annotations

import numpy as np

from m2h_lightning.data.sources.edges import label_borders
from m2h_lightning.data.synthesis.camera import draw_views, draw_walk
from m2h_lightning.data.synthesis.caster import Caster
from m2h_lightning.data.synthesis.draw import Draw
from m2h_lightning.data.synthesis.layout import ROOM_TYPES, make_room
from m2h_lightning.data.synthesis.meshes import compile_mesh
from m2h_lightning.data.synthesis.render import (
    Camera,
    Lighting,
    develop,
    encode_octahedral,
    expose,
    planes_in_camera,
    rays,
    shade,
)

GENERATOR_VERSION = 5
"""Raised by every change that alters a pixel: it is part of every cache's name."""

SPLIT_CODES = {"train": 0, "val": 1, "test": 2}
_LAYOUT, _CAMERA, _SENSOR = 0, 1, 2


def sample_dtype(height: int, width: int) -> np.dtype:
    """One sample as a record of fixed size: what the cache stores (15 bytes a pixel and 204 bytes)."""
    size = (height, width)
    return np.dtype(
        [
            ("crc", "<u4"),
            ("K", "<f8", (3, 3)),
            ("pose", "<f8", (4, 4)),
            ("image", "u1", (*size, 3)),
            ("depth", "<f4", size),
            ("normals", "<i2", (*size, 2)),
            ("semseg", "u1", size),
            ("instance", "<u2", size),
            ("edges", "u1", size),
        ]
    )


def render_room(
    seed: int,
    split: str,
    room: int,
    views: int,
    height: int,
    width: int,
    mode: str = "views",
    K: np.ndarray | None = None,
) -> np.ndarray:
    """All samples of one room, the same bytes on every machine.

    Args:
        seed: Seed of the data set.
        split: "train", "val" or "test"; the same room number is a different room in each.
        room: Number of the room within the split.
        views: Number of samples.
        height: H in pixels.
        width: W in pixels.
        mode: "views" for independent cameras, "sequence" for one smooth walk.
        K: Pinhole matrix (3, 3) of all samples; None draws one for each, or one for the walk.

    Returns:
        Records (views,) of :func:`sample_dtype`; ``crc`` is left 0 (the store fills it in).
    """
    code = SPLIT_CODES[split]
    # Types take turns, so that a small set has all of them.
    furnished, lighting = make_room(Draw(seed, code, room, _LAYOUT), ROOM_TYPES[room % len(ROOM_TYPES)])
    caster = Caster(compile_mesh(furnished.mesh))
    cameras = (draw_walk if mode == "sequence" else draw_views)(
        furnished, caster, Draw(seed, code, room, _CAMERA), views, height, width, K
    )
    sensor = Draw(seed, code, room, _SENSOR)
    records = np.zeros(views, sample_dtype(height, width))
    exposure = None
    for record, camera in zip(records, cameras, strict=True):
        exposure = render_view(caster, lighting, camera, sensor, record, exposure if mode == "sequence" else None)
    return records


def render_view(
    caster: Caster, lighting: Lighting, camera: Camera, sensor: Draw, record: np.void, exposure: float | None
) -> float:
    """Fill one record; returns the exposure used (``None`` measures it from this view)."""
    height, width = record["semseg"].shape
    slopes, world = rays(camera, height, width)
    face = caster.first_faces(camera.pose[:3, 3].copy(), world)
    n, offset = planes_in_camera(caster, camera)
    toward = n[0][face] * slopes[0] + n[1][face] * slopes[1] + n[2][face]  # n · ray, negative
    depth = -offset[face] / toward
    points = np.empty((3, len(face)))
    for axis in range(3):
        points[axis] = camera.pose[axis, 3] + depth * world[:, axis]
    slant = np.maximum(-toward, 0.0).astype(np.float32) * np.float32(0.8) + np.float32(0.2)
    footprint = (depth * (1.0 / camera.K[0, 0])).astype(np.float32) / slant
    radiance = shade(caster, lighting, camera, face, points, footprint, height, width)
    exposure = expose(radiance) if exposure is None else exposure
    record["K"], record["pose"] = camera.K, camera.pose
    record["image"] = develop(radiance, face, exposure, sensor)
    record["depth"] = depth.reshape(height, width)
    record["normals"] = encode_octahedral(n.T)[face].reshape(height, width, 2)
    record["semseg"] = caster.faces.label[face].reshape(height, width)
    record["instance"] = caster.faces.instance[face].reshape(height, width)
    record["edges"] = label_borders(record["semseg"], record["instance"])
    return exposure
