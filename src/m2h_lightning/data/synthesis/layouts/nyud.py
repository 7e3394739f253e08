"""Write NYUDv2's layouts: the four packagings of the literature, and the publishers' MATLAB file (in ``nyud_mat``).

=========  ==================  =====================  ==================  =====================
packaging  image               labels                 depth               normals, edges
=========  ==================  =====================  ==================  =====================
A          .png                .png 0..40, 0 = void   .npy metres         .png uint8, .png 0/255
B          .jpg                .png 0..40, 0 = void   .npy metres         .npy, .npy
C          .jpg                .mat 'segmentation'    .mat 'depth'        .jpg uint8, .png 0/255
D          .npy float 0..1     .npy 13 classes, −1    .npy H×W×1 metres   .npy, none
mat        nyu_depth_v2_labeled.mat: images, labels 0..894, depths, rawDepths, instances, scenes; no normals, no edges
=========  ==================  =====================  ==================  =====================

Normals are stored with y up and z towards the camera. Sources: prismformore/Multi-Task-Transformer,
SimonVandenhende/Multi-Task-Learning-PyTorch, facebookresearch/astmt and lorenmt/mtan (facts only).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from m2h_lightning.data.sources.nyud_facts import CROP, map_40_to_13, official_ids
from m2h_lightning.data.synthesis.layouts.nyud_mat import write_mat_file
from m2h_lightning.data.synthesis.layouts.sample import LayoutSample
from m2h_lightning.data.synthesis.layouts.writing import put_jpg, put_mat, put_npy, put_png, put_text
from m2h_lightning.errors import ConfigError, DataError, did_you_mean
from m2h_lightning.geometry import crop_intrinsics
from m2h_lightning.labels import IGNORE

Packaging = Literal["A", "B", "C", "D", "mat"]
PACKAGINGS: tuple[str, ...] = get_args(Packaging)
FULL = (480, 640)
LISTS = {"train": "train", "test": "val"}
"""The literature validates on the official test split: its list is called ``val.txt``."""


def crop(sample: LayoutSample) -> LayoutSample:
    """Return the sample without the frame that Gupta's crop cuts off 480×640."""
    top, bottom, left, right = CROP
    maps = {
        key: getattr(sample, key)[top:bottom, left:right]
        for key in ("image", "semseg", "depth", "normals", "instance", "edges")
    }
    return replace(sample, **maps, K=crop_intrinsics(np.asarray(sample.K, np.float64), top, left))


def stored_normals(normals: np.ndarray) -> np.ndarray:
    """Return float32 normals H×W×3 in NYUD's frame (x right, y up, z to the camera), 0 where unknown."""
    return (np.asarray(normals, np.float64) * [1, -1, -1]).astype(np.float32) + np.float32(0)  # + 0: no minus zero


def normals_picture(normals: np.ndarray) -> np.ndarray:
    """Return uint8 x for 2x/255 − 1; unknown ones become 128, the nearest to zero that a picture can hold."""
    known = (np.abs(normals).sum(-1) > 0)[..., None]
    return np.where(known, np.rint((stored_normals(normals).astype(np.float64) + 1) * 127.5), 128).astype(np.uint8)


def labels_from_one(semseg: np.ndarray) -> np.ndarray:
    """Return uint8 labels 1..40, 0 = void."""
    return np.where(semseg == IGNORE, 0, semseg + 1).astype(np.uint8)


def _edges(edges: np.ndarray) -> np.ndarray:
    """Return edges {0, 1}: these packagings know no unlabelled edge pixels."""
    return (edges == 1).astype(np.uint8)


def _write_a(root: Path, sample: LayoutSample) -> None:
    put_png(root / "images" / f"{sample.id}.png", sample.image)
    put_png(root / "segmentation" / f"{sample.id}.png", labels_from_one(sample.semseg))
    put_npy(root / "depth" / f"{sample.id}.npy", sample.depth.astype(np.float32))
    put_png(root / "normals" / f"{sample.id}.png", normals_picture(sample.normals))
    put_png(root / "edge" / f"{sample.id}.png", _edges(sample.edges) * 255)


