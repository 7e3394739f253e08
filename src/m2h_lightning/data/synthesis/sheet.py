"""Contact sheets: one row per sample, with its image and all its labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from m2h_lightning.data.rooms_store import RoomsStore
from m2h_lightning.errors import DataError
from m2h_lightning.files import atomic
from m2h_lightning.labels import NYU40_PALETTE


def panels(sample: dict[str, Any]) -> list[np.ndarray]:
    """Image, depth (near is bright), normals, classes and edges of a sample, each (H, W, 3) uint8."""
    depth = sample["depth"]
    near = np.clip(1.0 - (depth - depth.min()) / max(float(depth.max() - depth.min()), 1e-6), 0.0, 1.0)
    # From dark blue over red to yellow: distances are told apart better than in grey.
    warm = np.stack([np.minimum(1, near * 1.6), np.maximum(0, near * 1.5 - 0.5), 0.35 * (1 - near) + 0.1], axis=-1)
    normals = (sample["normals"] * [0.5, -0.5, -0.5] + 0.5) * 255
    edges = np.repeat((1 - sample["edges"])[..., None] * 255, 3, axis=2)
    classes = np.asarray(NYU40_PALETTE)[np.minimum(sample["semseg"], len(NYU40_PALETTE) - 1)]
    return [panel.astype(np.uint8) for panel in (sample["image"], warm * 255, normals, classes, edges)]


def write_sheet(store: RoomsStore, path: Path, rows: int = 8) -> None:
    """Write a PNG with ``rows`` samples of different rooms (as far as there are so many).

    Raises:
        DataError: The picture cannot be written.
    """
    import cv2

    rows = min(rows, len(store))
    count, views = store.spec.rooms, store.spec.views_per_room
    chosen = [(k * max(1, count // rows) % count) * views + (k // count) % views for k in range(rows)]
    gap, lines = 3, []
    for index in chosen:
        cells = [
            np.pad(panel, ((0, gap), (0, gap), (0, 0)), constant_values=255) for panel in panels(store.read(index))
        ]
        lines.append(np.concatenate(cells, axis=1))
    _, data = cv2.imencode(".png", np.concatenate(lines)[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_bytes(data.tobytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}): choose another place") from error
