"""The reader of Cityscapes' own files against trees made here from closed forms."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2h_lightning.data.raw import decode
from m2h_lightning.data.sources import source_class
from m2h_lightning.data.sources.cityscapes import CityscapesSource
from m2h_lightning.errors import ConfigError, DataError, M2HError
from m2h_lightning.geometry import pixel_rays, resize_intrinsics
from m2h_lightning.labels import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, CITYSCAPES_TRAIN_IDS, IGNORE, class_palette

FX, FY, U0, V0, BASELINE = 2262.52, 2265.3, 1096.98, 513.137, 0.209313
FULL_K = np.array([[FX, 0, U0], [0, FY, V0], [0, 0, 1]])
H, W = 32, 64
NORMAL = np.array([0.2, -0.5, -0.8]) / np.linalg.norm([0.2, -0.5, -0.8])
VAL = ["frankfurt_000000_000294", "frankfurt_000001_005898", "lindau_000003_000019"]
TRAIN = ["aachen_000000_000019", "hamburg_000000_042505"]


def write(root: Path, kind: str, split: str, stem: str, end: str, array: np.ndarray | str) -> Path:
    path = root / kind / split / stem.split("_")[0] / f"{stem}_{end}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(array, str):
        path.write_text(array)
    else:
        Image.fromarray(array).save(path)
    return path


def camera(**changes) -> str:
    intrinsic = {"fx": FX, "fy": FY, "u0": U0, "v0": V0}
    extrinsic = {"baseline": BASELINE, "pitch": 0.04, "roll": 0.0, "x": 1.7, "y": -0.1, "yaw": -0.02, "z": 1.2}
    for key, value in changes.items():
        (intrinsic if key in intrinsic else extrinsic)[key] = value
    return json.dumps({"extrinsic": extrinsic, "intrinsic": {k: v for k, v in intrinsic.items() if v is not None}})


def plane(K: np.ndarray) -> np.ndarray:
    """Depth of a plane about 12 m away."""
    return -10.0 / np.einsum("c,chw->hw", NORMAL, pixel_rays(K, H, W))


def small_K() -> np.ndarray:
    return resize_intrinsics(FULL_K, H / 1024, W / 2048)


def labels() -> np.ndarray:
    """All 34 label ids."""
    return (np.arange(H * W) % 34).reshape(H, W).astype(np.uint8)


def instances() -> np.ndarray:
    numbers = labels().astype(np.uint16)
    cars = numbers == 26
    numbers[cars] = 26000
    numbers[:, W // 2 :][cars[:, W // 2 :]] = 26001
    return numbers


def sample(root: Path, split: str, stem: str) -> None:
    rng = np.random.default_rng(len(stem))
    write(root, "leftImg8bit", split, stem, "leftImg8bit.png", rng.integers(0, 256, (H, W, 3), np.uint8))
    write(root, "gtFine", split, stem, "gtFine_labelIds.png", labels())
    write(root, "gtFine", split, stem, "gtFine_instanceIds.png", instances())
    write(root, "gtFine", split, stem, "gtFine_color.png", np.zeros((H, W, 4), np.uint8))
    p = np.rint(BASELINE * FX / plane(small_K()) * 256 + 1).astype(np.uint16)
    p[0, 0], p[0, 1], p[0, 2] = 0, 1, 2  # unknown, infinitely far, 121 km
    write(root, "disparity", split, stem, "disparity.png", p)
    write(root, "camera", split, stem, "camera.json", camera())


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "cityscapes"
    for split, stems in (("train", TRAIN), ("val", VAL)):
        for stem in stems:
            sample(root, split, stem)
    # The official test set: pictures with dummy labels, which nobody must read.
    write(root, "leftImg8bit", "test", "berlin_000000_000019", "leftImg8bit.png", np.zeros((H, W, 3), np.uint8))
    write(root, "gtFine", "test", "berlin_000000_000019", "gtFine_labelIds.png", np.zeros((H, W), np.uint8))
    return root


def load(root, split="test", index=0, **options):
    source = CityscapesSource(root, **options)
    return source.load(source.items(split)[index])


def refused(message: str, call, error=DataError) -> str:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value) and isinstance(caught.value, M2HError)
    return str(caught.value)


def test_facts_and_lists(root):
    source = source_class("cityscapes")(root)
    assert source.name == "cityscapes" and source.classes == CITYSCAPES_CLASSES and len(source.classes) == 19
    assert source.official == {"train": 2975, "test": 500}
    assert source.splits == ("train", "test")
    assert source.tasks == ("semseg", "depth", "edges") and source.edge_rules == ("semantic", "instance")
    assert [item.id for item in source.items("test")] == VAL  # the official val, never the dummies of test
    assert [item.id for item in source.items("train")] == TRAIN
    assert [item.scene for item in source.items("test")] == ["frankfurt", "frankfurt", "lindau"]
    assert source.size(source.items("test")[0]) == (H, W)
    assert "metric" in source.provenance["depth"] and "semantic" in source.provenance["edges"]
    refused("no split 'val'.*official val is 'test'", lambda: source.items("val"), ConfigError)
    assert pickle.loads(pickle.dumps(source)).items("train") == source.items("train")


def test_labels_are_exact(root):
    raw = load(root)
    assert np.array_equal(raw["semseg"], np.array(CITYSCAPES_TRAIN_IDS)[labels()]) and raw["semseg"].dtype == np.uint8
    by_name = dict(zip(CITYSCAPES_CLASSES, range(19), strict=True))
    # Sky is 23; 10, which others took for it, is rail track and not evaluated.
    assert set(raw["semseg"][labels() == 23]) == {by_name["sky"]} == {10}
    assert set(raw["semseg"][labels() == 10]) == {IGNORE}
    assert sorted(set(raw["semseg"].ravel())) == [*range(19), IGNORE]
    picture = np.random.default_rng(len(VAL[0])).integers(0, 256, (H, W, 3), np.uint8)
    assert np.array_equal(raw["image"], picture)


def test_table_and_palette():
    assert len(CITYSCAPES_TRAIN_IDS) == 256 and CITYSCAPES_TRAIN_IDS[7] == 0 and CITYSCAPES_TRAIN_IDS[33] == 18
    kept = [label for label, train in enumerate(CITYSCAPES_TRAIN_IDS) if train != IGNORE]
    assert kept == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert [CITYSCAPES_TRAIN_IDS[label] for label in kept] == list(range(19))
    assert CITYSCAPES_PALETTE[10] == (70, 130, 180) and CITYSCAPES_PALETTE[18] == (119, 11, 32)
    table = class_palette(19)
    assert np.array_equal(table[:19], CITYSCAPES_PALETTE) and not table[19:].any()


@pytest.mark.parametrize("target", ["metric", "disparity", "inverse"])
def test_depth_of_each_target(root, target):
    raw = load(root, depth_target=target)
    assert raw["depth"].dtype == np.uint16 and raw["depth_code"].target == target
    metres = plane(small_K())
    expected = {"metric": metres, "disparity": BASELINE * FX / metres, "inverse": 1 / metres}[target]
    depth = decode(raw)["depth"]
    assert depth.dtype == np.float32
    assert not depth[0, :3].any()  # p = 0, p = 1, and what is farther than 80 m
    assert abs(depth[1:] / expected[1:] - 1).max() < 1e-3
    low, high = CityscapesSource(root, depth_target=target).depth_range
    assert low < depth[depth > 0].min() and depth.max() < high


@pytest.mark.parametrize("target", ["metric", "disparity", "inverse"])
def test_cap_and_range_agree(root, target):
    """Every disparity that 16 bits can store is unknown or inside the range, and the same pixels are known for all."""
    item = CityscapesSource(root).items("test")[0]
    every = np.arange(65536, dtype=np.uint16)
    for baseline in (0.209, 0.222):
        write(root, "camera", "val", item.id, "camera.json", camera(baseline=baseline))
        source = CityscapesSource(root, depth_target=target)
        depth = source.load(item)["depth_code"].decode(every)
        metric = CityscapesSource(root).load(item)["depth_code"].decode(every)
        assert np.array_equal(depth > 0, metric > 0)
        assert source.depth_range[0] <= depth[depth > 0].min() and depth.max() <= source.depth_range[1]
        assert metric.max() <= 80 * (1 + 1e-6) and metric.max() > 79.9


def test_intrinsics(root):
    raw = load(root)
    np.testing.assert_allclose(raw["K"], small_K(), rtol=1e-12)
    np.testing.assert_allclose(raw["depth_code"].baseline_fx, BASELINE * FX)  # of the full-size picture
    full = np.zeros((1024, 2048, 3), np.uint8)
    write(root, "leftImg8bit", "val", VAL[0], "leftImg8bit.png", full)
    for end in ("labelIds", "instanceIds"):
        write(root, "gtFine", "val", VAL[0], f"gtFine_{end}.png", full[..., 0])
    write(root, "disparity", "val", VAL[0], "disparity.png", full[..., 0].astype(np.uint16))
    np.testing.assert_allclose(load(root)["K"], FULL_K, rtol=1e-12)


@pytest.mark.parametrize("target", ["metric", "disparity", "inverse"])
def test_derived_normals_come_from_metric_depth(root, target):
    source = CityscapesSource(root, normals="derived", depth_target=target)
    assert source.tasks == ("semseg", "depth", "normals", "edges") and "pseudo" in source.provenance["normals"]
    normals = source.load(source.items("train")[0])["normals"]
    known = np.linalg.norm(normals, axis=-1) > 0.5
    assert known.mean() > 0.8 and normals.dtype == np.float32
    angle = np.degrees(np.arccos(np.clip(normals[known] @ NORMAL, -1, 1)))
    assert angle.mean() < 1  # disparity is stored in steps of 1/256 px
    assert "normals" not in load(root)


def test_instances_and_edges(root):
    raw = load(root)
    assert raw["instance"].dtype == np.int32
    assert np.array_equal(raw["instance"], np.where(instances() < 1000, 0, instances()))
    one = np.full((H, W), 26, np.uint8)
    two = np.full((H, W), 26000, np.uint16)
    two[:, 30:] = 26001
    write(root, "gtFine", "val", VAL[0], "gtFine_labelIds.png", one)
    write(root, "gtFine", "val", VAL[0], "gtFine_instanceIds.png", two)
    item = CityscapesSource(root).items("test")[0]
    assert not CityscapesSource(root).read(item)["edges"].any()
    edges = CityscapesSource(root, edges="instance").read(item)["edges"]
    assert edges[:, 29].all() and edges.sum() == H
    for path in root.rglob("*_instanceIds.png"):
        path.unlink()
    assert CityscapesSource(root).edge_rules == ("semantic",)
    refused("data.edges is 'instance'", lambda: CityscapesSource(root, edges="instance"), ConfigError)


@pytest.mark.parametrize("folder", ["disparity", "camera"])
def test_missing_download_takes_depth_away(root, folder):
    import shutil

    shutil.rmtree(root / folder)
    source = CityscapesSource(root)
    assert source.tasks == ("semseg", "edges") and f"{folder}_trainvaltest.zip" in source.packaging
    raw = source.load(source.items("test")[0])
    assert "depth" not in raw and np.isnan(raw["K"]).all() == (folder == "camera")
    refused("derived normals need", lambda: CityscapesSource(root, normals="derived"), ConfigError)
    shutil.rmtree(root / "gtFine")
    refused("gtFine_trainvaltest.zip", lambda: CityscapesSource(root))


def test_train_ids_are_taken_when_label_ids_are_missing(root):
    expected = load(root)["semseg"]
    for path in sorted(root.rglob("*_labelIds.png")):
        stem = path.name.split("_gtFine")[0]
        write(root, "gtFine", path.parents[1].name, stem, "gtFine_labelTrainIds.png", expected)
        path.unlink()
    source = CityscapesSource(root)
    assert "labelTrainIds" in source.packaging and "converted" in source.provenance["semseg"]
    assert np.array_equal(source.load(source.items("test")[0])["semseg"], expected)
    write(root, "gtFine", "val", VAL[0], "gtFine_labelTrainIds.png", labels())
    refused("labelTrainIds.png: holds label 19", lambda: source.load(source.items("test")[0]))


def test_palette_labels_give_their_indices(root):
    indexed = Image.frombytes("P", (W, H), labels().tobytes())
    indexed.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    indexed.save(next((root / "gtFine/val").rglob(f"{VAL[0]}*labelIds.png")))
    assert np.array_equal(load(root)["semseg"], np.array(CITYSCAPES_TRAIN_IDS)[labels()])


def test_wrong_files_are_one_line(root):
    source = CityscapesSource(root)
    item = source.items("test")[0]

    def expect(message, kind, end, array):
        path = root / kind / "val" / "frankfurt" / f"{item.id}_{end}"
        before = path.read_bytes()
        write(root, kind, "val", item.id, end, array)
        assert path.name in refused(message, lambda: source.load(item))
        path.write_bytes(before)

    rgb = np.zeros((H, W, 3), np.uint8)
    p = np.full((H, W), 5000, np.uint16)
    expect("3 channels.*coloured", "gtFine", "gtFine_labelIds.png", rgb)
    expect("31×64, its image is 32×64", "gtFine", "gtFine_labelIds.png", labels()[1:])
    expect("holds label 255.*converted", "gtFine", "gtFine_labelIds.png", np.full((H, W), 255, np.uint8))
    expect("uint16", "gtFine", "gtFine_labelIds.png", labels().astype(np.uint16))
    expect("re-saved with 8 bits", "disparity", "disparity.png", (p >> 8).astype(np.uint8))
    expect("32×63", "disparity", "disparity.png", p[:, 1:])
    expect("channels", "disparity", "disparity.png", rgb)
    expect("intrinsic.fx is None", "camera", "camera.json", camera(fx=None))
    expect("extrinsic.baseline is 0", "camera", "camera.json", camera(baseline=0))
    expect("extrinsic.baseline is 'wide'", "camera", "camera.json", camera(baseline="wide"))
    expect("intrinsic.fx is None", "camera", "camera.json", "[]")
    expect("not readable", "camera", "camera.json", camera()[:40])
    expect("full resolution", "camera", "camera.json", camera(u0=32.0, v0=16.0))
    source.load(item)


@pytest.mark.parametrize("key", ["image", "semseg", "instance", "depth"])
def test_cut_off_files_are_one_line(root, key):
    source = CityscapesSource(root)
    item = source.items("test")[0]
    path = item.files[key]
    path.write_bytes(path.read_bytes()[:-40])
    assert str(path) in refused("cut off", lambda: source.load(item))
    path.unlink()
    assert str(path) in refused("missing", lambda: source.load(item))


def test_sets_that_do_not_match(root):
    source = CityscapesSource(root)
    for path in (root / "disparity/val").rglob("*.png"):
        path.unlink()
    message = refused("3 of split 'test'.*disparity_trainvaltest.zip", lambda: source.items("test"))
    assert VAL[0] in message
    assert len(source.items("train")) == 2
    sample(root, "train", "bremen_000000_000019")
    next((root / "leftImg8bit/train/bremen").iterdir()).unlink()
    refused("1 of split 'train'.*labels but no picture: bremen_000000_000019", lambda: source.items("train"))
    next((root / "gtFine/train/aachen").glob("*labelIds*")).unlink()
    refused("labelIds.*aachen_000000_000019", lambda: source.items("train"))


def test_wrong_options_and_folders(root, tmp_path):
    refused("depth_target.*did you mean 'metric'", lambda: CityscapesSource(root, depth_target="metrik"), ConfigError)
    refused("normal_axes", lambda: CityscapesSource(root, normal_axes="x,y,z"), ConfigError)
    refused("data.normals is 'provided'", lambda: CityscapesSource(root, normals="provided"), ConfigError)
    refused("does not exist", lambda: CityscapesSource(tmp_path / "nothing"))
    refused("leftImg8bit", lambda: CityscapesSource(root / "gtFine"))
    for path in root.rglob("*labelIds.png"):
        path.unlink()
    refused("labelIds.png here", lambda: CityscapesSource(root))


def test_fingerprint_tells_targets_apart(root):
    assert len({CityscapesSource(root, depth_target=t).fingerprint for t in ("metric", "disparity", "inverse")}) == 3
