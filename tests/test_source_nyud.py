"""NYUDv2: every packaging decodes to the values that were put in; everything that is not it is one line."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from m2h_lightning.data.raw import check_raw, decode
from m2h_lightning.data.sources import source_class
from m2h_lightning.data.sources.nyud import NYUDv2Source, NYUDv2Source13
from m2h_lightning.data.sources.nyud_facts import camera, map_40_to_13, map_894_to_40, official_ids, run_of
from m2h_lightning.data.sources.values import camera_normals
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.geometry import pixel_rays, plane_normals

SIZE = (24, 32)  # the shape of 480×640, a twentieth of it
TRAIN, TEST = (3, 4, 5, 10), (1, 2, 9)
NORMAL = np.array([0.36, 0.48, -0.8])  # camera frame: right, down, towards the camera


def truth(number: int, size: tuple[int, int] = SIZE) -> dict[str, np.ndarray]:
    """What sample ``number`` means, in the contract's values; the packagings differ only in how they write it."""
    rng = np.random.default_rng(number)
    semseg = rng.integers(0, 40, size).astype(np.uint8)
    semseg[0, :5] = 255
    K = camera(*size)
    rays = pixel_rays(K, *size)
    depth = (-2.5 / np.einsum("c,chw->hw", NORMAL, rays)).astype(np.float32)
    depth[1, :3] = 0
    return {
        "image": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        "semseg": semseg,
        "depth": depth,
        "normals": np.broadcast_to(NORMAL, (*size, 3)).copy(),
        "edges": (rng.random(size) < 0.2).astype(np.uint8),
    }


def as_stored(normals: np.ndarray) -> np.ndarray:
    """Camera frame to the files' axes: y up, z towards the camera."""
    return normals * (1, -1, -1)


