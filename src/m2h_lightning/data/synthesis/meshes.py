"""Meshes of planar quads with labels, instances and materials, in the room's frame (x right, y forward, z up; metres).

Everything is a convex planar quad, oriented counter-clockwise seen from outside; a triangle is a quad whose last two
vertices coincide. One quad is one *face*: its two triangles share plane, texture frame and label, so it does not
matter which of them a ray caster reports.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from m2h_lightning.data.synthesis import textures

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    Attributes:
        layer: Texture layer in the atlas.
        c0: Albedo where the texture is 0, linear RGB in 0…1.
        c1: Albedo where the texture is 255.
        metres: Size of one texture tile; 0 stretches the texture once over each face (pictures, screens).
        emit: Light given off, as a multiple of the albedo.
    """

    layer: int
    c0: Colour
    c1: Colour
    metres: float = 1.0
    emit: float = 0.0


@dataclass(frozen=True)
class Frame:
    """A rigid placement: rotation about z by (cos, sin), then a shift."""

    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    cos: float = 1.0
    sin: float = 0.0

    def to_room(self, points: np.ndarray) -> np.ndarray:
        """Local points (..., 3) in the room's frame."""
        px, py, pz = points[..., 0], points[..., 1], points[..., 2]
        return np.stack(
            [px * self.cos - py * self.sin + self.x, px * self.sin + py * self.cos + self.y, pz + self.z], axis=-1
        )

    def at(self, x: float, y: float, z: float = 0.0, turn: float = 0.0) -> Frame:
        """A frame inside this one; ``turn`` is the tangent of half the angle (0 none, 1 a quarter turn)."""
        c, s = turn_of(turn)
        return Frame(
            x * self.cos - y * self.sin + self.x,
            x * self.sin + y * self.cos + self.y,
            z + self.z,
            self.cos * c - self.sin * s,
            self.sin * c + self.cos * s,
        )


def turn_of(half_tangent: float) -> tuple[float, float]:
    """(cos, sin) of an angle from the tangent of its half: exact arithmetic instead of libm, which varies."""
    t2 = half_tangent * half_tangent
    return (1.0 - t2) / (1.0 + t2), 2.0 * half_tangent / (1.0 + t2)


_S2, _S3 = math.sqrt(0.5), math.sqrt(0.75)
# fmt: off
_CIRCLES = {
    8: [(1, 0), (_S2, _S2), (0, 1), (-_S2, _S2), (-1, 0), (-_S2, -_S2), (0, -1), (_S2, -_S2)],
    12: [
        (1, 0),
        (_S3, 0.5),
        (0.5, _S3),
        (0, 1),
        (-0.5, _S3),
        (-_S3, 0.5),
        (-1, 0),
        (-_S3, -0.5),
        (-0.5, -_S3),
        (0, -1),
        (0.5, -_S3),
        (_S3, -0.5),
    ],
}
# fmt: on
# Corner bits (x, y, z) of a box's faces: front -y, back +y, right +x, left -x, top, bottom; first edge runs "right",
# last edge runs "up" as seen from outside, so that pictures stand upright.
_BOX = np.array(
    [
        [(0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)],
        [(1, 1, 0), (0, 1, 0), (0, 1, 1), (1, 1, 1)],
        [(1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 0, 1)],
        [(0, 1, 0), (0, 0, 0), (0, 0, 1), (0, 1, 1)],
        [(0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1)],
        [(0, 1, 0), (1, 1, 0), (1, 0, 0), (0, 0, 0)],
    ],
    dtype=np.float64,
)


