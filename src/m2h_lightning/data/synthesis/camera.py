"""Where the camera stands and looks: single views and smooth walks through a room."""

from __future__ import annotations

import math

import numpy as np

from m2h_lightning.data.synthesis.caster import Caster
from m2h_lightning.data.synthesis.draw import Draw
from m2h_lightning.data.synthesis.labels import CLASS
from m2h_lightning.data.synthesis.placement import Room
from m2h_lightning.data.synthesis.render import Camera, planes_in_camera, rays

Point = tuple[float, float, float]
_TRIES = 14


def look_at(eye: Point, target: Point, roll: float) -> np.ndarray:
    """Camera-to-world pose (4, 4) of a camera at ``eye`` looking at ``target``.

    Args:
        eye: Metres, room frame (z up).
        target: A point not straight above or below the eye.
        roll: Tangent of the angle by which the camera is tilted about its axis.
    """
    f = [target[k] - eye[k] for k in range(3)]
    length = math.sqrt(f[0] * f[0] + f[1] * f[1] + f[2] * f[2])
    f = [c / length for c in f]
    flat = math.sqrt(f[0] * f[0] + f[1] * f[1])
    right = [f[1] / flat, -f[0] / flat, 0.0]
    down = [f[1] * right[2] - f[2] * right[1], f[2] * right[0] - f[0] * right[2], f[0] * right[1] - f[1] * right[0]]
    norm = math.sqrt(1.0 + roll * roll)
    x = [(right[k] + roll * down[k]) / norm for k in range(3)]
    y = [(down[k] - roll * right[k]) / norm for k in range(3)]
    pose = np.eye(4)
    for k in range(3):
        pose[k] = (x[k], y[k], f[k], eye[k])
    return pose


def draw_intrinsics(draw: Draw, height: int, width: int) -> np.ndarray:
    """K (3, 3): square pixels, horizontal field of view 55 to 75 degrees, centre within 2 % of the middle."""
    focal = width * draw.uniform(0.652, 0.960)
    cx = (width - 1) / 2 + width * draw.uniform(-0.02, 0.02)
    cy = (height - 1) / 2 + height * draw.uniform(-0.02, 0.02)
    return np.array([[focal, 0.0, cx], [0.0, focal, cy], [0.0, 0.0, 1.0]])


def _free(room: Room, x: float, y: float, margin: float) -> bool:
    shell = room.shell
    if not (margin < x < shell.width - margin and margin < y < shell.depth - margin):
        return False
    for rect in room.taken:
        if rect.height > 0 and rect.x0 - margin < x < rect.x1 + margin and rect.y0 - margin < y < rect.y1 + margin:
            return False
    return True


def _eye(room: Room, draw: Draw) -> Point:
    shell = room.shell
    z = draw.uniform(1.2, 1.8)
    for attempt in range(40):
        margin = 0.3 if attempt < 25 else 0.12
        x, y = draw.uniform(0.15, shell.width - 0.15), draw.uniform(0.15, shell.depth - 0.15)
        if _free(room, x, y, margin):
            break
    return x, y, z


def _target(room: Room, draw: Draw, eye: Point) -> Point:
    shell = room.shell
    for _ in range(12):
        if room.targets and draw.chance(0.6):
            tx, ty, tz = draw.pick(room.targets)
        else:
            tx, ty, tz = shell.width * draw.uniform(0.2, 0.8), shell.depth * draw.uniform(0.2, 0.8), 0.9
        target = (tx + draw.uniform(-0.4, 0.4), ty + draw.uniform(-0.4, 0.4), tz + draw.uniform(-0.1, 0.45))
        dx, dy = target[0] - eye[0], target[1] - eye[1]
        distance = math.sqrt(dx * dx + dy * dy)
        if distance > 1.2:
            break
    # Limit the pitch to a slope of 0.45 (24 degrees) downwards and 0.1 upwards.
    z = min(max(target[2], eye[2] - 0.45 * distance), eye[2] + 0.1 * distance)
    return target[0], target[1], z


def _score(caster: Caster, camera: Camera, height: int, width: int) -> float:
    """How good a view is: at least 1 for one that is accepted."""
    step = max(1, height // 20)
    slopes, world = rays(camera, height, width, step)
    face = caster.first_faces(camera.pose[:3, 3].copy(), world)
    n, offset = planes_in_camera(caster, camera)
    depth = -offset[face] / (n[0][face] * slopes[0] + n[1][face] * slopes[1] + n[2][face])
    order = np.sort(depth)
    counts = np.bincount(caster.faces.label[face], minlength=40)
    classes = int((counts > 0.004 * len(face)).sum())
    score = min(classes / 6.0, 1.0)
    score *= min(float(order[len(order) // 2]) / 1.5, 1.0) * min(float(order[len(order) // 50]) / 0.5, 1.0)
    bare = int(counts[CLASS["wall"]]) + int(counts[CLASS["ceiling"]])
    return score * min(1.0, 0.55 * len(face) / max(bare, 1))


def draw_views(
    room: Room, caster: Caster, draw: Draw, count: int, height: int, width: int, given: np.ndarray | None = None
) -> list[Camera]:
    """Independent cameras; each is resampled until it sees at least six classes from a fair distance.

    ``given`` is their K (3, 3); None draws one for each.
    """
    cameras = []
    for _ in range(count):
        best, best_score = None, -1.0
        for _ in range(_TRIES):
            K = draw_intrinsics(draw, height, width) if given is None else given
            eye = _eye(room, draw)
            camera = Camera(K, look_at(eye, _target(room, draw, eye), draw.uniform(-0.04, 0.04)))
            score = _score(caster, camera, height, width)
            if score > best_score:
                best, best_score = camera, score
            if score >= 1.0:
                break
        assert best is not None
        cameras.append(best)
    return cameras


def draw_walk(
    room: Room, caster: Caster, draw: Draw, count: int, height: int, width: int, given: np.ndarray | None = None
) -> list[Camera]:
    """A smooth walk of ``count`` frames: at most 0.06 m a frame, turning slowly, with one K: ``given``, or drawn."""
    K = draw_intrinsics(draw, height, width) if given is None else given
    best: list[Camera] = []
    best_score = -1.0
    for _ in range(_TRIES):
        a = _eye(room, draw)
        b = _eye(room, draw)
        reach = min(1.0, 0.06 * max(count - 1, 1) / max(math.sqrt((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2), 1e-3))
        end = tuple(a[k] + (b[k] - a[k]) * reach for k in range(3))
        first = _target(room, draw, a)
        swing = min(1.0, 0.02 * count)
        second = _target(room, draw, a)
        roll = draw.uniform(-0.03, 0.03)
        cameras, clear = [], True
        for frame in range(count):
            t = frame / max(count - 1, 1)
            s = t * t * (3.0 - 2.0 * t)
            eye = (a[0] + (end[0] - a[0]) * s, a[1] + (end[1] - a[1]) * s, a[2] + (end[2] - a[2]) * s)
            target = tuple(first[k] + (second[k] - first[k]) * s * swing for k in range(3))
            clear = clear and _free(room, eye[0], eye[1], 0.1)
            clear = clear and (target[0] - eye[0]) ** 2 + (target[1] - eye[1]) ** 2 > 0.6
            cameras.append(Camera(K, look_at(eye, (target[0], target[1], target[2]), roll)))
        scores = [_score(caster, cameras[k], height, width) for k in sorted({0, count // 2, count - 1})]
        score = min(scores) - (0.0 if clear else 1.0)
        if score > best_score or not best:
            best, best_score = cameras, score
        if score >= 0.8:
            break
    return best
