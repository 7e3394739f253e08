"""From the faces seen by a camera to image and labels. Only + - * / sqrt floor and comparisons touch the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from m2h_lightning.data.synthesis import textures
from m2h_lightning.data.synthesis.caster import Caster
from m2h_lightning.data.synthesis.draw import Draw
from m2h_lightning.data.synthesis.meshes import Colour

OCT_ONE = 32767  # int16 code of 1.0 in the octahedral normals


@dataclass(frozen=True)
class Light:
    """A light with inverse-square falloff.

    Attributes:
        position: Metres, room frame.
        power: Linear RGB.
        spread: Two half-extent vectors of the emitting area; shadow rays start from four points of it.
        facing: Direction of a one-sided emitter (window), unit; None for a bulb that shines all around.
    """

    position: tuple[float, float, float]
    power: Colour
    spread: tuple[tuple[float, float, float], tuple[float, float, float]]
    facing: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        K: (3, 3) float64; the centre of pixel (row i, column j) is at (u=j, v=i).
        pose: (4, 4) float64 camera-to-world; the camera frame is x right, y down, z forward.
    """

    K: np.ndarray
    pose: np.ndarray


@dataclass(frozen=True)
class Lighting:
    """Lights and ambient term of one room, and the room's extents (for darkening towards corners)."""

    lights: tuple[Light, ...]
    ambient: Colour
    extents: tuple[float, float, float]


