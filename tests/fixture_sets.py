"""Small trees in the true on-disk formats, with the hard cases inside, and what a correct reader must make of them.

``FIXTURES[name].write(root)`` makes a tree of at most 200 kB and returns the path to give the reader;
``FIXTURES[name].truth()`` is computed from the analytic scene, not read back from the files. Hard cases: unlabelled
pixels, NaN, disparities 0 and 1, excluded frames, inward and short normals, a tilt-shift camera, 16-bit, grey and RGBA
images, odd sizes, other float types, lists with carriage returns. ``fixture_corruptions`` breaks the trees.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from analytic import analytic_sample, grey, pinhole, tilt_shift
from m2h_lightning.data.synthesis.layouts import LayoutSample, write_layout
from m2h_lightning.labels import IGNORE

NYU_K = np.array([[518.8579, 0, 325.5824], [0, 519.4696, 253.7362], [0, 0, 1.0]])
# The 13-class number of each of the 40 classes, from 1 (class13Mapping.mat).
FORTY_TO_13 = "12 5 6 1 4 9 10 12 13 6 8 6 13 10 6 13 6 7 7 5 7 3 2 6 11 7 7 7 7 7 7 6 7 7 7 7 7 7 6 7"
# Train id of each Cityscapes label id (cityscapesScripts, helpers/labels.py).
TRAIN_IDS = "7:0 8:1 11:2 12:3 13:4 17:5 19:6 20:7 21:8 22:9 23:10 24:11 25:12 26:13 27:14 28:15 31:16 32:17 33:18"


@dataclass(frozen=True)
class Expected:
    """What a correct reader returns of one sample; a field of None is not to be compared.

    Args:
        split: "train", "val" or "test".
        image: uint8 H×W×3.
        semseg: uint8 H×W in the set's own train ids.
        depth: float64 metres H×W, 0 = unknown.
        normals: float64 H×W×3, 0 = unknown.
        edges: uint8 H×W of the provided map.
        instance: Object numbers; only which pixels belong together counts, and only where they are above 0.
        K: float64 3×3.
        image_within: Grey levels by which the picture may differ.
        normals_within: Degrees by which normals may differ, and the share of pixels that must hold it.
    """

    split: str
    image: np.ndarray
    semseg: np.ndarray | None
    depth: np.ndarray
    normals: np.ndarray | None = None
    edges: np.ndarray | None = None
    instance: np.ndarray | None = None
    K: np.ndarray | None = None
    image_within: int = 0
    normals_within: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Fixture:
    """One tree.

    Args:
        set: Name of the reader, of ``sources.SETS``.
        write: Makes the tree in a folder that does not exist yet and returns the path for the reader.
        truth: What must come out, by the name of the frame, which the reader's id contains.
        options: For the reader.
    """

    set: str
    write: Callable[[Path], Path]
    truth: Callable[[], dict[str, Expected]]
    options: dict = field(default_factory=dict)


def _expected(sample: LayoutSample, **changes) -> Expected:
    base = {key: getattr(sample, key) for key in ("split", "image", "semseg", "depth", "normals", "edges", "K")}
    return replace(Expected(**base), **changes)


# ---------------------------------------------------------------------------------------------------------- NYUDv2


def nyu_camera(height: int, width: int) -> np.ndarray:
    """NYU's camera for an image resized to this size: pixel areas are what a resize maps."""
    K = NYU_K.copy()
    K[0] *= width / 640
    K[1] *= height / 480
    K[:2, 2] += [0.5 * width / 640 - 0.5, 0.5 * height / 480 - 0.5]
    return K


def _nyud_samples(ids: tuple[str, ...] = ("0001", "0003", "0010"), size: tuple[int, int] = (36, 48)) -> list:
    test = ("0001", "0002")
    return [
        analytic_sample(name, f"scene-{name}", "test" if name in test else "train", *size, nyu_camera(*size), k)
        for k, name in enumerate(ids)
    ]


def _nyud_a_samples() -> dict[str, LayoutSample]:
    rgb, grey8 = _nyud_samples(("0001", "0003"), (48, 64))
    rgba = analytic_sample("0011", "scene-0010", "train", 36, 48, nyu_camera(36, 48), frame=3)
    grey16 = analytic_sample("0022", "scene-0022", "train", K=nyu_camera(48, 64), frame=4)
    return {"rgb": rgb, "grey8": grey(grey8), "rgba": rgba, "grey16": grey(grey16)}


