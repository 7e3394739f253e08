"""From an edge probability to thin boundary maps: quantise, suppress non-maxima, threshold, thin."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

THRESHOLDS = np.array([0.001, *(k / 100 for k in range(1, 100)), 0.999], dtype=np.float32)
"""The 101 thresholds of the SEISM kit; a pixel is an edge where its value is larger, in single precision."""

_SMOOTHING = 4  # radius of the triangle filter before the orientation
_FADE = 5  # pixels at the image's border whose values are scaled down
_TOLERANCE = np.float32(1.01)  # a neighbour must be larger by this factor to suppress a pixel


def from_levels(levels: np.ndarray) -> np.ndarray:
    """Return the single-precision values that an 8-bit image of the probability stands for.

    Args:
        levels: uint8 H×W, ``round(255 p)``.

    Returns:
        float32 H×W in [0, 1].
    """
    return levels.astype(np.float32) / np.float32(255)


def _gradient(values: np.ndarray, axis: int) -> np.ndarray:
    """Central differences, one-sided at both ends; zero along an axis of a single pixel."""
    return np.gradient(values, axis=axis) if values.shape[axis] > 1 else np.zeros_like(values)


def orientation(edges: np.ndarray) -> np.ndarray:
    """Return the direction across edges, from second derivatives of the smoothed map.

    The filter and the formula are those of Dollár's structured edge toolbox (Dollár and Zitnick, "Fast Edge Detection
    Using Structured Forests", TPAMI 2015), which the SEISM kit uses.

    Args:
        edges: float32 H×W.

    Returns:
        Angle from the x axis towards y (down) in [0, π), float32 H×W.
    """
    ramp = np.arange(1, _SMOOTHING + 1, dtype=np.float64)
    kernel = np.concatenate([ramp, [_SMOOTHING + 1], ramp[::-1]]) / (_SMOOTHING + 1) ** 2
    smooth = ndimage.correlate1d(edges, kernel, axis=0, mode="reflect")
    smooth = ndimage.correlate1d(smooth, kernel, axis=1, mode="reflect")
    down = _gradient(smooth, 0)
    xx = _gradient(_gradient(smooth, 1), 1)
    xy, yy = _gradient(down, 1), _gradient(down, 0)
    return np.mod(np.arctan(yy * np.sign(-xy) / (xx + np.float32(1e-5))), np.float32(np.pi))


def suppress_non_maxima(edges: np.ndarray) -> np.ndarray:
    """Keep the pixels that are largest across their edge, and fade the image's border.

    A pixel becomes 0 if its value times 1.01 is below that of the map one pixel away on either side along its
    orientation (bilinear; positions outside are moved onto the border). Then the outer five pixels are scaled by their
    distance from the border, 0 at the border itself, once per axis.

    Args:
        edges: float32 H×W, not negative.

    Returns:
        float32 H×W.
    """
    height, width = edges.shape
    rows, columns = np.nonzero(edges)
    angle = orientation(edges)[rows, columns]
    value = edges[rows, columns]
    keep = np.ones(len(value), dtype=bool)
    step_x, step_y = np.cos(angle), np.sin(angle)
    for sign in (-1, 1):
        keep &= value * _TOLERANCE >= _interpolate(edges, columns + sign * step_x, rows + sign * step_y)
    result = np.zeros_like(edges)
    result[rows[keep], columns[keep]] = value[keep]
    fade = min(_FADE, height // 2, width // 2)
    for distance in range(fade):
        factor = np.float32(distance) / np.float32(fade)
        for line in (result[:, distance], result[:, width - 1 - distance]):
            line *= factor
    for distance in range(fade):
        factor = np.float32(distance) / np.float32(fade)
        for line in (result[distance], result[height - 1 - distance]):
            line *= factor
    return result


def _interpolate(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear interpolation; 1.001 pixels from the far border is the last position, as in the toolbox."""
    height, width = image.shape
    x = np.clip(x.astype(np.float32), 0, max(np.float32(width - 1.001), np.float32(0)))
    y = np.clip(y.astype(np.float32), 0, max(np.float32(height - 1.001), np.float32(0)))
    left, top = x.astype(np.int32), y.astype(np.int32)
    right_share, lower_share = x - left, y - top
    # One index array for all four corners: only images of a single row or column have no next one.
    across, down = int(width > 1), width * int(height > 1)
    flat = image.reshape(-1)
    corner = top * width + left
    upper = flat[corner] * (1 - right_share) + flat[corner + across] * right_share
    lower = flat[corner + down] * (1 - right_share) + flat[corner + down + across] * right_share
    return upper * (1 - lower_share) + lower * lower_share


