"""Large furniture, each a function that builds one object in local coordinates.

Local frame: x along the wall from -w/2 to w/2, y from the back (0) into the room (d), z up from the floor. Sizes are
metres and lie within what one finds in shops.
"""

from __future__ import annotations

from m2h_lightning.data.synthesis.draw import Draw
from m2h_lightning.data.synthesis.labels import CLASS
from m2h_lightning.data.synthesis.meshes import Frame, Mesh
from m2h_lightning.data.synthesis.style import Style


def _legs(mesh: Mesh, x: float, y0: float, y1: float, height: float, thick: float, style: Style, metal: bool) -> None:
    material = style.metal if metal else style.wood
    for sx in (-1, 1):
        for y in (y0 + thick, y1 - thick):
            cx = sx * (x - thick)
            mesh.box(
                (cx - thick / 2, y - thick / 2, 0), (cx + thick / 2, y + thick / 2, height), material, bottom=False
            )


def bed(mesh: Mesh, draw: Draw, style: Style, frame: Frame, w: float, d: float) -> float:
    """A bed with headboard, mattress and a cover turned down. Returns the height of the mattress."""
    mesh.begin(CLASS["bed"], frame)
    base, thick = draw.uniform(0.22, 0.34), draw.uniform(0.18, 0.26)
    head = draw.uniform(0.85, 1.2)
    upholstered = draw.chance(0.4)
    back = style.fabric if upholstered else style.wood
    if upholstered:
        mesh.cushion((-w / 2, 0.0, 0.003), (w / 2, 0.09, head), 0.025, back)
    else:
        mesh.box((-w / 2, 0.0, 0), (w / 2, 0.06, head), back, bottom=False)
    mesh.box((-w / 2 + 0.01, 0.1, 0.06), (w / 2 - 0.01, d - 0.02, base), style.wood if not upholstered else back)
    if draw.chance(0.4):
        mesh.box((-w / 2, d - 0.018, 0), (w / 2, d + 0.03, base + draw.uniform(0.1, 0.3)), style.wood, bottom=False)
    top = base + thick
    mesh.cushion((-w / 2 + 0.03, 0.1, base + 0.002), (w / 2 - 0.03, d - 0.04, top), 0.05, style.linen)
    fold, over = draw.uniform(0.55, 0.9), 0.035
    mesh.cushion((-w / 2 + 0.005, fold + 0.2, base - 0.1), (w / 2 - 0.005, d - 0.025, top + over), 0.05, style.cover)
    mesh.cushion((-w / 2 + 0.004, fold, top - 0.06), (w / 2 - 0.004, fold + 0.26, top + over + 0.02), 0.03, style.linen)
    return top


def pillow(mesh: Mesh, draw: Draw, style: Style, frame: Frame, w: float, h: float, leaning: bool) -> None:
    """A pillow lying at the frame, or standing against a back."""
    mesh.begin(CLASS["pillow"], frame)
    material = draw.pick((style.linen, style.fabric2, style.cover))
    thick = draw.uniform(0.1, 0.15)
    if leaning:
        mesh.cushion((-w / 2, 0, 0.004), (w / 2, thick, h), 0.055, material)
    else:
        mesh.cushion((-w / 2, 0, 0.004), (w / 2, h, thick), 0.055, material)


