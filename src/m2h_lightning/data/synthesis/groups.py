"""Groups of furniture that go together: a desk with its chair, a dining set, shelves with books, things on a top."""

from __future__ import annotations

from m2h_lightning.data.synthesis import furniture, props
from m2h_lightning.data.synthesis.meshes import Frame
from m2h_lightning.data.synthesis.placement import Room


def pictures(room: Room, count: int, label: str = "picture") -> None:
    """Hang ``count`` pictures or whiteboards where the walls are free."""
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


def over(room: Room, place: tuple[Frame, int, float], top: float, label: str) -> None:
    """A picture or mirror above the thing placed at a wall."""
    w, h = room.draw.uniform(0.5, 1.0), room.draw.uniform(0.45, 0.75)
    up = max(top + 0.2, 1.1)
    frame = room.hang(place[1], place[2] + room.draw.uniform(-0.1, 0.1), w, h, up)
    if frame:
        props.framed(room.mesh, room.draw, room.style, frame, w, h, label)


def storage(room: Room, label: str, w: float, d: float, h: float, doors: bool) -> tuple[Frame, int, float] | None:
    """A chest, dresser or cabinet at a wall, with room to open it; None when there is no place."""
    place = room.against_wall(w, d, h, front=0.45)
    if place:
        furniture.chest(room.mesh, room.draw, room.style, place[0], w, d, h, label, doors)
    return place


def topping(room: Room, frame: Frame, w: float, d: float, top: float, lamp: float = 0.4) -> None:
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


def shelves(room: Room, label: str = "bookshelf") -> None:
    """A bookshelf or a lower open shelf, filled with books and a few other things."""
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
            props.vase(room.mesh, draw, shelf.at((x0 + x1) / 2, d * 0.6))
        elif chance < full + 0.2:
            props.books_pile(room.mesh, draw, shelf.at((x0 + x1) / 2, d * 0.52, turn=1.0))


def rug(room: Room, x: float, y: float, w: float, d: float) -> None:
    """A rug around (x, y), shifted so that it stays inside the room."""
    w, d = min(w, room.shell.width - 0.5), min(d, room.shell.depth - 0.5)
    x = min(max(x, w / 2 + 0.1), room.shell.width - w / 2 - 0.1)
    y = min(max(y, d / 2 + 0.1), room.shell.depth - d / 2 - 0.1)
    props.rug(room.mesh, room.draw, Frame(x, y), w, d)


def dining_set(room: Room, middle: bool, gap: float = 0.55) -> bool:
    """A table with its chairs, something on it, and often a lamp over it; False when there is no place."""
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


def corner_things(room: Room) -> None:
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


def desk(room: Room) -> bool:
    """A desk with chair, screen, lamp, paper and books; False when there is no place."""
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