def rays(camera: Camera, height: int, width: int, step: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Ray slopes and world directions through pixel centres, with unit z in the camera frame.

    Returns:
        (2, N) float64 ``x/z, y/z`` in the camera frame, and (N, 3) float64 world directions, row by row.
    """
    j, i = np.arange(0, width, step), np.arange(0, height, step)
    x = np.tile((j - camera.K[0, 2]) / camera.K[0, 0], len(i))
    y = np.repeat((i - camera.K[1, 2]) / camera.K[1, 1], len(j))
    pose = camera.pose
    world = np.empty((len(x), 3))
    for axis in range(3):
        world[:, axis] = x * pose[axis, 0] + y * pose[axis, 1] + pose[axis, 2]
    return np.stack([x, y]), world


def planes_in_camera(caster: Caster, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """The faces' planes in the camera frame, normals turned towards the camera: (3, F) normals and (F,) offsets > 0."""
    normal, pose = caster.faces.normal, camera.pose
    n = np.stack([normal[:, 0] * pose[0, k] + normal[:, 1] * pose[1, k] + normal[:, 2] * pose[2, k] for k in range(3)])
    offset = normal[:, 0] * pose[0, 3] + normal[:, 1] * pose[1, 3] + normal[:, 2] * pose[2, 3] + caster.faces.offset
    return np.where(offset < 0, -n, n), np.abs(offset)


def encode_octahedral(normals: np.ndarray) -> np.ndarray:
    """Unit vectors (..., 3) as two int16 (octahedral map, Meyer et al. 2010); decoding errs by less than 0.005°."""
    x, y, z = normals[..., 0], normals[..., 1], normals[..., 2]
    total = np.abs(x) + np.abs(y) + np.abs(z)
    px, py = x / total, y / total
    fold = z < 0
    ox = np.where(fold, (1.0 - np.abs(py)) * np.where(px < 0, -1.0, 1.0), px)
    oy = np.where(fold, (1.0 - np.abs(px)) * np.where(py < 0, -1.0, 1.0), py)
    return np.floor(np.stack([ox, oy], axis=-1) * OCT_ONE + 0.5).astype(np.int16)


def decode_octahedral(codes: np.ndarray) -> np.ndarray:
    """Unit vectors (..., 3) float32 from two int16 (..., 2)."""
    x, y = codes[..., 0] * np.float32(1 / OCT_ONE), codes[..., 1] * np.float32(1 / OCT_ONE)
    z = 1 - np.abs(x) - np.abs(y)
    fold = np.maximum(-z, 0)
    x, y = x - np.where(x < 0, -fold, fold), y - np.where(y < 0, -fold, fold)
    length = np.sqrt(x * x + y * y + z * z)
    return np.stack([x / length, y / length, z / length], axis=-1).astype(np.float32)


@lru_cache(maxsize=1)
def _tone_table() -> np.ndarray:
    x = [i / 4095.0 for i in range(4096)]
    return np.array([int(255.0 * (12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055) + 0.5) for v in x])


def _albedo(caster: Caster, face: np.ndarray, p: list[np.ndarray], footprint: np.ndarray) -> list[np.ndarray]:
    """Albedo, three float32 arrays (N,); ``footprint`` is the size of a pixel on the surface in metres."""
    faces, atlas = caster.faces, textures.atlas()
    texels = footprint * faces.texels[face]
    level = np.zeros(len(face), np.int32)
    for k in range(1, textures.LEVELS):
        level += texels > np.float32(1.5 * 2 ** (k - 1))
    size = np.int32(textures.SIZE) >> level
    coordinates = []
    for axis in (faces.u, faces.v):
        c = p[0] * axis[:, 0][face] + p[1] * axis[:, 1][face] + p[2] * axis[:, 2][face] + axis[:, 3][face]
        coordinates.append(((c - np.floor(c)) * size.astype(np.float32)).astype(np.int32) & (size - 1))
    index = atlas.level_start[level] + (faces.layer[face] * size + coordinates[1]) * size + coordinates[0]
    texel = atlas.texels[index].view(np.uint8).reshape(-1, 4)
    scale = np.float32(1 / 255)
    return [faces.c0[:, c][face] + faces.dc[:, c][face] * (texel[:, c] * scale) for c in range(3)]


def _corner_darkening(p: list[np.ndarray], n: list[np.ndarray], extents: tuple[float, float, float]) -> np.ndarray:
    """How open a point lies: 1 in the middle of the room, about 0.5 in an inner corner."""
    reach = np.float32(0.35)
    result = np.ones(len(p[0]), np.float32)
    for axis in range(3):
        for sign, distance in ((1, p[axis]), (-1, np.float32(extents[axis]) - p[axis])):
            near = reach / (reach + np.maximum(distance, 0))
            # A surface lying in that wall, or parallel to it, is not darkened by it.
            result *= 1 - np.float32(0.42) * near * near * (1 - np.maximum(n[axis] * sign, 0))
    return result


def _shadow_rays(
    caster: Caster, lighting: Lighting, face: np.ndarray, at: np.ndarray, rows: int, columns: int
) -> np.ndarray:
    """Visibility (L+1, rows, columns) float32 in {0, 1} of the lights, then of the near hemisphere, from points.

    Neighbouring points aim at the four points of a light's area, or at four directions around the normal.
    """
    normal = caster.faces.normal[face]
    at = at + normal * 1.37e-3  # an odd length: no furniture measure, so that a ray never ends in a surface
    phase = ((np.arange(rows) & 1)[:, None] * 2 + (np.arange(columns) & 1)[None, :]).ravel()
    sx, sy = np.array([-0.5, 0.5, 0.5, -0.5])[phase], np.array([-0.5, -0.5, 0.5, 0.5])[phase]
    clear = np.zeros((len(lighting.lights) + 1, rows * columns), np.float32)
    origins, directions, lanes = [], [], []
    for index, light in enumerate(lighting.lights):
        a, b = light.spread
        start = np.stack([light.position[k] + sx * a[k] + sy * b[k] for k in range(3)], axis=1)
        # Stop short of the point: in a corner it may lie in another wall up to rounding, and a ray must not end there.
        ray = (at - start) * 0.9999
        toward = ray[:, 0] * normal[:, 0] + ray[:, 1] * normal[:, 1] + ray[:, 2] * normal[:, 2] < 0
        if light.facing is not None:
            f = light.facing
            toward &= ray[:, 0] * f[0] + ray[:, 1] * f[1] + ray[:, 2] * f[2] > 0
        lit = np.flatnonzero(toward)  # the others turn their back on the light: no ray needed
        origins.append(start[lit])
        directions.append(ray[lit])
        lanes.append(lit + index * rows * columns)
    around = sx[:, None] * normal[:, [1, 2, 0]] + sy[:, None] * normal[:, [2, 0, 1]]
    probe = (normal + around * 1.3) * 0.6
    origins.append(at + probe * 1e-3)  # likewise, start beyond such a wall
    directions.append(probe)
    lanes.append(np.arange(rows * columns) + len(lighting.lights) * rows * columns)
    hidden = caster.occluded(np.concatenate(origins), np.concatenate(directions))
    clear.reshape(-1)[np.concatenate(lanes)] = ~hidden
    return clear.reshape(-1, rows, columns)


def _visibility(
    caster: Caster, lighting: Lighting, face: np.ndarray, points: np.ndarray, height: int, width: int
) -> list[np.ndarray]:
    """Soft visibility in 0…1 of every light, then the openness of the near hemisphere; float32 (H*W,) each.

    Shadow rays start at every second row and column. The results are averaged and brought to full size among pixels
    of the same face only, so that shadows do not leak over borders.
    """
    rows, columns = (height + 1) // 2, (width + 1) // 2
    face_map = face.reshape(height, width)
    half_face = np.ascontiguousarray(face_map[::2, ::2])
    at = points.reshape(3, height, width)[:, ::2, ::2].reshape(3, -1).T
    clear = _shadow_rays(caster, lighting, half_face.ravel(), at, rows, columns)
    # Average each sample with its right, lower and lower right neighbours: the four points of a light.
    total, weight = clear.copy(), np.ones((rows, columns), np.float32)
    for di, dj in ((1, 0), (0, 1), (1, 1)):
        here, there = (slice(rows - di), slice(columns - dj)), (slice(di, None), slice(dj, None))
        same = (half_face[there] == half_face[here]).astype(np.float32)
        total[(slice(None), *here)] += clear[(slice(None), *there)] * same
        weight[here] += same
    soft = np.empty((len(clear), rows + 1, columns + 1), np.float32)
    soft[:, :rows, :columns] = total / weight
    soft[:, rows], soft[:, :, columns] = soft[:, rows - 1], soft[:, :, columns - 1]
    padded = np.empty((rows + 1, columns + 1), half_face.dtype)
    padded[:rows, :columns] = half_face
    padded[rows], padded[:, columns] = padded[rows - 1], padded[:, columns - 1]
    # Full size: a pixel between samples takes the mean of those of its own face (of the first, where none is).
    full = np.empty((len(clear), height, width), np.float32)
    full[:, ::2, ::2] = soft[:, :rows, :columns]
    for pi, pj in ((0, 1), (1, 0), (1, 1)):
        target = face_map[pi::2, pj::2]
        r, c = target.shape
        total = np.float32(1e-4) * soft[:, :r, :c]
        weight = np.full((r, c), 1e-4, np.float32)
        for di in range(pi + 1):
            for dj in range(pj + 1):
                same = (padded[di : di + r, dj : dj + c] == target).astype(np.float32)
                weight += same
                total += soft[:, di : di + r, dj : dj + c] * same
        full[:, pi::2, pj::2] = total / weight
    return list(full.reshape(len(clear), -1))


def shade(
    caster: Caster,
    lighting: Lighting,
    camera: Camera,
    face: np.ndarray,
    points: np.ndarray,
    footprint: np.ndarray,
    height: int,
    width: int,
) -> np.ndarray:
    """Linear radiance (3, H, W) float32 of the faces seen.

    Args:
        caster: The room.
        lighting: Its lights.
        camera: The camera (for the darkening towards the picture's corners).
        face: (H*W,) faces seen.
        points: (3, H*W) float64 points seen, room frame.
        footprint: (H*W,) float32 size of a pixel on the surface, metres.
        height: H.
        width: W.
    """
    faces = caster.faces
    p = [points[axis].astype(np.float32) for axis in range(3)]
    n = [faces.normal[:, axis].astype(np.float32)[face] for axis in range(3)]
    visible = _visibility(caster, lighting, face, points, height, width)
    openness = _corner_darkening(p, n, lighting.extents) * (np.float32(0.45) + np.float32(0.55) * visible[-1])
    lift = openness * (np.float32(0.85) + np.float32(0.15) * n[2])
    light_rgb = [np.float32(lighting.ambient[c]) * lift for c in range(3)]
    for light, clear in zip(lighting.lights, visible, strict=False):
        lx, ly, lz = (np.float32(light.position[axis]) - p[axis] for axis in range(3))
        r2 = lx * lx + ly * ly + lz * lz
        r = np.sqrt(r2)
        cosine = (n[0] * lx + n[1] * ly + n[2] * lz) / r
        # A little wrap keeps surfaces at grazing light from going black, as bounced light would.
        amount = np.maximum(cosine * np.float32(0.9) + np.float32(0.1), 0) / (r2 + np.float32(0.35)) * clear
        if light.facing is not None:
            f = light.facing
            away = -(lx * np.float32(f[0]) + ly * np.float32(f[1]) + lz * np.float32(f[2])) / r
            amount = amount * np.maximum(away, 0)
        for c in range(3):
            light_rgb[c] += np.float32(light.power[c]) * amount
    glow = faces.emit[face]
    albedo = _albedo(caster, face, p, footprint)
    return np.stack([albedo[c] * (light_rgb[c] + glow) for c in range(3)]).reshape(3, height, width)


def expose(radiance: np.ndarray) -> float:
    """The exposure that puts the mean of a picture's clipped luminance at a pleasant level, by integer sums (exact)."""
    luminance = radiance[0] * np.float32(0.3) + radiance[1] * np.float32(0.59) + radiance[2] * np.float32(0.11)
    codes = np.floor(np.minimum(luminance, 2) * 4096).astype(np.int64)
    return 0.30 / max(int(codes.sum()) / (4096.0 * codes.size), 0.02)


def develop(radiance: np.ndarray, face: np.ndarray, exposure: float, draw: Draw) -> np.ndarray:
    """The camera's picture (H, W, 3) uint8: softened steps, vignette, film curve, sensor noise."""
    _, height, width = radiance.shape
    linear = radiance * np.float32(exposure)
    face_map = face.reshape(height, width)
    step = np.zeros((height, width), bool)
    across, down = face_map[:, :-1] != face_map[:, 1:], face_map[:-1] != face_map[1:]
    step[:, :-1] |= across
    step[:, 1:] |= across
    step[:-1] |= down
    step[1:] |= down
    i, j = np.nonzero(step)
    up, low = np.maximum(i - 1, 0), np.minimum(i + 1, height - 1)
    left, right = np.maximum(j - 1, 0), np.minimum(j + 1, width - 1)
    near = np.minimum(linear, 2)
    around = near[:, up, j] + near[:, low, j] + near[:, i, left] + near[:, i, right]
    linear[:, i, j] = near[:, i, j] * np.float32(0.5) + around * np.float32(0.125)
    y = (np.arange(height, dtype=np.float32) / np.float32(height) - np.float32(0.5))[:, None]
    x = (np.arange(width, dtype=np.float32) / np.float32(width) - np.float32(0.5))[None, :]
    linear *= 1 - np.float32(0.35) * (x * x + y * y)
    film = linear * (1 + linear * np.float32(1 / 6)) / (1 + linear)
    code = np.minimum(film * np.float32(4095 / 0.85), 4095).astype(np.int64)
    picture = np.ascontiguousarray(_tone_table().astype(np.int16)[code].transpose(1, 2, 0))
    raw = draw.bytes(picture.size).reshape(picture.shape)
    picture += ((raw & 7).astype(np.int16) + (raw >> 5).astype(np.int16)) // 2 - 3  # triangular, -3 … 4
    return np.clip(picture, 0, 255).astype(np.uint8)
