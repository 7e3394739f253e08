"""Patterns of materials: wood, carpet, tiles, fabric, plaster. Each is SIZE x SIZE x 3, about 0…1, periodic."""

from __future__ import annotations

import numpy as np

from m2h_lightning.data.synthesis.draw import Draw
from m2h_lightning.data.synthesis.noise import SIZE, fbm, noise, ramp, rgb, wave


def plain(draw: Draw) -> np.ndarray:
    """A paint or lacquer, nearly even."""
    return rgb(0.42 + 0.16 * fbm(draw, 8))


def plaster(draw: Draw) -> np.ndarray:
    """A painted wall: broad clouds and fine grit."""
    return rgb(0.25 + 0.35 * fbm(draw, 4, 6) + 0.15 * draw.units(SIZE, SIZE))


def carpet(draw: Draw) -> np.ndarray:
    """A pile carpet."""
    return rgb(0.55 * draw.units(SIZE, SIZE) + 0.45 * fbm(draw, 8, 5))


def grain(draw: Draw) -> np.ndarray:
    """Wood grain along x."""
    x, y = ramp()[None, :], ramp()[:, None]
    bend = noise(draw, 2, 4) * 1.5 + noise(draw, 3, 16) * 0.35
    rings = wave(y * float(4 + draw.integer(5)) + bend + x * 0.0)
    fibre = noise(draw, 8, 128)
    return rgb(0.25 + 0.45 * rings + 0.3 * fibre)


def planks(draw: Draw) -> np.ndarray:
    """Boards of different tone with dark joints."""
    rows = int(draw.pick([8, 8, 16]))
    value = grain(draw)[:, :, 0]
    height = SIZE // rows
    out = np.empty((SIZE, SIZE))
    for row in range(rows):
        strip = slice(row * height, (row + 1) * height)
        shift, tone, joint = draw.integer(SIZE), draw.uniform(0.0, 0.35), draw.integer(SIZE)
        out[strip] = np.roll(value[strip], shift, axis=1) * 0.65 + tone
        out[strip, joint : joint + 2] *= 0.45
        out[row * height] *= 0.5
    return rgb(out)


def tiles(draw: Draw) -> np.ndarray:
    """Tiles with joints, sometimes chequered."""
    count = int(draw.pick([4, 4, 8, 6]))
    x, y = ramp() * count, ramp() * count
    fx, fy = x - np.floor(x), y - np.floor(y)
    tone = draw.units(count, count)[np.floor(y).astype(int)][:, np.floor(x).astype(int)]
    width = 0.025 * count / 4
    joint = (np.minimum(fx, 1 - fx)[None, :] < width) | (np.minimum(fy, 1 - fy)[:, None] < width)
    body = 0.62 + 0.2 * tone + 0.15 * fbm(draw, 8)
    if draw.chance(0.4):  # chequered
        body = np.where((np.floor(y)[:, None] + np.floor(x)[None, :]) % 2 == 0, body, body - 0.5)
    return rgb(np.where(joint, 0.12, body))


def bricks(draw: Draw) -> np.ndarray:
    """A brick bond; the joints are bright."""
    rows, columns = 12, 4
    y = ramp() * rows
    row = np.floor(y).astype(int)
    x = ramp()[None, :] * columns + (row % 2)[:, None] * 0.5
    column = np.floor(x).astype(int) % columns
    fx, fy = x - np.floor(x), (y - row)[:, None]
    joint = (np.minimum(fx, 1 - fx) < 0.03) | (np.minimum(fy, 1 - fy) < 0.08)
    tone = draw.units(rows, columns)[row[:, None], column]
    return rgb(np.where(joint, 0.95, 0.15 + 0.45 * tone + 0.2 * fbm(draw, 16)))


def stripes(draw: Draw) -> np.ndarray:
    """Stripes, sometimes with a thin second line."""
    count = int(draw.pick([4, 6, 8, 12, 16]))
    x = ramp()[None, :] * count
    fraction = x - np.floor(x)
    band = np.where(fraction < draw.uniform(0.3, 0.6), 0.85, 0.15)
    if draw.chance(0.5):
        band = np.where(np.abs(fraction - 0.8) < 0.06, 1.0, band)
    return rgb(band + 0.15 * (draw.units(SIZE, SIZE) - 0.5))


def weave(draw: Draw) -> np.ndarray:
    """A coarse cloth."""
    x, y = ramp()[None, :] * 32, ramp()[:, None] * 32
    over = (np.floor(x) + np.floor(y)) % 2
    return rgb(np.where(over == 0, wave(x), wave(y)) * 0.35 + 0.3 + 0.3 * fbm(draw, 8, 5))


def checks(draw: Draw) -> np.ndarray:
    """A gingham."""
    count = int(draw.pick([4, 6, 8]))
    x, y = ramp()[None, :] * count, ramp()[:, None] * count
    across = np.where(x - np.floor(x) < 0.5, 0.45, 0.0)
    down = np.where(y - np.floor(y) < 0.5, 0.45, 0.0)
    return rgb(across + down + 0.1 * draw.units(SIZE, SIZE))


def dots(draw: Draw) -> np.ndarray:
    """Dots or lozenges in offset rows."""
    count = int(draw.pick([6, 8, 10]))
    y = ramp()[:, None] * count
    x = ramp()[None, :] * count + np.where(np.floor(y) % 2 == 0, 0.5, 0.0)
    dx, dy = x - np.floor(x) - 0.5, y - np.floor(y) - 0.5
    inside = np.abs(dx) + np.abs(dy) < 0.32 if draw.chance(0.5) else dx * dx + dy * dy < 0.06
    return rgb(np.where(inside, 0.85, 0.2) + 0.1 * (fbm(draw, 8) - 0.5))


def marble(draw: Draw) -> np.ndarray:
    """Veined stone."""
    veins = np.abs(fbm(draw, 3, 6) * 2.0 - 1.0)
    return rgb(np.minimum(1.0, 0.1 + 3.0 * veins) * 0.7 + 0.25 * fbm(draw, 4))