def _no_edges(sample: LayoutSample) -> np.ndarray:
    """The packagings know no unlabelled edges: there they are 0; a reader may restore them from the labels."""
    return np.where(sample.edges == IGNORE, 0, sample.edges).astype(np.uint8)


def _write_nyud_a(root: Path) -> Path:
    samples = _nyud_a_samples()
    write_layout("nyud", root, samples.values(), packaging="A")

    def png(name: str) -> Path:
        return root / "images" / f"{samples[name].id}.png"

    Image.fromarray(samples["grey8"].image[..., 0]).save(png("grey8"))
    wide = samples["grey16"].image[..., 0].astype(np.uint16) * 256 + 77  # the lower byte is to be dropped
    Image.fromarray(wide).save(png("grey16"))
    alpha = np.full((*samples["rgba"].size, 1), 200, np.uint8)
    Image.fromarray(np.concatenate([samples["rgba"].image, alpha], -1)).save(png("rgba"))
    # Unknown normals are 127 in some copies, 128 in others.
    normals = root / "normals" / f"{samples['rgb'].id}.png"
    coded = np.asarray(Image.open(normals)).copy()
    coded[(coded == 128).all(-1)] = 127
    Image.fromarray(coded).save(normals)
    # Depth may be of another float type, have a last dimension of one, and hold NaN where there is none.
    name = root / "depth" / f"{samples['rgb'].id}.npy"
    depth = np.load(name).astype(np.float64)[..., None]
    np.save(name, np.where(depth > 0, depth, np.nan))
    (root / "gt_sets" / "train.txt").write_bytes(
        b"".join(f"{sample.id}\r\n".encode() for sample in samples.values() if sample.split == "train") + b"\r\n"
    )
    return root


def _truth_nyud_a() -> dict[str, Expected]:
    return {s.id: _expected(s, edges=_no_edges(s)) for s in _nyud_a_samples().values()}


def _write_nyud_b(root: Path) -> Path:
    write_layout("nyud", root, _nyud_samples(), packaging="B")
    normals = root / "normals" / "0003.npy"  # a little too long, as float normals of this kind are
    np.save(normals, (np.load(normals) * np.float32(1.08)).astype(np.float64))
    return root


def _write_nyud(packaging: str) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        write_layout("nyud", root, _nyud_samples(), packaging=packaging)
        return root

    return write


def _truth_nyud_b() -> dict[str, Expected]:
    return {s.id: _expected(s, edges=_no_edges(s), image_within=24) for s in _nyud_samples()}


def _truth_nyud_c() -> dict[str, Expected]:
    # JPEG smears normals over borders: most must hold, not all.
    return {k: replace(e, normals_within=(2.0, 0.6)) for k, e in _truth_nyud_b().items()}


def _write_nyud_d(root: Path) -> Path:
    write_layout("nyud", root, _nyud_samples(("0001", "0003")), packaging="D")
    label = root / "val" / "label" / "0.npy"  # integers in some copies
    np.save(label, np.load(label).astype(np.int64))
    return root


def _truth_nyud_d() -> dict[str, Expected]:
    table = np.full(256, IGNORE, np.uint8)
    table[:40] = np.array(FORTY_TO_13.split(), int) - 1
    out = {}
    for sample in _nyud_samples(("0001", "0003")):
        name = {"test": "val/0", "train": "train/0"}[sample.split]
        out[name] = _expected(sample, semseg=table[sample.semseg], edges=None, image_within=1)
    return out


def _mat_samples() -> list[LayoutSample]:
    samples = _nyud_samples(("0001", "0002", "0003", "0004"))
    return [replace(s, scene=f"room_{k // 2 + 1:04d}") for k, s in enumerate(samples)]


def _write_nyud_mat(root: Path) -> Path:
    import h5py

    write_layout("nyud", root, _mat_samples(), packaging="mat")
    path = root / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "r+") as file:
        labels = file["labels"][0]
        # Many raw labels become one class: 1 and 2 are both otherprop.
        chair, other = labels == 5, labels.copy()
        other[chair & (np.arange(other.shape[0]) % 2 == 0)[:, None]] = 1
        other[chair & (np.arange(other.shape[0]) % 2 == 1)[:, None]] = 2
        file["labels"][0] = other
        file["rawDepths"][0] = np.where(file["depths"][0] > 3, 0, file["depths"][0])
    return path


def _truth_nyud_mat() -> dict[str, Expected]:
    out = {s.id: _expected(s, edges=None, normals=None, instance=s.instance) for s in _mat_samples()}
    first = out["0001"]
    out["0001"] = replace(first, semseg=np.where(first.semseg == 4, 39, first.semseg), instance=None)
    # The file's depth is in-painted everywhere; where this scene has none, 0 stays.
    return out


