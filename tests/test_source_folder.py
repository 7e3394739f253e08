"""The Folder set: what dataset.yaml says is what comes out; every wrong file or key is one line that names it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m2h_lightning.data.raw import check_raw, decode
from m2h_lightning.data.sources import source_class
from m2h_lightning.data.sources.folder import FolderSource
from m2h_lightning.data.sources.folder_yaml import Description, read_description
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.geometry import pixel_rays

SIZE = (24, 32)
CLASSES = ["floor", "wall", "tool"]
K = {"fx": 30.0, "fy": 31.0, "cx": 15.5, "cy": 11.5}
NORMAL = np.array([0.36, 0.48, -0.8])


def matrix() -> np.ndarray:
    return np.array([[30.0, 0, 15.5], [0, 31.0, 11.5], [0, 0, 1]])


def truth(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    rays = pixel_rays(matrix(), *SIZE)
    depth = np.rint(-2500 / np.einsum("c,chw->hw", NORMAL, rays)).clip(0, 65535).astype(np.uint16)  # millimetres
    depth[0, :3] = 0
    return {
        "image": rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
        "semseg": rng.integers(0, 3, SIZE).astype(np.uint8),
        "depth": depth,
        "normals": np.broadcast_to(NORMAL.astype(np.float32), (*SIZE, 3)).copy(),
        "edges": (rng.random(SIZE) < 0.2).astype(np.uint8),
    }


def put(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)


def describe(root: Path, **keys: object) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.yaml").write_text(yaml.safe_dump({"classes": CLASSES, **keys}))
    return root


IDS = ("scan1/a", "scan1/b", "scan2/a")


def make(root: Path, **keys: object) -> Path:
    for seed, key in enumerate(IDS):
        sample = truth(seed)
        put(root / "images" / f"{key}.png", sample["image"])
        put(root / "semseg" / f"{key}.png", sample["semseg"])
        put(root / "depth" / f"{key}.png", sample["depth"])
        put(root / "normals" / f"{key}.npy", sample["normals"])
        put(root / "edges" / f"{key}.png", sample["edges"] * 255)
    return describe(root, **{"depth": {"scale": 0.001}, "K": K, **keys})


def fails(root: Path, *parts: object, error: type[Exception] = DataError, **options) -> None:
    def read_all() -> None:
        source = FolderSource(root, **options)
        for split in source.splits:
            for item in source.items(split):
                source.read(item)

    with pytest.raises(error) as caught:
        read_all()
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text, text


# Reading


def test_everything_that_was_put_in_comes_out(tmp_path):
    source = FolderSource(make(tmp_path, name="workshop", depth_range=[0.2, 20]))
    assert (source.name, source.classes, source.depth_range) == ("folder", tuple(CLASSES), (0.2, 20.0))
    assert "'workshop'" in source.packaging
    assert source.tasks == ("semseg", "depth", "normals", "edges") and source.edge_rules == ("provided", "semantic")
    assert source.splits == ("train",) and "3 images, the first 24×32" in source.packaging
    assert [(item.id, item.scene) for item in source.items("train")] == [(key, key.split("/")[0]) for key in IDS]
    for seed, item in enumerate(source.items("train")):
        raw, want = source.read(item), truth(seed)
        check_raw(raw, 3)
        assert source.size(item) == SIZE and raw["id"] == IDS[seed]
        for key in ("image", "semseg", "normals", "edges"):
            np.testing.assert_array_equal(raw[key], want[key])
        np.testing.assert_array_equal(raw["depth"], (want["depth"] * 0.001).astype(np.float32))
        np.testing.assert_array_equal(raw["K"], matrix())
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.read(item)["edges"], raw["edges"])
    assert source_class("folder") is FolderSource


def test_the_least_description(tmp_path):
    put(tmp_path / "images" / "a.jpg", truth(0)["image"])
    put(tmp_path / "images" / "b.jpg", truth(1)["image"])
    put(tmp_path / "semseg" / "a.npy", np.full(SIZE, 2))
    (tmp_path / "dataset.yaml").write_text("classes: 3\n")
    source = FolderSource(tmp_path)
    assert f"'{tmp_path.name}'" in source.packaging and source.classes == ("class 0", "class 1", "class 2")
    assert source.tasks == ("semseg", "edges") and source.edges == "semantic"
    first, second = source.items("train")
    assert (first.scene, second.scene) == ("a", "b")  # nothing is known of scenes: each its own
    raw = source.read(first)
    assert (raw["semseg"] == 2).all() and not raw["edges"].any() and np.isnan(raw["K"]).all()
    assert set(source.read(second)) == {"id", "image", "K"}  # a partial label is absent


def test_without_classes_there_are_other_labels(tmp_path):
    put(tmp_path / "images" / "a.png", truth(0)["image"])
    put(tmp_path / "depth" / "a.npy", np.full(SIZE, 2.0))
    (tmp_path / "dataset.yaml").write_text("")
    assert FolderSource(tmp_path).tasks == ("depth",)
    put(tmp_path / "semseg" / "a.npy", np.zeros(SIZE, int))
    fails(tmp_path, tmp_path / "dataset.yaml", "classes")


def test_labels_are_shifted_and_ignored(tmp_path):
    make(tmp_path, label_offset=-1, ignore=[0, 200])
    stored = truth(0)["semseg"] + 1
    stored[0, :4], stored[1, :4] = 0, 200
    put(tmp_path / "semseg" / "scan1" / "a.png", stored)
    for key in IDS[1:]:
        put(tmp_path / "semseg" / f"{key}.png", np.ones(SIZE, np.uint8))
    source = FolderSource(tmp_path)
    semseg = source.read(source.items("train")[0])["semseg"]
    assert (semseg[:2, :4] == 255).all()
    np.testing.assert_array_equal(semseg[2:], truth(0)["semseg"][2:])


@given(offset=st.integers(-3, 3), value=st.integers(0, 255), ignore=st.lists(st.integers(0, 255), max_size=2))
def test_every_label_is_in_range_ignored_or_refused(tmp_path_factory, offset, value, ignore):
    root = tmp_path_factory.mktemp("labels")
    put(root / "images" / "a.png", truth(0)["image"])
    put(root / "semseg" / "a.png", np.full(SIZE, value, np.uint8))
    source = FolderSource(describe(root, label_offset=offset, ignore=ignore))
    item = source.items("train")[0]
    if value in ignore:
        assert (source.read(item)["semseg"] == 255).all()
    elif 0 <= value + offset < 3:
        assert (source.read(item)["semseg"] == value + offset).all()
    else:
        with pytest.raises(DataError, match=f"label {value};"):
            source.read(item)


def test_depth_values(tmp_path):
    make(tmp_path, depth={"scale": "1e-3", "invalid": [7, 65535], "max": 5})
    stored = np.full(SIZE, 2500, np.uint16)
    stored[0, :4] = (7, 65535, 0, 5001)
    put(tmp_path / "depth" / "scan1" / "a.png", stored)
    (tmp_path / "depth" / "scan1" / "b.png").unlink()
    put(tmp_path / "depth" / "scan1" / "b.npy", np.where(stored == 7, np.nan, stored / 1.0))
    source = FolderSource(tmp_path)
    for item in source.items("train")[:2]:
        depth = source.read(item)["depth"]
        assert not depth[0, :4].any() and (depth[1:] == np.float32(2.5)).all() and depth.dtype == np.float32


def test_normals_are_turned_and_stay_coded(tmp_path):
    make(tmp_path, normals={"axes": "x,-y,-z", "coding": "uint8"})
    for key in IDS:
        (tmp_path / "normals" / f"{key}.npy").unlink()
        put(tmp_path / "normals" / f"{key}.png", np.full((*SIZE, 3), (0, 128, 127), np.uint8))
    source = FolderSource(tmp_path)
    item = source.items("train")[0]
    assert source.read(item)["normals"][0, 0].tolist() == [0, 127, 128]
    other = FolderSource(tmp_path, normal_axes="-z,y,x")
    assert other.read(item)["normals"][0, 0].tolist() == [128, 128, 0]
    assert other.fingerprint != source.fingerprint
    put(tmp_path / "normals" / "scan1" / "a.png", np.zeros(SIZE, np.uint8))
    fails(tmp_path, tmp_path / "normals" / "scan1" / "a.png", "channel")
    make(tmp_path / "float", normals={"coding": "uint8"})
    fails(tmp_path / "float", "a.npy", "'normals.coding'", "uint8")


def test_derived_normals(tmp_path):
    source = FolderSource(make(tmp_path), normals="derived")
    raw = decode(source.read(source.items("train")[0]))
    np.testing.assert_allclose(raw["normals"][12, 16], NORMAL, atol=0.02)
    assert "derived" in source.provenance["normals"]
    assert "normals" not in FolderSource(tmp_path, normals="none").tasks
    describe(tmp_path, depth={"scale": 0.001})
    fails(tmp_path, "no K", error=ConfigError, normals="derived")
    fails(tmp_path, "'derive'", "did you mean", error=ConfigError, normals="derive")
    fails(tmp_path, "'x'", error=ConfigError, normal_axes="x")
    fails(tmp_path, "'instance'", error=ConfigError, edges="instance")


def test_fingerprint_changes_with_the_description(tmp_path):
    prints = {
        FolderSource(make(tmp_path, **keys)).fingerprint for keys in ({}, {"K": None}, {"classes": 4}, {"ignore": 9})
    }
    assert len(prints) == 4
    assert FolderSource(make(tmp_path)).fingerprint in prints


def test_edge_values(tmp_path):
    make(tmp_path, edges={"positive": [100, 200], "ignore": 9})
    stored = np.zeros(SIZE, np.uint8)
    stored[0, :4] = (100, 200, 9, 50)
    put(tmp_path / "edges" / "scan1" / "a.png", stored)
    source = FolderSource(tmp_path)
    assert source.read(source.items("train")[0])["edges"][0, :5].tolist() == [1, 1, 255, 0, 0]
    make(tmp_path, edges={"rule": "semantic"})
    source = FolderSource(tmp_path)
    assert source.edges == "semantic" and source.edge_rules == ("semantic", "provided")


def test_edges_of_other_values_are_refused(tmp_path):
    make(tmp_path)
    put(tmp_path / "edges" / "scan1" / "a.png", np.full(SIZE, 100, np.uint8))
    fails(tmp_path, tmp_path / "edges" / "scan1" / "a.png", "holds 100")


def test_intrinsics_per_image(tmp_path):
    make(tmp_path, K=None)
    folder = tmp_path / "intrinsics"
    (folder / "scan1").mkdir(parents=True)
    (folder / "scan2").mkdir()
    (folder / "scan1" / "a.json").write_text(json.dumps(K))
    (folder / "scan1" / "b.json").write_text(json.dumps({"K": matrix().tolist()}))
    (folder / "scan2" / "a.txt").write_text("30 0 15.5\n0 31 11.5\n0 0 1\n")
    source = FolderSource(tmp_path, normals="derived")
    for item in source.items("train"):
        np.testing.assert_array_equal(source.read(item)["K"], matrix())
    (folder / "scan2" / "a.txt").write_text("30, 31, 15.5, 11.5")
    np.testing.assert_array_equal(source.read(item)["K"], matrix())
    for text in ("1 2 3", "30 0 15.5 0 31 11.5 0 0 x", "-30 31 15 11", ""):
        (folder / "scan2" / "a.txt").write_text(text)
        fails(tmp_path, folder / "scan2" / "a.txt")
    describe(tmp_path, depth={"scale": 0.001}, K=K)
    fails(tmp_path, "'K'", "intrinsics/")
    describe(tmp_path, depth={"scale": 0.001})
    (folder / "scan2" / "a.txt").unlink()
    fails(tmp_path, folder, "1 images have no intrinsics: scan2/a")


POSE = np.array([[0.0, 0.6, 0.8, 1.5], [-1, 0, 0, -0.25], [0, -0.8, 0.6, 2], [0, 0, 0, 1]])


def test_poses_per_image(tmp_path):
    make(tmp_path)
    assert not FolderSource(tmp_path).poses
    folder = tmp_path / "pose"
    (folder / "scan1").mkdir(parents=True)
    (folder / "scan1" / "a.txt").write_text("\n".join(" ".join(f"{x:.6f}" for x in row) for row in POSE))
    (folder / "scan1" / "b.txt").write_text(("-inf " * 4 + "\n") * 4)  # as of ScanNet, where tracking was lost
    source = FolderSource(tmp_path)
    assert source.poses
    assert "2 pose" in source.packaging
    items = source.items("train")
    np.testing.assert_array_equal(source.read(items[0])["pose"], POSE)
    assert source.read(items[0])["pose"].dtype == np.float64
    assert ["pose" in source.read(item) for item in items] == [True, False, False]
    assert ["pose" in item.files for item in items] == [True, True, False]
    (folder / "scan1" / "a.txt").unlink()
    np.save(folder / "scan1" / "a.npy", POSE.astype(np.float32))
    again = FolderSource(tmp_path)
    np.testing.assert_allclose(again.read(again.items("train")[0])["pose"], POSE, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 2 3", "is 3, expected a camera-to-world matrix of 4×4"),
        ("", "is 0, expected"),
        ("1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 x", "something else than numbers"),
        ("2 0 0 0 0 2 0 0 0 0 2 0 0 0 0 1", "no rotation with a shift"),  # a scale
        ("-1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1", "no rotation with a shift"),  # a mirror
        ("1 0 0 0 0 1 0 0 0 0 1 0 5 6 7 1", "no rotation with a shift"),  # transposed
        (" ".join(["0"] * 16), "no rotation with a shift"),
    ],
)
def test_poses_that_are_none_are_named(tmp_path, text, words):
    make(tmp_path)
    (tmp_path / "pose" / "scan1").mkdir(parents=True)
    (tmp_path / "pose" / "scan1" / "b.txt").write_text(text)
    fails(tmp_path, tmp_path / "pose" / "scan1" / "b.txt", words)


@pytest.mark.parametrize(("array", "words"), [(np.eye(3), "is 3×3"), (np.full((4, 4), "a"), "holds <U1")])
def test_pose_arrays_that_are_none_are_named(tmp_path, array, words):
    make(tmp_path)
    put(tmp_path / "pose" / "scan1" / "b.npy", array)
    fails(tmp_path, tmp_path / "pose" / "scan1" / "b.npy", words)


# Splits and scenes


def test_splits_of_the_description(tmp_path):
    make(tmp_path, splits={"train": "scan1/*", "test": ["held.txt"]})
    (tmp_path / "held.txt").write_text("images/scan2/a.png\n")
    source = FolderSource(tmp_path)
    assert source.splits == ("train", "test")
    assert [item.id for item in source.items("test")] == ["scan2/a"]
    with pytest.raises(ConfigError, match="no split 'val'"):
        source.items("val")
    for splits, words in (
        ({"train": "scan9/*"}, ("'splits.train'", "scan9/*")),
        ({"train": "*", "val": "scan2/*"}, ("1 images are in both train and val: scan2/a",)),
        ({"train": "nowhere.txt"}, ("nowhere.txt",)),
        ({"trian": "*"}, ("splits.trian", "did you mean 'train'?")),
        ({"train": 3}, ("'splits.train' is 3",)),
    ):
        fails(make(tmp_path, splits=splits), *words)


def test_splits_by_lists(tmp_path):
    make(tmp_path)
    (tmp_path / "splits").mkdir()
    fails(tmp_path, tmp_path / "splits", "train.txt")
    (tmp_path / "splits" / "train.txt").write_text("\ufeffscan2/a\nscan1/a.png\n\n")
    (tmp_path / "splits" / "val.txt").write_text("scan1/b\n")
    source = FolderSource(tmp_path)
    assert source.splits == ("train", "val") and "lists" in source.provenance["split"]
    assert [item.id for item in source.items("train")] == ["scan2/a", "scan1/a"]
    for text, words in (("scan1/b\nscan1/b", ("twice",)), ("scan1/x", ("1 of 1", "scan1/x")), ("", ("empty",))):
        (tmp_path / "splits" / "val.txt").write_text(text)
        fails(tmp_path, tmp_path / "splits" / "val.txt", *words)


def test_splits_by_folder(tmp_path):
    describe(tmp_path)
    for name in ("train/x/1", "train/2", "val/x/1"):
        put(tmp_path / "images" / f"{name}.png", truth(0)["image"])
    source = FolderSource(tmp_path)
    assert source.splits == ("train", "val")
    assert [(item.id, item.scene) for item in source.items("train")] == [
        ("train/2", "train/2"),
        ("train/x/1", "train/x"),
    ]
    put(tmp_path / "images" / "more" / "1.png", truth(0)["image"])
    fails(tmp_path, tmp_path / "images", "more", "splits")


def test_scenes(tmp_path):
    for rule, scenes in (
        ("parent", ["scan1", "scan1", "scan2"]),
        ("each", list(IDS)),
        ("scan([0-9]+)", ["1", "1", "2"]),
        ("[ab]$", ["a", "b", "a"]),
    ):
        source = FolderSource(make(tmp_path, scene=rule))
        assert [item.scene for item in source.items("train")] == scenes
    fails(make(tmp_path, scene="parnet"), "'scene'", "did you mean 'parent'?")
    fails(make(tmp_path, scene="("), "'scene'", "regular expression")


# What is wrong with the description


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"class": 3}, ("'class'", "did you mean 'classes'?")),
        ({"depth": {"scales": 1}}, ("'depth.scales'", "did you mean 'scale'?")),
        ({"depth": 3}, ("'depth' is 3",)),
        ({"depth": {"scale": -1}}, ("'depth.scale' is -1", "above 0")),
        ({"depth": {"scale": "mm"}}, ("'depth.scale' is 'mm'",)),
        ({"depth": {"invalid": "none"}}, ("'depth.invalid'",)),
        ({"depth_range": [10, 1]}, ("'depth_range'",)),
        ({"depth_range": 10}, ("'depth_range'",)),
        ({"normals": {"axes": "x,x,z"}}, ("'normals.axes'",)),
        ({"normals": {"coding": "u8"}}, ("'normals.coding'",)),
        ({"edges": {"rule": "semantics"}}, ("'edges.rule'", "did you mean 'semantic'?")),
        ({"edges": {"positive": "yes"}}, ("'edges.positive'",)),
        ({"classes": 0}, ("'classes' is 0",)),
        ({"classes": 255}, ("'classes' is 255",)),
        ({"classes": ["a", "a"]}, ("'a' twice",)),
        ({"classes": ["a", True]}, ("True", "quotes")),
        ({"classes": "a"}, ("'classes' is 'a'",)),
        ({"ignore": 0.5}, ("'ignore'", "whole")),
        ({"label_offset": [1, 2]}, ("'label_offset'",)),
        ({"label_offset": True}, ("'label_offset'",)),
        ({"name": ""}, ("'name'",)),
        ({"K": {"fx": 1}}, ("'K'", "fx, fy, cx, cy")),
        ({"K": [[1, 0], [0, 1]]}, ("'K'", "3×3")),
        ({"K": [[1, 0, 0], [0, 1, 0], [0, 0, 0]]}, ("'K'", "no camera")),
    ],
)
def test_wrong_keys_and_values(tmp_path, keys, words):
    fails(make(tmp_path, **keys), tmp_path / "dataset.yaml", *words)


@pytest.mark.parametrize("text", ["classes: [a", "- a\n- b", "3", "\tx: 1"])
def test_what_is_no_description(tmp_path, text):
    make(tmp_path)
    (tmp_path / "dataset.yaml").write_text(text)
    fails(tmp_path, tmp_path / "dataset.yaml")


def test_description_in_the_docstring_is_read(tmp_path):
    import m2h_lightning.data.sources.folder as module

    blocks = (module.__doc__ or "").split("needed::\n")[1].split("\n\n")
    text = next(block for block in blocks if "name: workshop" in block)
    (tmp_path / "dataset.yaml").write_text("\n".join(line[4:] for line in text.splitlines()))
    about = read_description(tmp_path / "dataset.yaml")
    assert about.name == "workshop" and about.depth_scale == 0.001 and about.splits["val"] == ("val.txt",)
    assert isinstance(about, Description) and about.K is not None and about.scene == "parent"


# What is wrong with the files


def test_wrong_folders_are_named(tmp_path):
    root = make(tmp_path / "mine" / "set")
    fails(root.parent, root.parent, f"but {root} has")
    fails(root / "images", f"but {root} has")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "dataset.yaml", "classes: [floor, wall]")
    describe(tmp_path / "empty")
    fails(tmp_path / "empty", "no images/")
    (tmp_path / "empty" / "images").mkdir()
    fails(tmp_path / "empty", tmp_path / "empty" / "images", "holds no")
    (root / "edge").mkdir()
    fails(root, root / "edge", "did you mean 'edges'?")


def test_labels_without_image_are_named(tmp_path):
    make(tmp_path)
    for number in range(5):
        put(tmp_path / "depth" / f"x{number}.npy", np.ones(SIZE))
    fails(tmp_path, tmp_path / "depth", "5 files", "x0, x1, x2 and 2 more")


def test_two_files_of_one_name_are_refused(tmp_path):
    make(tmp_path)
    put(tmp_path / "images" / "scan1" / "a.jpg", truth(0)["image"])
    fails(tmp_path, "a.png", "a.jpg", "same name")


def test_files_of_other_kinds(tmp_path):
    make(tmp_path)
    (tmp_path / "depth" / "README.md").write_text("ours")
    (tmp_path / "depth" / ".hidden.exr").touch()
    assert FolderSource(tmp_path).tasks
    (tmp_path / "depth" / "scan1" / "a.exr").touch()
    fails(tmp_path, tmp_path / "depth" / "scan1" / "a.exr", ".exr", "convert")


@pytest.mark.parametrize(
    "name", ["images/scan1/b.png", "semseg/scan1/b.png", "depth/scan1/b.png", "normals/scan1/b.npy"]
)
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7])
def test_cut_off_files_are_named(tmp_path, name, keep):
    path = make(tmp_path) / name
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    fails(tmp_path, path)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("semseg", np.zeros((12, 16), np.uint8), ("12×16", "24×32")),
        ("semseg", np.zeros((*SIZE, 3), np.uint8), ("channels",)),
        ("semseg", np.full(SIZE, 3, np.uint8), ("label 3", "0..2", "'label_offset'")),
        ("depth", np.zeros((12, 16), np.uint16), ("12×16", "24×32")),
        ("depth", np.full(SIZE, 200, np.uint8), ("uint8", "viewing")),
        ("edges", np.zeros((12, 16), np.uint8), ("12×16",)),
        ("images", np.zeros((12, 16, 3), np.uint8), ("is 24×32, its image is 12×16",)),
    ],
)
def test_maps_of_the_wrong_kind_are_named(tmp_path, name, array, words):
    make(tmp_path)
    path = tmp_path / name / "scan2" / "a.png"
    put(path, array)
    fails(tmp_path, "scan2/a.png", *words)


def test_depth_in_other_units_is_refused(tmp_path):
    make(tmp_path, depth={})
    fails(tmp_path, tmp_path / "depth" / "scan1" / "a.png", "uint16", "'depth.scale'")
    describe(tmp_path, depth={"scale": 1})
    fails(tmp_path, tmp_path / "depth" / "scan1" / "a.png", "millimetres: median", "'depth.scale'")
    describe(tmp_path)
    for key in IDS:
        (tmp_path / "depth" / f"{key}.png").unlink()
        put(tmp_path / "depth" / f"{key}.npy", truth(0)["depth"].astype(np.float32))
    fails(tmp_path, tmp_path / "depth" / "scan1" / "a.npy", "millimetres: median")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".bmp"])
def test_photographs_of_other_modes_become_rgb(tmp_path, mode, suffix):
    if (suffix, mode) in {(".bmp", "LA")}:
        pytest.skip("the format has no such mode")
    path = describe(tmp_path) / "images" / f"a{suffix}"
    path.parent.mkdir()
    Image.fromarray(truth(0)["image"]).convert(mode).save(path)
    source = FolderSource(tmp_path)
    image = source.read(source.items("train")[0])["image"]
    assert image.shape == (*SIZE, 3) and image.dtype == np.uint8


def test_photographs_of_floats_are_refused(tmp_path):
    put(describe(tmp_path) / "images" / "a.tif", np.full(SIZE, 0.5, np.float32))
    fails(tmp_path, tmp_path / "images" / "a.tif", "float32")
