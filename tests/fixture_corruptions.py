"""Ways in which trees on people's disks are broken, for the fixtures of ``fixture_sets``.

Each is found by the reader (opening, listing or loading raises one line that names the file and holds the words), or,
where every single file is well-formed, only by looking at what the values mean: ``m2h data verify`` has to say it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Corruption:
    """One way to break a tree.

    Args:
        fixture: Name in ``FIXTURES``.
        name: What was done.
        apply: Breaks the tree at this root.
        words: Each must be in the one-line error (case does not count).
        finder: "reader", or "verify" when no single file is wrong.
    """

    fixture: str
    name: str
    apply: Callable[[Path], None]
    words: tuple[str, ...]
    finder: Literal["reader", "verify"] = "reader"

    def __str__(self) -> str:
        return f"{self.fixture}: {self.name}"


def cut(name: str, keep: float = 0.6) -> Callable[[Path], None]:
    """Cut a file off."""

    def apply(root: Path) -> None:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: int(len(content) * keep)])

    return apply


def fill(name: str, content: bytes = b"") -> Callable[[Path], None]:
    """Replace what a file holds."""
    return lambda root: (root / name).write_bytes(content) and None


def remove(*names: str) -> Callable[[Path], None]:
    """Remove files or folders."""

    def apply(root: Path) -> None:
        for name in names:
            path = root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def swap(first: str, second: str) -> Callable[[Path], None]:
    """Exchange two folders or files."""

    def apply(root: Path) -> None:
        (root / first).rename(root / "aside")
        (root / second).rename(root / first)
        (root / "aside").rename(root / second)

    return apply


def png(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Rewrite a picture."""

    def apply(root: Path) -> None:
        Image.fromarray(np.ascontiguousarray(change(np.asarray(Image.open(root / name))))).save(root / name)

    return apply


