"""Furnishing: which objects a room of each type gets, and where they find a place without touching each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from m2h_lightning.data.synthesis import furniture, props
from m2h_lightning.data.synthesis.draw import Draw
from m2h_lightning.data.synthesis.meshes import Frame, Mesh
from m2h_lightning.data.synthesis.render import Light, Lighting
from m2h_lightning.data.synthesis.shell import Shell, build_shell, draw_shell
from m2h_lightning.data.synthesis.style import Style, choose_style

ROOM_TYPES = ("bedroom", "living", "office", "dining", "kitchen")


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


def _footprint(frame: Frame, low: tuple[float, float], high: tuple[float, float], height: float) -> Footprint:
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

    def _free(self, rect: Footprint, gap: float) -> bool:
        inside = rect.x0 > 0.005 and rect.y0 > 0.005 and rect.x1 < self.shell.width and rect.y1 < self.shell.depth
        return inside and not any(rect.overlaps(other, gap) for other in self.taken)

    def _take(self, rect: Footprint, look_at: bool = True) -> None:
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
            frame = self.shell.frame(wall, along, off=0.095 if h < 0.7 else 0.03)
            rect = _footprint(frame, (-w / 2, 0.0), (w / 2, d), h)
            reach = _footprint(frame, (-w / 2, 0.0), (w / 2, d + front), h)
            x0, x1 = along - w / 2 - 0.1, along + w / 2 + 0.1
            blocked = any(
                x0 < o.x1 + (0.35 if o.kind == "window" else 0.1)
                and o.x0 - (0.35 if o.kind == "window" else 0.1) < x1
                and h + 0.05 > o.low
                for o in self.shell.openings[wall]
            )
            if blocked or not self._free(rect, gap) or (front and not self._free(reach, 0.0)):
                continue
            self._take(rect)
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
            rect = _footprint(frame, (-w / 2, -d / 2), (w / 2, d / 2), h)
            if self._free(rect, gap):
                self._take(rect)
                return frame
        return None

    def chair_at(self, frame: Frame, kind: str) -> bool:
        """A chair whose seat is at the frame, looking along its y; False when the place is taken."""
        rect = _footprint(frame, (-0.3, -0.06), (0.3, 0.5), 0.9)
        if not self._free(rect, 0.0):
            return False
        self._take(rect, look_at=False)
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


def _pictures(room: Room, count: int, label: str = "picture") -> None:
    draw = room.draw
    for _ in range(count * 3):
        if count <= 0:
            return
        wall = draw.integer(4)
        w, h = draw.uniform(0.35, 0.9), draw.uniform(0.35, 0.75)
        if label == "whiteboard":
            w, h = draw.uniform(1.0, 1.8), draw.uniform(0.8, 1.1)
        frame = room.hang(wall, draw.uniform(0.5, room.shell.length(wall) - 0.5), w, h, draw.uniform(1.1, 1.4))
        if frame:
            props.framed(room.mesh, draw, room.style, frame, w, h, label)
            count -= 1


def _over(room: Room, place: tuple[Frame, int, float], top: float, label: str) -> None:
    """A picture or mirror above the thing placed at a wall."""
    w, h = room.draw.uniform(0.5, 1.0), room.draw.uniform(0.45, 0.75)
    up = max(top + 0.2, 1.1)
    frame = room.hang(place[1], place[2] + room.draw.uniform(-0.1, 0.1), w, h, up)
    if frame:
        props.framed(room.mesh, room.draw, room.style, frame, w, h, label)


def _storage(room: Room, label: str, w: float, d: float, h: float, doors: bool) -> tuple[Frame, int, float] | None:
    place = room.against_wall(w, d, h, front=0.45)
    if place:
        furniture.chest(room.mesh, room.draw, room.style, place[0], w, d, h, label, doors)
    return place


def _topping(room: Room, frame: Frame, w: float, d: float, top: float, lamp: float = 0.4) -> None:
    """Put small things on a flat top: at most one per 0.4 m."""
    draw, mesh = room.draw, room.mesh
    slots = max(1, int(w / 0.42))
    for k in draw.shuffled(range(slots)):
        at = frame.at(-w / 2 + (k + 0.5) * w / slots, d / 2, top, turn=draw.uniform(-0.15, 0.15))
        choice = draw.unit()
        if choice < lamp:
            room.lights.append(props.table_lamp(mesh, draw, room.style, at))
            lamp = 0.0
        elif choice < 0.55:
            props.books_pile(mesh, draw, at)
        elif choice < 0.72:
            props.vase(mesh, draw, at)
        elif choice < 0.8 and d > 0.4:
            props.carton(mesh, draw, at)
        elif choice < 0.88:
            props.plant(mesh, draw, at, 0.55)


def _shelves(room: Room, label: str = "bookshelf") -> None:
    draw = room.draw
    w, d = draw.uniform(0.7, 1.3), draw.uniform(0.26, 0.34)
    h = draw.uniform(1.5, 2.05) if label == "bookshelf" else draw.uniform(0.8, 1.3)
    place = room.against_wall(w, d, h, front=0.4)
    if not place:
        return
    for x0, x1, z, clear in furniture.bookcase(room.mesh, draw, room.style, place[0], w, d, h, label):
        chance = draw.unit()
        full = 0.75 if label == "bookshelf" else 0.35
        shelf = place[0].at(0.0, 0.0, z)
        if chance < full:
            end = x1 if draw.chance(0.5) else x0 + (x1 - x0) * draw.uniform(0.4, 0.9)
            props.books_row(room.mesh, draw, shelf, x0, end, clear, d)
        elif chance < full + 0.12 and clear > 0.32:
            props.vase(room.mesh, draw, shelf.at((x0 + x1) / 2, d * 0.55))
        elif chance < full + 0.2:
            props.books_pile(room.mesh, draw, shelf.at((x0 + x1) / 2, d * 0.55))


def _rug(room: Room, x: float, y: float, w: float, d: float) -> None:
    w, d = min(w, room.shell.width - 0.5), min(d, room.shell.depth - 0.5)
    x = min(max(x, w / 2 + 0.1), room.shell.width - w / 2 - 0.1)
    y = min(max(y, d / 2 + 0.1), room.shell.depth - d / 2 - 0.1)
    props.rug(room.mesh, room.draw, Frame(x, y), w, d)


def _dining_set(room: Room, middle: bool, gap: float = 0.55) -> bool:
    draw = room.draw
    w, d = draw.pick(((1.2, 0.8), (1.5, 0.85), (1.8, 0.9), (1.1, 1.1), (1.0, 1.0)))
    frame = room.in_the_open(w, d, 0.75, gap, middle=middle)
    if frame is None:
        return False
    frame = frame.at(0.0, -d / 2)  # the table's own frame starts at its back
    furniture.table(room.mesh, draw, room.style, frame, w, d, draw.uniform(0.72, 0.77))
    kind = draw.pick(("wood", "padded", "shell", "wood"))
    seats = max(1, int(w / 0.6))
    for side in (0, 1):
        for k in range(seats):
            x = -w / 2 + (k + 0.5) * w / seats
            # 1e9 as half tangent is half a turn: chairs on the far side look back.
            pull = draw.uniform(0.06, 0.3)
            at = frame.at(x, -0.5 - pull, 0.0) if side == 0 else frame.at(x, d + 0.5 + pull, 0.0, turn=1e9)
            if draw.chance(0.9):
                room.chair_at(at.at(0.0, 0.0, turn=draw.uniform(-0.08, 0.08)), kind)
    if draw.chance(0.75):
        props.vase(room.mesh, draw, frame.at(draw.uniform(-0.15, 0.15), d / 2, 0.7705))
    if draw.chance(0.4):
        props.paper(room.mesh, draw, frame.at(draw.uniform(0.25, 0.4), d / 2, 0.7705, turn=draw.uniform(-0.5, 0.5)))
    if draw.chance(0.6):
        at = frame.at(0.0, d / 2)
        room.lights.append(
            props.ceiling_lamp(room.mesh, draw, room.style, Frame(at.x, at.y), room.shell.height, low=True)
        )
    return True


def _corner_things(room: Room) -> None:
    """What stands about: a floor lamp, a plant, a box, a bag."""
    draw = room.draw
    for thing, size, h, chance in (
        ("lamp", 0.42, 1.8, 0.5),
        ("plant", 0.6, 0.9, 0.6),
        ("box", 0.46, 0.35, 0.6),
        ("bag", 0.4, 0.4, 0.4),
    ):
        if not draw.chance(chance):
            continue
        place = room.against_wall(size, size, h)
        if not place:
            continue
        at = place[0].at(0.0, size / 2, 0.0, turn=draw.uniform(-0.3, 0.3) if thing in ("box", "bag") else 0.0)
        if thing == "lamp":
            room.lights.append(props.floor_lamp(room.mesh, draw, room.style, at))
        elif thing == "plant":
            props.plant(room.mesh, draw, at, draw.uniform(0.8, 0.95))
        elif thing == "box":
            props.carton(room.mesh, draw, at)
        else:
            props.bag(room.mesh, draw, room.style, at)
    if draw.chance(0.3):
        wall = draw.integer(4)
        frame = room.hang(wall, draw.uniform(0.6, room.shell.length(wall) - 0.6), 0.75, 1.1, 0.7)
        if frame:
            props.clothes(room.mesh, draw, room.style, frame.at(0.0, 0.0, -0.7))


def _bedroom(room: Room) -> None:
    draw = room.draw
    w, d = draw.pick(((1.0, 2.05), (1.45, 2.1), (1.65, 2.1), (1.85, 2.15))), 0.0
    width, d = w
    both = draw.chance(0.7)
    side = 0.55
    place = room.against_wall(width + 2 * side, d, 0.8) or room.against_wall(width, d, 0.8)
    if place:
        frame = place[0]
        top = furniture.bed(room.mesh, draw, room.style, frame, width, d)
        count = 2 if width > 1.2 else 1
        for k in range(count):
            x = (k - (count - 1) / 2) * width * 0.48
            size = min(0.68, width / count - 0.12)
            props_at = frame.at(x, 0.12, top - 0.004)
            furniture.pillow(room.mesh, draw, room.style, props_at, size, draw.uniform(0.36, 0.44), draw.chance(0.35))
        footprint = room.taken[-1]
        wide = max(footprint.x1 - footprint.x0, footprint.y1 - footprint.y0) > 2.3 or width + 2 * side < 2.2
        for sign in (-1, 1) if both else (draw.pick((-1, 1)),):
            if not wide:
                break
            nw, nd, nh = draw.uniform(0.38, 0.48), draw.uniform(0.34, 0.42), draw.uniform(0.42, 0.58)
            at = frame.at(sign * (width / 2 + 0.04 + nw / 2), 0.0)
            rect = _footprint(at, (-nw / 2, 0.0), (nw / 2, nd), nh)
            if rect.x0 < 0.01 or rect.y0 < 0.01 or rect.x1 > room.shell.width or rect.y1 > room.shell.depth:
                continue
            if any(rect.overlaps(other, 0.0) for other in room.taken[:-1] if other is not footprint):
                continue
            furniture.chest(room.mesh, draw, room.style, at, nw, nd, nh, "nightstand", doors=False)
            if draw.chance(0.75):
                room.lights.append(props.table_lamp(room.mesh, draw, room.style, at.at(0.0, nd / 2, nh)))
            else:
                props.books_pile(room.mesh, draw, at.at(0.0, nd / 2, nh))
        if draw.chance(0.6):
            at = frame.at(0.0, d * 0.7)
            turned = abs(frame.cos) > 0.5
            _rug(room, at.x, at.y, *((width + 1.1, 1.6) if turned else (1.6, width + 1.1)))
        _over(room, place, 1.2, "picture")
    if draw.chance(0.85):
        _storage(room, "cabinet", draw.uniform(0.9, 1.8), draw.uniform(0.52, 0.62), draw.uniform(1.9, 2.15), True)
    if draw.chance(0.8):
        w2, d2, h2 = draw.uniform(0.8, 1.4), draw.uniform(0.42, 0.5), draw.uniform(0.7, 0.95)
        dresser = _storage(room, "dresser", w2, d2, h2, False)
        if dresser and draw.chance(0.4):
            props.television(
                room.mesh, draw, room.style, dresser[0].at(0.0, 0.14, h2), min(w2 - 0.1, draw.uniform(0.7, 1.0))
            )
            room.hung[dresser[1]].append((dresser[2] - 0.6, dresser[2] + 0.6, 0.0, 1.7))
        elif dresser:
            _topping(room, dresser[0], w2, d2, h2)
            _over(room, dresser, h2, "mirror" if draw.chance(0.7) else "picture")
    if draw.chance(0.45):
        _desk(room)
    if draw.chance(0.35):
        _shelves(room, draw.pick(("bookshelf", "shelves")))


def _desk(room: Room) -> bool:
    draw = room.draw
    w, d, h = draw.uniform(1.1, 1.6), draw.uniform(0.58, 0.75), draw.uniform(0.72, 0.76)
    place = room.against_wall(w, d, h, front=0.6)
    if not place:
        return False
    frame = place[0]
    furniture.table(room.mesh, draw, room.style, frame, w, d, h, "desk")
    x = draw.uniform(-0.15, 0.15)
    kind = "office" if draw.chance(0.7) else draw.pick(("wood", "padded", "shell"))
    at = frame.at(x, d + 0.5 + draw.uniform(0.05, 0.3), 0.0, turn=1e9)
    room.chair_at(at.at(0.0, 0.0, turn=draw.uniform(-0.25, 0.25)), kind)
    top = frame.at(0.0, 0.0, h)
    if draw.chance(0.85):
        props.monitor(room.mesh, draw, room.style, top.at(x, 0.05))
        room.hung[place[1]].append((place[2] - w / 2, place[2] + w / 2, 0.0, h + 0.5))
    left = draw.chance(0.5)
    far = -w / 2 + 0.18 if left else w / 2 - 0.18
    if draw.chance(0.6):
        room.lights.append(props.table_lamp(room.mesh, draw, room.style, top.at(far, 0.2)))
    if draw.chance(0.6):
        props.paper(room.mesh, draw, top.at(far, d - 0.2, turn=draw.uniform(-0.2, 0.2)))
    if draw.chance(0.6):
        props.books_pile(room.mesh, draw, top.at(-far, d * 0.5, turn=draw.uniform(-0.3, 0.3)))
    return True


def _living(room: Room) -> None:
    draw = room.draw
    w, d = draw.uniform(1.7, 2.3), draw.uniform(0.85, 0.98)
    place = room.against_wall(w, d, 0.72, front=1.0)
    if place:
        frame, wall, along = place
        furniture.sofa(room.mesh, draw, room.style, frame, w, d)
        for sign in (-1, 1):
            if draw.chance(0.75):
                at = frame.at(sign * (w / 2 - 0.42), 0.38, 0.47, turn=draw.uniform(-0.1, 0.1))
                furniture.pillow(room.mesh, draw, room.style, at, 0.4, 0.36, True)
        _over(room, place, 0.95, "picture")
        tw, td = draw.uniform(0.8, 1.2), draw.uniform(0.5, 0.65)
        table_at = frame.at(0.0, d + 0.42)
        rect = _footprint(table_at, (-tw / 2, 0.0), (tw / 2, td), 0.42)
        if draw.chance(0.8):
            at = frame.at(0.0, d + 0.6)
            turned = abs(frame.cos) > 0.5
            _rug(room, at.x, at.y, *((2.3, 1.6) if turned else (1.6, 2.3)))
        if room._free(rect, 0.1):
            room._take(rect)
            h = draw.uniform(0.38, 0.46)
            furniture.table(room.mesh, draw, room.style, table_at, tw, td, h)
            _topping(room, table_at, tw, td, h, lamp=0.0)
        opposite = (wall + 2) % 4
        w2, h2 = draw.uniform(1.2, 1.8), draw.uniform(0.42, 0.6)
        stand = room.against_wall(w2, 0.42, h2, front=0.5, walls=(opposite,)) or room.against_wall(w2, 0.42, h2, 0.4)
        if stand:
            furniture.chest(
                room.mesh,
                draw,
                room.style,
                stand[0],
                w2,
                0.42,
                h2,
                draw.pick(("cabinet", "dresser")),
                draw.chance(0.5),
            )
            props.television(room.mesh, draw, room.style, stand[0].at(0.0, 0.12, h2), draw.uniform(0.9, w2 - 0.1))
            room.hung[stand[1]].append((stand[2] - w2 / 2, stand[2] + w2 / 2, 0.0, h2 + 1.1))
    if draw.chance(0.75):
        _shelves(room)
    if draw.chance(0.7):
        spot = room.in_the_open(0.85, 0.85, 0.8, 0.35)
        if spot:
            furniture.sofa(room.mesh, draw, room.style, spot.at(0.0, -0.42), 0.84, 0.84)
    if draw.chance(0.5):
        size = draw.uniform(0.45, 0.6)
        side = room.against_wall(size, size, 0.55)
        if side:
            furniture.table(room.mesh, draw, room.style, side[0], size, size, 0.55)
            _topping(room, side[0], size * 0.5, size, 0.55, lamp=0.6)
    if room.shell.width * room.shell.depth > 20 and draw.chance(0.5):
        _dining_set(room, middle=False)


def _office(room: Room) -> None:
    draw = room.draw
    for _ in range(draw.pick((1, 2, 2, 3))):
        _desk(room)
    for _ in range(draw.pick((1, 1, 2))):
        _shelves(room, draw.pick(("bookshelf", "bookshelf", "shelves")))
    if draw.chance(0.8):
        low = draw.chance(0.5)
        h = draw.uniform(0.7, 1.2) if low else draw.uniform(1.6, 2.0)
        cabinet = _storage(room, "cabinet", draw.uniform(0.5, 1.0), draw.uniform(0.42, 0.5), h, not low)
        if cabinet and low:
            _topping(room, cabinet[0], 0.45, 0.42, h, lamp=0.1)
    if draw.chance(0.7):
        _pictures(room, 1, "whiteboard")
    if draw.chance(0.4):
        _dining_set(room, middle=True, gap=0.5)
    elif draw.chance(0.5):
        place = room.against_wall(1.5, 0.85, 0.72, front=0.5)
        if place:
            furniture.sofa(room.mesh, draw, room.style, place[0], 1.5, 0.85)


def _dining(room: Room) -> None:
    draw = room.draw
    if draw.chance(0.6):
        _rug(room, room.shell.width / 2, room.shell.depth / 2, 2.6, 1.9)
    _dining_set(room, middle=True)
    w, h = draw.uniform(1.2, 1.9), draw.uniform(0.75, 0.95)
    side = _storage(room, draw.pick(("cabinet", "cabinet", "dresser")), w, 0.44, h, draw.chance(0.7))
    if side:
        _topping(room, side[0], w, 0.44, h, lamp=0.5)
        _over(room, side, h + 0.3, draw.pick(("mirror", "picture")))
    if draw.chance(0.6):
        _shelves(room, draw.pick(("bookshelf", "shelves")))
    if draw.chance(0.4):
        _storage(room, "cabinet", draw.uniform(0.8, 1.1), 0.42, draw.uniform(1.7, 2.0), True)
    if room.shell.width * room.shell.depth > 18 and draw.chance(0.5):
        place = room.against_wall(1.7, 0.88, 0.72)
        if place:
            furniture.sofa(room.mesh, draw, room.style, place[0], 1.7, 0.88)


def _kitchen(room: Room) -> None:
    draw = room.draw
    for w in (draw.uniform(2.0, 2.8), 1.6, 1.2):
        upper = draw.chance(0.7)
        place = room.against_wall(w + 0.62, 0.66, 2.2 if upper else 0.9, front=0.7, gap=0.02)
        if place:
            frame, side = place[0], draw.pick((-1, 1))
            furniture.kitchen_run(room.mesh, draw, room.style, frame.at(-side * 0.31, 0.0), w, upper)
            furniture.stove(room.mesh, draw, room.style, frame.at(side * (w / 2 + 0.02), 0.0))
            props.vase(room.mesh, draw, frame.at(-side * (w / 2 + 0.05), 0.3, 0.9))
            break
    place = room.against_wall(0.64, 0.7, 1.85, front=0.5)
    if place:
        furniture.fridge(room.mesh, draw, room.style, place[0], draw.uniform(1.5, 1.85))
    _dining_set(room, middle=True, gap=0.5)
    if draw.chance(0.7):
        wall = draw.integer(4)
        frame = room.hang(wall, draw.uniform(0.5, room.shell.length(wall) - 0.5), 0.45, 0.6, 0.7)
        if frame:
            props.towel(room.mesh, room.style, frame.at(0.0, 0.0, -0.7))
    if draw.chance(0.6):
        _shelves(room, "shelves")


_FURNISH: dict[str, Callable[[Room], None]] = {
    "bedroom": _bedroom,
    "living": _living,
    "office": _office,
    "dining": _dining,
    "kitchen": _kitchen,
}


def make_room(draw: Draw) -> tuple[Room, Lighting, str]:
    """Furnish a random room.

    Returns:
        The room, its lighting and its type (one of :data:`ROOM_TYPES`).
    """
    kind = draw.pick(ROOM_TYPES)
    style = choose_style(draw, kind)
    shell = draw_shell(draw, draw.uniform(3.3, 5.6), draw.uniform(3.2, 5.0), draw.uniform(2.45, 2.85))
    room = Room(Mesh(), draw, style, shell)
    shade = draw.pick(("curtain", "curtain", "both", "blinds", "none"))
    room.lights += build_shell(room.mesh, draw, style, shell, shade)
    for wall, openings in shell.openings.items():
        for opening in openings:
            if opening.kind == "door":  # keep the swing of the door free
                frame = shell.frame(wall, (opening.x0 + opening.x1) / 2)
                room.taken.append(_footprint(frame, (-0.5, 0.0), (0.5, 0.9), 0.0))
    _FURNISH[kind](room)
    if draw.chance(0.5):
        _shelves(room, draw.pick(("bookshelf", "shelves")))
    if draw.chance(0.5):
        _storage(room, draw.pick(("cabinet", "dresser")), draw.uniform(0.7, 1.3), 0.42, draw.uniform(0.75, 1.2), False)
    _corner_things(room)
    _pictures(room, draw.pick((2, 3, 4, 5)))
    if not any(light.facing is None and light.position[2] > 1.45 for light in room.lights) or draw.chance(0.4):
        at = Frame(shell.width * draw.uniform(0.42, 0.58), shell.depth * draw.uniform(0.42, 0.58))
        low = [lamp for lamp in room.lights if lamp.facing is None and abs(lamp.position[0] - at.x) < 0.6]
        if not any(abs(lamp.position[1] - at.y) < 0.6 for lamp in low):
            room.lights.append(props.ceiling_lamp(room.mesh, draw, style, at, shell.height, low=False))
    # Three lights are rendered: the strongest.
    strongest = sorted(room.lights, key=lambda light: -light.power[0])[:3]
    level = draw.uniform(0.16, 0.3)
    ambient = (level * draw.uniform(0.95, 1.08), level, level * draw.uniform(0.92, 1.05))
    return room, Lighting(tuple(strongest), ambient, (shell.width, shell.depth, shell.height)), kind
