"""Small things: lamps, books, screens, pictures, curtains, plants, boxes. Local frame as in :mod:`.furniture`."""

from __future__ import annotations

from m2h_lightning.data.synthesis.draw import Draw
from m2h_lightning.data.synthesis.labels import CLASS
from m2h_lightning.data.synthesis.meshes import Frame, Mesh
from m2h_lightning.data.synthesis.render import Light
from m2h_lightning.data.synthesis.style import BRIGHTS, FABRICS, Style, dyed, picture


def bulb(frame: Frame, z: float, power: float, radius: float = 0.08) -> Light:
    """A warm lamp at height ``z`` above the frame's origin."""
    rgb = (power * 1.0, power * 0.84, power * 0.64)
    return Light((frame.x, frame.y, frame.z + z), rgb, ((radius * 2, 0.0, 0.0), (0.0, radius * 2, 0.0)))


def table_lamp(mesh: Mesh, draw: Draw, style: Style, frame: Frame) -> Light:
    """A lamp with a glowing shade, standing on something; returns its light."""
    mesh.begin(CLASS["lamp"], frame, casts_shadow=False)
    h, r = draw.uniform(0.3, 0.45), draw.uniform(0.1, 0.15)
    if draw.chance(0.5):
        mesh.prism(0, 0, 0.002, 0.03, 0.07, 0.06, style.metal, sides=12)
        mesh.prism(0, 0, 0.03, h, 0.012, 0.012, style.metal)
    else:
        mesh.prism(0, 0, 0.002, h * 0.35, 0.04, 0.075, style.fabric2, sides=12)
        mesh.prism(0, 0, h * 0.35, h, 0.075, 0.012, style.fabric2, sides=12)
    mesh.prism(0, 0, h - 0.06, h + 0.14, r, r * draw.uniform(0.6, 0.95), style.glow, sides=12)
    return bulb(frame, h + 0.16, draw.uniform(0.25, 0.5))


def floor_lamp(mesh: Mesh, draw: Draw, style: Style, frame: Frame) -> Light:
    """A standing lamp, 0.4 m wide; returns its light."""
    mesh.begin(CLASS["lamp"], frame, casts_shadow=False)
    h, r = draw.uniform(1.35, 1.6), draw.uniform(0.16, 0.22)
    mesh.prism(0, 0, 0.0, 0.03, 0.15, 0.14, style.metal, sides=12, bottom=False)
    mesh.prism(0, 0, 0.03, h, 0.014, 0.014, style.metal)
    mesh.prism(0, 0, h - 0.05, h + 0.24, r, r * draw.uniform(0.55, 0.9), style.glow, sides=12)
    return bulb(frame, h + 0.27, draw.uniform(0.6, 1.2))


def ceiling_lamp(mesh: Mesh, draw: Draw, style: Style, frame: Frame, room_height: float, low: bool) -> Light:
    """A lamp at the ceiling; ``low`` hangs it over a table. Returns its light."""
    mesh.begin(CLASS["lamp"], frame, casts_shadow=False)
    if low:
        z, r = 1.55, draw.uniform(0.16, 0.26)
        mesh.prism(0, 0, z + 0.22, room_height - 0.001, 0.008, 0.008, style.dark)
        mesh.prism(0, 0, z, z + 0.22, r, r * 0.35, draw.pick((style.glow, style.metal, style.lacquer)), sides=12)
        mesh.prism(0, 0, z - 0.012, z - 0.0005, r * 0.6, r * 0.6, style.glow, sides=12)
        return bulb(frame, z - 0.05, draw.uniform(1.4, 2.2), 0.12)
    r = draw.uniform(0.16, 0.26)
    drop = 0.1 if draw.chance(0.5) else draw.uniform(0.25, 0.45)
    z = room_height - drop
    if drop > 0.12:
        mesh.prism(0, 0, z + 0.08, room_height - 0.001, 0.01, 0.01, style.metal)
    mesh.prism(0, 0, z, min(z + 0.1, room_height - 0.002), r * 0.7, r, style.glow, sides=12)
    return bulb(frame, z - 0.06, draw.uniform(1.8, 3.0), 0.16)


def books_row(mesh: Mesh, draw: Draw, frame: Frame, x0: float, x1: float, room: float, depth: float) -> None:
    """Books standing from ``x0`` to ``x1`` on the frame's origin height; ``room`` is the clear height above."""
    mesh.begin(CLASS["books"], frame)
    x = x0
    while True:
        thick = draw.uniform(0.02, 0.055)
        if x + thick > x1:
            return
        high, deep = min(room - 0.02, draw.uniform(0.17, 0.3)), draw.uniform(0.12, 0.19)
        material = dyed(draw, "plain", draw.pick(BRIGHTS + FABRICS), 0.4, 0.2)
        mesh.box((x + 0.001, depth - deep - 0.02, 0.001), (x + thick, depth - 0.02, high), material)
        x += thick


