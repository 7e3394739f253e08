"""What a packaging of NYUDv2 offers to the reader, and the packagings of one folder per label (NYUDv2, NYUD_MT)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from m2h_lightning.data.sources.base import Item
from m2h_lightning.data.sources.nyud_facts import COUNT, official_ids, run_of, size_text
from m2h_lightning.data.sources.reading import as_map, image_size, read_image, read_mat
from m2h_lightning.data.sources.values import (
    binary_edges,
    camera_normals,
    few,
    metres,
    read_normals,
    read_values,
    whole_numbers,
)
from m2h_lightning.errors import DataError
from m2h_lightning.labels import IGNORE

FARTHEST_MEDIAN = 20.0
"""Metres. The sensor of NYUDv2 saw 10 m: a picture whose typical depth is more was not stored in metres."""


class Layout(ABC):
    """One packaging of NYUDv2.

    Attributes:
        text: Name of the packaging with its image size.
        classes: 40 or 13.
        stored: Labels that the files hold, of "semseg", "depth", "normals", "edges", "instance".
        splits: Official splits that are here.
        provenance: How the stored labels and the scenes came about.
    """

    text: str
    classes: int = 40
    stored: tuple[str, ...]
    splits: tuple[str, ...] = ("train", "test")
    provenance: dict[str, str]

    @abstractmethod
    def items(self, split: str) -> list[Item]:
        """List the samples of a split; refuse lists and files that do not fit."""

    @abstractmethod
    def size(self, item: Item) -> tuple[int, int]:
        """Return height and width of a sample without decoding it."""

    @abstractmethod
    def read(self, item: Item, axes: str | None) -> dict[str, Any]:
        """Read what is stored of a sample in the contract's values.

        Args:
            item: The sample.
            axes: Convention of the stored normals; None does not read them.
        """


def is_folders(root: Path) -> bool:
    """Say whether ``root`` holds a packaging of one folder per modality."""
    return (root / "images").is_dir() and bool(label_folders(root))


def label_folders(root: Path) -> list[str]:
    """Return which folders of labels or lists there are."""
    names = [folder for kind, (folder, _) in _KINDS.items() if kind != "image"]
    return [f"{name}/" for name in (*names, "gt_sets") if (root / name).is_dir()]


def train_ids(stored: np.ndarray, path: Path) -> np.ndarray:
    """Return train ids 0..39, 255 = ignore, of stored class numbers 1..40 with 0 = unlabelled.

    Raises:
        DataError: Other numbers.
    """
    stored = whole_numbers(stored, path)
    low, high = int(stored.min()), int(stored.max())
    if low < 0 or high > 40:
        raise DataError(
            f"{path}: holds label {high if high > 40 else low}; NYUDv2 has 0 (unlabelled) to 40: is this a map of the "
            "894 raw labels, or of another set?"
        )
    return np.where(stored == 0, IGNORE, stored.astype(np.int16) - 1).astype(np.uint8)


_KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "image": ("images", (".png", ".jpg")),
    "semseg": ("segmentation", (".png", ".mat")),
    "depth": ("depth", (".npy", ".mat")),
    "normals": ("normals", (".png", ".npy", ".jpg")),
    "edges": ("edge", (".png", ".npy")),
}
"""Folder of each modality, and the kinds of file in which the packagings keep it."""

_LISTS = {"train": "train.txt", "test": "val.txt"}
"""The packagings call the official test split "val"."""


def _packaging(suffixes: dict[str, str]) -> str:
    if ".mat" in suffixes.values() or suffixes.get("normals") == ".jpg":
        return "NYUD_MT with .mat labels (ASTMT)"
    if suffixes.get("normals") == ".npy" or suffixes.get("edges") == ".npy":
        return "NYUD_MT with .npy labels (MTI)"
    return "NYUDv2 with .png labels (InvPT)" if suffixes["image"] == ".png" else "NYUD_MT"


class FolderLayout(Layout):
    """NYUDv2 (InvPT), NYUD_MT (MTI) and NYUD_MT (ASTMT): a folder per modality, files named by id, lists of ids.

    Args:
        root: The folder that holds ``images/``.

    Raises:
        DataError: A folder is empty or holds files of a kind that none of the packagings has.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[str, set[str]] = {}
        self._suffixes: dict[str, str] = {}
        for kind, (folder, accepted) in _KINDS.items():
            if (root / folder).is_dir():
                self._suffixes[kind], self._names[kind] = _scan(root / folder, accepted)
        self.stored = tuple(kind for kind in _KINDS if kind != "image" and kind in self._names)
        if not self.stored:
            folders = ", ".join(f"{folder}/" for folder, _ in list(_KINDS.values())[1:])
            raise DataError(f"{root}: has images/ but no labels; expected some of {folders} beside it")
        first = root / "images" / min(self._names["image"])
        lacking = [folder for kind, (folder, _) in _KINDS.items() if kind not in self._names]
        unlisted = [name for name in _LISTS.values() if not (root / "gt_sets" / name).is_file()]
        self.text = f"{_packaging(self._suffixes)}, {size_text(*image_size(first))}"
        self.text += f", without {' and '.join(f'{folder}/' for folder in lacking)}" if lacking else ""
        self.text += f", without gt_sets/{' and '.join(unlisted)} (official ids taken)" if unlisted else ""
        self.provenance = {
            "semseg": "the set's 40 classes, unlabelled ignored",
            "depth": "the set's depth in metres; 0, negative, infinite and NaN are invalid",
            "normals": f"the set's normals ({self._suffixes.get('normals')} files)",
            "edges": "the set's edge maps; how they were made is not documented",
            "split": "official ids" if unlisted else "lists of the packaging (val is the official test split)",
            "scene": "runs of consecutive ids on one side of the official split: unions of whole scenes",
        }

    def _ids(self, split: str) -> list[int]:
        path = self.root / "gt_sets" / _LISTS[split]
        if not path.is_file():
            return list(official_ids(split))
        numbers = []
        for line, text in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
            if text.strip():
                if not text.strip().isdecimal():
                    raise DataError(f"{path}: line {line} is '{text.strip()[:40]}'; expected one id per line, as 0001")
                numbers.append(int(text))
        allowed = set(official_ids(split))
        wrong = [f"{number:04d}" for number in numbers if number not in allowed]
        if wrong:
            raise DataError(
                f"{path}: {len(wrong)} of {len(numbers)} ids are not of the official {split} split ({few(wrong)}); use "
                "the official lists, or remove gt_sets/ and they are used"
            )
        if len(set(numbers)) != len(numbers):
            raise DataError(f"{path}: {len(numbers) - len(set(numbers))} ids are listed twice; use the official lists")
        if not numbers:
            raise DataError(f"{path}: lists no ids; use the official lists, or remove the file and they are used")
        return numbers

    def items(self, split: str) -> list[Item]:
        """List the samples of a split; refuse lists that contradict the official split and missing files."""
        items, missing = [], []
        for number in self._ids(split):
            files = {}
            for kind, names in self._names.items():
                name = f"{number:04d}{self._suffixes[kind]}"
                files[kind] = self.root / _KINDS[kind][0] / name
                if name not in names:
                    missing.append(f"{_KINDS[kind][0]}/{name}")
            items.append(Item(f"{number:04d}", split, run_of(number), files))
        if missing:
            raise DataError(
                f"{self.root}: {len(missing)} files of the {split} split are missing: {few(missing)}; unpack the "
                "archive again, or list the ids that are here in gt_sets/"
            )
        return items

    def size(self, item: Item) -> tuple[int, int]:
        """Return height and width from the image's header."""
        return image_size(item.files["image"])

    def read(self, item: Item, axes: str | None) -> dict[str, Any]:
        """Read the files of a sample."""
        image = read_image(item.files["image"])
        shape = image.shape[:2]
        out: dict[str, Any] = {"image": image}
        if path := item.files.get("semseg"):
            stored = read_mat(path, "segmentation") if path.suffix == ".mat" else read_values(path)
            out["semseg"] = train_ids(as_map(stored, path, stored.dtype.type, shape), path)
        if path := item.files.get("depth"):
            stored = read_mat(path, "depth") if path.suffix == ".mat" else read_values(path)
            out["depth"] = metres(stored, path, shape, FARTHEST_MEDIAN)
        if axes and (path := item.files.get("normals")):
            out["normals"] = camera_normals(read_normals(path), path, shape, axes)
        if path := item.files.get("edges"):
            out["edges"] = binary_edges(read_values(path), path, shape)
        return out


def _scan(folder: Path, accepted: tuple[str, ...]) -> tuple[str, set[str]]:
    """Return the one kind of file that a folder holds, and the names of those files."""
    names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    found = [suffix for suffix in accepted if any(name.endswith(suffix) for name in names)]
    if len(found) == 1:
        return found[0], {name for name in names if name.endswith(found[0])}
    wanted = " or ".join(accepted)
    if found:
        raise DataError(f"{folder}: holds both {' and '.join(found)} files; keep the files of one packaging")
    if names:
        raise DataError(f"{folder}: holds files such as {min(names)}; expected {wanted} files")
    raise DataError(f"{folder}: is empty; expected {wanted} files for {COUNT} ids, or no such folder")