def npy(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Rewrite a .npy file."""
    return lambda root: np.save(root / name, change(np.load(root / name)))


def hdf5(name: str, change: Callable[[np.ndarray], np.ndarray], key: str = "dataset") -> Callable[[Path], None]:
    """Rewrite an HDF5 file of one array, under the name ``key``."""
    import h5py

    def apply(root: Path) -> None:
        with h5py.File(root / name, "r") as file:
            array = change(file["dataset"][()])
        with h5py.File(root / name, "w") as file:
            file[key] = array

    return apply


def mat(name: str, key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Rewrite a .mat file of version 5."""
    from scipy.io import loadmat, savemat

    def apply(root: Path) -> None:
        arrays = [array for own, array in loadmat(root / name).items() if not own.startswith("__")]
        savemat(root / name, {key: change(arrays[0])})

    return apply


def all_npy(folder: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Rewrite all .npy files of a folder."""

    def apply(root: Path) -> None:
        for path in (root / folder).glob("*.npy"):
            np.save(path, change(np.load(path)))

    return apply


def text(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    """Rewrite a text file."""
    return lambda root: (root / name).write_text(change((root / name).read_text())) and None


def coloured(labels: np.ndarray) -> np.ndarray:
    """Labels painted for viewing."""
    return np.stack([labels * 5, labels * 3, 255 - labels], -1).astype(np.uint8)


def _six_classes(settings: str) -> str:
    return "\n".join(
        "classes: [wall, floor, cabinet, bed, chair, sofa]" if line.startswith("classes") else line
        for line in settings.split("\n")
    )


def _camera(root: Path, change: Callable[[dict], None]) -> None:
    path = root / "camera/train/aachen/aachen_000000_000019_camera.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


_A, _B, _C, _D, _H, _S, _F = "nyud-A", "nyud-B", "nyud-C", "nyud-D", "hypersim", "cityscapes", "folder"
_MAT = "nyu_depth_v2_labeled.mat"
_CITY = "aachen_000000_000019"
_LABELS = f"gtFine/train/aachen/{_CITY}_gtFine_labelIds.png"
_DISPARITY = f"disparity/train/aachen/{_CITY}_disparity.png"
_CAMERA = f"camera/train/aachen/{_CITY}_camera.json"
_GEOMETRY = "ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0000"
_COLOUR = "ai_001_001/images/scene_cam_00_final_hdf5/frame.0000.color.hdf5"
_SPLIT, _CAMERAS = "metadata_images_split_scene_v1.csv", "metadata_camera_parameters.csv"

CORRUPTIONS: tuple[Corruption, ...] = (
    # NYUDv2: files
    Corruption(_A, "image cut off", cut("images/0003.png"), ("0003.png", "cut off")),
    Corruption(_A, "image of no bytes", fill("images/0001.png"), ("0001.png", "readable image")),
    Corruption(_A, "image is a web page", fill("images/0003.png", b"<html>quota exceeded"), ("0003.png", "readable")),
    Corruption(_A, "label cut off", cut("segmentation/0003.png"), ("segmentation/0003.png", "cut off")),
    Corruption(_A, "label coloured", png("segmentation/0003.png", coloured), ("segmentation/0003.png", "channels")),
    Corruption(_A, "label of another size", png("segmentation/0003.png", lambda x: x[:-3]), ("segmentation/0003.png",)),
    Corruption(
        _A, "label of the 894", png("segmentation/0003.png", lambda x: x + 150), ("segmentation/0003.png", "label")
    ),
    Corruption(_A, "label missing", remove("segmentation/0003.png"), ("segmentation/0003.png", "missing")),
    Corruption(_A, "depth missing", remove("depth/0001.npy"), ("depth/0001.npy", "missing")),
    Corruption(_A, "depth cut off", cut("depth/0003.npy"), ("depth/0003.npy", "cut off")),
    Corruption(_A, "depth of no bytes", fill("depth/0003.npy"), ("depth/0003.npy",)),
    Corruption(_A, "depth of another size", npy("depth/0003.npy", lambda x: x.T), ("depth/0003.npy",)),
    Corruption(_A, "depth in millimetres", all_npy("depth", lambda x: x * 1000), ("depth",)),
    Corruption(_A, "normals with one channel", png("normals/0003.png", lambda x: x[..., 0]), ("normals/0003.png",)),
    Corruption(_A, "list empty", fill("gt_sets/train.txt"), ("train.txt",)),
    Corruption(_A, "list names what is not there", text("gt_sets/train.txt", lambda t: t + "0004\n"), ("0004",)),
    Corruption(_A, "lists exchanged", swap("gt_sets/train.txt", "gt_sets/val.txt"), ("train.txt", "official")),
    Corruption(_A, "list is no list", text("gt_sets/val.txt", lambda _: "{}"), ("val.txt",)),
    Corruption(_A, "labels and edges exchanged", swap("segmentation", "edge"), ("segmentation", "label")),
    Corruption(_A, "image folder missing", remove("images"), ("images",)),
    Corruption(_B, "normals cut off", cut("normals/0003.npy"), ("normals/0003.npy", "cut off")),
    Corruption(_B, "normals of another size", npy("normals/0003.npy", lambda x: x[1:]), ("normals/0003.npy",)),
    Corruption(_B, "image cut off", cut("images/0003.jpg"), ("images/0003.jpg", "cut off")),
    Corruption(_C, "labels cut off", cut("segmentation/0003.mat"), ("segmentation/0003.mat", "cut off")),
    Corruption(
        _C,
        "labels under another name",
        mat("segmentation/0003.mat", "LabelMap", lambda x: x),
        ("segmentation/0003.mat", "LabelMap"),
    ),
    Corruption(_C, "images and normals exchanged", swap("images", "normals"), ("normals",), "verify"),
    Corruption(_D, "label 13", npy("train/label/0.npy", lambda x: x + 8), ("label/0.npy",)),
    Corruption(_D, "labels missing", remove("train/label/0.npy"), ("label/0.npy",)),
    Corruption(_D, "image cut off", cut("train/image/0.npy"), ("image/0.npy", "cut off")),
    Corruption("nyud-mat", "file cut off", cut(_MAT), (_MAT, "cut off")),
    Corruption("nyud-mat", "file of no bytes", fill(_MAT), (_MAT,)),
    # Hypersim
    Corruption(_H, "colour cut off", cut(_COLOUR), ("frame.0000.color.hdf5", "cut off")),
    Corruption(_H, "depth missing", remove(f"{_GEOMETRY}.depth_meters.hdf5"), ("depth_meters.hdf5", "missing")),
    Corruption(_H, "depth of no bytes", fill(f"{_GEOMETRY}.depth_meters.hdf5"), ("depth_meters.hdf5", "cut off")),
    Corruption(
        _H, "array under another name", hdf5(f"{_GEOMETRY}.semantic.hdf5", lambda x: x, "data"), ("semantic", "data")
    ),
    Corruption(
        _H, "labels of another size", hdf5(f"{_GEOMETRY}.semantic.hdf5", lambda x: x[:, 1:]), ("semantic.hdf5",)
    ),
    Corruption(
        _H, "labels out of range", hdf5(f"{_GEOMETRY}.semantic.hdf5", lambda x: x + 40), ("semantic.hdf5", "label")
    ),
    Corruption(
        _H, "normals with one channel", hdf5(f"{_GEOMETRY}.normal_cam.hdf5", lambda x: x[..., 0]), ("normal_cam.hdf5",)
    ),
    Corruption(_H, "split table missing", remove(_SPLIT), (_SPLIT,)),
    Corruption(_H, "split table without its columns", text(_SPLIT, lambda t: t.split("\n", 1)[1]), (_SPLIT,)),
    Corruption(_H, "camera table missing", remove(_CAMERAS), (_CAMERAS,)),
    Corruption(
        _H, "scene without a camera", text(_CAMERAS, lambda t: t.replace("ai_021_002", "ai_021_003")), ("ai_021_002",)
    ),
    Corruption(_H, "scene missing", remove("ai_003_010"), ("ai_003_010",)),
    # Cityscapes
    Corruption(_S, "image cut off", cut(f"leftImg8bit/train/aachen/{_CITY}_leftImg8bit.png"), (_CITY, "cut off")),
    Corruption(_S, "image missing", remove(f"leftImg8bit/train/aachen/{_CITY}_leftImg8bit.png"), (_CITY,)),
    Corruption(_S, "labels coloured", png(_LABELS, coloured), ("labelIds.png", "channels")),
    Corruption(_S, "labels of another size", png(_LABELS, lambda x: x[::2, ::2]), ("labelIds.png",)),
    Corruption(
        _S, "label out of range", png(_LABELS, lambda x: np.where(x == 7, 77, x).astype(np.uint8)), ("labelIds.png",)
    ),
    Corruption(_S, "labels missing", remove(_LABELS), (_CITY, "labelIds.png")),
    Corruption(_S, "disparity of 8 bits", png(_DISPARITY, lambda x: (x >> 8).astype(np.uint8)), ("disparity.png", "8")),
    Corruption(_S, "disparity cut off", cut(_DISPARITY), ("disparity.png", "cut off")),
    Corruption(_S, "camera missing", remove(_CAMERA), (_CITY, "camera.json")),
    Corruption(_S, "camera no JSON", fill(_CAMERA, b"\x00\x01 not JSON"), ("camera.json",)),
    Corruption(
        _S,
        "camera without focal length",
        lambda root: _camera(root, lambda c: c["intrinsic"].pop("fx")),
        ("camera.json", "fx"),
    ),
    Corruption(
        _S,
        "camera without baseline",
        lambda root: _camera(root, lambda c: c["extrinsic"].update(baseline=0)),
        ("camera.json", "baseline"),
    ),
    Corruption(_S, "disparity and labels exchanged", swap("disparity", "gtFine"), ("labelIds.png",)),
    # A folder of one's own
    Corruption(_F, "settings missing", remove("dataset.yaml"), ("dataset.yaml",)),
    Corruption(_F, "settings no YAML", fill("dataset.yaml", b"classes: [wall, floor"), ("dataset.yaml",)),
    Corruption(_F, "key mistyped", text("dataset.yaml", lambda t: t.replace("ignore", "ignroe")), ("ignroe",)),
    Corruption(_F, "fewer classes than labels", text("dataset.yaml", _six_classes), ("semseg/", "label")),
    Corruption(_F, "depth of 8 bits", png("depth/hall/0.png", lambda x: x.astype(np.uint8)), ("depth/hall/0.png",)),
    Corruption(
        _F,
        "depth without a scale",
        text("dataset.yaml", lambda t: t.replace("  scale: 0.001\n", "  max: 9\n")),
        ("scale",),
    ),
    Corruption(_F, "label without an image", remove("images/hall/1.png"), ("hall/1",)),
    Corruption(_F, "image cut off", cut("images/hall/1.png"), ("images/hall/1.png", "cut off")),
    Corruption(_F, "labels coloured", png("semseg/hall/1.png", coloured), ("semseg/hall/1.png", "channels")),
    Corruption(_F, "labels of another size", png("semseg/hall/1.png", lambda x: x.T), ("semseg/hall/1.png",)),
    Corruption(_F, "list names what is not there", text("splits/val.txt", lambda t: t + "attic/7\n"), ("attic/7",)),
    Corruption(_F, "image in two splits", text("splits/val.txt", lambda t: t + "hall/0\n"), ("hall/0",)),
    Corruption(_F, "camera of three numbers", fill("intrinsics/hall/0.txt", b"500 500 320"), ("hall/0.txt",)),
    Corruption("folder-npy", "normals cut off", cut("normals/hall/0.npy"), ("normals/hall/0.npy", "cut off")),
    Corruption(
        "folder-npy",
        "normals in uint8",
        npy("normals/hall/0.npy", lambda x: x.astype(np.uint8)),
        ("normals/hall/0.npy",),
    ),
)
