"""The packaging ``nyuv2`` of mtan: 288×384 arrays with 13 classes, also used by LibMTL and others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from m2h_lightning.data.sources.base import Item
from m2h_lightning.data.sources.nyud_facts import official_ids, run_of, size_text
from m2h_lightning.data.sources.nyud_layouts import FARTHEST_MEDIAN, Layout
from m2h_lightning.data.sources.reading import as_map, read_npy
from m2h_lightning.data.sources.values import camera_normals, few, metres, whole_numbers
from m2h_lightning.errors import DataError
from m2h_lightning.labels import IGNORE

_FOLDERS = {"image": "image", "semseg": "label", "depth": "depth", "normals": "normal"}
_SPLITS = {"train": "train", "test": "val"}
"""The packaging calls the official test split "val"."""


def is_mtan(root: Path) -> bool:
    """Say whether ``root`` holds the packaging."""
    return any((root / folder / "image").is_dir() for folder in _SPLITS.values())


class MtanLayout(Layout):
    """Folders ``train`` and ``val`` of ``image``, ``label``, ``depth``, ``normal`` with files ``0.npy``, ``1.npy``, ….

    Args:
        root: The folder that holds ``train`` and ``val``.

    Raises:
        DataError: There are no arrays.
    """

    classes = 13

    def __init__(self, root: Path) -> None:
        self.root = root
        self.splits = tuple(split for split, folder in _SPLITS.items() if (root / folder / "image").is_dir())
        self._names = {
            (split, kind): _numbered(root / _SPLITS[split] / folder)
            for split in self.splits
            for kind, folder in _FOLDERS.items()
        }
        for split in self.splits:
            if not self._names[split, "image"]:
                raise DataError(f"{root / _SPLITS[split] / 'image'}: holds no files such as 0.npy")
        self.stored = tuple(
            kind for kind in ("semseg", "depth", "normals") if any(self._names[split, kind] for split in self.splits)
        )
        if not self.stored:
            raise DataError(f"{root}: has image/ but no labels; expected some of label/, depth/, normal/ beside it")
        size = size_text(*_shape(next(iter(self._names[self.splits[0], "image"].values())))[:2])
        lacking = [f"{folder}/" for kind, folder in _FOLDERS.items() if kind not in ("image", *self.stored)]
        lacking += [f"{folder}/" for split, folder in _SPLITS.items() if split not in self.splits]
        self.text = f"nyuv2 with .npy arrays and 13 classes (mtan), {size}"
        self.text += f", without {' and '.join(lacking)}" if lacking else ""
        self.provenance = {
            "semseg": "13 classes as numbered in the packaging, unlabelled ignored",
            "depth": "the packaging's depth in metres; 0, negative, infinite and NaN are invalid",
            "normals": "the packaging's normals (.npy files)",
            "split": "folders of the packaging (val is the official test split)",
            "scene": "runs of consecutive ids of the official split, if file k is the k-th id (not verified)",
        }

    def items(self, split: str) -> list[Item]:
        """List the samples of a split; refuse missing files, labels without image and numbers out of range."""
        kinds = ("image", *self.stored)
        numbers = sorted(set().union(*(self._names[split, kind] for kind in kinds)))
        missing = [
            f"{_FOLDERS[kind]}/{number}.npy"
            for number in numbers
            for kind in kinds
            if number not in self._names[split, kind]
        ]
        folder, ids = self.root / _SPLITS[split], official_ids(split)
        if missing:
            raise DataError(f"{folder}: {len(missing)} files are missing: {few(missing)}; unpack the archive again")
        if numbers[-1] >= len(ids):
            raise DataError(f"{folder}: holds image/{numbers[-1]}.npy; the official split has {len(ids)}, from 0.npy")
        return [
            Item(
                f"{_SPLITS[split]}/{number}",
                split,
                run_of(ids[number]),
                {kind: self._names[split, kind][number] for kind in kinds},
            )
            for number in numbers
        ]

    def size(self, item: Item) -> tuple[int, int]:
        """Return height and width from the array's header."""
        height, width = _shape(item.files["image"])[:2]
        return height, width

    def read(self, item: Item, axes: str | None) -> dict[str, Any]:
        """Read the arrays of a sample."""
        image = _photograph(item.files["image"])
        shape = image.shape[:2]
        out: dict[str, Any] = {"image": image}
        if path := item.files.get("semseg"):
            labels = read_npy(path)
            labels = whole_numbers(as_map(labels, path, labels.dtype.type, shape), path)
            low, high = int(labels.min()), int(labels.max())
            if low < -1 or high > 12:
                raise DataError(f"{path}: holds label {high if high > 12 else low}; expected −1 (unlabelled) to 12")
            out["semseg"] = np.where(labels < 0, IGNORE, labels).astype(np.uint8)
        if path := item.files.get("depth"):
            out["depth"] = metres(read_npy(path), path, shape, FARTHEST_MEDIAN)
        if axes and (path := item.files.get("normals")):
            out["normals"] = camera_normals(read_npy(path), path, shape, axes)
        return out


def _numbered(folder: Path) -> dict[int, Path]:
    return {int(path.stem): path for path in folder.glob("*.npy") if path.stem.isdecimal()}


def _shape(path: Path) -> tuple[int, ...]:
    try:
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except (OSError, ValueError):
        shape = read_npy(path).shape  # says in one line what is wrong
    if len(shape) != 3 or shape[-1] != 3:
        raise DataError(f"{path}: is {'×'.join(map(str, shape))}; expected an image of height×width×3")
    return shape


def _photograph(path: Path) -> np.ndarray:
    _shape(path)
    image = read_npy(path)
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind != "f" or not np.isfinite(image).all() or image.min() < -1e-3 or image.max() > 1 + 1e-3:
        raise DataError(f"{path}: image holds {image.dtype} from {image.min()} to {image.max()}; expected 0..1")
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