def region_boundaries(regions: np.ndarray) -> np.ndarray:
    """Return the boundary of a region map: pixels that differ from their east, south or south-east neighbour.

    The last row looks east only, the last column south only, the last pixel is none (``seg2bmap`` of the Berkeley
    benchmark). Boundaries lie half a pixel up and left of where regions meet.

    Args:
        regions: H×W, any type.

    Returns:
        bool H×W.
    """
    result = np.zeros(regions.shape, dtype=bool)
    result[:, :-1] |= regions[:, :-1] != regions[:, 1:]
    result[:-1] |= regions[:-1] != regions[1:]
    result[:-1, :-1] |= regions[:-1, :-1] != regions[1:, 1:]
    return result


def _deletable() -> tuple[np.ndarray, np.ndarray]:
    """For both sub-iterations of thinning, whether a pixel goes, by the code of its eight neighbours.

    Bit k − 1 of the code is x_k of Lam, Lee and Suen: x1 is the east neighbour, then counter-clockwise.
    """
    tables = np.zeros((2, 256), dtype=bool)
    for code in range(256):
        x = [code >> (k % 8) & 1 for k in range(9)]  # x[k − 1] is x_k, x[8] is x_1 again
        crossings = sum(not x[k] and (x[k + 1] or x[k + 2]) for k in (0, 2, 4, 6))
        pairs = min(sum(x[k] | x[k + 1] for k in (0, 2, 4, 6)), sum(x[k + 1] | x[k + 2] for k in (0, 2, 4, 6)))
        if crossings == 1 and 2 <= pairs <= 3:
            tables[0, code] = not ((x[1] or x[2] or not x[7]) and x[0])
            tables[1, code] = not ((x[5] or x[6] or not x[3]) and x[4])
    return tables[0], tables[1]


_DELETABLE = _deletable()


def thin(mask: np.ndarray) -> np.ndarray:
    """Thin a binary map to lines without changing which pixels are connected.

    The parallel algorithm with two sub-iterations of Guo and Hall as given by Lam, Lee and Suen ("Thinning
    Methodologies", TPAMI 1992, p. 879), until nothing changes: what ``bwmorph(mask, 'thin', inf)`` is documented to do.
    Only foreground pixels whose neighbours have changed since they were looked at are looked at again.

    Args:
        mask: bool H×W; outside is background.

    Returns:
        bool H×W.
    """
    padded = np.pad(mask.astype(np.uint8), 1)
    width = padded.shape[1]
    flat = padded.reshape(-1)
    around = np.array([1, 1 - width, -width, -width - 1, -1, width - 1, width, width + 1])
    changed = [np.flatnonzero(flat)] * 2  # around which pixels something has changed since each sub-iteration looked
    marked = np.zeros(flat.shape, dtype=bool)
    turn, idle = 0, 0
    while idle < 2:
        pixels = changed[turn]
        pixels = pixels[flat[pixels] > 0]
        code = np.zeros(len(pixels), dtype=np.uint8)
        for bit, offset in enumerate(around):
            code |= flat[pixels + offset] << np.uint8(bit)
        gone = pixels[_DELETABLE[turn][code]]
        flat[gone] = 0
        idle = 0 if len(gone) else idle + 1
        marked[gone[:, None] + around] = True  # marking and listing is far quicker than sorting out duplicates
        changed[turn] = np.flatnonzero(marked)
        marked[changed[turn]] = False
        turn = 1 - turn
        changed[turn] = np.concatenate([changed[turn], changed[1 - turn]])
    return padded[1:-1, 1:-1].astype(bool)