@dataclass
class Mesh:
    """Quads collected object by object.

    ``label`` and ``instance`` are those of the object being built; :meth:`begin` starts a new one.
    """

    quads: list[np.ndarray] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    instances: list[int] = field(default_factory=list)
    materials: list[Material] = field(default_factory=list)
    shadow: list[bool] = field(default_factory=list)
    frame: Frame = field(default_factory=Frame)
    label: int = 0
    instance: int = 0
    last_instance: int = 0
    casts_shadow: bool = True

    def begin(self, label: int, frame: Frame, casts_shadow: bool = True) -> None:
        """Start a new object (a new instance) with this class and placement."""
        self.last_instance += 1
        self.instance, self.label, self.frame, self.casts_shadow = self.last_instance, label, frame, casts_shadow

    def add(self, quads: np.ndarray, material: Material) -> None:
        """Add local quads (n, 4, 3) to the current object."""
        for quad in self.frame.to_room(np.asarray(quads, np.float64)):
            self.quads.append(quad)
            self.labels.append(self.label)
            self.instances.append(self.instance)
            self.materials.append(material)
            self.shadow.append(self.casts_shadow)

    def box(
        self, low: tuple[float, float, float], high: tuple[float, float, float], material: Material, bottom: bool = True
    ) -> None:
        """An axis-aligned box; leave the bottom out where it would lie in another surface."""
        lo, hi = np.array(low), np.array(high)
        self.add((lo + _BOX * (hi - lo))[: 6 if bottom else 5], material)

    def cushion(
        self, low: tuple[float, float, float], high: tuple[float, float, float], bevel: float, material: Material
    ) -> None:
        """A box with bevelled edges and corners (mattress, cushion, pillow)."""
        lo, hi = np.array(low, np.float64), np.array(high, np.float64)
        bevel = min(bevel, 0.45 * float(min(hi - lo)))
        middle = (lo + hi) * 0.5

        def vertex(signs: tuple[int, int, int], axis: int) -> np.ndarray:
            point = np.where(np.array(signs) > 0, hi - bevel, lo + bevel)
            point[axis] = hi[axis] if signs[axis] > 0 else lo[axis]
            return point

        def corner(a: int, sa: int, b: int, sb: int, sc: int) -> tuple[int, int, int]:
            signs = [sc, sc, sc]
            signs[a], signs[b] = sa, sb
            return signs[0], signs[1], signs[2]

        quads = []
        for axis in range(3):
            b, c = (axis + 1) % 3, (axis + 2) % 3
            for sign in (-1, 1):
                ring = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
                quads.append([vertex(_signs(axis, sign, b, sb, c, sc), axis) for sb, sc in ring])
            for sa in (-1, 1):
                for sb in (-1, 1):
                    below, above = corner(axis, sa, b, sb, -1), corner(axis, sa, b, sb, 1)
                    quads.append([vertex(below, axis), vertex(above, axis), vertex(above, b), vertex(below, b)])
        for sx in (-1, 1):
            for sy in (-1, 1):
                for sz in (-1, 1):
                    p = [vertex((sx, sy, sz), axis) for axis in range(3)]
                    quads.append([p[0], p[1], p[2], p[2]])
        self.add(_outwards(np.array(quads), middle), material)

    def prism(
        self,
        x: float,
        y: float,
        z0: float,
        z1: float,
        r0: float,
        r1: float,
        material: Material,
        sides: int = 8,
        bottom: bool = True,
    ) -> None:
        """A cylinder or cone frustum with ``sides`` (8 or 12) sides, radius ``r0`` below and ``r1`` above."""
        circle = np.array(_CIRCLES[sides])
        low = np.concatenate([circle * r0 + (x, y), np.full((sides, 1), z0)], axis=1)
        high = np.concatenate([circle * r1 + (x, y), np.full((sides, 1), z1)], axis=1)
        following = (np.arange(sides) + 1) % sides
        quads = [np.stack([low, low[following], high[following], high], axis=1)]
        fan = np.array([(0, k, k + 1, k + 2) for k in range(1, sides - 1, 2)])
        quads.append(high[fan])
        if bottom:
            quads.append(low[fan][:, ::-1])
        self.add(np.concatenate(quads), material)


def _signs(a: int, sa: int, b: int, sb: int, c: int, sc: int) -> tuple[int, int, int]:
    signs = [0, 0, 0]
    signs[a], signs[b], signs[c] = sa, sb, sc
    return signs[0], signs[1], signs[2]


