"""Axes of stored normals: which channel, with which sign, is x, y and z of the camera frame OpenCV. NumPy only."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np

from m2h_lightning.errors import ConfigError

ALL_AXES: tuple[str, ...] = tuple(
    ",".join(f"{'-' if sign < 0 else ''}{'xyz'[channel]}" for channel, sign in zip(order, signs, strict=True))
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
)
"""The 48 conventions, as ``data.normal_axes`` takes them."""


def parse_axes(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return channel and sign for each camera axis.

    Args:
        text: Such as "x,-y,-z": camera x is channel 0, camera y is minus channel 1, camera z is minus channel 2.

    Raises:
        ConfigError: Not one of the 48 conventions.
    """
    parts = text.replace(" ", "").lower().split(",")
    if ",".join(parts) not in ALL_AXES:
        raise ConfigError(f"data.normal_axes is '{text}'; give three of x, y, z with signs, such as x,-y,-z")
    return tuple("xyz".index(part[-1]) for part in parts), tuple(-1 if part[0] == "-" else 1 for part in parts)


def apply_axes(normals: np.ndarray, axes: str) -> np.ndarray:
    """Return normals (..., 3) in the camera frame, float32.

    Args:
        normals: As stored, (..., 3).
        axes: Convention; see :func:`parse_axes`.
    """
    order, signs = parse_axes(axes)
    return normals[..., list(order)].astype(np.float32) * np.array(signs, np.float32)
