"""Coloured pictures: art, rugs, window views, screens, paper, whiteboards. Each is SIZE x SIZE x 3, about 0…1."""

from __future__ import annotations

import numpy as np

from m2h_lightning.data.synthesis.draw import Draw
from m2h_lightning.data.synthesis.noise import SIZE, fbm, noise, ramp, rgb, wave


def _colour(draw: Draw, low: float = 0.05, high: float = 0.95) -> np.ndarray:
    return np.array([draw.uniform(low, high) for _ in range(3)])


def art(draw: Draw) -> np.ndarray:
    """A picture: a landscape, colour fields, circles, or a face-like portrait blob, inside a mat."""
    x, y = ramp()[None, :], ramp()[:, None]  # y downwards
    kind = draw.integer(4)
    if kind == 0:
        sky, ground = _colour(draw, 0.3, 1.0), _colour(draw, 0.05, 0.5)
        out = sky + (np.ones(3) - sky) * (0.6 * y[:, :, None] * np.ones((SIZE, SIZE, 1)))
        for layer in range(3):
            ridge = 0.4 + 0.17 * layer + 0.25 * (noise(draw, 6 - layer)[:1] - 0.5)
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
        out = _colour(draw, 0.1, 0.6) * (0.6 + 0.8 * fbm(draw, 4)[:, :, None])
        body = (x - 0.5) * (x - 0.5) * 5 + (y - 1.0) * (y - 1.0) * 5 < 0.9
        head = (x - 0.5) * (x - 0.5) * 1.6 + (y - 0.42) * (y - 0.42) < 0.035
        hair = (x - 0.5) * (x - 0.5) * 1.3 + (y - 0.36) * (y - 0.36) < 0.045
        for mask, colour in ((body, _colour(draw)), (hair, _colour(draw, 0.02, 0.4)), (head, _colour(draw, 0.45, 0.8))):
            out = np.where(mask[:, :, None], colour, out)
    out = out + 0.12 * (fbm(draw, 16)[:, :, None] - 0.5)
    if draw.chance(0.6):  # a mat around the picture
        border = draw.uniform(0.05, 0.14)
        out = np.where(((np.abs(x - 0.5) > 0.5 - border) | (np.abs(y - 0.5) > 0.5 - border))[:, :, None], 0.92, out)
    return out


def rug(draw: Draw) -> np.ndarray:
    """A carpet with a border and lozenges."""
    x, y = ramp()[None, :], ramp()[:, None]
    edge = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    base, second, third = _colour(draw, 0.1, 0.7), _colour(draw, 0.1, 0.9), _colour(draw, 0.1, 0.9)
    count = float(2 + draw.integer(4))
    fx, fy = wave(x * count) - 0.5, wave(y * count) - 0.5
    out = np.where((np.abs(fx) + np.abs(fy) < draw.uniform(0.3, 0.6))[:, :, None], second, base)
    out = np.where((np.abs(fx * fy) < 0.012)[:, :, None], third, out)
    for low, high, colour in ((0.0, 0.02, second), (0.02, 0.07, third), (0.07, 0.09, base * 0.5)):
        out = np.where(((edge >= low) & (edge < high))[:, :, None], colour, out)
    return out * (0.75 + 0.5 * draw.units(SIZE, SIZE, 1))


def outdoor(draw: Draw) -> np.ndarray:
    """What a window shows: sky, clouds, and trees or houses."""
    x, y = ramp()[None, :], ramp()[:, None]
    clouds = fbm(draw, 3, 5)
    sky = np.array([0.62, 0.8, 1.0]) + (np.array([0.3, 0.17, 0.0]) * y[:, :, None])
    out = sky + (1.0 - sky) * np.clip(3.0 * clouds - 1.4, 0.0, 1.0)[:, :, None]
    if draw.chance(0.5):
        for _ in range(7):
            x0, width, top = draw.unit(), draw.uniform(0.05, 0.16), draw.uniform(0.35, 0.75)
            house = (np.abs(x - x0) < width) & (y > top)
            panes = (wave(x * 24.0) > 0.5) & (wave(y * 20.0) > 0.45)
            tone = _colour(draw, 0.35, 0.75)
            out = np.where(house[:, :, None], np.where(panes[:, :, None], tone * 0.5, tone), out)
    ridge = draw.uniform(0.55, 0.75) + 0.35 * (fbm(draw, 6, 4)[:1] - 0.5)
    leaves = np.array([0.16, 0.3, 0.1]) * (0.5 + 1.2 * fbm(draw, 24)[:, :, None])
    return np.where((y > ridge)[:, :, None], leaves, out)


def screen(draw: Draw) -> np.ndarray:
    """A screen, off or showing a page."""
    x, y = ramp()[None, :], ramp()[:, None]
    if draw.chance(0.6):  # switched off: a dark glass with a faint reflection
        return rgb(0.03 + 0.1 * np.clip(1.0 - np.abs(x + y - 0.9) * 4.0, 0.0, 1.0))
    rows = (wave(y * 14.0) > 0.6) & (noise(draw, 24, 14) > 0.4) & (x > 0.08) & (x < 0.85) & (y > 0.12)
    page = np.where(rows[:, :, None], 0.2, 0.85 * np.ones((SIZE, SIZE, 3)))
    return np.where(y[:, :, None] < 0.08, _colour(draw, 0.1, 0.6), page)


def sheet_of_text(draw: Draw) -> np.ndarray:
    """A printed page."""
    x, y = ramp()[None, :], ramp()[:, None]
    text = (wave(y * 22.0) > 0.62) & (noise(draw, 40, 22) > 0.38) & (np.abs(x - 0.5) < 0.38) & (np.abs(y - 0.5) < 0.42)
    return rgb(np.where(text, 0.25, 0.95))


def board(draw: Draw) -> np.ndarray:
    """A whiteboard with scribbles."""
    x, y = ramp()[None, :], ramp()[:, None]
    out = 0.9 + 0.06 * fbm(draw, 3)[:, :, None] * np.ones((1, 1, 3))
    for _ in range(5):
        colour = draw.pick([np.array([0.1, 0.15, 0.6]), np.array([0.65, 0.1, 0.1]), np.array([0.1, 0.1, 0.1])])
        x0, y0, length = draw.uniform(0.05, 0.6), draw.uniform(0.1, 0.85), draw.uniform(0.15, 0.35)
        line = y0 + 0.06 * (noise(draw, 24)[:1] - 0.5)
        out = np.where(((np.abs(y - line) < 0.008) & (x > x0) & (x < x0 + length))[:, :, None], colour, out)
    return out