def _outwards(quads: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Turn the quads of a convex solid so that all face away from its middle."""
    normal = _cross(quads[:, 1] - quads[:, 0], quads[:, 2] - quads[:, 0])
    away = (quads[:, 0] + quads[:, 2]) * 0.5 - middle
    inward = normal[:, 0] * away[:, 0] + normal[:, 1] * away[:, 1] + normal[:, 2] * away[:, 2] < 0
    flipped = quads[:, ::-1].copy()
    triangle = np.all(quads[:, 2] == quads[:, 3], axis=1)
    flipped[triangle] = quads[triangle][:, [1, 0, 2, 3]]  # keep the doubled vertex last
    return np.where(inward[:, None, None], flipped, quads)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.stack(
        [
            a[..., 1] * b[..., 2] - a[..., 2] * b[..., 1],
            a[..., 2] * b[..., 0] - a[..., 0] * b[..., 2],
            a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0],
        ],
        axis=-1,
    )


def _unit(v: np.ndarray) -> np.ndarray:
    length = np.sqrt(v[..., 0] * v[..., 0] + v[..., 1] * v[..., 1] + v[..., 2] * v[..., 2])
    return v / np.where(length > 0, length, 1.0)[..., None]


@dataclass(frozen=True)
class Faces:
    """A mesh compiled for casting and shading; F faces. Geometry is float64, shading float32.

    Tables read per pixel are in column order: gathering a column is several times faster than gathering rows.

    Attributes:
        corners: (F, 4, 3) vertices.
        normal: (F, 3) outward unit normals; ``offset`` (F,): plane ``normal · x + offset = 0``.
        side: (F, 4, 4) the four edges as in-plane half-spaces ``(m, o)``: inside where ``o - m · x > 0``.
        label: (F,) uint8 train id. instance: (F,) uint16, from 1. casts_shadow: (F,) bool.
        u, v: (F, 4) float32 texture coordinate as ``u[:3] · x + u[3]``, in tiles.
        c0, dc: (F, 3) float32 albedo at texture 0, and what texture 255 adds. emit: (F,) float32.
        layer: (F,) int32. texels: (F,) float32 texels per metre, for choosing the mip level.
    """

    corners: np.ndarray
    normal: np.ndarray
    offset: np.ndarray
    side: np.ndarray
    label: np.ndarray
    instance: np.ndarray
    casts_shadow: np.ndarray
    u: np.ndarray
    v: np.ndarray
    c0: np.ndarray
    dc: np.ndarray
    emit: np.ndarray
    layer: np.ndarray
    texels: np.ndarray


def compile_mesh(mesh: Mesh) -> Faces:
    """Planes, edge half-spaces and texture frames of all quads of a mesh."""
    p = np.stack(mesh.quads)
    # Embree holds vertices as float32: round here, so that planes and the caster's triangles are of the same points.
    p = p.astype(np.float32).astype(np.float64)
    normal = _unit(_cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]))
    nx, ny, nz = normal[:, 0], normal[:, 1], normal[:, 2]
    offset = -(nx * p[:, 0, 0] + ny * p[:, 0, 1] + nz * p[:, 0, 2])
    edge = p[:, [1, 2, 3, 0]] - p
    m = _unit(_cross(edge, np.repeat(normal[:, None], 4, axis=1)))
    o = m[..., 0] * p[..., 0] + m[..., 1] * p[..., 1] + m[..., 2] * p[..., 2]
    degenerate = np.all(edge == 0, axis=2)
    o = np.where(degenerate, np.inf, o)

    right = p[:, 1] - p[:, 0]
    width = np.sqrt(right[:, 0] * right[:, 0] + right[:, 1] * right[:, 1] + right[:, 2] * right[:, 2])
    right = _unit(right)
    up = _cross(normal, right)
    rise = p[:, 3] - p[:, 0]
    height = np.abs(rise[:, 0] * up[:, 0] + rise[:, 1] * up[:, 1] + rise[:, 2] * up[:, 2])
    metres = np.array([material.metres for material in mesh.materials])
    fit = metres == 0
    # Wood grain runs along a board: with tiled textures the u axis follows the longer side.
    swap = ~fit & (height > width)
    u_axis = np.where(swap[:, None], up, right)
    v_axis = np.where(swap[:, None], right, up)
    u_axis = u_axis / np.where(fit, width, metres)[:, None]
    v_axis = -v_axis / np.where(fit, height, metres)[:, None]  # texture rows run downwards
    # A different cut of the texture for each object, so that equal boards do not look stamped.
    start = np.where(fit, 0.0, np.array(mesh.instances) * 0.37)
    u0 = start - (u_axis[:, 0] * p[:, 0, 0] + u_axis[:, 1] * p[:, 0, 1] + u_axis[:, 2] * p[:, 0, 2])
    v0 = np.where(fit, 1.0, start) - (v_axis[:, 0] * p[:, 0, 0] + v_axis[:, 1] * p[:, 0, 1] + v_axis[:, 2] * p[:, 0, 2])
    c0 = np.array([material.c0 for material in mesh.materials], np.float32)
    c1 = np.array([material.c1 for material in mesh.materials], np.float32)
    return Faces(
        corners=p,
        normal=normal,
        offset=offset,
        side=np.concatenate([m, o[..., None]], axis=-1),
        label=np.array(mesh.labels, np.uint8),
        instance=np.array(mesh.instances, np.uint16),
        casts_shadow=np.array(mesh.shadow),
        u=np.asfortranarray(np.concatenate([u_axis, u0[:, None]], axis=1), np.float32),
        v=np.asfortranarray(np.concatenate([v_axis, v0[:, None]], axis=1), np.float32),
        c0=np.asfortranarray(c0),
        dc=np.asfortranarray(c1 - c0),
        emit=np.array([material.emit for material in mesh.materials], np.float32),
        layer=np.array([material.layer for material in mesh.materials], np.int32),
        texels=(textures.SIZE / np.where(fit, np.maximum(width, height), metres)).astype(np.float32),
    )
