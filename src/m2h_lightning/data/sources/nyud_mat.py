"""The raw file ``nyu_depth_v2_labeled.mat``: HDF5 (MATLAB 7.3), so all axes are stored in reverse."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from m2h_lightning.data.sources.base import Item
from m2h_lightning.data.sources.nyud_facts import COUNT, CROP, map_894_to_40, official_ids, run_of, size_text
from m2h_lightning.data.sources.nyud_layouts import FARTHEST_MEDIAN, Layout, train_ids
from m2h_lightning.data.sources.reading import AGAIN, import_h5py
from m2h_lightning.data.sources.values import metres
from m2h_lightning.errors import DataError

RAW_NAME = "nyu_depth_v2_labeled.mat"


class MatLayout(Layout):
    """The raw labelled file. Samples are slices of it; the file is opened once per process, when first needed.

    Args:
        file: The .mat file.
        crop: "gupta" cuts the white frame off (425×560); "none" keeps 480×640.

    Raises:
        DataError: Not such a file, or cut off.
        MissingExtraError: h5py is not installed.
    """

    def __init__(self, file: Path, crop: str) -> None:
        self.file = file
        self._open: tuple[int, Any] | None = None
        self._scenes: list[str] | None = None
        with self._reading() as mat:
            lacking = [key for key in ("images", "depths", "labels") if key not in mat]
            if lacking:
                raise DataError(
                    f"{file}: holds no '{lacking[0]}' but {', '.join(mat) or 'nothing'}; expected {RAW_NAME}"
                )
            shape = mat["images"].shape
            if len(shape) != 4:
                raise DataError(f"{file}: 'images' is {shape}; expected {RAW_NAME} as published")
            self.count, size = int(shape[0]), (int(shape[3]), int(shape[2]))
            flat = (self.count, size[1], size[0])
            expected = {"images": (self.count, 3, *flat[1:]), "depths": flat, "labels": flat, "instances": flat}
            for key, want in expected.items():
                if key in mat and mat[key].shape != want:
                    raise DataError(f"{file}: '{key}' is {mat[key].shape}; expected {RAW_NAME} as published")
            self.stored = ("semseg", "depth", *(("instance",) if "instances" in mat else ()))
            has_scenes = "scenes" in mat
        if not 1 <= self.count <= COUNT:
            raise DataError(f"{file}: holds {self.count} images; {RAW_NAME} has {COUNT}")
        if crop == "gupta" and size != (480, 640):
            raise DataError(
                f"{file}: images are {size[0]}×{size[1]}, the crop is for 480×640; give --crop none (in a "
                "configuration: data.stored_crop: none)"
            )
        self._window = np.s_[CROP[0] : CROP[1], CROP[2] : CROP[3]] if crop == "gupta" else np.s_[:, :]
        self._size = (CROP[1] - CROP[0], CROP[3] - CROP[2]) if crop == "gupta" else size
        some = "" if self.count == COUNT else f", only {self.count} of {COUNT} images"
        self.text = f"{RAW_NAME} (raw HDF5 file), {size_text(*self._size)}{some}"
        self.provenance = {
            "semseg": "the file's labels mapped to 40 classes (mapClass), unlabelled ignored",
            "depth": "the file's in-painted depths in metres (where the sensor saw nothing they are filled in)",
            "split": "official ids",
            "scene": "the file's scene names" if has_scenes else "runs of consecutive ids: unions of whole scenes",
        }
        self.splits = tuple(split for split in ("train", "test") if official_ids(split)[0] <= self.count)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        h5py = import_h5py()
        try:
            # A handle must not be shared with a forked process: each process opens its own.
            if self._open is None or self._open[0] != os.getpid():
                self._open = (os.getpid(), h5py.File(self.file, "r"))
            yield self._open[1]
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise DataError(
                f"{self.file}: corrupt, cut off or no HDF5 file ({str(error).splitlines()[0]}); {AGAIN.split(',')[0]}"
            ) from None

    def _scene(self, number: int) -> str:
        if self._scenes is None:
            with self._reading() as mat:
                # A cell array of strings: references to arrays of UTF-16 codes.
                cells = mat["scenes"][()].ravel() if "scenes" in mat else []
                self._scenes = ["".join(map(chr, np.asarray(mat[cell]).ravel())) for cell in cells]
            if self._scenes and len(self._scenes) != self.count:
                raise DataError(f"{self.file}: names {len(self._scenes)} scenes for {self.count} images; {AGAIN}")
        return self._scenes[number - 1] if self._scenes else run_of(number)

    def items(self, split: str) -> list[Item]:
        """List the samples of a split."""
        files = dict.fromkeys(("image", "semseg", "depth"), self.file)
        return [
            Item(f"{number:04d}", split, self._scene(number), files)
            for number in official_ids(split)
            if number <= self.count
        ]

    def size(self, item: Item) -> tuple[int, int]:
        """Return height and width after the crop."""
        return self._size

    def read(self, item: Item, axes: str | None) -> dict[str, Any]:
        """Read one slice of each array."""
        index = int(item.id) - 1
        with self._reading() as mat:
            arrays = {
                key: np.asarray(mat[key][index]) for key in ("images", "depths", "labels", "instances") if key in mat
            }
        # Reversed axes: (3, width, height) becomes height×width×3.
        arrays = {key: np.ascontiguousarray(array.T[self._window]) for key, array in arrays.items()}
        table = map_894_to_40()
        if (highest := int(arrays["labels"].max())) >= len(table):
            raise DataError(f"{self.file}: image {item.id} holds label {highest}; expected 0..{len(table) - 1}")
        out = {
            "image": arrays["images"],
            "semseg": train_ids(table[arrays["labels"]], self.file),
            "depth": metres(arrays["depths"], self.file, self._size, FARTHEST_MEDIAN),
        }
        if "instances" in arrays:
            # Objects are numbered anew for each of the 894 labels; unlabelled pixels belong to none.
            numbers = arrays["labels"].astype(np.int32) * 256 + arrays["instances"].astype(np.int32)
            out["instance"] = np.where(arrays["labels"] == 0, 0, numbers).astype(np.int32)
        return out