# --------------------------------------------------------------------------------------------------------- Hypersim


def _hypersim_samples() -> list[LayoutSample]:
    def frame(scene: str, number: int, split: str, K: np.ndarray, camera: int = 0) -> LayoutSample:
        name = f"{scene}/cam_{camera:02d}/frame.{number:04d}"
        sample = analytic_sample(name, scene, split, height=36, width=48, K=K, frame=number)
        return replace(sample, instance=np.where(sample.semseg == IGNORE, 0, sample.instance))

    standard, tilted = pinhole(36, 48), tilt_shift(36, 48)
    return [
        frame("ai_001_001", 0, "train", standard),
        frame("ai_001_001", 2, "train", standard),
        frame("ai_001_001", 0, "train", standard, camera=1),
        frame("ai_021_002", 5, "val", tilted),
        frame("ai_003_010", 1, "test", standard),
    ]


HYPERSIM_BAD = "ai_001_001/cam_00/frame.0002"
"""The frame with NaN and infinite colours and with inward, short and zero normals."""


def _paths(root: Path, frame: str) -> Callable[[str, str], Path]:
    scene, camera, name = frame.split("/")
    return lambda part, key: root / scene / "images" / f"scene_{camera}_{part}_hdf5" / f"{name}.{key}.hdf5"