def write_sample(root: Path, packaging: str, number: int, sample: dict[str, np.ndarray]) -> None:
    for folder in ("images", "segmentation", "depth", "normals", "edge"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    name = f"{number:04d}"
    image = "png" if packaging == "A" else "jpg"
    Image.fromarray(sample["image"]).save(root / "images" / f"{name}.{image}")
    semseg = (sample["semseg"] + 1).astype(np.uint8)  # 255 wraps to 0
    coded = np.rint((as_stored(sample["normals"]) + 1) * 127.5).astype(np.uint8)
    if packaging == "C":
        savemat(root / "segmentation" / f"{name}.mat", {"segmentation": semseg.astype(float)})
        savemat(root / "depth" / f"{name}.mat", {"depth": sample["depth"]})
        Image.fromarray(coded).save(root / "normals" / f"{name}.jpg", quality=100, subsampling=0)
        Image.fromarray(sample["edges"] * 255).save(root / "edge" / f"{name}.png")
        return
    Image.fromarray(semseg).save(root / "segmentation" / f"{name}.png")
    np.save(root / "depth" / f"{name}.npy", sample["depth"])
    if packaging == "A":
        Image.fromarray(coded).save(root / "normals" / f"{name}.png")
        Image.fromarray(sample["edges"] * 255).save(root / "edge" / f"{name}.png")
    else:
        np.save(root / "normals" / f"{name}.npy", as_stored(sample["normals"]))
        np.save(root / "edge" / f"{name}.npy", sample["edges"].astype(np.float32))


def write_folders(root: Path, packaging: str = "A", size: tuple[int, int] = SIZE, lists: bool = True) -> Path:
    for number in (*TRAIN, *TEST):
        write_sample(root, packaging, number, truth(number, size))
    if lists:
        (root / "gt_sets").mkdir()
        (root / "gt_sets" / "train.txt").write_text("\n".join(f"{number:04d}" for number in TRAIN) + "\n")
        (root / "gt_sets" / "val.txt").write_text("\r\n".join(f"{number:04d}" for number in TEST) + "\r\n")
    return root


def write_mtan(root: Path) -> Path:
    for folder, count in (("train", 3), ("val", 2)):
        for kind in ("image", "label", "depth", "normal"):
            (root / folder / kind).mkdir(parents=True)
        for number in range(count):
            sample = truth(number)
            name = f"{number}.npy"
            np.save(root / folder / "image" / name, sample["image"] / 255.0)
            label = map_40_to_13()[sample["semseg"]].astype(np.float32)
            np.save(root / folder / "label" / name, np.where(label == 255, -1, label))
            np.save(root / folder / "depth" / name, sample["depth"][..., None].astype(np.float64))
            normals = as_stored(sample["normals"])
            normals[2, :4] = 0
            np.save(root / folder / "normal" / name, normals)
    return root


def write_mat(path: Path, size: tuple[int, int] = SIZE, count: int = 4, scenes: bool = True) -> Path:
    h5py = pytest.importorskip("h5py")
    inverse = [int(np.flatnonzero(map_894_to_40() == label)[0]) for label in range(41)]
    samples = [truth(number, size) for number in range(1, count + 1)]
    labels = [np.array(inverse, np.uint16)[(sample["semseg"] + 1).astype(np.uint8)] for sample in samples]
    with h5py.File(path, "w", userblock_size=512) as file:
        file["images"] = np.stack([sample["image"].transpose(2, 1, 0) for sample in samples])
        file["depths"] = np.stack([sample["depth"].T for sample in samples])
        file["labels"] = np.stack([label.T for label in labels])
        file["instances"] = np.stack([sample["edges"].T for sample in samples])
        if scenes:
            names = [f"kitchen_{number // 2:04d}" for number in range(count)]
            cells = [file.create_dataset(f"#refs#/{i}", data=[[ord(c)] for c in name]) for i, name in enumerate(names)]
            data = np.array([[cell.ref for cell in cells]], dtype=h5py.ref_dtype)
            file.create_dataset("scenes", data=data, dtype=h5py.ref_dtype)
    return path


def one_line(error: pytest.ExceptionInfo, *parts: object) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text, text


# Facts


def test_official_split_and_maps_are_those_of_the_meta_data():
    assert [len(official_ids(split)) for split in ("train", "test")] == [795, 654]
    digest = hashlib.sha256(np.array(official_ids("test"), np.int32).tobytes()).hexdigest()
    assert digest.startswith("810ae5178a6d34ca")
    assert hashlib.sha256(map_894_to_40().tobytes()).hexdigest().startswith("893808edf64dc474")
    assert map_40_to_13()[[0, 1, 3, 4, 255]].tolist() == [11, 4, 0, 3, 255]  # wall, floor, bed, chair, unlabelled


def test_runs_lie_on_one_side_of_the_split_and_are_consecutive():
    train, test = ({run_of(number) for number in official_ids(split)} for split in ("train", "test"))
    assert len(train) == 123 and not train & test
    assert run_of(3) == run_of(8) == "run-0003" != run_of(10)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (518.8579, 519.4696, 325.5824, 253.7362)),
        ((425, 560), (518.8579, 519.4696, 285.5824, 208.7362)),
        ((240, 320), (259.42895, 259.7348, 162.5412, 126.6181)),  # (c + ½)/2 − ½
    ],
)
def test_camera(size, expected):
    K = camera(*size)
    np.testing.assert_allclose([K[0, 0], K[1, 1], K[0, 2], K[1, 2]], expected, atol=1e-4)


def test_camera_of_another_shape_is_not_known():
    assert camera(448, 576) is None


# Decoding


@pytest.mark.parametrize(("packaging", "word"), [("A", "InvPT"), ("B", "MTI"), ("C", "ASTMT")])
def test_packagings_decode_to_what_they_mean(tmp_path, packaging, word):
    source = NYUDv2Source(write_folders(tmp_path / "NYUDv2", packaging))
    assert word in source.packaging and "24×32" in source.packaging
    assert source.tasks == ("semseg", "depth", "normals", "edges")
    assert source.edges == "provided" and source.edge_rules == ("provided", "semantic")
    assert [item.id for item in source.items("train")] == ["0003", "0004", "0005", "0010"]
    assert [item.id for item in source.items("test")] == ["0001", "0002", "0009"]
    for split in source.splits:
        for item in source.items(split):
            raw, want = source.read(item), truth(int(item.id))
            check_raw(raw, 40)
            assert source.size(item) == SIZE
            if packaging == "A":
                np.testing.assert_array_equal(raw["image"], want["image"])
            np.testing.assert_array_equal(raw["semseg"], want["semseg"])
            np.testing.assert_array_equal(raw["depth"], want["depth"])
            np.testing.assert_array_equal(raw["edges"], want["edges"])
            np.testing.assert_array_equal(raw["K"], camera(*SIZE))
            assert raw["normals"].dtype == (np.float32 if packaging == "B" else np.uint8)
            tolerance = {"A": 0.005, "B": 1e-6, "C": 0.02}[packaging]
            np.testing.assert_allclose(decode(raw)["normals"], want["normals"], atol=tolerance)