def chest(
    mesh: Mesh, draw: Draw, style: Style, frame: Frame, w: float, d: float, h: float, label: str, doors: bool
) -> None:
    """A body with drawers or doors: dresser, nightstand, cabinet, wardrobe, sideboard."""
    mesh.begin(CLASS[label], frame)
    body = style.wood if draw.chance(0.65) else style.lacquer
    front = body if draw.chance(0.6) else draw.pick((style.wood2, style.lacquer))
    foot = 0.0 if draw.chance(0.5) else draw.uniform(0.05, 0.14)
    if foot:
        _legs(mesh, w / 2 - 0.02, 0.02, d - 0.03, foot, 0.04, style, draw.chance(0.5))
    mesh.box((-w / 2, 0, foot), (w / 2, d - 0.02, h - 0.025), body, bottom=foot > 0)
    mesh.box((-w / 2 - 0.012, 0, h - 0.025), (w / 2 + 0.012, d + 0.012, h), body)
    columns = max(1, int(w / (0.5 if doors else 0.7) + 0.5))
    rows = 1 if doors else max(1, int((h - foot) / 0.23))
    gap, step_x, step_z = 0.006, (w - 0.03) / columns, (h - 0.045 - foot) / rows
    long_handle = draw.chance(0.5)
    for row in range(rows):
        for column in range(columns):
            x0, z0 = -w / 2 + 0.015 + column * step_x, foot + 0.012 + row * step_z
            low, high = (x0 + gap, d - 0.02, z0 + gap), (x0 + step_x - gap, d, z0 + step_z - gap)
            mesh.box(low, high, front)
            if doors:
                inner = high[0] - 0.05 if column % 2 == 0 else low[0] + 0.05
                middle = z0 + step_z * (0.5 if h > 1.2 else 0.75)
                mesh.box((inner - 0.01, d, middle - 0.07), (inner + 0.01, d + 0.025, middle + 0.07), style.metal)
            else:
                half = 0.08 if long_handle else 0.02
                cx, cz = x0 + step_x / 2, z0 + step_z * 0.55
                mesh.box((cx - half, d, cz - 0.012), (cx + half, d + 0.025, cz + 0.012), style.metal)


def chair(mesh: Mesh, draw: Draw, style: Style, frame: Frame, kind: str) -> None:
    """A chair that looks along +y: "wood", "padded", "office" or "shell"; footprint about 0.46 x 0.5 m."""
    mesh.begin(CLASS["chair"], frame)
    w, d, seat, back = 0.44, 0.46, 0.45, draw.uniform(0.84, 0.98)
    if kind == "office":
        mesh.prism(0, d / 2, 0.09, seat - 0.03, 0.03, 0.03, style.metal, bottom=False)
        mesh.box((-0.3, d / 2 - 0.03, 0.05), (0.3, d / 2 + 0.03, 0.09), style.dark)
        mesh.box((-0.03, d / 2 - 0.3, 0.051), (0.03, d / 2 + 0.3, 0.089), style.dark)
        for x, y in ((-0.28, 0), (0.28, 0), (0, -0.28), (0, 0.28)):
            mesh.prism(x, d / 2 + y, 0.0, 0.05, 0.028, 0.028, style.dark, bottom=False)
        mesh.cushion((-w / 2, 0.02, seat - 0.03), (w / 2, d, seat + 0.05), 0.03, style.fabric)
        mesh.box((-0.04, -0.02, seat - 0.02), (0.04, 0.012, seat + 0.2), style.dark)
        mesh.cushion((-w / 2 + 0.02, -0.01, seat + 0.15), (w / 2 - 0.02, 0.06, back + 0.12), 0.03, style.fabric)
        for side in (-1, 1):
            x = side * (w / 2 + 0.035)
            mesh.box((x - 0.025, 0.1, seat + 0.2), (x + 0.025, 0.36, seat + 0.23), style.dark)
            mesh.box((x - 0.015, 0.2, seat + 0.0), (x + 0.015, 0.24, seat + 0.2), style.dark)
        return
    _legs(mesh, w / 2, 0.0, d, seat - 0.03, 0.036, style, kind == "shell")
    if kind == "shell":
        mesh.cushion((-w / 2, 0, seat - 0.03), (w / 2, d, seat + 0.015), 0.02, style.lacquer)
        mesh.cushion((-w / 2, -0.03, seat + 0.016), (w / 2, 0.015, back - 0.06), 0.02, style.lacquer)
        return
    mesh.box((-w / 2, 0, seat - 0.03), (w / 2, d, seat), style.wood)
    if kind == "padded":
        mesh.cushion((-w / 2 + 0.01, 0.03, seat + 0.001), (w / 2 - 0.01, d - 0.005, seat + 0.06), 0.025, style.fabric2)
        mesh.cushion((-w / 2 + 0.005, -0.033, seat + 0.08), (w / 2 - 0.005, 0.028, back), 0.02, style.fabric2)
    for side in (-1, 1):
        x = side * (w / 2 - 0.018)
        mesh.box((x - 0.018, -0.028, seat + 0.001), (x + 0.018, 0.012, back - 0.012), style.wood)
    if kind == "wood":
        if draw.chance(0.5):
            for z in (seat + 0.13, seat + 0.24, back - 0.065):
                mesh.box((-w / 2 + 0.037, -0.02, z), (w / 2 - 0.037, 0.0, z + 0.06), style.wood)
        else:
            mesh.box((-w / 2 + 0.037, -0.02, back - 0.1), (w / 2 - 0.037, 0.0, back - 0.02), style.wood)
            for k in range(4):
                x = -0.12 + 0.08 * k
                mesh.box((x - 0.012, -0.018, seat), (x + 0.012, -0.002, back - 0.1), style.wood)


