"""Periodic noise and waves from which the textures are made. Only + - * / and floor."""

from __future__ import annotations

import numpy as np

from m2h_lightning.data.synthesis.draw import Draw

SIZE = 256  # texels per side of a texture


def ramp() -> np.ndarray:
    """Texel centres along one side, SIZE values in 0…1."""
    return (np.arange(SIZE) + 0.5) / SIZE


def noise(draw: Draw, cells_x: int, cells_y: int | None = None) -> np.ndarray:
    """Periodic value noise in [0, 1], SIZE x SIZE, with ``cells`` lattice cells per side."""
    cells_y = cells_y or cells_x
    lattice = draw.units(cells_y, cells_x)

    def axis(cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position = ramp() * cells
        low = np.floor(position).astype(np.int64)
        t = position - low
        return low % cells, (low + 1) % cells, t * t * (3.0 - 2.0 * t)

    x0, x1, tx = axis(cells_x)
    y0, y1, ty = axis(cells_y)
    rows = lattice[:, x0] + (lattice[:, x1] - lattice[:, x0]) * tx
    return rows[y0] + (rows[y1] - rows[y0]) * ty[:, None]


def fbm(draw: Draw, cells: int, octaves: int = 4) -> np.ndarray:
    """Fractal noise in [0, 1]: octaves of :func:`noise`, each twice as fine and half as strong."""
    total, weight, norm = np.zeros((SIZE, SIZE)), 1.0, 0.0
    for _ in range(octaves):
        total = total + weight * noise(draw, min(cells, SIZE))
        norm, weight, cells = norm + weight, weight * 0.5, cells * 2
    return total / norm


def wave(phase: np.ndarray) -> np.ndarray:
    """A smooth periodic wave in [0, 1] of period 1 (a cubic instead of a sine, which differs between machines)."""
    t = np.abs(2.0 * (phase - np.floor(phase)) - 1.0)
    return t * t * (3.0 - 2.0 * t)


def rgb(value: np.ndarray) -> np.ndarray:
    """A grey picture as three channels."""
    return np.repeat(value[:, :, None], 3, axis=2)