def test_normals_agree_with_depth_and_camera(tmp_path):
    source = NYUDv2Source(write_folders(tmp_path))
    raw = decode(source.read(source.items("train")[0]))
    derived = plane_normals(raw["depth"], raw["K"])
    known = derived.any(-1)
    assert known.mean() > 0.8
    assert (derived * raw["normals"]).sum(-1)[known].min() > np.cos(np.deg2rad(1))


def test_gupta_crop_is_named_and_has_its_camera(tmp_path):
    for number in (1, 3):
        write_sample(tmp_path, "A", number, truth(number, (425, 560)))
    (tmp_path / "gt_sets").mkdir()
    (tmp_path / "gt_sets" / "train.txt").write_text("0003")
    (tmp_path / "gt_sets" / "val.txt").write_text("0001")
    source = NYUDv2Source(tmp_path)
    assert "425×560 (Gupta crop)" in source.packaging
    raw = source.read(source.items("train")[0])
    np.testing.assert_array_equal(raw["depth"], truth(3, (425, 560))["depth"])
    assert raw["K"][0, 2] == pytest.approx(285.5824)


def test_mtan_has_13_classes(tmp_path):
    source = NYUDv2Source13(write_mtan(tmp_path / "nyuv2"))
    assert "mtan" in source.packaging and source.tasks == ("semseg", "depth", "normals", "edges")
    assert source.edges == "semantic" and [len(source.items(split)) for split in source.splits] == [3, 2]
    assert {item.id for split in source.splits for item in source.items(split)} >= {"train/0", "val/0"}
    assert [source.items(split)[0].scene for split in source.splits] == ["run-0003", "run-0001"]
    item = source.items("train")[1]
    raw, want = source.read(item), truth(1)
    check_raw(raw, 13)
    assert source.size(item) == SIZE
    np.testing.assert_array_equal(raw["image"], want["image"])
    np.testing.assert_array_equal(raw["semseg"], map_40_to_13()[want["semseg"]])
    np.testing.assert_array_equal(raw["depth"], want["depth"])
    np.testing.assert_allclose(raw["normals"][5], want["normals"][5], atol=1e-6)
    assert not raw["normals"][2, :4].any()


@pytest.mark.parametrize("packaging", ["A", "C"])
def test_the_other_packagings_are_mapped_to_13_classes(tmp_path, packaging):
    source = NYUDv2Source13(write_folders(tmp_path, packaging))
    raw = source.read(source.items("test")[0])
    np.testing.assert_array_equal(raw["semseg"], map_40_to_13()[truth(1)["semseg"]])
    assert "13 classes" in source.provenance["semseg"] and len(source.classes) == 13
    assert source.fingerprint != NYUDv2Source(tmp_path).fingerprint


def test_raw_mat(tmp_path):
    source = NYUDv2Source(write_mat(tmp_path / "nyu_depth_v2_labeled.mat"), crop="none")
    assert source.edge_rules == ("semantic", "instance") and source.tasks == ("semseg", "depth", "normals", "edges")
    assert "only 4 of 1449" in source.packaging and "derived" in source.provenance["normals"]
    assert [item.id for item in source.items("train")] == ["0003", "0004"]
    assert [item.scene for item in source.items("train")] == ["kitchen_0001"] * 2
    item = source.items("train")[1]
    raw, want = source.load(item), truth(4)
    check_raw(raw, 40)
    for key in ("image", "semseg", "depth"):
        np.testing.assert_array_equal(raw[key], want[key])
    np.testing.assert_array_equal(raw["normals"], plane_normals(want["depth"], camera(*SIZE)))
    assert (raw["instance"] == 0)[want["semseg"] == 255].all()
    same_label = (want["semseg"][:, :-1] == want["semseg"][:, 1:]) & (want["semseg"][:, 1:] != 255)
    differ = same_label & (want["edges"][:, :-1] != want["edges"][:, 1:])
    assert differ.any() and (raw["instance"][:, :-1] != raw["instance"][:, 1:])[differ].all()
    instance = NYUDv2Source(tmp_path, edges="instance", crop="none")
    assert instance.read(item)["edges"][:, :-1][differ].all()
    assert not source.read(item)["edges"][:-1, :-1][
        differ[:-1] & (want["semseg"][:-1, :-1] == want["semseg"][1:, :-1])
    ].any()


