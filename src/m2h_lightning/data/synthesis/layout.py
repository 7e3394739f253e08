"""Furnishing: which objects a room of each type gets."""

from __future__ import annotations

from collections.abc import Callable

from m2h_lightning.data.synthesis import furniture, props
from m2h_lightning.data.synthesis.draw import Draw
from m2h_lightning.data.synthesis.groups import (
    corner_things,
    desk,
    dining_set,
    over,
    pictures,
    rug,
    shelves,
    storage,
    topping,
)
from m2h_lightning.data.synthesis.meshes import Frame, Mesh
from m2h_lightning.data.synthesis.placement import Room, footprint_of
from m2h_lightning.data.synthesis.render import Lighting
from m2h_lightning.data.synthesis.shell import build_shell, draw_shell
from m2h_lightning.data.synthesis.style import choose_style

ROOM_TYPES = ("bedroom", "living", "office", "dining", "kitchen")


def _bedroom(room: Room) -> None:
    draw = room.draw
    width, d = draw.pick(((1.0, 2.05), (1.45, 2.1), (1.65, 2.1), (1.85, 2.15)))
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
            rect = footprint_of(at, (-nw / 2, 0.0), (nw / 2, nd), nh)
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
            rug(room, at.x, at.y, *((width + 1.1, 1.6) if turned else (1.6, width + 1.1)))
        over(room, place, 1.2, "picture")
    if draw.chance(0.85):
        storage(room, "cabinet", draw.uniform(0.9, 1.8), draw.uniform(0.52, 0.62), draw.uniform(1.9, 2.15), True)
    if draw.chance(0.8):
        w2, d2, h2 = draw.uniform(0.8, 1.4), draw.uniform(0.42, 0.5), draw.uniform(0.7, 0.95)
        dresser = storage(room, "dresser", w2, d2, h2, False)
        if dresser and draw.chance(0.4):
            props.television(
                room.mesh, draw, room.style, dresser[0].at(0.0, 0.14, h2), min(w2 - 0.1, draw.uniform(0.7, 1.0))
            )
            room.hung[dresser[1]].append((dresser[2] - 0.6, dresser[2] + 0.6, 0.0, 1.7))
        elif dresser:
            topping(room, dresser[0], w2, d2, h2)
            over(room, dresser, h2, "mirror" if draw.chance(0.7) else "picture")
    if draw.chance(0.45):
        desk(room)
    if draw.chance(0.35):
        shelves(room, draw.pick(("bookshelf", "shelves")))


def _living(room: Room) -> None:
    draw = room.draw
    w, d = draw.uniform(1.7, 2.3), draw.uniform(0.85, 0.98)
    place = room.against_wall(w, d, 0.72, front=1.0)
    if place:
        frame, wall, _ = place
        furniture.sofa(room.mesh, draw, room.style, frame, w, d)
        for sign in (-1, 1):
            if draw.chance(0.75):
                at = frame.at(sign * (w / 2 - 0.42), 0.38, 0.47, turn=draw.uniform(-0.1, 0.1))
                furniture.pillow(room.mesh, draw, room.style, at, 0.4, 0.36, True)
        over(room, place, 0.95, "picture")
        tw, td = draw.uniform(0.8, 1.2), draw.uniform(0.5, 0.65)
        table_at = frame.at(0.0, d + 0.42)
        rect = footprint_of(table_at, (-tw / 2, 0.0), (tw / 2, td), 0.42)
        if draw.chance(0.8):
            at = frame.at(0.0, d + 0.6)
            turned = abs(frame.cos) > 0.5
            rug(room, at.x, at.y, *((2.3, 1.6) if turned else (1.6, 2.3)))
        if room.is_free(rect, 0.1):
            room.take(rect)
            h = draw.uniform(0.38, 0.46)
            furniture.table(room.mesh, draw, room.style, table_at, tw, td, h)
            topping(room, table_at, tw, td, h, lamp=0.0)
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
        shelves(room)
    if draw.chance(0.7):
        spot = room.in_the_open(0.85, 0.85, 0.8, 0.35)
        if spot:
            furniture.sofa(room.mesh, draw, room.style, spot.at(0.0, -0.42), 0.84, 0.84)
    if draw.chance(0.5):
        size = draw.uniform(0.45, 0.6)
        side = room.against_wall(size, size, 0.55)
        if side:
            furniture.table(room.mesh, draw, room.style, side[0], size, size, 0.55)
            topping(room, side[0], size * 0.5, size, 0.55, lamp=0.6)
    if room.shell.width * room.shell.depth > 20 and draw.chance(0.5):
        dining_set(room, middle=False)


