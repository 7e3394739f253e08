"""Write ``nyu_depth_v2_labeled.mat``: MATLAB 7.3, that is HDF5, which keeps every array with its axes reversed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from m2h_lightning.data.sources.nyud_facts import map_894_to_40
from m2h_lightning.data.sources.reading import import_h5py
from m2h_lightning.data.synthesis.layouts.sample import LayoutSample
from m2h_lightning.errors import DataError
from m2h_lightning.files import atomic

_USER_BLOCK = 512  # MATLAB puts its own header before the HDF5 file
_CLASSES = {"uint8": "uint8", "uint16": "uint16", "float32": "single"}


def raw_labels() -> np.ndarray:
    """Return uint16 (256,): for each NYU40 train id one of the 894 raw labels that becomes it; 255 becomes 0."""
    table = np.zeros(256, np.uint16)
    classes = map_894_to_40()
    for train_id in range(40):
        table[train_id] = np.flatnonzero(classes == train_id + 1)[0]
    return table


def instances_within(labels: np.ndarray, instance: np.ndarray) -> np.ndarray:
    """Return uint8 object numbers as the file has them: counted from 1 anew for each label, 0 = none.

    Args:
        labels: Raw labels H×W, 0 = unlabelled.
        instance: Object numbers H×W over all labels, 0 = none.
    """
    out = np.zeros(labels.shape, np.uint8)
    for label in np.unique(labels[labels > 0]):
        of_label = (labels == label) & (instance > 0)
        _, index = np.unique(instance[of_label], return_inverse=True)
        out[of_label] = np.minimum(index.reshape(-1) + 1, 255)
    return out


def _text(group: Any, name: str, text: str) -> Any:
    """Store a string as MATLAB does, a column of UTF-16 codes, and return a reference to it."""
    codes = np.frombuffer(text.encode("utf-16-le"), np.uint16)[:, None]
    data = group.create_dataset(name, data=codes, track_times=False)
    data.attrs["MATLAB_class"] = np.bytes_(b"char")
    data.attrs["MATLAB_int_decode"] = np.int32(2)
    return data.ref


def _write(file: Any, samples: Iterable[LayoutSample]) -> int:
    arrays: dict[str, Any] = {}
    to_raw = raw_labels()
    scenes: dict[int, str] = {}
    size: tuple[int, int] | None = None
    for sample in samples:
        index = int(sample.id) - 1
        size = size or sample.size
        if sample.size != size:
            raise DataError(f"sample '{sample.id}': is {sample.size}, the first one is {size}; one file has one size")
        depth = sample.depth.astype(np.float32)
        labels = to_raw[sample.semseg]
        maps = {
            "images": sample.image,
            "labels": labels,
            "depths": depth,
            "rawDepths": depth,
            "instances": instances_within(labels, sample.instance),
        }
        for key, array in maps.items():
            reversed_axes = array.transpose()  # H×W×C becomes C×W×H
            if key not in arrays:
                shape = reversed_axes.shape
                arrays[key] = file.create_dataset(
                    key,
                    (0, *shape),
                    array.dtype,
                    maxshape=(None, *shape),
                    chunks=(1, *shape),
                    compression="gzip",
                    compression_opts=3,
                    track_times=False,
                )
                arrays[key].attrs["MATLAB_class"] = np.bytes_(_CLASSES[array.dtype.name])
            if index >= len(arrays[key]):
                arrays[key].resize(index + 1, axis=0)
            arrays[key][index] = reversed_axes
        scenes[index] = sample.scene
    gaps = sorted(set(range(max(scenes, default=-1) + 1)) - set(scenes))
    if gaps:
        raise DataError(f"the file numbers its samples by position: id {gaps[0] + 1:04d} is missing")
    if scenes:
        import h5py

        group = file.create_group("#refs#")
        known = {scene: _text(group, f"s{k}", scene) for k, scene in enumerate(dict.fromkeys(scenes.values()))}
        table = np.empty((1, len(scenes)), h5py.ref_dtype)
        table[0] = [known[scenes[index]] for index in range(len(scenes))]
        data = file.create_dataset("scenes", data=table, dtype=h5py.ref_dtype, track_times=False)
        data.attrs["MATLAB_class"] = np.bytes_(b"cell")
    return len(scenes)


def write_mat_file(path: Path, samples: Iterable[LayoutSample]) -> int:
    """Write the samples of ids 1..N to positions 0..N − 1.

    Args:
        path: The file.
        samples: In any order, of one size.

    Returns:
        Number of samples written.

    Raises:
        DataError: An id is missing, or the sizes differ.
        MissingExtraError: h5py is not installed.
    """
    h5py = import_h5py()
    with atomic(path) as temporary:
        with h5py.File(temporary, "w", userblock_size=_USER_BLOCK) as file:
            count = _write(file, samples)
        header = b"MATLAB 7.3 MAT-file, written by m2h-lightning, HDF5 schema 1.00 .".ljust(124) + b"\x00\x02IM"
        with open(temporary, "r+b") as raw:
            raw.write(header)
    return count