def test_objects_of_one_class_but_two_raw_labels_differ(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = write_mat(tmp_path / "nyu_depth_v2_labeled.mat")
    with h5py.File(path, "r+") as file:
        file["labels"][2, :16], file["labels"][2, 16:] = 1, 2  # both are class 40, otherprop
        file["instances"][2] = np.ones(SIZE[::-1])
    source = NYUDv2Source(path, edges="instance", crop="none")
    edges = source.read(source.items("train")[0])["edges"]
    assert edges[:, 15].all() and edges.sum() == SIZE[0]


def test_raw_mat_is_cropped_as_the_packagings_are(tmp_path):
    write_mat(tmp_path / "nyu_depth_v2_labeled.mat", (480, 640), count=3, scenes=False)
    source = NYUDv2Source(tmp_path)
    item = source.items("train")[0]
    raw, want = source.load(item), truth(3, (480, 640))
    assert source.size(item) == (425, 560) and item.scene == "run-0003"
    np.testing.assert_array_equal(raw["image"], want["image"][45:470, 40:600])
    np.testing.assert_array_equal(raw["depth"], want["depth"][45:470, 40:600])
    np.testing.assert_array_equal(raw["K"], camera(425, 560))
    known = raw["normals"].any(-1)
    assert known.mean() > 0.9
    np.testing.assert_allclose(np.median(raw["normals"][known], 0), NORMAL, atol=1e-4)


def test_raw_mat_travels_to_other_processes(tmp_path):
    source = NYUDv2Source(write_mat(tmp_path / "nyu_depth_v2_labeled.mat"), crop="none")
    item = source.items("train")[0]
    want = source.load(item)["depth"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).load(item)["depth"], want)
    child = os.fork()
    if not child:
        os._exit(0 if (source.load(item)["depth"] == want).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


# Options


def test_missing_label_folders_leave_the_label_out(tmp_path):
    write_folders(tmp_path)
    for folder in ("normals", "edge"):
        shutil.rmtree(tmp_path / folder)
    source = NYUDv2Source(tmp_path)
    assert source.tasks == ("semseg", "depth", "edges") and source.edges == "semantic"
    assert "without normals/ and edge/" in source.packaging
    assert "normals" not in source.read(source.items("train")[0])
    derived = NYUDv2Source(tmp_path, normals="derived")
    assert derived.tasks == ("semseg", "depth", "normals", "edges") and "derived" in derived.provenance["normals"]
    raw = derived.read(derived.items("train")[0])
    np.testing.assert_allclose(raw["normals"][12, 16], NORMAL, atol=1e-3)
    with pytest.raises(ConfigError) as error:
        NYUDv2Source(tmp_path, normals="provided")
    one_line(error, "normals/", "derived")
    with pytest.raises(ConfigError) as error:
        NYUDv2Source(tmp_path, edges="provided")
    one_line(error, "provided", "semantic")


def test_options_are_checked(tmp_path):
    write_folders(tmp_path)
    assert "normals" not in NYUDv2Source(tmp_path, normals="none").tasks
    for options in ({"normals": "derive"}, {"normal_axes": "x,y"}, {"edges": "semantics"}, {"crop": "eigen"}):
        with pytest.raises(ConfigError) as error:
            NYUDv2Source(tmp_path, **options)
        one_line(error, *options.values())
    with pytest.raises(ConfigError, match="no split 'val'"):
        NYUDv2Source(tmp_path).items("val")
    shutil.rmtree(tmp_path / "depth")
    with pytest.raises(ConfigError, match="no depth to derive"):
        NYUDv2Source(tmp_path, normals="derived")


def test_fingerprint_changes_with_options_and_lists(tmp_path):
    write_folders(tmp_path)
    prints = [
        NYUDv2Source(tmp_path).fingerprint,
        NYUDv2Source(tmp_path, edges="semantic").fingerprint,
        NYUDv2Source(tmp_path, normals="derived").fingerprint,
        NYUDv2Source(tmp_path, normal_axes="-x,-y,-z").fingerprint,
    ]
    assert NYUDv2Source(tmp_path).fingerprint == prints[0]
    (tmp_path / "gt_sets" / "train.txt").write_text("0003\n0004\n")
    assert len({*prints, NYUDv2Source(tmp_path).fingerprint}) == 5


@given(st.lists(st.integers(0, 255), min_size=3, max_size=3), st.sampled_from(["x,-y,-z", "-y,z,x", "z,x,y"]))
def test_coded_normals_keep_their_bytes(triple, axes):
    coded = np.array([[triple]], np.uint8)
    out = camera_normals(coded, Path("n.png"), (1, 1), axes)
    values = {"x": triple[0], "y": triple[1], "z": triple[2]}
    signed = [255 - values[part[-1]] if part[0] == "-" else values[part] for part in axes.split(",")]
    short = np.linalg.norm(2 * np.array(triple) / 255 - 1) < 0.5
    assert out[0, 0].tolist() == ([128] * 3 if short else signed)


# What is not the set


def first_error(root: Path, cls: type[NYUDv2Source] = NYUDv2Source, **options) -> pytest.ExceptionInfo:
    def read_all() -> None:
        source = cls(root, **options)
        for item in source.items("train"):
            source.read(item)

    with pytest.raises(DataError) as error:
        read_all()
    return error


def cut(path: Path, keep: float = 0.6) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


@pytest.mark.parametrize(
    ("packaging", "name"),
    [
        *(("A", f"{folder}/0004.png") for folder in ("images", "segmentation", "normals", "edge")),
        ("A", "depth/0004.npy"),
        *(("B", f"{folder}/0004.npy") for folder in ("depth", "normals", "edge")),
        *(("C", f"{folder}/0004.mat") for folder in ("segmentation", "depth")),
        ("C", "images/0004.jpg"),
    ],
)
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7])
def test_cut_off_files_are_named(tmp_path, packaging, name, keep):
    write_folders(tmp_path, packaging)
    one_line(first_error(cut(tmp_path / name, keep) and tmp_path), tmp_path / name)