def rewrite_hdf5(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the array of a Hypersim file."""
    import h5py

    with h5py.File(path, "r") as file:
        array = file["dataset"][()]
    path.unlink()
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset", data=change(array), compression="gzip", compression_opts=9, track_times=False)


def _bad_normals(normals: np.ndarray) -> np.ndarray:
    normals = normals.copy()
    normals[10:14] *= -1  # inward: to be turned round
    normals[14:16] *= np.float16(0.8)  # not of unit length: to be normalised
    normals[16:18] *= np.float16(0.3)  # shorter than ½: unknown
    normals[18] = 0  # unknown
    return normals


def _bad_colour(colour: np.ndarray) -> np.ndarray:
    colour = colour.copy()
    colour[5, 5] = np.nan
    colour[6, 7] = np.inf
    return colour


def tonemapped(colour: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The official tone mapping of linear colours H×W×3, as uint8 (ml-hypersim, scene_generate_images_tonemap.py)."""
    colour = np.nan_to_num(colour.astype(np.float64), nan=0.0, posinf=1e6, neginf=0.0)
    brightness = np.sort((colour @ [0.3, 0.59, 0.11])[valid])
    at = 0.9 * (len(brightness) - 1)
    low, high = brightness[int(at)], brightness[min(int(at) + 1, len(brightness) - 1)]
    percentile = low + (high - low) * (at - int(at))
    scale = 0.0 if percentile < 1e-4 else 0.8**2.2 / percentile
    return np.rint(255 * np.clip(np.maximum(scale * colour, 0) ** (1 / 2.2), 0, 1)).astype(np.uint8)


def _write_hypersim(root: Path) -> Path:
    write_layout("hypersim", root, _hypersim_samples())
    bad = _paths(root, HYPERSIM_BAD)
    rewrite_hdf5(bad("geometry", "normal_cam"), _bad_normals)
    rewrite_hdf5(bad("final", "color"), _bad_colour)
    # Frames that are not public are in the table, their files are not on the disk.
    with open(root / "metadata_images_split_scene_v1.csv", "a", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("ai_001_001", "cam_00", 3, "False", "did not pass the quality check", ""))
        rows.writerow(("ai_004_001", "cam_00", 0, "False", "did not pass the quality check", ""))
    return root


def _truth_hypersim() -> dict[str, Expected]:
    out = {}
    for sample in _hypersim_samples():
        colour = 4.0 * (sample.image / 255.0) ** 2.2
        normals = np.array(sample.normals)
        if sample.id == HYPERSIM_BAD:
            colour, normals[16:19] = _bad_colour(colour), 0
        out[sample.id.replace("frame.", "")] = _expected(
            sample,
            image=tonemapped(colour, sample.depth > 0),
            image_within=2,
            normals=normals,
            edges=None,
            instance=sample.instance,
        )
    return out


# ------------------------------------------------------------------------------------------------------- Cityscapes

CITYSCAPES_SCALE = 8.0
_SIZE = (64, 128)


def _cityscapes_samples() -> list[LayoutSample]:
    names = (
        ("aachen_000000_000019", "train"),
        ("aachen_000001_000019", "train"),
        ("zurich_000000_000019", "train"),
        ("frankfurt_000000_000294", "val"),
        ("berlin_000000_000019", "test"),
    )
    K = pinhole(*_SIZE)
    return [
        analytic_sample(name, name.split("_")[0], split, *_SIZE, K=K, frame=frame)
        for frame, (name, split) in enumerate(names)
    ]


def _edit_png(path: Path, change: Callable[[np.ndarray], None]) -> None:
    array = np.asarray(Image.open(path)).copy()
    change(array)
    Image.fromarray(array).save(path)


def _odd_disparities(stored: np.ndarray) -> None:
    stored[20] = 0  # unknown
    stored[21] = 1  # infinity
    stored[22] = 2  # 1/256 pixel: beyond every range


def _write_cityscapes(root: Path) -> Path:
    write_layout("cityscapes", root, _cityscapes_samples(), metres_scale=CITYSCAPES_SCALE)
    name = "aachen_000000_000019_disparity.png"
    _edit_png(root / "disparity" / "train" / "aachen" / name, _odd_disparities)
    return root


def _truth_cityscapes() -> dict[str, Expected]:
    from m2h_lightning.data.synthesis.layouts.cityscapes import LABEL_ID

    train_ids = np.full(256, IGNORE, np.uint8)
    for pair in TRAIN_IDS.split():
        label, train_id = map(int, pair.split(":"))
        train_ids[label] = train_id
    out = {}
    for sample in _cityscapes_samples():
        if sample.split == "test":
            continue  # its labels are withheld, so that everybody tests on the published split "val"
        labels = LABEL_ID[sample.semseg]
        things = (labels >= 24) & (labels <= 33)
        depth = sample.depth * CITYSCAPES_SCALE
        if sample.id == "aachen_000000_000019":
            depth[20:23] = 0
        out[sample.id] = _expected(
            sample,
            split="test" if sample.split == "val" else "train",
            depth=depth,
            semseg=train_ids[labels],
            instance=np.where(things, sample.instance, 0),
            normals=None,
            edges=None,
        )
    return out


# ----------------------------------------------------------------------------------------------- a folder of your own


def _folder_samples() -> list[LayoutSample]:
    sizes = {"hall/0": (36, 48), "hall/1": (37, 51), "attic/0": (36, 48), "cellar/0": (36, 48)}
    splits = {"attic": "val", "cellar": "test"}
    out = []
    for frame, (name, size) in enumerate(sizes.items()):
        scene = name.split("/")[0]
        K = tilt_shift(*size) if scene == "attic" else pinhole(*size)
        out.append(analytic_sample(name, scene, splits.get(scene, "train"), *size, K, frame))
    return [*out[:-1], grey(out[-1])]


def _write_folder(root: Path) -> Path:
    samples = _folder_samples()
    write_layout("folder", root, samples, kind="png")
    Image.fromarray(samples[-1].image[..., 0]).save(root / "images" / f"{samples[-1].id}.png")
    return root


def _write_folder_npy(root: Path) -> Path:
    write_layout("folder", root, _folder_samples()[:2], kind="npy")
    name = root / "depth" / "hall" / "0.npy"
    depth = np.load(name).astype(np.float64)
    np.save(name, np.where(depth > 0, depth, np.nan))
    return root


def _truth_folder() -> dict[str, Expected]:
    return {sample.id: _expected(sample) for sample in _folder_samples()}


FIXTURES: dict[str, Fixture] = {
    "nyud-A": Fixture("nyud", _write_nyud_a, _truth_nyud_a),
    "nyud-B": Fixture("nyud", _write_nyud_b, _truth_nyud_b),
    "nyud-C": Fixture("nyud", _write_nyud("C"), _truth_nyud_c),
    "nyud-D": Fixture("nyud13", _write_nyud_d, _truth_nyud_d),
    "nyud-mat": Fixture("nyud", _write_nyud_mat, _truth_nyud_mat, {"crop": "none"}),
    "hypersim": Fixture("hypersim", _write_hypersim, _truth_hypersim),
    "cityscapes": Fixture("cityscapes", _write_cityscapes, _truth_cityscapes),
    "folder": Fixture("folder", _write_folder, _truth_folder),
    "folder-npy": Fixture("folder", _write_folder_npy, lambda: dict(list(_truth_folder().items())[:2])),
}
"""By name of the packaging."""


def tree_bytes(root: Path) -> int:
    """Size of all files."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