def books_pile(mesh: Mesh, draw: Draw, frame: Frame) -> None:
    """A few books lying on each other."""
    mesh.begin(CLASS["books"], frame)
    z = 0.002
    for _ in range(1 + draw.integer(4)):
        w, d, t = draw.uniform(0.08, 0.11), draw.uniform(0.1, 0.15), draw.uniform(0.015, 0.04)
        mesh.box((-w, -d, z), (w, d, z + t), dyed(draw, "plain", draw.pick(BRIGHTS + FABRICS), 0.4, 0.2))
        z += t + 0.0015


def paper(mesh: Mesh, draw: Draw, frame: Frame) -> None:
    """A sheet or a small stack of paper, 0.21 x 0.29 m."""
    mesh.begin(CLASS["paper"], frame)
    mesh.box((-0.105, -0.148, 0.001), (0.105, 0.148, draw.uniform(0.004, 0.02)), picture(draw, "paper"), bottom=False)


def television(mesh: Mesh, draw: Draw, style: Style, frame: Frame, w: float) -> None:
    """A flat screen on a foot; its face looks along +y."""
    mesh.begin(CLASS["television"], frame)
    h = w * 0.58
    mesh.box((-w / 2, 0.0, 0.06), (w / 2, 0.045, 0.06 + h), style.dark)
    mesh.box((-w / 2 + 0.02, 0.0455, 0.085), (w / 2 - 0.02, 0.049, 0.035 + h), picture(draw, "screen", 0.25))
    mesh.box((-0.05, 0.005, 0.012), (0.05, 0.04, 0.0605), style.dark)
    mesh.box((-w / 5, -0.05, 0.001), (w / 5, 0.13, 0.012), style.dark)


def monitor(mesh: Mesh, draw: Draw, style: Style, frame: Frame) -> None:
    """A computer screen with keyboard (class otherprop)."""
    mesh.begin(CLASS["otherprop"], frame)
    w, h = draw.uniform(0.46, 0.6), draw.uniform(0.28, 0.36)
    mesh.box((-w / 2, 0.1, 0.11), (w / 2, 0.135, 0.11 + h), style.dark)
    mesh.box((-w / 2 + 0.015, 0.1355, 0.125), (w / 2 - 0.015, 0.139, 0.095 + h), picture(draw, "screen", 0.5))
    mesh.box((-0.03, 0.08, 0.012), (0.03, 0.1, 0.28), style.metal)
    mesh.box((-0.11, 0.03, 0.001), (0.11, 0.2, 0.012), style.metal)
    mesh.box((-0.22, 0.33, 0.001), (0.22, 0.47, 0.022), style.dark)


def framed(mesh: Mesh, draw: Draw, style: Style, frame: Frame, w: float, h: float, label: str) -> None:
    """A picture, mirror or whiteboard on the wall; the frame's origin is its lower middle."""
    mesh.begin(CLASS[label], frame)
    border = 0.015 if label == "whiteboard" else draw.uniform(0.015, 0.05)
    rim = style.metal if label == "whiteboard" else draw.pick((style.wood, style.wood2, style.dark, style.trim))
    mesh.box((-w / 2, 0.002, 0), (w / 2, 0.022, h), rim)
    if label == "mirror":
        face = dyed(draw, "plain", (186, 198, 206), 3.0, 0.12)
    else:
        face = picture(draw, "board" if label == "whiteboard" else "art")
    mesh.box((-w / 2 + border, 0.0225, border), (w / 2 - border, 0.027, h - border), face)


def curtains(mesh: Mesh, draw: Draw, style: Style, frame: Frame, width: float, low: float, high: float) -> None:
    """Two gathered curtains beside an opening of ``width`` centred at the frame, and their rod."""
    each = draw.uniform(0.18, 0.34)
    bottom = 0.02 if draw.chance(0.6) else max(0.05, low - 0.15)
    for side in (-1, 1):
        mesh.begin(CLASS["curtain"], frame)
        count = 5
        for k in range(count):  # folds: boxes of alternating depth
            x0 = side * (width / 2 + 0.1 - each) if side > 0 else -(width / 2 + 0.1)
            step = each / count
            near = 0.1 if k % 2 else 0.13
            mesh.box((x0 + k * step, 0.075, bottom), (x0 + (k + 1) * step, near, high + 0.1), style.curtain)
    mesh.begin(CLASS["curtain"], frame)
    mesh.box((-width / 2 - 0.2, 0.09, high + 0.101), (width / 2 + 0.2, 0.115, high + 0.125), style.metal)


def blinds(mesh: Mesh, draw: Draw, style: Style, frame: Frame, width: float, low: float, high: float) -> None:
    """Slatted blinds, partly let down, in front of an opening."""
    mesh.begin(CLASS["blinds"], frame)
    bottom = high - (high - low) * draw.uniform(0.25, 0.7)
    count = max(3, int((high - bottom) / 0.05))
    step = (high - 0.01 - bottom) / count
    mesh.box((-width / 2 - 0.03, 0.012, high - 0.01), (width / 2 + 0.03, 0.06, high + 0.04), style.trim)
    for k in range(count):  # closed slats; a step between neighbours catches the light
        near = 0.03 if k % 2 else 0.024
        z = bottom + k * step
        mesh.box((-width / 2 - 0.02, 0.018, z), (width / 2 + 0.02, near, z + step), style.trim)