def _office(room: Room) -> None:
    draw = room.draw
    for _ in range(draw.pick((1, 2, 2, 3))):
        desk(room)
    for _ in range(draw.pick((1, 1, 2))):
        shelves(room, draw.pick(("bookshelf", "bookshelf", "shelves")))
    if draw.chance(0.8):
        low = draw.chance(0.5)
        h = draw.uniform(0.7, 1.2) if low else draw.uniform(1.6, 2.0)
        cabinet = storage(room, "cabinet", draw.uniform(0.5, 1.0), draw.uniform(0.42, 0.5), h, not low)
        if cabinet and low:
            topping(room, cabinet[0], 0.45, 0.42, h, lamp=0.1)
    if draw.chance(0.7):
        pictures(room, 1, "whiteboard")
    if draw.chance(0.4):
        dining_set(room, middle=True, gap=0.5)
    elif draw.chance(0.5):
        place = room.against_wall(1.5, 0.85, 0.72, front=0.5)
        if place:
            furniture.sofa(room.mesh, draw, room.style, place[0], 1.5, 0.85)


def _dining(room: Room) -> None:
    draw = room.draw
    if draw.chance(0.6):
        rug(room, room.shell.width / 2, room.shell.depth / 2, 2.6, 1.9)
    dining_set(room, middle=True)
    w, h = draw.uniform(1.2, 1.9), draw.uniform(0.75, 0.95)
    side = storage(room, draw.pick(("cabinet", "cabinet", "dresser")), w, 0.44, h, draw.chance(0.7))
    if side:
        topping(room, side[0], w, 0.44, h, lamp=0.5)
        over(room, side, h + 0.3, draw.pick(("mirror", "picture")))
    if draw.chance(0.6):
        shelves(room, draw.pick(("bookshelf", "shelves")))
    if draw.chance(0.4):
        storage(room, "cabinet", draw.uniform(0.8, 1.1), 0.42, draw.uniform(1.7, 2.0), True)
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
    dining_set(room, middle=True, gap=0.5)
    if draw.chance(0.7):
        wall = draw.integer(4)
        bar = room.hang(wall, draw.uniform(0.5, room.shell.length(wall) - 0.5), 0.45, 0.6, 0.7)
        if bar:
            props.towel(room.mesh, room.style, bar.at(0.0, 0.0, -0.7))
    if draw.chance(0.6):
        shelves(room, "shelves")


_FURNISH: dict[str, Callable[[Room], None]] = {
    "bedroom": _bedroom,
    "living": _living,
    "office": _office,
    "dining": _dining,
    "kitchen": _kitchen,
}


def make_room(draw: Draw, kind: str) -> tuple[Room, Lighting]:
    """Furnish a random room of a given type (one of :data:`ROOM_TYPES`)."""
    style = choose_style(draw, kind)
    shell = draw_shell(draw, draw.uniform(3.3, 5.6), draw.uniform(3.2, 5.0), draw.uniform(2.45, 2.85))
    room = Room(Mesh(), draw, style, shell)
    shade = draw.pick(("curtain", "curtain", "both", "blinds", "none"))
    room.lights += build_shell(room.mesh, draw, style, shell, shade)
    for wall, openings in shell.openings.items():
        for opening in openings:
            if opening.kind == "door":  # keep the swing of the door free
                swing = shell.frame(wall, (opening.x0 + opening.x1) / 2)
                room.taken.append(footprint_of(swing, (-0.5, 0.0), (0.5, 0.9), 0.0))
    _FURNISH[kind](room)
    if draw.chance(0.5):
        shelves(room, draw.pick(("bookshelf", "shelves")))
    if draw.chance(0.5):
        storage(room, draw.pick(("cabinet", "dresser")), draw.uniform(0.7, 1.3), 0.42, draw.uniform(0.75, 1.2), False)
    corner_things(room)
    pictures(room, draw.pick((2, 3, 4, 5)))
    if not any(light.facing is None and light.position[2] > 1.45 for light in room.lights) or draw.chance(0.4):
        at = Frame(shell.width * draw.uniform(0.42, 0.58), shell.depth * draw.uniform(0.42, 0.58))
        low = [lamp for lamp in room.lights if lamp.facing is None and abs(lamp.position[0] - at.x) < 0.6]
        if not any(abs(lamp.position[1] - at.y) < 0.6 for lamp in low):
            room.lights.append(props.ceiling_lamp(room.mesh, draw, style, at, shell.height, low=False))
    # Three lights are rendered: the strongest.
    strongest = sorted(room.lights, key=lambda light: -light.power[0])[:3]
    level = draw.uniform(0.16, 0.3)
    ambient = (level * draw.uniform(0.95, 1.08), level, level * draw.uniform(0.92, 1.05))
    return room, Lighting(tuple(strongest), ambient, (shell.width, shell.depth, shell.height))
