"""Procedural textures: one atlas of small periodic pictures with mip levels, made once per process (about 0.3 s).

A texture holds values in 0…255 per channel; a material turns them into an albedo by mixing its two colours
(``c0 + (c1 - c0) * texture``). Pictures, rugs and window views carry colours of their own and mix black with white.
Only + - * / and floor are used, so every machine makes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from m2h_lightning.data.synthesis.draw import Draw

SIZE = 256  # texels per side of level 0
LEVELS = 6  # 256, 128, 64, 32, 16, 8
_LIBRARY_SEED = 20240  # the library is one and the same for every data set seed; rooms vary by what they choose of it


def _ramp() -> np.ndarray:
    return (np.arange(SIZE) + 0.5) / SIZE


def _noise(draw: Draw, cells_x: int, cells_y: int | None = None) -> np.ndarray:
    """Periodic value noise in [0, 1], SIZE x SIZE, with ``cells`` lattice cells per side."""
    cells_y = cells_y or cells_x
    lattice = draw.units(cells_y, cells_x)

    def axis(cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position = _ramp() * cells
        low = np.floor(position).astype(np.int64)
        t = position - low
        return low % cells, (low + 1) % cells, t * t * (3.0 - 2.0 * t)

    x0, x1, tx = axis(cells_x)
    y0, y1, ty = axis(cells_y)
    rows = lattice[:, x0] + (lattice[:, x1] - lattice[:, x0]) * tx
    return rows[y0] + (rows[y1] - rows[y0]) * ty[:, None]


def _fbm(draw: Draw, cells: int, octaves: int = 4) -> np.ndarray:
    total, weight, norm = np.zeros((SIZE, SIZE)), 1.0, 0.0
    for _ in range(octaves):
        total = total + weight * _noise(draw, min(cells, SIZE))
        norm, weight, cells = norm + weight, weight * 0.5, cells * 2
    return total / norm


def _wave(phase: np.ndarray) -> np.ndarray:
    """A smooth periodic wave in [0, 1] of period 1 (a cubic instead of a sine, which differs between machines)."""
    t = np.abs(2.0 * (phase - np.floor(phase)) - 1.0)
    return t * t * (3.0 - 2.0 * t)


def _rgb(value: np.ndarray) -> np.ndarray:
    return np.repeat(value[:, :, None], 3, axis=2)


def _plain(draw: Draw) -> np.ndarray:
    return _rgb(0.42 + 0.16 * _fbm(draw, 8))


def _plaster(draw: Draw) -> np.ndarray:
    return _rgb(0.25 + 0.35 * _fbm(draw, 4, 6) + 0.15 * draw.units(SIZE, SIZE))


def _carpet(draw: Draw) -> np.ndarray:
    return _rgb(0.55 * draw.units(SIZE, SIZE) + 0.45 * _fbm(draw, 8, 5))


def _grain(draw: Draw) -> np.ndarray:
    x, y = _ramp()[None, :], _ramp()[:, None]
    bend = _noise(draw, 2, 4) * 1.5 + _noise(draw, 3, 16) * 0.35
    rings = _wave(y * float(4 + draw.integer(5)) + bend + x * 0.0)
    fibre = _noise(draw, 8, 128)
    return _rgb(0.25 + 0.45 * rings + 0.3 * fibre)


def _planks(draw: Draw) -> np.ndarray:
    rows = int(draw.pick([8, 8, 16]))
    value = _grain(draw)[:, :, 0]
    height = SIZE // rows
    out = np.empty((SIZE, SIZE))
    for row in range(rows):
        strip = slice(row * height, (row + 1) * height)
        shift, tone, joint = draw.integer(SIZE), draw.uniform(0.0, 0.35), draw.integer(SIZE)
        out[strip] = np.roll(value[strip], shift, axis=1) * 0.65 + tone
        out[strip, joint : joint + 2] *= 0.45
        out[row * height] *= 0.5
    return _rgb(out)


def _tiles(draw: Draw) -> np.ndarray:
    count = int(draw.pick([4, 4, 8, 6]))
    x, y = _ramp() * count, _ramp() * count
    fx, fy = x - np.floor(x), y - np.floor(y)
    tone = draw.units(count, count)[np.floor(y).astype(int)][:, np.floor(x).astype(int)]
    width = 0.025 * count / 4
    joint = (np.minimum(fx, 1 - fx)[None, :] < width) | (np.minimum(fy, 1 - fy)[:, None] < width)
    body = 0.62 + 0.2 * tone + 0.15 * _fbm(draw, 8)
    if draw.chance(0.4):  # chequered
        body = np.where((np.floor(y)[:, None] + np.floor(x)[None, :]) % 2 == 0, body, body - 0.5)
    return _rgb(np.where(joint, 0.12, body))


def _bricks(draw: Draw) -> np.ndarray:
    rows, columns = 12, 4
    y = _ramp() * rows
    row = np.floor(y).astype(int)
    x = _ramp()[None, :] * columns + (row % 2)[:, None] * 0.5
    column = np.floor(x).astype(int) % columns
    fx, fy = x - np.floor(x), (y - row)[:, None]
    joint = (np.minimum(fx, 1 - fx) < 0.03) | (np.minimum(fy, 1 - fy) < 0.08)
    tone = draw.units(rows, columns)[row[:, None], column]
    return _rgb(np.where(joint, 0.95, 0.15 + 0.45 * tone + 0.2 * _fbm(draw, 16)))


def _stripes(draw: Draw) -> np.ndarray:
    count = int(draw.pick([4, 6, 8, 12, 16]))
    x = _ramp()[None, :] * count
    fraction = x - np.floor(x)
    band = np.where(fraction < draw.uniform(0.3, 0.6), 0.85, 0.15)
    if draw.chance(0.5):
        band = np.where(np.abs(fraction - 0.8) < 0.06, 1.0, band)
    return _rgb(band + 0.15 * (draw.units(SIZE, SIZE) - 0.5))


def _weave(draw: Draw) -> np.ndarray:
    x, y = _ramp()[None, :] * 32, _ramp()[:, None] * 32
    over = (np.floor(x) + np.floor(y)) % 2
    return _rgb(np.where(over == 0, _wave(x), _wave(y)) * 0.35 + 0.3 + 0.3 * _fbm(draw, 8, 5))


def _checks(draw: Draw) -> np.ndarray:
    count = int(draw.pick([4, 6, 8]))
    x, y = _ramp()[None, :] * count, _ramp()[:, None] * count
    across = np.where(x - np.floor(x) < 0.5, 0.45, 0.0)
    down = np.where(y - np.floor(y) < 0.5, 0.45, 0.0)
    return _rgb(across + down + 0.1 * draw.units(SIZE, SIZE))


def _dots(draw: Draw) -> np.ndarray:
    count = int(draw.pick([6, 8, 10]))
    y = _ramp()[:, None] * count
    x = _ramp()[None, :] * count + np.where(np.floor(y) % 2 == 0, 0.5, 0.0)
    dx, dy = x - np.floor(x) - 0.5, y - np.floor(y) - 0.5
    if draw.chance(0.5):
        inside = np.abs(dx) + np.abs(dy) < 0.32
    else:
        inside = dx * dx + dy * dy < 0.06
    return _rgb(np.where(inside, 0.85, 0.2) + 0.1 * (_fbm(draw, 8) - 0.5))


def _marble(draw: Draw) -> np.ndarray:
    veins = np.abs(_fbm(draw, 3, 6) * 2.0 - 1.0)
    return _rgb(np.minimum(1.0, 0.1 + 3.0 * veins) * 0.7 + 0.25 * _fbm(draw, 4))


def _colour(draw: Draw, low: float = 0.05, high: float = 0.95) -> np.ndarray:
    return np.array([draw.uniform(low, high) for _ in range(3)])


def _art(draw: Draw) -> np.ndarray:
    """A picture: a landscape, colour fields, circles, or a face-like portrait blob, inside a mat."""
    x, y = _ramp()[None, :], _ramp()[:, None]  # y downwards
    kind = draw.integer(4)
    if kind == 0:
        sky, ground = _colour(draw, 0.3, 1.0), _colour(draw, 0.05, 0.5)
        out = sky + (np.ones(3) - sky) * (0.6 * y[:, :, None] * np.ones((SIZE, SIZE, 1)))
        for layer in range(3):
            ridge = 0.4 + 0.17 * layer + 0.25 * (_noise(draw, 6 - layer)[:1] - 0.5)
            out = np.where((y > ridge)[:, :, None], ground * (1.3 - 0.35 * layer) + 0.06 * layer, out)
    elif kind == 1:
        out = np.tile(_colour(draw, 0.5, 1.0), (SIZE, SIZE, 1))
        for _ in range(7):
            x0, y0, w, h = (draw.unit() for _ in range(4))
            inside = (np.abs(x - x0) < 0.08 + 0.22 * w) & (np.abs(y - y0) < 0.08 + 0.22 * h)
            out = np.where(inside[:, :, None], _colour(draw), out)
    elif kind == 2:
        out = np.tile(_colour(draw, 0.0, 0.5), (SIZE, SIZE, 1))
        for _ in range(9):
            x0, y0, radius = draw.unit(), draw.unit(), draw.uniform(0.05, 0.3)
            distance = (x - x0) * (x - x0) + (y - y0) * (y - y0)
            out = np.where((distance < radius * radius)[:, :, None], _colour(draw), out)
    else:
        out = _colour(draw, 0.1, 0.6) * (0.6 + 0.8 * _fbm(draw, 4)[:, :, None])
        body = (x - 0.5) * (x - 0.5) * 5 + (y - 1.0) * (y - 1.0) * 5 < 0.9
        head = (x - 0.5) * (x - 0.5) * 1.6 + (y - 0.42) * (y - 0.42) < 0.035
        hair = (x - 0.5) * (x - 0.5) * 1.3 + (y - 0.36) * (y - 0.36) < 0.045
        for mask, colour in ((body, _colour(draw)), (hair, _colour(draw, 0.02, 0.4)), (head, _colour(draw, 0.45, 0.8))):
            out = np.where(mask[:, :, None], colour, out)
    out = out + 0.12 * (_fbm(draw, 16)[:, :, None] - 0.5)
    if draw.chance(0.6):  # a mat around the picture
        border = draw.uniform(0.05, 0.14)
        out = np.where(((np.abs(x - 0.5) > 0.5 - border) | (np.abs(y - 0.5) > 0.5 - border))[:, :, None], 0.92, out)
    return out


def _rug(draw: Draw) -> np.ndarray:
    x, y = _ramp()[None, :], _ramp()[:, None]
    edge = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    base, second, third = _colour(draw, 0.1, 0.7), _colour(draw, 0.1, 0.9), _colour(draw, 0.1, 0.9)
    count = float(2 + draw.integer(4))
    fx, fy = _wave(x * count) - 0.5, _wave(y * count) - 0.5
    out = np.where((np.abs(fx) + np.abs(fy) < draw.uniform(0.3, 0.6))[:, :, None], second, base)
    out = np.where((np.abs(fx * fy) < 0.012)[:, :, None], third, out)
    for low, high, colour in ((0.0, 0.02, second), (0.02, 0.07, third), (0.07, 0.09, base * 0.5)):
        out = np.where(((edge >= low) & (edge < high))[:, :, None], colour, out)
    return out * (0.75 + 0.5 * draw.units(SIZE, SIZE, 1))


def _outdoor(draw: Draw) -> np.ndarray:
    """What a window shows: sky, clouds, and trees or houses."""
    x, y = _ramp()[None, :], _ramp()[:, None]
    clouds = _fbm(draw, 3, 5)
    sky = np.array([0.62, 0.8, 1.0]) + (np.array([0.3, 0.17, 0.0]) * y[:, :, None])
    out = sky + (1.0 - sky) * np.clip(3.0 * clouds - 1.4, 0.0, 1.0)[:, :, None]
    if draw.chance(0.5):
        for _ in range(7):
            x0, width, top = draw.unit(), draw.uniform(0.05, 0.16), draw.uniform(0.35, 0.75)
            house = (np.abs(x - x0) < width) & (y > top)
            panes = (_wave(x * 24.0) > 0.5) & (_wave(y * 20.0) > 0.45)
            tone = _colour(draw, 0.35, 0.75)
            out = np.where(house[:, :, None], np.where(panes[:, :, None], tone * 0.5, tone), out)
    ridge = draw.uniform(0.55, 0.75) + 0.35 * (_fbm(draw, 6, 4)[:1] - 0.5)
    leaves = np.array([0.16, 0.3, 0.1]) * (0.5 + 1.2 * _fbm(draw, 24)[:, :, None])
    return np.where((y > ridge)[:, :, None], leaves, out)


def _screen(draw: Draw) -> np.ndarray:
    x, y = _ramp()[None, :], _ramp()[:, None]
    if draw.chance(0.6):  # switched off: a dark glass with a faint reflection
        return _rgb(0.03 + 0.1 * np.clip(1.0 - np.abs(x + y - 0.9) * 4.0, 0.0, 1.0))
    rows = (_wave(y * 14.0) > 0.6) & (_noise(draw, 24, 14) > 0.4) & (x > 0.08) & (x < 0.85) & (y > 0.12)
    page = np.where(rows[:, :, None], 0.2, 0.85 * np.ones((SIZE, SIZE, 3)))
    return np.where(y[:, :, None] < 0.08, _colour(draw, 0.1, 0.6), page)


def _sheet_of_text(draw: Draw) -> np.ndarray:
    x, y = _ramp()[None, :], _ramp()[:, None]
    text = (
        (_wave(y * 22.0) > 0.62) & (_noise(draw, 40, 22) > 0.38) & (np.abs(x - 0.5) < 0.38) & (np.abs(y - 0.5) < 0.42)
    )
    return _rgb(np.where(text, 0.25, 0.95))


def _board(draw: Draw) -> np.ndarray:
    """A whiteboard with scribbles."""
    x, y = _ramp()[None, :], _ramp()[:, None]
    out = 0.9 + 0.06 * _fbm(draw, 3)[:, :, None] * np.ones((1, 1, 3))
    for _ in range(5):
        colour = draw.pick([np.array([0.1, 0.15, 0.6]), np.array([0.65, 0.1, 0.1]), np.array([0.1, 0.1, 0.1])])
        x0, y0, length = draw.uniform(0.05, 0.6), draw.uniform(0.1, 0.85), draw.uniform(0.15, 0.35)
        line = y0 + 0.06 * (_noise(draw, 24)[:1] - 0.5)
        out = np.where(((np.abs(y - line) < 0.008) & (x > x0) & (x < x0 + length))[:, :, None], colour, out)
    return out


_RECIPES: dict[str, tuple[Callable[[Draw], np.ndarray], int]] = {
    "plain": (_plain, 2),
    "plaster": (_plaster, 3),
    "carpet": (_carpet, 3),
    "grain": (_grain, 5),
    "planks": (_planks, 5),
    "tiles": (_tiles, 5),
    "bricks": (_bricks, 1),
    "stripes": (_stripes, 5),
    "weave": (_weave, 2),
    "checks": (_checks, 3),
    "dots": (_dots, 3),
    "marble": (_marble, 2),
    "art": (_art, 16),
    "rug": (_rug, 8),
    "outdoor": (_outdoor, 5),
    "screen": (_screen, 4),
    "paper": (_sheet_of_text, 2),
    "board": (_board, 2),
}


@dataclass(frozen=True)
class Atlas:
    """All textures in one array.

    Attributes:
        texels: uint32, flat; each holds R, G, B, 0 as its four bytes in memory order.
        level_start: For each mip level the index of its first texel.
        layers: For each kind of texture its layer numbers.
    """

    texels: np.ndarray
    level_start: np.ndarray
    layers: dict[str, tuple[int, ...]]


@lru_cache(maxsize=1)
def atlas() -> Atlas:
    """The texture library of this process."""
    pictures: list[np.ndarray] = []
    layers: dict[str, tuple[int, ...]] = {}
    for kind, (recipe, variants) in _RECIPES.items():
        first = len(pictures)
        for variant in range(variants):
            draw = Draw(_LIBRARY_SEED, first, variant)
            pictures.append(np.clip(np.broadcast_to(recipe(draw), (SIZE, SIZE, 3)), 0.0, 1.0))
        layers[kind] = tuple(range(first, len(pictures)))
    level = np.stack(pictures)
    parts, starts, start = [], [], 0
    for _ in range(LEVELS):
        rgbx = np.zeros((*level.shape[:3], 4), np.uint8)
        rgbx[..., :3] = np.floor(level * 255.0 + 0.5).astype(np.uint8)
        parts.append(rgbx.reshape(-1).view(np.uint32))
        starts.append(start)
        start += parts[-1].size
        level = (level[:, ::2, ::2] + level[:, 1::2, ::2] + level[:, ::2, 1::2] + level[:, 1::2, 1::2]) * 0.25
    return Atlas(np.concatenate(parts), np.array(starts, np.int32), layers)