def write_png(path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(path)


def test_label_maps_of_the_wrong_kind_are_named(tmp_path):
    write_folders(tmp_path)
    path = tmp_path / "segmentation" / "0004.png"
    for array, words in (
        (np.zeros((12, 16), np.uint8), ("12×16", "24×32")),
        (np.zeros((*SIZE, 3), np.uint8), ("channels",)),
        (np.full(SIZE, 41, np.uint8), ("label 41", "894")),
        (np.full(SIZE, 500, np.uint16), ("label 500",)),
    ):
        write_png(path, array)
        one_line(first_error(tmp_path), path, *words)


def test_labels_of_mat_files_must_be_whole(tmp_path):
    write_folders(tmp_path, "C")
    path = tmp_path / "segmentation" / "0003.mat"
    savemat(path, {"segmentation": np.full(SIZE, 1.5)})
    one_line(first_error(tmp_path), path, "whole numbers")
    savemat(path, {"labels": np.ones(SIZE)})
    one_line(first_error(tmp_path), path, "'segmentation'", "labels")


def test_depth_of_the_wrong_kind_is_named(tmp_path):
    write_folders(tmp_path)
    path = tmp_path / "depth" / "0004.npy"
    metres = truth(4)["depth"]
    for array, words in (
        ((metres * 1000).astype(np.float32), ("millimetres: median", "metres")),
        ((metres * 1000).astype(np.uint16), ("uint16", "millimetres")),
        ((metres * 25).astype(np.uint8), ("uint8", "viewing")),
        (metres * 10, ("another unit",)),
        (metres[:12], ("12×32", "24×32")),
    ):
        np.save(path, array)
        one_line(first_error(tmp_path), path, *words)


def test_unknown_depth_becomes_zero(tmp_path):
    write_folders(tmp_path)
    depth = truth(4)["depth"].astype(np.float64)
    depth[5, :4] = (np.nan, np.inf, -1, 0)
    np.save(tmp_path / "depth" / "0004.npy", depth)
    source = NYUDv2Source(tmp_path)
    raw = source.read(source.items("train")[1])
    assert not raw["depth"][5, :4].any() and raw["depth"][5, 4] > 0 and raw["depth"].dtype == np.float32


def test_normals_and_edges_of_the_wrong_kind_are_named(tmp_path):
    write_folders(tmp_path / "A")
    write_folders(tmp_path / "B", "B")
    path = tmp_path / "A" / "normals" / "0003.png"
    for array in (np.zeros(SIZE, np.uint8), np.zeros((*SIZE, 4), np.uint8)):
        write_png(path, array)
        one_line(first_error(tmp_path / "A"), path, "channel")
    one_line_path = tmp_path / "B" / "normals" / "0003.npy"
    np.save(one_line_path, as_stored(truth(3)["normals"]) * 127)
    one_line(first_error(tmp_path / "B"), one_line_path, "unit vectors")
    np.save(one_line_path, as_stored(truth(3)["normals"]))
    edge = tmp_path / "B" / "edge" / "0003.npy"
    np.save(edge, np.full(SIZE, 0.5))
    one_line(first_error(tmp_path / "B"), edge, "0.5", "semantic")


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "1", "P"])
def test_photographs_of_other_modes_become_rgb(tmp_path, mode):
    write_folders(tmp_path)
    path = tmp_path / "images" / "0003.png"
    rgb = Image.open(path).convert("RGB")
    rgb.convert(mode).save(path)
    source = NYUDv2Source(tmp_path)
    image = source.read(source.items("train")[0])["image"]
    assert image.shape == (*SIZE, 3) and image.dtype == np.uint8
    want = np.asarray(rgb.convert(mode).convert("RGB"))
    np.testing.assert_array_equal(image, want)


