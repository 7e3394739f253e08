"""Write a plain folder: images, labels of the same names and a ``dataset.yaml``, as the reader ``folder`` describes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from m2h_lightning.data.synthesis.layouts.sample import SPLITS, LayoutSample
from m2h_lightning.data.synthesis.layouts.writing import put_npy, put_png, put_text
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.labels import NYU40_CLASSES

Kind = Literal["png", "npy"]
ID = re.compile(r"[\w-]+/[\w-]+")

_YAML = """\
name: {name}
classes: [{classes}]
ignore: [255]
depth_range: [0.1, 10.0]
{depth}normals:
  axes: x,y,z
  coding: {coding}
edges:
  rule: provided
  positive: [1]
  ignore: [255]
scene: parent
"""
_MILLIMETRES = "depth:\n  scale: 0.001\n"


def _millimetres(sample: LayoutSample) -> np.ndarray:
    stored = np.rint(np.asarray(sample.depth, np.float64) * 1000)
    if stored.max(initial=0) > 65535:
        raise DataError(f"sample '{sample.id}': depth of {stored.max() / 1000:g} m; 16-bit millimetres end at 65.535 m")
    return stored.astype(np.uint16)


def _coded(normals: np.ndarray) -> np.ndarray:
    known = np.abs(normals).sum(-1, keepdims=True) > 0
    return np.where(known, np.rint((np.asarray(normals, np.float64) + 1) * 127.5), 128).astype(np.uint8)


def write(root: Path, samples: Iterable[LayoutSample], name: str = "rooms", kind: Kind = "png") -> int:
    """Write samples; ``id`` is "scene/frame" and ``scene`` its first part. Every image has its own K, and a known pose.

    Args:
        root: The folder.
        samples: What to write.
        name: Name of the data set.
        kind: "png" for depth in 16-bit millimetres and normals in 8 bits, "npy" for both in float32.

    Returns:
        Number of samples written.

    Raises:
        ConfigError: There is no such kind.
        DataError: A name is none, or depth does not fit 16 bits.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"kind is {kind!r}, expected one of {', '.join(get_args(Kind))}")
    ids: dict[str, list[str]] = {split: [] for split in SPLITS}
    for sample in samples:
        if ID.fullmatch(sample.id) is None or sample.id.split("/")[0] != sample.scene:
            raise DataError(f"sample '{sample.id}' of scene '{sample.scene}': expected scene/frame")
        put_png(root / "images" / f"{sample.id}.png", sample.image)
        put_png(root / "semseg" / f"{sample.id}.png", sample.semseg)
        put_png(root / "edges" / f"{sample.id}.png", sample.edges)
        if kind == "png":
            put_png(root / "depth" / f"{sample.id}.png", _millimetres(sample))
            put_png(root / "normals" / f"{sample.id}.png", _coded(sample.normals))
        else:
            put_npy(root / "depth" / f"{sample.id}.npy", sample.depth.astype(np.float32))
            put_npy(root / "normals" / f"{sample.id}.npy", sample.normals.astype(np.float32))
        rows = (" ".join(repr(float(x)) for x in row) for row in np.asarray(sample.K, np.float64))
        put_text(root / "intrinsics" / f"{sample.id}.txt", "\n".join(rows) + "\n")
        if sample.pose is not None:
            rows = (" ".join(repr(float(x)) for x in row) for row in np.asarray(sample.pose, np.float64))
            put_text(root / "pose" / f"{sample.id}.txt", "\n".join(rows) + "\n")
        ids[sample.split].append(sample.id)
    for split, names in ids.items():
        if names:
            put_text(root / "splits" / f"{split}.txt", "".join(f"{name}\n" for name in names))
    settings = _YAML.format(
        name=name,
        classes=", ".join(NYU40_CLASSES),
        depth=_MILLIMETRES if kind == "png" else "",
        coding="uint8" if kind == "png" else "float",
    )
    put_text(root / "dataset.yaml", settings)
    return sum(map(len, ids.values()))