def table(
    mesh: Mesh, draw: Draw, style: Style, frame: Frame, w: float, d: float, h: float, label: str = "table"
) -> None:
    """A table or desk; the desk may have a block of drawers."""
    mesh.begin(CLASS[label], frame)
    thick = draw.uniform(0.025, 0.045)
    top = style.wood if draw.chance(0.75) else style.lacquer
    metal = draw.chance(0.35)
    if label == "table" and w == d and draw.chance(0.55):  # round
        mesh.prism(0, d / 2, h - thick, h, w / 2, w / 2, top, sides=12)
        mesh.prism(0, d / 2, 0.03, h - thick, 0.05, 0.05, style.metal if metal else style.wood)
        mesh.prism(0, d / 2, 0.0, 0.03, w / 4, w / 5, style.metal if metal else style.wood, sides=12, bottom=False)
        return
    mesh.box((-w / 2, 0, h - thick), (w / 2, d, h), top)
    if label == "desk" and draw.chance(0.6):
        side = draw.pick((-1, 1))
        x0, x1 = (w / 2 - 0.42, w / 2 - 0.02) if side > 0 else (-w / 2 + 0.02, -w / 2 + 0.42)
        mesh.box((x0, 0.03, 0.03), (x1, d - 0.05, h - thick - 0.002), style.wood)
        for k in range(3):
            z0 = 0.05 + k * (h - thick - 0.07) / 3
            mesh.box((x0 + 0.01, d - 0.05, z0), (x1 - 0.01, d - 0.03, z0 + (h - thick - 0.07) / 3 - 0.015), top)
            z = z0 + 0.11
            mesh.box(((x0 + x1) / 2 - 0.06, d - 0.03, z), ((x0 + x1) / 2 + 0.06, d - 0.01, z + 0.02), style.metal)
        other = -side * (w / 2 - 0.04)
        mesh.box((other - 0.02, 0.03, 0), (other + 0.02, d - 0.03, h - thick), style.wood, bottom=False)
        return
    _legs(mesh, w / 2 - 0.01, 0.01, d - 0.01, h - thick, draw.uniform(0.04, 0.08), style, metal)
    if h > 0.6 and not metal:
        inset, low = 0.07, h - thick - 0.09
        mesh.box((-w / 2 + inset, inset, low), (w / 2 - inset, d - inset, h - thick - 0.001), style.wood)
    elif h < 0.6 and draw.chance(0.6):  # coffee table with a shelf below
        mesh.box((-w / 2 + 0.09, 0.09, 0.14), (w / 2 - 0.09, d - 0.09, 0.165), top)