def test_sixteen_bit_photographs_are_shortened(tmp_path):
    write_folders(tmp_path)
    write_png(tmp_path / "images" / "0003.png", np.full(SIZE, 0x8012, np.uint16))
    source = NYUDv2Source(tmp_path)
    assert (source.read(source.items("train")[0])["image"] == 0x80).all()


def test_unknown_sizes_have_no_camera(tmp_path):
    write_folders(tmp_path)
    for path in tmp_path.glob("*/0003.*"):
        path.unlink()
    write_sample(tmp_path, "A", 3, {key: value[:20] for key, value in truth(3).items()})
    source = NYUDv2Source(tmp_path)
    raw = next(source.load(item) for item in source.items("train") if item.id == "0003")
    assert raw["image"].shape[:2] == (20, 32), "any size is read"
    assert np.isnan(raw["K"]).all(), "but its camera is not known"
    one_line(first_error(tmp_path, normals="derived"), tmp_path / "images" / "0003.png", "20×32", "camera")


def test_lists_must_agree_with_the_official_split(tmp_path):
    write_folders(tmp_path)
    train = tmp_path / "gt_sets" / "train.txt"
    for text, words in (
        ("0003\n0001\n0002\n", ("2 of 3", "0001")),
        ("0003\n1450\n", ("1 of 2", "1450")),
        ("0003\n3\n", ("twice",)),
        ("0003\nkitchen\n", ("line 2", "kitchen")),
        ("\n", ("no ids",)),
    ):
        train.write_text(text)
        one_line(first_error(tmp_path), train, *words)


def test_without_lists_the_official_ids_are_taken(tmp_path):
    write_folders(tmp_path, lists=False)
    source = NYUDv2Source(tmp_path)
    assert "official ids" in source.packaging and source.provenance["split"] == "official ids"
    one_line(first_error(tmp_path), tmp_path, f"{(795 - len(TRAIN)) * 5} files", "images/0006.png")
    for path in list(tmp_path.glob("*/0003.*")):
        for number in range(1, 1450):
            target = path.with_name(f"{number:04d}{path.suffix}")
            if not target.exists():
                target.hardlink_to(path)
    source = NYUDv2Source(tmp_path)
    assert {split: len(source.items(split)) for split in source.splits} == source.official
    assert len({item.scene for item in source.items("train")}) == 123


def test_missing_files_are_counted(tmp_path):
    write_folders(tmp_path)
    for name in ("images/0004.png", "depth/0004.npy", "edge/0005.png", "normals/0010.png"):
        (tmp_path / name).unlink()
    error = first_error(tmp_path)
    one_line(error, "4 files", "images/0004.png", "and 1 more")
    assert len(NYUDv2Source(tmp_path).items("test")) == 3


