"""Turn label arrays as files hold them into the contract's, and refuse what can only be a mistake. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m2h_lightning.data.raw import CODED_INVALID_NORMAL
from m2h_lightning.data.sources.axes import parse_axes
from m2h_lightning.data.sources.reading import AGAIN, as_map, read_coded, read_map, read_npy
from m2h_lightning.errors import DataError


def few(names: Sequence[object]) -> str:
    """Return at most three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(str, names[:3])) + more


def read_values(path: Path) -> np.ndarray:
    """Read a single-channel label from a .npy file or an image, in its own type."""
    return read_npy(path) if path.suffix.lower() == ".npy" else read_map(path)


def read_normals(path: Path) -> np.ndarray:
    """Read normals as they are stored: a .npy file, or an image of exactly three channels of 8 bits.

    Raises:
        DataError: Missing, corrupt, cut off, or an image with another number of channels.
    """
    return read_npy(path) if path.suffix.lower() == ".npy" else read_coded(path)


def whole_numbers(array: np.ndarray, path: Path) -> np.ndarray:
    """Return labels as integers, whatever type they are stored in.

    Raises:
        DataError: A value is not a whole number.
    """
    if array.dtype.kind in "iub":
        return array.astype(np.uint8) if array.dtype == bool else array
    if array.dtype.kind != "f" or not np.isfinite(array).all() or (array != np.rint(array)).any():
        raise DataError(
            f"{path}: holds values of type {array.dtype} that are no whole numbers; labels must be integers"
        )
    return array.astype(np.int32)


def metres(
    array: np.ndarray, path: Path, shape: tuple[int, int], far: float, mend: str = "expected metres"
) -> np.ndarray:
    """Return depth in metres; zero, negative, infinite and NaN become 0 = invalid.

    Args:
        array: H×W or H×W×1 floating point metres.
        path: Where it came from, for the message.
        shape: Height and width of the image.
        far: Largest depth that the typical (median) pixel can have, metres.
        mend: What to do about depth that is farther.

    Returns:
        float32 H×W.

    Raises:
        DataError: Integers, values that cannot be metres, or another size than the image.
    """
    if array.dtype.kind != "f":
        what = "a picture for viewing" if array.dtype.itemsize == 1 else "millimetres or another code"
        raise DataError(f"{path}: depth is {array.dtype}, {what}; expected floating point metres")
    depth = as_map(array, path, np.float32, shape)
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
    sparse = depth[::4, ::4]  # enough for a median, and sixteen times faster
    known = sparse[sparse > 0]
    median = float(np.median(known)) if known.size else 0.0
    if median > far:
        unit = "millimetres" if median > max(200, 2 * far) else "another unit than metres"
        raise DataError(f"{path}: depth looks like {unit}: median {median:.4g}; {mend}")
    return depth


def camera_normals(array: np.ndarray, path: Path, shape: tuple[int, int], axes: str) -> np.ndarray:
    """Return normals in the camera frame: uint8 stays exactly coded, floats become unit float32 with 0 = invalid.

    Args:
        array: H×W×3: uint8 x for 2x/255 − 1, or floats.
        path: Where it came from, for the message.
        shape: Height and width of the image.
        axes: Convention of the stored channels; see :func:`~m2h_lightning.data.sources.axes.parse_axes`.

    Raises:
        DataError: Another size than the image, another type, or floats that are no unit vectors.
    """
    order, signs = parse_axes(axes)
    if array.dtype == np.uint8:
        coded = as_map(array, path, np.uint8, shape, channels=3)[..., list(order)]
        # Minus is 255 − x exactly: 2(255 − x)/255 − 1 = −(2x/255 − 1).
        coded = np.where(np.array(signs) < 0, 255 - coded, coded)
        square = ((2 * coded.astype(np.int32) - 255) ** 2).sum(-1)
        coded[square < 0.25 * 255**2] = CODED_INVALID_NORMAL
        return coded
    if array.dtype.kind != "f":
        raise DataError(f"{path}: normals are {array.dtype}; expected uint8 or floating point; {AGAIN}")
    normals = as_map(array, path, np.float32, shape, channels=3)[..., list(order)] * np.array(signs, np.float32)
    length = np.sqrt((normals * normals).sum(-1, keepdims=True))
    known = (length >= 0.5) & np.isfinite(length)
    if known.any() and float(np.median(length[known])) > 1.5:
        raise DataError(
            f"{path}: normals are about {np.median(length[known]):.4g} long; expected unit vectors in −1..1"
        )
    return np.where(known, normals / np.where(known, length, 1), np.float32(0)).astype(np.float32)


def binary_edges(array: np.ndarray, path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Return an edge map of {0, 1} or {0, 255} as {0, 1}.

    Raises:
        DataError: Other values, or another size than the image.
    """
    edges = as_map(array, path, array.dtype.type, shape)
    for top in (1, 255):
        marked = edges == top
        if (marked | (edges == 0)).all():
            return marked.astype(np.uint8)
    other = edges[(edges != 0) & (edges != 255)]
    raise DataError(
        f"{path}: holds {other[0]:g} (and more); edges are 0 and 255, or 0 and 1; the option 'edges: semantic' makes "
        "them from the labels"
    )