def sofa(mesh: Mesh, draw: Draw, style: Style, frame: Frame, w: float, d: float) -> None:
    """A sofa or, when narrow, an armchair."""
    mesh.begin(CLASS["sofa"] if w > 1.2 else CLASS["chair"], frame)
    seat, back, arm = draw.uniform(0.38, 0.46), draw.uniform(0.75, 0.92), draw.uniform(0.55, 0.66)
    arm_w, back_d = draw.uniform(0.12, 0.2), 0.2
    legs = draw.chance(0.6)
    base = 0.1 if legs else 0.0
    cloth = style.fabric
    if legs:
        _legs(mesh, w / 2 - 0.02, 0.02, d - 0.02, 0.1, 0.05, style, draw.chance(0.4))
    mesh.box((-w / 2 + arm_w - 0.01, 0.03, base), (w / 2 - arm_w + 0.01, d - 0.04, seat - 0.14), cloth, bottom=legs)
    mesh.cushion((-w / 2 + arm_w, 0, base + 0.006), (w / 2 - arm_w, back_d, back), 0.05, cloth)
    for side in (-1, 1):
        x0, x1 = (w / 2 - arm_w + 0.001, w / 2) if side > 0 else (-w / 2, -w / 2 + arm_w - 0.001)
        mesh.cushion((x0, 0.01, base + 0.003), (x1, d - 0.01, arm), 0.04, cloth)
    seats = max(1, int((w - 2 * arm_w) / 0.62 + 0.3))
    width = (w - 2 * arm_w) / seats
    for k in range(seats):
        x0 = -w / 2 + arm_w + k * width
        mesh.cushion((x0 + 0.004, back_d + 0.12, seat - 0.138), (x0 + width - 0.004, d - 0.005, seat), 0.04, cloth)
        mesh.cushion(
            (x0 + 0.006, back_d + 0.002, seat - 0.1), (x0 + width - 0.006, back_d + 0.17, back + 0.04), 0.05, cloth
        )


def bookcase(
    mesh: Mesh, draw: Draw, style: Style, frame: Frame, w: float, d: float, h: float, label: str
) -> list[tuple[float, float, float, float]]:
    """An open case of boards. Returns its compartments as (x0, x1, z, clear height)."""
    mesh.begin(CLASS[label], frame)
    material, t = draw.pick((style.wood, style.wood, style.lacquer)), 0.022
    mesh.box((-w / 2, 0, 0), (-w / 2 + t, d, h), material, bottom=False)
    mesh.box((w / 2 - t, 0, 0), (w / 2, d, h), material, bottom=False)
    mesh.box((-w / 2 + t, 0, 0.06), (w / 2 - t, 0.01, h), material)
    rows = max(2, int(h / draw.uniform(0.3, 0.4)))
    step = (h - 0.06 - t) / rows
    columns = 2 if w > 1.1 else 1
    width = (w - 2 * t) / columns
    places = []
    for row in range(rows + 1):
        z = 0.06 + row * step
        mesh.box((-w / 2 + t, 0.01, z), (w / 2 - t, d - 0.006, z + t), material)
        if row < rows:
            for column in range(columns):
                x0 = -w / 2 + t + column * width
                places.append((x0 + 0.015, x0 + width - 0.015, z + t, step - t))
                if column:
                    mesh.box((x0 - t / 2, 0.01, z + t), (x0 + t / 2, d - 0.012, z + step), material)
    return places