def test_wrong_folders_are_named(tmp_path):
    root = write_folders(tmp_path / "data" / "NYUDv2")
    for path in (root.parent, root / "images", root / "gt_sets"):
        one_line(first_error(path), path, f"which is {root}")
    mtan = write_mtan(tmp_path / "other" / "nyuv2")
    for path in (mtan.parent, mtan / "train", mtan / "val" / "image"):
        one_line(first_error(path, NYUDv2Source13), path, f"which is {mtan}")
    one_line(first_error(mtan), mtan, "13 classes", "nyud13")
    (tmp_path / "x" / "y" / "empty").mkdir(parents=True)
    one_line(first_error(tmp_path / "x" / "y" / "empty"), "expected images/")
    one_line(first_error(tmp_path / "nowhere"), "does not exist")
    (tmp_path / "file.txt").write_text("")
    shutil.rmtree(root / "images")
    one_line(first_error(root), root, "segmentation/", "but no images/")
    (tmp_path / "some" / "images").mkdir(parents=True)
    one_line(first_error(tmp_path / "some"), "images/ but no labels")
    one_line(first_error(tmp_path / "file.txt"), "file.txt", "expected")


def test_folders_of_other_files_are_named(tmp_path):
    write_folders(tmp_path)
    np.save(tmp_path / "segmentation" / "0003.mat", np.zeros(3))
    (tmp_path / "segmentation" / "0003.mat.npy").rename(tmp_path / "segmentation" / "0003.mat")
    one_line(first_error(tmp_path), tmp_path / "segmentation", ".png and .mat")
    for path in (tmp_path / "segmentation").iterdir():
        path.unlink()
    one_line(first_error(tmp_path), tmp_path / "segmentation", "empty")
    (tmp_path / "segmentation" / "0003.tif").touch()
    one_line(first_error(tmp_path), "0003.tif", ".png or .mat")


def test_mtan_arrays_of_the_wrong_kind_are_named(tmp_path):
    write_mtan(tmp_path)
    folder = tmp_path / "train"

    def broken(name: str, array: np.ndarray, *words: str) -> None:
        keep = (folder / name).read_bytes()
        np.save(folder / name, array)
        one_line(first_error(tmp_path, NYUDv2Source13), folder / name, *words)
        (folder / name).write_bytes(keep)

    broken("image/1.npy", np.zeros((3, *SIZE)), "height×width×3")
    broken("image/1.npy", np.full((*SIZE, 3), 200.0), "0..1")
    broken("label/1.npy", np.full(SIZE, 13.0), "label 13")
    broken("label/1.npy", np.full(SIZE, 0.5), "whole numbers")
    broken("depth/1.npy", np.full((*SIZE, 1), 2310.0), "millimetres: median 2310")
    broken("normal/1.npy", np.zeros((3, *SIZE)), "3×24×32")
    (folder / "label" / "1.npy").unlink()
    one_line(first_error(tmp_path, NYUDv2Source13), folder, "label/1.npy")


def test_raw_mat_damage_is_named(tmp_path):
    path = write_mat(tmp_path / "nyu_depth_v2_labeled.mat")
    one_line(first_error(tmp_path), path, "24×32", "crop: none")
    keep = path.read_bytes()
    path.write_bytes(keep[: len(keep) // 2])
    one_line(first_error(path, crop="none"), path, "cut off")
    path.write_bytes(b"MATLAB 5.0 MAT-file")
    one_line(first_error(path, crop="none"), path, "HDF5")
    h5py = pytest.importorskip("h5py")
    wrong, lacking = tmp_path / "wrong.mat", tmp_path / "lacking.mat"
    wrong.write_bytes(keep)
    lacking.write_bytes(keep)
    with h5py.File(wrong, "r+") as file:
        file["labels"][2, 0, 0] = 900
    one_line(first_error(wrong, crop="none"), wrong, "0003", "label 900")
    with h5py.File(lacking, "r+") as file:
        del file["depths"]
    one_line(first_error(lacking, crop="none"), lacking, "'depths'")


def test_sets_are_found_by_name():
    assert source_class("nyud") is NYUDv2Source and source_class("nyud13") is NYUDv2Source13
