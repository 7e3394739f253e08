"""The room itself: floor, ceiling, walls with a door and windows, skirting, daylight."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from m2h_lightning.data.synthesis import props
from m2h_lightning.data.synthesis.draw import Draw
from m2h_lightning.data.synthesis.labels import CLASS
from m2h_lightning.data.synthesis.meshes import Frame, Mesh
from m2h_lightning.data.synthesis.render import Light
from m2h_lightning.data.synthesis.style import Style, picture


@dataclass(frozen=True)
class Opening:
    """A hole in a wall: from ``x0`` to ``x1`` along it, from ``low`` to ``high`` above the floor (metres)."""

    kind: str
    x0: float
    x1: float
    low: float
    high: float


@dataclass
class Shell:
    """Extents and openings of a room with its floor in [0, width] x [0, depth]."""

    width: float
    depth: float
    height: float
    openings: dict[int, list[Opening]] = field(default_factory=lambda: {k: [] for k in range(4)})

    def length(self, wall: int) -> float:
        """Length of wall 0 (y=0), 1 (x=width), 2 (y=depth) or 3 (x=0)."""
        return self.width if wall % 2 == 0 else self.depth

    def frame(self, wall: int, along: float, off: float = 0.0, up: float = 0.0) -> Frame:
        """The frame at a wall whose x runs along it and whose y points into the room."""
        if wall == 0:
            return Frame(along, off, up, 1.0, 0.0)
        if wall == 1:
            return Frame(self.width - off, along, up, 0.0, 1.0)
        if wall == 2:
            return Frame(self.width - along, self.depth - off, up, -1.0, 0.0)
        return Frame(off, self.depth - along, up, 0.0, -1.0)


def draw_shell(draw: Draw, width: float, depth: float, height: float) -> Shell:
    """Choose where the door and one to three windows are."""
    shell = Shell(width, depth, height)
    door_wall = draw.integer(4)
    length, w = shell.length(door_wall), draw.uniform(0.8, 0.95)
    x0 = draw.uniform(0.25, 0.6) if draw.chance(0.5) else length - w - draw.uniform(0.25, 0.6)
    shell.openings[door_wall].append(Opening("door", x0, x0 + w, 0.0, min(height - 0.25, draw.uniform(2.0, 2.1))))
    walls = draw.shuffled([k for k in range(4) if k != door_wall])
    for wall in walls[: draw.pick((1, 1, 2, 2))]:
        length = shell.length(wall)
        low, high = draw.uniform(0.75, 1.0), min(height - 0.3, draw.uniform(1.95, 2.25))
        w = min(length - 1.2, draw.uniform(0.9, 2.0))
        x0 = draw.uniform(0.6, length - w - 0.6)
        shell.openings[wall].append(Opening("window", x0, x0 + w, low, high))
    return shell


def _wall_quads(shell: Shell, wall: int) -> np.ndarray:
    """The wall around its openings, as quads at local y=0 looking into the room."""
    cuts, x = [], 0.0
    for opening in sorted(shell.openings[wall], key=lambda o: o.x0):
        cuts.append((x, opening.x0, 0.0, shell.height))
        if opening.low > 0:
            cuts.append((opening.x0, opening.x1, 0.0, opening.low))
        cuts.append((opening.x0, opening.x1, opening.high, shell.height))
        x = opening.x1
    cuts.append((x, shell.length(wall), 0.0, shell.height))
    # Seen from inside, the wall's x runs to the left.
    return np.array([[(b, 0, low), (a, 0, low), (a, 0, high), (b, 0, high)] for a, b, low, high in cuts])


def _recess(opening: Opening, depth: float) -> np.ndarray:
    """The four sides of a hole, facing its inside."""
    a, b, low, high, back = opening.x0, opening.x1, opening.low, opening.high, -depth
    return np.array(
        [
            [(a, back, low), (a, 0, low), (a, 0, high), (a, back, high)],
            [(b, 0, low), (b, back, low), (b, back, high), (b, 0, high)],
            [(a, 0, high), (b, 0, high), (b, back, high), (a, back, high)],
            [(a, back, low), (b, back, low), (b, 0, low), (a, 0, low)],
        ]
    )


def _build_door(mesh: Mesh, draw: Draw, style: Style, opening: Opening) -> None:
    a, b, high = opening.x0, opening.x1, opening.high
    slab = style.trim if draw.chance(0.55) else style.wood
    mesh.add(_recess(opening, 0.05)[:3], style.trim)
    back = -0.05
    mesh.add(np.array([[(b, back, 0), (a, back, 0), (a, back, high), (b, back, high)]]), slab)
    for x0, x1 in ((a - 0.07, a), (b, b + 0.07)):
        mesh.box((x0, 0.0, 0), (x1, 0.018, high + 0.07), style.trim, bottom=False)
    mesh.box((a, 0.0, high), (b, 0.018, high + 0.07), style.trim)
    panels = draw.pick((0, 2, 2, 3))
    for k in range(panels):
        z0 = 0.15 + k * (high - 0.25) / panels
        mesh.box((a + 0.12, back, z0), (b - 0.12, back + 0.012, z0 + (high - 0.25) / panels - 0.12), slab)
    x = a + 0.06 if draw.chance(0.5) else b - 0.16
    mesh.box((x, back + 0.02, 1.0), (x + 0.1, back + 0.045, 1.02), style.metal)
    mesh.box((x + 0.04, back, 0.985), (x + 0.06, back + 0.02, 1.035), style.metal)


def _build_window(mesh: Mesh, draw: Draw, style: Style, opening: Opening) -> None:
    a, b, low, high = opening.x0, opening.x1, opening.low, opening.high
    back, t = -0.13, 0.05
    mesh.add(_recess(opening, 0.13), style.trim)
    view = picture(draw, "outdoor", 1.5)
    mesh.add(np.array([[(b, back, low), (a, back, low), (a, back, high), (b, back, high)]]), view)
    for x0, x1 in ((a, a + t), (b - t, b)):
        mesh.box((x0, back, low), (x1, back + 0.04, high), style.trim)
    for z0, z1 in ((low, low + t), (high - t, high)):
        mesh.box((a + t, back, z0), (b - t, back + 0.04, z1), style.trim)
    for k in range(1, 1 + int((b - a) / 0.75)):
        x = a + (b - a) * k / (1 + int((b - a) / 0.75))
        mesh.box((x - 0.025, back, low + t), (x + 0.025, back + 0.035, high - t), style.trim)
    if draw.chance(0.4):
        z = low + (high - low) * 0.6
        mesh.box((a + t, back + 0.004, z - 0.02), (b - t, back + 0.03, z + 0.02), style.trim)
    mesh.box((a - 0.06, 0.0, low - 0.035), (b + 0.06, 0.07, low), style.trim)  # sill


def build_shell(mesh: Mesh, draw: Draw, style: Style, shell: Shell, shade: str) -> list[Light]:
    """Build everything that is not furniture; returns the windows' lights. ``shade``: curtain, blinds or both."""
    w, d, h = shell.width, shell.depth, shell.height
    mesh.begin(CLASS["floor"], Frame())
    mesh.add(np.array([[(0, 0, 0), (w, 0, 0), (w, d, 0), (0, d, 0)]]), style.floor)
    mesh.begin(CLASS["ceiling"], Frame())
    mesh.add(np.array([[(0, d, h), (w, d, h), (w, 0, h), (0, 0, h)]]), style.ceiling)
    accent_wall = draw.integer(4)
    lights = []
    skirting = 0.0 if draw.chance(0.2) else draw.uniform(0.06, 0.12)
    for wall in range(4):
        frame = shell.frame(wall, 0.0)
        mesh.begin(CLASS["wall"], frame)
        mesh.add(_wall_quads(shell, wall), style.accent if wall == accent_wall else style.wall)
        if skirting:
            inset = 0.012 if wall % 2 else 0.0  # the boards meet in the corners without sharing a surface
            x = inset
            for opening in [o for o in shell.openings[wall] if o.kind == "door"]:
                mesh.box((x, 0.0, 0), (opening.x0 - 0.0701, 0.012, skirting), style.trim, bottom=False)
                x = opening.x1 + 0.0701
            mesh.box((x, 0.0, 0), (shell.length(wall) - inset, 0.012, skirting), style.trim, bottom=False)
        for opening in shell.openings[wall]:
            mesh.begin(CLASS[opening.kind], frame)
            if opening.kind == "door":
                _build_door(mesh, draw, style, opening)
                continue
            _build_window(mesh, draw, style, opening)
            middle, width = (opening.x0 + opening.x1) / 2, opening.x1 - opening.x0
            at = shell.frame(wall, middle)
            if shade in ("blinds", "both"):
                props.blinds(mesh, draw, style, at, width, opening.low, opening.high)
            if shade in ("curtain", "both"):
                props.curtains(mesh, draw, style, at, width, opening.low, opening.high)
            tall = opening.high - opening.low
            # In front of curtains and blinds, and in the plane of none of their faces.
            source = shell.frame(wall, middle, off=0.137, up=(opening.low + opening.high) / 2)
            power = draw.uniform(1.8, 3.2) * width * tall
            lights.append(
                Light(
                    (source.x, source.y, source.z),
                    (power * 0.88, power * 0.96, power * 1.06),
                    ((source.cos * width * 0.7, source.sin * width * 0.7, 0.0), (0.0, 0.0, tall * 0.7)),
                    (-source.sin, source.cos, 0.0),
                )
            )
    return lights