def kitchen_run(mesh: Mesh, draw: Draw, style: Style, frame: Frame, w: float, upper: bool) -> None:
    """Base units with a worktop, a sink and, if asked for, wall units above."""
    d, h = 0.6, 0.9
    body = draw.pick((style.lacquer, style.wood, style.wood2))
    mesh.begin(CLASS["cabinet"], frame)
    mesh.box((-w / 2, 0, 0.1), (w / 2, d - 0.04, h - 0.04), body)
    mesh.box((-w / 2 + 0.01, 0, 0), (w / 2 - 0.01, d - 0.1, 0.1), style.dark, bottom=False)
    count = max(2, int(w / 0.5 + 0.5))
    step = w / count
    for k in range(count):
        x0 = -w / 2 + k * step
        mesh.box((x0 + 0.004, d - 0.04, 0.105), (x0 + step - 0.004, d - 0.02, h - 0.2), body)
        mesh.box((x0 + 0.004, d - 0.04, h - 0.194), (x0 + step - 0.004, d - 0.02, h - 0.046), body)
        for z in (h - 0.24, h - 0.1):
            mesh.box((x0 + step / 2 - 0.08, d - 0.02, z), (x0 + step / 2 + 0.08, d + 0.005, z + 0.015), style.metal)
    mesh.begin(CLASS["counter"], frame)
    mesh.box((-w / 2 - 0.01, 0, h - 0.04), (w / 2 + 0.01, d, h), style.floor if draw.chance(0.2) else style.wood2)
    mesh.begin(CLASS["sink"], frame.at(draw.uniform(-0.25, 0.25) * w, 0.0))
    mesh.box((-0.27, 0.1, h + 0.0005), (0.27, 0.5, h + 0.012), style.metal)
    mesh.box((-0.23, 0.16, h + 0.0121), (0.23, 0.46, h + 0.0135), style.dark)
    mesh.prism(0, 0.12, h + 0.012, h + 0.24, 0.016, 0.016, style.metal)
    mesh.box((-0.014, 0.12, h + 0.22), (0.014, 0.3, h + 0.25), style.metal)
    if upper:
        mesh.begin(CLASS["cabinet"], frame)
        mesh.box((-w / 2, 0, 1.45), (w / 2, 0.32, 2.15), body)
        for k in range(count):
            x0 = -w / 2 + k * step
            mesh.box((x0 + 0.004, 0.32, 1.455), (x0 + step - 0.004, 0.34, 2.145), body)
            mesh.box((x0 + step - 0.06, 0.34, 1.5), (x0 + step - 0.045, 0.362, 1.66), style.metal)


def fridge(mesh: Mesh, draw: Draw, style: Style, frame: Frame, h: float) -> None:
    """A refrigerator with two doors, 0.62 x 0.66 m."""
    mesh.begin(CLASS["refrigerator"], frame)
    material = draw.pick((style.lacquer, style.metal, style.trim))
    mesh.box((-0.31, 0, 0.03), (0.31, 0.6, h), material)
    split = h * draw.uniform(0.35, 0.65)
    for z0, z1 in ((0.05, split - 0.005), (split + 0.005, h - 0.005)):
        mesh.box((-0.305, 0.602, z0), (0.305, 0.655, z1), material)
        handle = (z1 - 0.42, z1 - 0.06) if z0 < 0.1 else (z0 + 0.06, z0 + 0.42)
        mesh.box((0.24, 0.655, handle[0]), (0.265, 0.69, handle[1]), style.metal)


def stove(mesh: Mesh, draw: Draw, style: Style, frame: Frame) -> None:
    """A cooker, 0.6 x 0.62 m."""
    mesh.begin(CLASS["otherfurniture"], frame)
    mesh.box((-0.3, 0, 0), (0.3, 0.6, 0.9), style.metal if draw.chance(0.5) else style.trim, bottom=False)
    mesh.box((-0.25, 0.6, 0.25), (0.25, 0.62, 0.68), style.dark)
    mesh.box((-0.25, 0.62, 0.7), (0.25, 0.65, 0.72), style.metal)
    for x in (-0.15, 0.15):
        for y in (0.17, 0.43):
            mesh.prism(x, y, 0.9005, 0.912, 0.1, 0.09, style.dark, sides=12)
    for k in range(4):
        x = -0.2 + 0.133 * k
        mesh.box((x - 0.02, 0.6, 0.79), (x + 0.02, 0.63, 0.83), style.dark)
