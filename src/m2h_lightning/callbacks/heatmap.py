"""Square tables of numbers as one picture: a cell per pair of names, its colour the value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from m2h_lightning.callbacks.pictures import write_line

_CELL = 56  # height of a cell, pixels
_WIDTH = 96  # its least width; few cells are wider, so that a table's title has room
_TABLE = 330  # least width of a table
_LABEL = 100  # width of the names left of the first table
_MARGIN = 16
_HEAD = 30  # height of the line above all tables
_TITLE = 48  # height of a table's title and its column names
_SCALE = 40  # height of the colour scale below a table
_EMPTY = (228, 228, 228)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


class Table(NamedTuple):
    """One table.

    Attributes:
        title: Line above it.
        values: T×T; NaN draws an empty cell.
        limits: Values of the first and the last colour; what lies beyond takes that colour.
        colours: RGB anchors at equal distances between the limits.
        form: How a value is written, such as "{:+.2f}".
    """

    title: str
    values: np.ndarray
    limits: tuple[float, float]
    colours: Sequence[tuple[int, int, int]]
    form: str

    def colour(self, value: float) -> tuple[int, int, int]:
        """Return the RGB colour of a value, linear between the anchors."""
        low, high = self.limits
        place = np.clip((value - low) / (high - low), 0, 1) * (len(self.colours) - 1)
        channels = zip(*self.colours, strict=True)
        red, green, blue = (round(float(np.interp(place, range(len(self.colours)), c))) for c in channels)
        return red, green, blue


def draw_tables(names: Sequence[str], tables: Sequence[Table], headline: str) -> np.ndarray:
    """Draw tables side by side; rows and columns are the names.

    Args:
        names: T names.
        tables: Each T×T.
        headline: Line above all.

    Returns:
        uint8 RGB picture.
    """
    wide = max(_WIDTH, -(-_TABLE // len(names)))
    side = len(names) * wide
    height = _HEAD + _TITLE + len(names) * _CELL + _SCALE + _MARGIN
    canvas = np.full((height, _MARGIN + _LABEL + len(tables) * (side + 2 * _MARGIN), 3), 255, np.uint8)
    write_line(canvas, headline, _MARGIN, 22, canvas.shape[1] - 2 * _MARGIN)
    top = _HEAD + _TITLE
    for row, name in enumerate(names):
        size = _text_size(name, 0.45)
        middle = top + row * _CELL + _CELL // 2 + 5
        write_line(canvas, name, max(4, _MARGIN + _LABEL - 8 - size), middle, _LABEL + _MARGIN - 12)
    for index, table in enumerate(tables):
        left = _MARGIN + _LABEL + index * (side + 2 * _MARGIN)
        write_line(canvas, table.title, left, _HEAD + 16, side)
        for column, name in enumerate(names):
            _centred(canvas, name, (left + column * wide, top - 21, wide, 16), (0, 0, 0))
        for row in range(len(names)):
            for column in range(len(names)):
                box = (left + column * wide, top + row * _CELL, wide - 2, _CELL - 2)
                _cell(canvas, table, float(table.values[row, column]), box)
        _scale(canvas, table, left, top + len(names) * _CELL + 8, side)
    return canvas


def _cell(canvas: np.ndarray, table: Table, value: float, box: tuple[int, int, int, int]) -> None:
    left, top, width, height = box
    known = not np.isnan(value)
    colour = table.colour(value) if known else _EMPTY
    canvas[top : top + height, left : left + width] = colour
    if known:
        # Dark cells have white numbers (Rec. 601 brightness).
        ink = (255, 255, 255) if np.dot(colour, (0.299, 0.587, 0.114)) < 130 else (0, 0, 0)
        _centred(canvas, table.form.format(value), box, ink, 0.55)


def _scale(canvas: np.ndarray, table: Table, left: int, top: int, width: int) -> None:
    """Draw the colours from the lower to the upper limit and write both, and the middle, below."""
    width -= 2
    low, high = table.limits
    strip = [table.colour(value) for value in np.linspace(low, high, width)]
    canvas[top : top + 10, left : left + width] = np.array(strip, np.uint8)
    for share, value in ((0.0, low), (0.5, (low + high) / 2), (1.0, high)):
        text = table.form.format(value)
        room = _text_size(text, 0.45) + 4
        _centred(canvas, text, (left + round(share * (width - room)), top + 14, room, 16), (90, 90, 90))


def _text_size(text: str, size: float) -> int:
    return int(cv2.getTextSize(text, _FONT, size, 1)[0][0])


def _centred(
    canvas: np.ndarray, text: str, box: tuple[int, int, int, int], ink: tuple[int, int, int], size: float = 0.45
) -> None:
    """Write one line into the middle of a box (left, top, width, height), smaller where it would not fit."""
    left, top, width, height = box
    size *= min(1.0, (width - 4) / max(1, _text_size(text, size)))
    (length, tall), _ = cv2.getTextSize(text, _FONT, size, 1)
    place = (left + (width - length) // 2, top + (height + tall) // 2)
    cv2.putText(canvas, text, place, _FONT, size, ink, 1, cv2.LINE_AA)
