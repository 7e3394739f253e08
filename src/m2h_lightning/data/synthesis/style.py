"""Palettes and materials: one style per room, so that its furniture belongs together."""

from __future__ import annotations

from dataclasses import dataclass

from m2h_lightning.data.synthesis import textures
from m2h_lightning.data.synthesis.draw import Draw
from m2h_lightning.data.synthesis.meshes import Colour, Material

WOODS = ((193, 154, 107), (160, 108, 66), (120, 75, 45), (84, 54, 36), (222, 196, 160), (236, 232, 224), (60, 48, 44))
# fmt: off
WALLS = (
    (238, 234, 224), (226, 220, 205), (205, 214, 220), (214, 224, 208), (236, 220, 196), (196, 205, 214),
    (222, 205, 205), (180, 192, 178), (244, 240, 236), (208, 200, 190), (168, 184, 200), (228, 212, 160),
)
FABRICS = (
    (128, 60, 56), (60, 84, 120), (88, 104, 78), (168, 150, 124), (96, 92, 96), (200, 188, 168), (52, 60, 72),
    (176, 120, 60), (112, 76, 104), (70, 110, 112), (216, 212, 204), (148, 152, 160), (190, 96, 84), (84, 62, 48),
)
BRIGHTS = (
    (200, 60, 50), (50, 90, 170), (60, 140, 80), (230, 180, 60), (120, 60, 130), (40, 40, 50), (235, 230, 220),
    (220, 120, 50), (80, 160, 180), (150, 40, 60), (190, 170, 130),
)
# fmt: on
METALS = ((150, 152, 156), (60, 60, 64), (190, 160, 90), (28, 28, 32), (215, 216, 220))


def linear(rgb: tuple[int, int, int], gain: float = 1.0) -> Colour:
    """An 8-bit colour as linear albedo (square law, close to sRGB), times ``gain``, within 0.01…0.92."""
    r, g, b = (min(0.92, max(0.01, (c / 255.0) * (c / 255.0) * gain)) for c in rgb)
    return r, g, b


def dyed(draw: Draw, kind: str, rgb: tuple[int, int, int], metres: float, contrast: float = 0.45) -> Material:
    """A textured material around one colour: dark where the texture is 0, light where it is 255."""
    layer = draw.pick(textures.atlas().layers[kind])
    return Material(layer, linear(rgb, 1.0 - contrast), linear(rgb, 1.0 + contrast), metres)


def two_tone(draw: Draw, kind: str, a: tuple[int, int, int], b: tuple[int, int, int], metres: float) -> Material:
    """A patterned material that goes from colour ``a`` to colour ``b``."""
    return Material(draw.pick(textures.atlas().layers[kind]), linear(a), linear(b), metres)


def picture(draw: Draw, kind: str, emit: float = 0.0, gain: float = 0.9) -> Material:
    """A material that shows one coloured texture once over the face."""
    layer = draw.pick(textures.atlas().layers[kind])
    return Material(layer, (0.0, 0.0, 0.0), (gain, gain, gain), 0.0, emit)


@dataclass(frozen=True)
class Style:
    """The materials one room is furnished with."""

    wood: Material
    wood2: Material
    lacquer: Material
    metal: Material
    fabric: Material
    fabric2: Material
    linen: Material
    cover: Material
    curtain: Material
    wall: Material
    accent: Material
    floor: Material
    ceiling: Material
    trim: Material
    dark: Material
    glow: Material


def choose_style(draw: Draw, room_type: str) -> Style:
    """Draw a style for a room of this type."""
    wood_rgb, wall_rgb = draw.pick(WOODS), draw.pick(WALLS)
    fabric_rgb, fabric2_rgb, cover_rgb = draw.pick(FABRICS), draw.pick(FABRICS), draw.pick(FABRICS + BRIGHTS)
    curtain_rgb, white = draw.pick(FABRICS), (240, 238, 234)
    if room_type == "kitchen" or draw.chance(0.12):
        floor = dyed(
            draw, "tiles", draw.pick(((210, 204, 192), (170, 160, 150), (196, 176, 150), (150, 156, 160))), 1.6
        )
    elif draw.chance(0.62):
        floor = dyed(draw, "planks", draw.pick(WOODS[:5]), draw.uniform(1.4, 2.2), 0.4)
    else:
        floor = dyed(draw, "carpet", draw.pick(FABRICS), 1.2, 0.35)
    plain_wall = dyed(draw, "plaster", wall_rgb, 1.7, 0.09)
    accent = plain_wall
    if draw.chance(0.45):  # one wall differs: paper, another paint, bricks
        kind = draw.pick(("stripes", "dots", "plaster", "plaster", "bricks", "checks"))
        if kind in ("plaster", "bricks"):
            rgb = draw.pick(WALLS + FABRICS) if kind == "plaster" else (170, 96, 76)
            accent = dyed(draw, kind, rgb, 1.3, 0.12 if kind == "plaster" else 0.4)
        else:
            darker = (wall_rgb[0] * 7 // 8, wall_rgb[1] * 7 // 8, wall_rgb[2] * 15 // 16)
            accent = two_tone(draw, kind, wall_rgb, darker, draw.uniform(0.5, 1.1))
    pattern = draw.pick(("stripes", "checks", "dots", "weave"))
    cover = (
        dyed(draw, "weave", cover_rgb, 0.5, 0.25)
        if draw.chance(0.5)
        else two_tone(draw, pattern, cover_rgb, draw.pick(FABRICS), draw.uniform(0.5, 1.0))
    )
    curtain = (
        dyed(draw, "weave", curtain_rgb, 0.4, 0.3)
        if draw.chance(0.6)
        else two_tone(draw, "stripes", curtain_rgb, draw.pick(FABRICS), 0.6)
    )
    plain = textures.atlas().layers["plain"][0]
    return Style(
        wood=dyed(draw, "grain", wood_rgb, draw.uniform(0.7, 1.2)),
        wood2=dyed(draw, "grain", draw.pick(WOODS), draw.uniform(0.7, 1.2)),
        lacquer=dyed(draw, "plain", draw.pick((white, draw.pick(FABRICS), wood_rgb)), 1.0, 0.1),
        metal=dyed(draw, "plain", draw.pick(METALS), 0.5, 0.15),
        fabric=dyed(draw, "weave", fabric_rgb, draw.uniform(0.3, 0.6), 0.35),
        fabric2=dyed(draw, "weave", fabric2_rgb, draw.uniform(0.3, 0.6), 0.35),
        linen=dyed(draw, "weave", draw.pick((white, (226, 222, 210), (205, 214, 226))), 0.5, 0.12),
        cover=cover,
        curtain=curtain,
        wall=plain_wall,
        accent=accent,
        floor=floor,
        ceiling=dyed(draw, "plaster", white, 1.5, 0.06),
        trim=dyed(draw, "plain", white if draw.chance(0.7) else wood_rgb, 1.0, 0.08),
        dark=dyed(draw, "plain", (34, 34, 38), 0.6, 0.25),
        glow=Material(plain, (0.85, 0.75, 0.58), (0.95, 0.86, 0.7), 1.0, 1.1),
    )