def plant(mesh: Mesh, draw: Draw, frame: Frame, size: float) -> None:
    """A pot with leaves (class otherprop), about 0.7 x ``size`` wide."""
    mesh.begin(CLASS["otherprop"], frame)
    pot = dyed(draw, "plain", draw.pick(((170, 90, 60), (220, 216, 208), (60, 62, 66), (90, 120, 140))), 0.5, 0.2)
    leaf = dyed(draw, "carpet", draw.pick(((58, 96, 44), (74, 116, 60), (46, 80, 56))), 0.5, 0.6)
    mesh.prism(0, 0, 0.001, 0.28 * size, 0.11 * size, 0.16 * size, pot, sides=12)
    for k in range(9):
        ring = k % 3
        around = frame.at(0, 0, 0.26 * size + 0.13 * size * ring, turn=draw.uniform(-3.0, 3.0))
        mesh.frame = around
        length, lift = draw.uniform(0.16, 0.32) * size, draw.uniform(0.15, 0.32) * size
        mesh.cushion((-0.05 * size, 0.0, 0.004 * k), (0.05 * size, length, lift), 0.09 * size, leaf)
    mesh.frame = frame


def carton(mesh: Mesh, draw: Draw, frame: Frame) -> None:
    """A cardboard box or a storage box, at most 0.45 x 0.36 m."""
    mesh.begin(CLASS["box"], frame)
    w, d, h = draw.uniform(0.13, 0.22), draw.uniform(0.12, 0.18), draw.uniform(0.16, 0.34)
    rgb = (176, 136, 92) if draw.chance(0.6) else draw.pick(BRIGHTS)
    mesh.box((-w, -d, 0.001), (w, d, h), dyed(draw, "plain", rgb, 0.8, 0.15), bottom=False)
    tape = dyed(draw, "plain", (205, 180, 130) if rgb[0] == 176 else (235, 235, 230), 0.5, 0.1)
    mesh.box((-0.03, -d - 0.001, h - 0.08), (0.03, d + 0.001, h + 0.0015), tape)
    if rgb[0] != 176:
        mesh.box((-w - 0.008, -d - 0.008, h - 0.04), (w + 0.008, d + 0.008, h - 0.002), tape)


def vase(mesh: Mesh, draw: Draw, frame: Frame) -> None:
    """A vase or a bowl (class otherprop), at most 0.28 m wide."""
    mesh.begin(CLASS["otherprop"], frame)
    material = dyed(draw, "marble" if draw.chance(0.4) else "plain", draw.pick(BRIGHTS + FABRICS), 0.4, 0.25)
    if draw.chance(0.5):
        mesh.prism(0, 0, 0.001, 0.09, 0.06, 0.14, material, sides=12)
        return
    h, r = draw.uniform(0.14, 0.3), draw.uniform(0.04, 0.08)
    mesh.prism(0, 0, 0.001, h * 0.55, r * 0.6, r, material, sides=12)
    mesh.prism(0, 0, h * 0.55, h, r, r * 0.45, material, sides=12)


def rug(mesh: Mesh, draw: Draw, frame: Frame, w: float, d: float) -> None:
    """A rug centred at the frame, 6 mm thick."""
    mesh.begin(CLASS["floormat"], frame)
    mesh.box((-w / 2, -d / 2, 0.0), (w / 2, d / 2, 0.006), picture(draw, "rug"), bottom=False)


def towel(mesh: Mesh, style: Style, frame: Frame) -> None:
    """A towel on a bar at the wall."""
    mesh.begin(CLASS["towel"], frame)
    mesh.box((-0.2, 0.01, 1.2), (0.2, 0.03, 1.22), style.metal)
    mesh.cushion((-0.14, 0.031, 0.78), (0.14, 0.055, 1.23), 0.01, style.cover)


def bag(mesh: Mesh, draw: Draw, style: Style, frame: Frame) -> None:
    """A bag on the floor."""
    mesh.begin(CLASS["bag"], frame)
    material = draw.pick((style.fabric2, style.dark, style.cover))
    mesh.cushion((-0.18, -0.09, 0.003), (0.18, 0.09, 0.3), 0.05, material)
    for x in (-0.08, 0.07):
        mesh.box((x, -0.01, 0.29), (x + 0.02, 0.01, 0.4), material)
    mesh.box((-0.0785, -0.0085, 0.395), (0.0885, 0.0085, 0.412), material)


def clothes(mesh: Mesh, draw: Draw, style: Style, frame: Frame) -> None:
    """Clothes hanging from hooks at the wall, 0.7 m wide."""
    mesh.begin(CLASS["clothes"], frame)
    mesh.box((-0.35, 0.003, 1.68), (0.35, 0.02, 1.75), style.wood)
    for k in range(3):
        x = -0.23 + 0.23 * k
        low = draw.uniform(0.75, 1.1)
        cloth = dyed(draw, "weave", draw.pick(FABRICS + BRIGHTS), 0.4, 0.3)
        mesh.cushion((x - 0.1, 0.021, low), (x + 0.1, draw.uniform(0.08, 0.13), 1.7), 0.05, cloth)