def _write_b(root: Path, sample: LayoutSample) -> None:
    put_jpg(root / "images" / f"{sample.id}.jpg", sample.image)
    put_png(root / "segmentation" / f"{sample.id}.png", labels_from_one(sample.semseg))
    put_npy(root / "depth" / f"{sample.id}.npy", sample.depth.astype(np.float32))
    put_npy(root / "normals" / f"{sample.id}.npy", stored_normals(sample.normals))
    put_npy(root / "edge" / f"{sample.id}.npy", _edges(sample.edges))


def _write_c(root: Path, sample: LayoutSample) -> None:
    put_jpg(root / "images" / f"{sample.id}.jpg", sample.image)
    put_mat(root / "segmentation" / f"{sample.id}.mat", segmentation=labels_from_one(sample.semseg))
    put_mat(root / "depth" / f"{sample.id}.mat", depth=sample.depth.astype(np.float32))
    put_jpg(root / "normals" / f"{sample.id}.jpg", normals_picture(sample.normals))
    put_png(root / "edge" / f"{sample.id}.png", _edges(sample.edges) * 255)


def _write_d(folder: Path, sample: LayoutSample, number: int) -> None:
    thirteen = map_40_to_13()[sample.semseg]
    put_npy(folder / "image" / f"{number}.npy", sample.image.astype(np.float32) / np.float32(255))
    put_npy(folder / "label" / f"{number}.npy", np.where(thirteen == IGNORE, -1.0, thirteen).astype(np.float32))
    put_npy(folder / "depth" / f"{number}.npy", sample.depth.astype(np.float32)[..., None])
    put_npy(folder / "normal" / f"{number}.npy", stored_normals(sample.normals))


def _checked(samples: Iterable[LayoutSample]) -> Iterator[LayoutSample]:
    allowed = {split: {f"{number:04d}" for number in official_ids(split)} for split in LISTS}
    for sample in samples:
        if sample.split not in LISTS:
            raise DataError(f"sample '{sample.id}': NYUDv2 has no split '{sample.split}', only train and test")
        if sample.id not in allowed[sample.split]:
            raise DataError(f"sample '{sample.id}': is not among NYUDv2's official ids of the split {sample.split}")
        yield sample


def write(root: Path, samples: Iterable[LayoutSample], packaging: Packaging = "A") -> int:
    """Write samples; ``id`` is four digits, 0001..1449, of the official split.

    Packaging A gets samples of 480×640 cut to 425×560, as its publishers did; D numbers the samples of each split from
    0 in the order given; "mat" needs the ids 0001..N without a gap and of one size.

    Args:
        root: The folder.
        samples: What to write; the splits "train" and "test".
        packaging: "A", "B", "C", "D" or "mat".

    Returns:
        Number of samples written.

    Raises:
        ConfigError: There is no such packaging.
        DataError: An id is not of its split, or "mat" has a gap.
        MissingExtraError: "mat" needs h5py.
    """
    if packaging not in PACKAGINGS:
        hint = did_you_mean(str(packaging), PACKAGINGS)
        raise ConfigError(f"packaging is {packaging!r}, expected one of {', '.join(PACKAGINGS)}{hint}")
    samples = _checked(samples)
    if packaging == "mat":
        return write_mat_file(root / "nyu_depth_v2_labeled.mat", samples)
    written: dict[str, list[str]] = {split: [] for split in LISTS}
    for sample in samples:
        ids = written[sample.split]
        if packaging == "D":
            _write_d(root / LISTS[sample.split], sample, len(ids))
        elif packaging == "C":
            _write_c(root, sample)
        elif packaging == "B":
            _write_b(root, sample)
        else:
            _write_a(root, crop(sample) if sample.size == FULL else sample)
        ids.append(sample.id)
    if packaging != "D":
        for split, ids in written.items():
            if ids:
                put_text(root / "gt_sets" / f"{LISTS[split]}.txt", "".join(f"{name}\n" for name in sorted(ids)))
    return sum(map(len, written.values()))
