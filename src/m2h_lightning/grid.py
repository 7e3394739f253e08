"""Where attention windows meet: a fact of the network that the metrics read. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WindowGrid:
    """Where attention windows meet, in pixels of an image.

    Pixel i covers [i, i + 1]; a border at 14.0 lies between pixels 13 and 14. It stands apart from the network, which
    knows its windows, and from the metrics, which score at their borders, so that neither imports the other.

    Args:
        rows: Positions of horizontal borders, from the top, inside the image, rising.
        columns: Positions of vertical borders, from the left.
        cell: Height and width in pixels of one cell of the map that was cut.

    Example:
        >>> WindowGrid((24.5, 49.0), (24.5,), (3.5, 3.5)).scaled(2.0, 1.0)
        WindowGrid(rows=(49.0, 98.0), columns=(24.5,), cell=(7.0, 3.5))
    """

    rows: tuple[float, ...]
    columns: tuple[float, ...]
    cell: tuple[float, float]

    def scaled(self, vertical: float, horizontal: float) -> WindowGrid:
        """Return the grid of the image resized by these factors."""
        return WindowGrid(
            tuple(vertical * row for row in self.rows),
            tuple(horizontal * column for column in self.columns),
            (vertical * self.cell[0], horizontal * self.cell[1]),
        )
