"""Ray casting with Embree, made exact where its float32 arithmetic could decide either way.

Embree chooses its instruction set by the CPU and rounds differently on each, so a ray that passes within a micrometre
of an edge may hit on one machine and miss on another. Two rules remove that freedom:

- a hit counts only when it lies more than ``MARGIN`` inside its face, measured in float64 from the face's own corners;
- a ray that comes closer to an edge than that is decided in float64 against every face (:meth:`Caster.first_faces`),
  or, for shadow rays, goes on behind the face (:meth:`Caster.occluded`).

A clear hit is clear on every machine, and a doubtful one is decided by the same arithmetic on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh

from m2h_lightning.data.synthesis.meshes import Faces

MARGIN = 5e-6  # metres; Embree's float32 error is about 1e-6 m in a room of 10 m
_NEAR_EDGE = 2e-3  # barycentric: cheap float32 filter in front of the float64 test
_BRUTE_ROWS = 64  # rays decided at once in float64, to bound memory


def _embree_scene(corners: np.ndarray) -> tuple[Any, Any]:
    triangles = np.ascontiguousarray(corners[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3, 3).astype(np.float32))
    scene = rtcore_scene.EmbreeScene()
    return scene, TriangleMesh(scene, triangles)


class Caster:
    """The faces of one room, ready for primary and shadow rays.

    Args:
        faces: The compiled mesh.
    """

    def __init__(self, faces: Faces) -> None:
        self.faces = faces
        self._scene = _embree_scene(faces.corners)
        self._shadow_faces = np.flatnonzero(faces.casts_shadow)
        self._shadow_scene = _embree_scene(faces.corners[self._shadow_faces])
        # One contiguous column per coefficient: gathering columns is several times faster than gathering rows.
        self._plane = [np.ascontiguousarray(column) for column in (*faces.normal.T, faces.offset)]
        self._side = [[np.ascontiguousarray(faces.side[:, k, c]) for c in range(4)] for k in range(4)]

    def first_faces(self, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """The face each ray sees.

        Args:
            origin: (3,) float64, inside the room.
            directions: (N, 3) float64, not necessarily unit.

        Returns:
            (N,) int64 face indices; every ray hits something, a room being closed.
        """
        origins = np.empty((len(directions), 3), np.float32)
        origins[:] = origin
        hit = self._scene[0].run(origins, directions.astype(np.float32), output=True)
        face = hit["primID"].astype(np.int64) >> 1
        missed = hit["primID"] < 0
        face[missed] = 0
        u, v = hit["u"], hit["v"]
        doubtful = np.minimum(np.minimum(u, v), 1.0 - u - v) < _NEAR_EDGE
        rows = np.flatnonzero(doubtful & ~missed)
        unclear = rows[~self._clear(face[rows], origin[None], directions[rows])]
        plane = self._plane
        height = plane[0] * origin[0] + plane[1] * origin[1] + plane[2] * origin[2] + plane[3]
        behind = np.flatnonzero((height <= 0)[face])  # a face seen from its back: the ray slipped in through a crack
        rest = np.unique(np.concatenate([unclear, behind, np.flatnonzero(missed)]))
        for start in range(0, len(rest), _BRUTE_ROWS):
            part = rest[start : start + _BRUTE_ROWS]
            face[part] = self._decide(origin, directions[part])
        return face

    def occluded(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Whether anything that casts a shadow lies on the open segment from origin to origin + direction.

        Args:
            origins: (N, 3) float64 start points.
            directions: (N, 3) float64 segments.

        Returns:
            (N,) bool.
        """
        result = np.zeros(len(origins), bool)
        # The any-hit query is twice as fast. A ray it lets pass is free on every machine (at most it touches an edge);
        # a ray it stops is looked at closely.
        stopped = self._shadow_scene[0].run(
            origins.astype(np.float32), directions.astype(np.float32), np.ones(len(origins), np.float32), "OCCLUDED"
        )
        rows = np.flatnonzero(stopped != -1)
        start = np.zeros(len(origins))
        for _ in range(4):  # a ray through more than three edges at once is let through
            ahead = directions[rows]
            hit = self._shadow_scene[0].run(
                (origins[rows] + ahead * start[rows][:, None]).astype(np.float32),
                ahead.astype(np.float32),
                (1.0 - start[rows]).astype(np.float32),
                output=True,
            )
            found = hit["primID"] >= 0
            u, v = hit["u"], hit["v"]
            doubtful = found & (np.minimum(np.minimum(u, v), 1.0 - u - v) < _NEAR_EDGE)
            result[rows[found & ~doubtful]] = True
            check = np.flatnonzero(doubtful)
            if not len(check):
                break
            face = self._shadow_faces[hit["primID"][check] >> 1]
            rows = rows[check]
            nx, ny, nz, _ = (column[face] for column in self._plane)
            d = directions[rows]
            # An inner side near an edge was reached through that edge: it does not count either.
            clear = self._clear(face, origins[rows], d) & (nx * d[:, 0] + ny * d[:, 1] + nz * d[:, 2] < 0)
            result[rows[clear]] = True
            rows, face = rows[~clear], face[~clear]
            if not len(rows):
                break
            # Go on just behind the face whose edge the ray touches.
            start[rows] = np.maximum(self._distance(face, origins[rows], directions[rows]), start[rows]) + 1e-5
            rows = rows[start[rows] < 1.0]
            if not len(rows):
                break
        return result

    def _distance(self, face: np.ndarray, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        nx, ny, nz, offset = (column[face] for column in self._plane)
        slope = nx * directions[:, 0] + ny * directions[:, 1] + nz * directions[:, 2]
        slope = np.where(slope == 0, 1e-300, slope)
        return -(nx * origins[:, 0] + ny * origins[:, 1] + nz * origins[:, 2] + offset) / slope

    def _clear(self, face: np.ndarray, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Whether each ray meets the plane of its face more than MARGIN inside all four edges; float64."""
        t = self._distance(face, origins, directions)
        px, py, pz = (origins[:, axis] + directions[:, axis] * t for axis in range(3))
        inside = np.ones(len(face), bool)
        for mx, my, mz, o in self._side:
            inside &= o[face] - (mx[face] * px + my[face] * py + mz[face] * pz) > MARGIN
        return inside

    def _decide(self, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """The face seen by a few doubtful rays, in float64 against all faces.

        The first face hit clearly and from its front wins. Where the ray slips through the crack between two faces of
        a solid (so that it would next see an inner side, or nothing), the nearest face it touches at the edge wins.
        """
        nx, ny, nz, offset = self._plane
        slope = nx * directions[:, :1] + ny * directions[:, 1:2] + nz * directions[:, 2:]
        height = nx * origin[0] + ny * origin[1] + nz * origin[2] + offset
        t = -height / np.where(slope == 0, 1e-300, slope)
        px, py, pz = (origin[axis] + directions[:, axis : axis + 1] * t for axis in range(3))
        margin = np.full(t.shape, np.inf)
        for mx, my, mz, o in self._side:
            margin = np.minimum(margin, o - (mx * px + my * py + mz * pz))
        ahead = t > 1e-6
        t_clear = np.where(ahead & (margin > MARGIN), t, np.inf)
        first = np.argmin(t_clear, axis=1)
        lane = np.arange(len(first))
        proper = (t_clear[lane, first] < np.inf) & (height[first] > 0)
        touching = ahead & (np.abs(margin) <= MARGIN) & (t < t_clear[lane, first][:, None]) & (height > 0)
        t_touch = np.where(touching, t, np.inf)
        touched = np.argmin(t_touch, axis=1)
        return np.where(proper | (t_touch[lane, touched] == np.inf), first, touched)
