"""Contact sheets: one row per sample, with its image and all its labels. NumPy and OpenCV only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m2h_lightning.errors import DataError
from m2h_lightning.files import atomic
from m2h_lightning.labels import IGNORE

COLUMNS = ("image", "semseg", "depth", "normals", "edges")
_GAP, _LINE = 4, 18  # pixels between panels; height of a line of text


def heat(near: np.ndarray) -> np.ndarray:
    """Return colours from dark blue (0, far) over red to yellow (1, near), uint8 (..., 3).

    Distances are told apart better than in grey.

    Args:
        near: 0…1.
    """
    warm = [np.minimum(1, near * 1.6), np.maximum(0, near * 1.5 - 0.5), 0.35 * (1 - near) + 0.1]
    return (np.stack(warm, axis=-1) * 255).astype(np.uint8)


def hatched(height: int, width: int) -> np.ndarray:
    """Return black and grey stripes, uint8 (height, width, 3): nothing that a label can look like."""
    rows, cols = np.mgrid[:height, :width]
    return np.repeat((((rows + cols) // 4 % 2) * 70).astype(np.uint8)[..., None], 3, -1)


def panels(sample: Mapping[str, Any], palette: np.ndarray, depth_limits: tuple[float, float]) -> list[np.ndarray]:
    """Draw the maps of a sample in the order of ``COLUMNS``; what is unknown, or missing, is hatched.

    Args:
        sample: ``image``, and ``semseg``, float ``depth``, float ``normals``, ``edges`` as far as there are any.
        palette: Colour of each label, uint8 (256, 3).
        depth_limits: Depth of the brightest and of the darkest colour.

    Returns:
        A picture for each column, each (H, W, 3) uint8.
    """
    image = np.asarray(sample["image"])
    nothing = hatched(*image.shape[:2])
    drawn = [image]
    for key in COLUMNS[1:]:
        values = sample.get(key)
        if values is None:
            drawn.append(nothing)
            continue
        if key == "semseg":
            known, picture = values != IGNORE, palette[values]
        elif key == "depth":
            low, high = depth_limits
            known, picture = values > 0, heat(np.clip((high - values) / max(high - low, 1e-9), 0, 1))
        elif key == "normals":
            # Right is red, up is green, towards the camera is blue.
            known = np.abs(values).sum(-1) > 0
            picture = ((values * [0.5, -0.5, -0.5] + 0.5) * 255).astype(np.uint8)
        else:
            known, picture = values != IGNORE, np.repeat(((values == 0) * 255).astype(np.uint8)[..., None], 3, -1)
        drawn.append(np.where(known[..., None], picture, nothing))
    return drawn


def depth_span(depths: Iterable[np.ndarray]) -> tuple[float, float]:
    """Return the 1st and 99th percentile of all known depths, which are what a sheet's colours reach over."""
    known = [depth[::4, ::4][depth[::4, ::4] > 0] for depth in depths]
    values = np.concatenate(known) if known else np.zeros(0)
    return (float(np.percentile(values, 1)), float(np.percentile(values, 99))) if values.size else (0.0, 1.0)


def write_text(picture: np.ndarray, text: str, left: int, bottom: int, width: int) -> None:
    """Write a line of small black text into a picture, cut to ``width`` pixels.

    Args:
        picture: uint8 (H, W, 3); changed.
        text: Signs that the font lacks become "?".
        left: Where it begins, pixels.
        bottom: Where its base line is, pixels.
        width: Pixels.
    """
    import cv2

    plain = text.replace("×", "x").encode("ascii", "replace").decode()
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.42
    while plain and cv2.getTextSize(plain, font, size, 1)[0][0] > width:
        plain = "..." + plain[4:] if len(plain) > 4 else ""  # names differ at their ends
    cv2.putText(picture, plain, (left, bottom), font, size, (0, 0, 0), 1, cv2.LINE_AA)


def draw_sheet(
    samples: Sequence[Mapping[str, Any]], palette: np.ndarray, width: int = 280, unit: str = "m", title: str = ""
) -> np.ndarray:
    """Draw samples below each other, each with a line that names it, under a head with the scale of depth.

    Args:
        samples: As :func:`panels` takes them, with ``id``; they may differ in size.
        palette: Colour of each label, uint8 (256, 3).
        width: Of each panel, pixels.
        unit: Of the depth.
        title: First line.

    Returns:
        The sheet, uint8 (H, W, 3).
    """
    limits = depth_span(sample["depth"] for sample in samples if "depth" in sample)
    full = len(COLUMNS) * (width + _GAP) + _GAP
    head = np.full((3 * _LINE + _GAP, full, 3), 255, np.uint8)
    write_text(head, title, _GAP, _LINE - 5, full - 2 * _GAP)
    for index, key in enumerate(COLUMNS):
        write_text(head, key, _GAP + index * (width + _GAP), 2 * _LINE - 5, width)
    write_text(head, "hatched: unknown", _GAP, 3 * _LINE - 5, width)
    left = _GAP + COLUMNS.index("depth") * (width + _GAP)
    low, high = (f"{limit:.3g} {unit}" for limit in limits)
    bar = max(width - 140, 16)
    write_text(head, low, left, 3 * _LINE - 5, 66)
    head[2 * _LINE + 3 : 3 * _LINE - 3, left + 70 : left + 70 + bar] = heat(np.linspace(1, 0, bar))
    write_text(head, high, left + 74 + bar, 3 * _LINE - 5, 66)
    lines = [head]
    for sample in samples:
        rows, cols = sample["image"].shape[:2]
        height = max(1, round(rows * width / cols))
        caption = np.full((_LINE, full, 3), 255, np.uint8)
        text = f"{sample['id']}   {rows} x {cols}"
        write_text(caption, text, _GAP, _LINE - 5, full - 2 * _GAP)
        strip = np.full((height + _GAP, full, 3), 255, np.uint8)
        for index, panel in enumerate(panels(_resized(sample, height, width), palette, limits)):
            at = _GAP + index * (width + _GAP)
            strip[:height, at : at + width] = panel
        lines += [caption, strip]
    return np.concatenate(lines)


def _resized(sample: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """Scale the maps before they are drawn, so that stripes stay stripes; edges are kept where any pixel is one."""
    import cv2

    out = {}
    for key in COLUMNS:
        if key not in sample:
            continue
        values = np.ascontiguousarray(sample[key])
        if key == "image":
            shrinks = values.shape[0] > height
            out[key] = cv2.resize(
                values, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            )
            continue
        if key == "edges":
            step = max(1, values.shape[1] // width)
            if step > 1:  # a line of one pixel would be lost between the pixels that are taken
                line = cv2.dilate((values == 1).astype(np.uint8), np.ones((step, step), np.uint8))
                values = np.where(values == IGNORE, values, line)
        out[key] = cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST)
    return out


def save_png(picture: np.ndarray, path: Path) -> None:
    """Write an RGB picture as PNG, whole or not at all; its folder is made.

    Raises:
        DataError: It cannot be written.
    """
    import cv2

    _, data = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_bytes(data.tobytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}): choose another place") from error
