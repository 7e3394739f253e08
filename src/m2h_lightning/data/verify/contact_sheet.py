"""The contact sheet of a data set: eyes find what no statistic does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from m2h_lightning.data.raw import DEPTH_UNITS, decode
from m2h_lightning.data.sheet import draw_sheet, save_png
from m2h_lightning.data.sources.base import Item, Source
from m2h_lightning.data.verify.scan import spread
from m2h_lightning.errors import DataError
from m2h_lightning.labels import class_palette

ROWS = 10


def write_contact_sheet(source: Source, items: list[Item], path: Path) -> int:
    """Draw samples spread evenly over the list; those that cannot be read are left out.

    Args:
        source: The set.
        items: What to choose from.
        path: PNG to write.

    Returns:
        Number of samples drawn; nothing is written when it is 0.

    Raises:
        DataError: The picture cannot be written.
    """
    samples = []
    for item in spread(items, ROWS):
        try:
            sample = decode(source.read(item))
        except DataError:  # listed among the findings already
            continue
        sample["id"] = f"{item.split}: {item.id}"
        for key in ("depth", "normals"):
            if key in sample:
                sample[key] = np.nan_to_num(sample[key], nan=0.0, posinf=0.0, neginf=0.0)
        if sample["image"].dtype == np.uint8:
            samples.append(sample)
    if samples:
        unit = DEPTH_UNITS[str(getattr(source, "depth_target", "metric"))]
        title = f"{source.name}: {source.packaging}"
        save_png(draw_sheet(samples, class_palette(len(source.classes)), unit=unit, title=title), path)
    return len(samples)
