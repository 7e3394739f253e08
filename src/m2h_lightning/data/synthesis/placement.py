"""A room being furnished: which floor and wall is taken, and where the next object may go."""

from __future__ import annotations

from dataclasses import dataclass, field

from m2h_lightning.data.synthesis import furniture
from m2h_lightning.data.synthesis.draw import Draw
from m2h_lightning.data.synthesis.meshes import Frame, Mesh
from m2h_lightning.data.synthesis.render import Light
from m2h_lightning.data.synthesis.shell import Shell
from m2h_lightning.data.synthesis.style import Style


@dataclass(frozen=True)
class Footprint:
    """An occupied rectangle of the floor, metres; ``height`` 0 keeps a place free without filling it."""

    x0: float
    y0: float
    x1: float
    y1: float
    height: float

    def overlaps(self, other: Footprint, gap: float) -> bool:
        """Whether two rectangles come closer than ``gap``."""
        return (
            self.x0 < other.x1 + gap
            and other.x0 < self.x1 + gap
            and self.y0 < other.y1 + gap
            and other.y0 < self.y1 + gap
        )


def footprint_of(frame: Frame, low: tuple[float, float], high: tuple[float, float], height: float) -> Footprint:
    """The smallest axis-aligned rectangle around a local one from ``low`` to ``high``."""
    xs, ys = [], []
    for x in (low[0], high[0]):
        for y in (low[1], high[1]):
            xs.append(frame.x + x * frame.cos - y * frame.sin)
            ys.append(frame.y + x * frame.sin + y * frame.cos)
    return Footprint(min(xs), min(ys), max(xs), max(ys), height)


@dataclass
class Room:
    """A room being furnished.

    Attributes:
        mesh: Its quads. draw: Its random stream. style: Its materials. shell: Its walls.
        taken: Occupied floor. hung: Occupied parts of each wall as (x0, x1, low, high). targets: Points worth
        looking at. lights: Lights so far.
    """

    mesh: Mesh
    draw: Draw
    style: Style
    shell: Shell
    taken: list[Footprint] = field(default_factory=list)
    hung: dict[int, list[tuple[float, float, float, float]]] = field(default_factory=lambda: {k: [] for k in range(4)})
    targets: list[tuple[float, float, float]] = field(default_factory=list)
    lights: list[Light] = field(default_factory=list)

    def is_free(self, rect: Footprint, gap: float) -> bool:
        """Whether a rectangle lies inside the room and keeps ``gap`` metres from all furniture."""
        inside = rect.x0 > 0.005 and rect.y0 > 0.005 and rect.x1 < self.shell.width and rect.y1 < self.shell.depth
        return inside and not any(rect.overlaps(other, gap) for other in self.taken)

    def take(self, rect: Footprint, look_at: bool = True) -> None:
        """Occupy a rectangle; ``look_at`` makes it a subject for the camera."""
        self.taken.append(rect)
        if look_at:
            self.targets.append(((rect.x0 + rect.x1) / 2, (rect.y0 + rect.y1) / 2, 0.4 + 0.4 * rect.height))

    def against_wall(
        self, w: float, d: float, h: float, front: float = 0.0, walls: tuple[int, ...] = (0, 1, 2, 3), gap: float = 0.04
    ) -> tuple[Frame, int, float] | None:
        """A free place with its back to a wall, keeping ``front`` metres before it free (from furniture placed so far).

        Returns:
            The frame, the wall and the position along it; None when there is no place.
        """
        for _ in range(24):
            wall = self.draw.pick(walls)
            length = self.shell.length(wall)
            if w + 0.2 > length:
                continue
            along = self.draw.uniform(w / 2 + 0.06, length - w / 2 - 0.06)
            if self.draw.chance(0.3):
                along = self.draw.pick((w / 2 + 0.08, length - w / 2 - 0.08))
            x0, x1 = along - w / 2 - 0.1, along + w / 2 + 0.1
            curtained = any(
                o.kind == "window" and x0 < o.x1 + 0.3 and o.x0 - 0.3 < x1 for o in self.shell.openings[wall]
            )
            frame = self.shell.frame(wall, along, off=0.15 if curtained else 0.03)
            rect = footprint_of(frame, (-w / 2, 0.0), (w / 2, d), h)
            reach = footprint_of(frame, (-w / 2, 0.0), (w / 2, d + front), h)
            blocked = any(
                x0 < o.x1 + (0.35 if o.kind == "window" else 0.1)
                and o.x0 - (0.35 if o.kind == "window" else 0.1) < x1
                and h + 0.05 > o.low
                for o in self.shell.openings[wall]
            )
            if blocked or not self.is_free(rect, gap) or (front and not self.is_free(reach, 0.0)):
                continue
            self.take(rect)
            self.hung[wall].append((x0, x1, 0.0, h + 0.05))
            return frame, wall, along
        return None

    def in_the_open(self, w: float, d: float, h: float, gap: float, middle: bool = False) -> Frame | None:
        """A free place away from the walls, turned by a multiple of a quarter."""
        for attempt in range(24):
            quarter = self.draw.pick(((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)))
            if middle and attempt < 8:
                x = self.shell.width * self.draw.uniform(0.42, 0.58)
                y = self.shell.depth * self.draw.uniform(0.42, 0.58)
            else:
                x, y = self.draw.uniform(0.3, self.shell.width - 0.3), self.draw.uniform(0.3, self.shell.depth - 0.3)
            frame = Frame(x, y, 0.0, *quarter)
            rect = footprint_of(frame, (-w / 2, -d / 2), (w / 2, d / 2), h)
            if self.is_free(rect, gap):
                self.take(rect)
                return frame
        return None

    def chair_at(self, frame: Frame, kind: str) -> bool:
        """A chair whose seat is at the frame, looking along its y; False when the place is taken."""
        rect = footprint_of(frame, (-0.3, -0.06), (0.3, 0.5), 0.9)
        if not self.is_free(rect, 0.0):
            return False
        self.take(rect, look_at=False)
        furniture.chair(self.mesh, self.draw, self.style, frame, kind)
        return True

    def hang(self, wall: int, along: float, w: float, h: float, up: float) -> Frame | None:
        """A frame on the wall for something ``w`` x ``h`` at height ``up``, if nothing is there yet."""
        spot = (along - w / 2 - 0.08, along + w / 2 + 0.08, up - 0.05, up + h + 0.05)
        if spot[0] < 0.05 or spot[1] > self.shell.length(wall) - 0.05 or spot[3] > self.shell.height - 0.1:
            return None
        taken = self.hung[wall] + [(o.x0 - 0.45, o.x1 + 0.45, o.low - 0.3, 9.0) for o in self.shell.openings[wall]]
        if any(spot[0] < b and a < spot[1] and spot[2] < top and low < spot[3] for a, b, low, top in taken):
            return None
        self.hung[wall].append(spot)
        return self.shell.frame(wall, along, up=up)
