"""Contact sheet of a rooms cache."""

from __future__ import annotations

from pathlib import Path

from m2h_lightning.data.raw import decode
from m2h_lightning.data.sheet import draw_sheet, save_png
from m2h_lightning.data.synthesis.store import RoomsStore
from m2h_lightning.labels import NYU40_CLASSES, class_palette


def write_sheet(store: RoomsStore, path: Path, rows: int = 8) -> None:
    """Write a PNG with ``rows`` samples of different rooms (as far as there are so many).

    Raises:
        DataError: The picture cannot be written.
    """
    rows = min(rows, len(store))
    count, views = store.spec.rooms, store.spec.views_per_room
    chosen = [(k * max(1, count // rows) % count) * views + (k // count) % views for k in range(rows)]
    samples = [decode(store.read(index)) for index in chosen]  # type: ignore[arg-type]
    save_png(draw_sheet(samples, class_palette(len(NYU40_CLASSES)), title=f"rooms, {store.spec.split}"), path)
