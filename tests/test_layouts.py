"""Writers of raw layouts: names, types and values of the files, without any reader of the package."""

from __future__ import annotations

import csv
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat

from analytic import PLANES, SPHERES, analytic_sample, analytic_scene, borders_of, pinhole, rays_of, tilt_shift
from fixture_corruptions import CORRUPTIONS
from fixture_sets import FIXTURES, nyu_camera, tree_bytes
from m2h_lightning.data.sources.nyud_facts import map_894_to_40, official_ids
from m2h_lightning.data.synthesis.layouts import LAYOUTS, LayoutSample, write_layout
from m2h_lightning.data.synthesis.layouts.cityscapes import BASELINE, LABEL_ID, disparity, object_ids
from m2h_lightning.data.synthesis.layouts.hypersim import distance_from_depth, matrix_from_uv
from m2h_lightning.data.synthesis.layouts.nyud_mat import instances_within, raw_labels
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.labels import IGNORE

FRAME = "ai_001_001/cam_00/frame.0000"
CITY = "aachen_000000_000019"


def nyud(*ids: str) -> list[LayoutSample]:
    test = {f"{number:04d}" for number in official_ids("test")}
    return [analytic_sample(i, "s", "test" if i in test else "train", K=nyu_camera(48, 64)) for i in ids]


def hypersim(K: np.ndarray | None = None) -> LayoutSample:
    return analytic_sample(FRAME, "ai_001_001", "train", K=K)


def cityscapes(split: str = "train") -> LayoutSample:
    return analytic_sample(CITY, "aachen", split, 32, 64)


def dataset(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["dataset"][()]


def files(root: Path) -> dict[str, str]:
    """SHA-256 of every file, by name."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# ------------------------------------------------------------------------------------------------ the scene itself


@pytest.mark.parametrize("K", [pinhole(30, 40), tilt_shift(30, 40)], ids=["pinhole", "tilt-shift"])
def test_the_analytic_scene_lies_on_its_planes_and_spheres(K):
    scene = analytic_scene(K, 30, 40)
    points = (rays_of(K, 30, 40) * scene["depth"]).transpose(1, 2, 0)
    u, v, w = np.einsum("ij,hwj->ihw", K, points)
    assert np.allclose((u / w, v / w), np.mgrid[:30, :40][::-1], atol=1e-9)
    for number, (_, normal, distance) in enumerate(PLANES, 1):
        on = scene["instance"] == number
        n = np.asarray(normal) / np.linalg.norm(normal)
        assert on.any() or number == 4
        assert np.allclose(points[on] @ n, -distance)
        assert np.allclose(scene["normals"][on], n)
    for number, (_, centre, radius) in enumerate(SPHERES, len(PLANES) + 1):
        on = scene["instance"] == number
        assert on.sum() > 5
        assert np.allclose(np.linalg.norm(points[on] - centre, axis=-1), radius)
        assert np.allclose(scene["normals"][on], (points[on] - centre) / radius)


def test_borders_of_two_by_two():
    labels = np.array([[0, 1], [0, IGNORE]], np.uint8)
    assert borders_of(labels, np.zeros((2, 2), int)).tolist() == [[1, 0], [0, IGNORE]]


# ------------------------------------------------------------------------------------------------------ all layouts


def test_fixtures_are_small_and_their_bytes_do_not_depend_on_the_time(tmp_path):
    first = {}
    for name, fixture in FIXTURES.items():
        fixture.write(tmp_path / "a" / name)
        assert tree_bytes(tmp_path / "a" / name) <= 200_000, name
        first[name] = files(tmp_path / "a" / name)
        assert first[name]
    time.sleep(1.1)  # HDF5 and MATLAB headers count seconds
    for name, fixture in FIXTURES.items():
        fixture.write(tmp_path / "b" / name)
        assert files(tmp_path / "b" / name) == first[name], name


def test_corruptions_are_many_and_each_has_a_name_of_its_own():
    assert len(CORRUPTIONS) >= 40
    assert len({str(c) for c in CORRUPTIONS}) == len(CORRUPTIONS)
    assert {c.fixture for c in CORRUPTIONS} == set(FIXTURES)


def test_an_existing_tree_is_never_touched(tmp_path):
    (tmp_path / "tree").mkdir()
    write_layout("nyud", tmp_path / "tree", nyud("0003"))  # an empty folder is fine
    before = files(tmp_path / "tree")
    with pytest.raises(DataError, match=r"tree: exists and is not an empty folder; delete it") as error:
        write_layout("nyud", tmp_path / "tree", nyud("0004"))
    assert "\n" not in str(error.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: exists and is not an empty folder"):
        write_layout("nyud", tmp_path / "file", nyud("0004"))
    assert files(tmp_path / "tree") == before


def test_what_fails_half_way_leaves_nothing(tmp_path):
    def samples():
        yield from nyud("0003")
        raise RuntimeError("power cut")

    for packaging in ("A", "mat"):
        with pytest.raises(RuntimeError):
            write_layout("nyud", tmp_path / "tree", samples(), packaging=packaging)
        assert list(tmp_path.iterdir()) == []


def test_no_samples_no_tree(tmp_path):
    for layout in LAYOUTS:
        with pytest.raises(DataError, match="no samples"):
            write_layout(layout, tmp_path / "tree", [])
    assert list(tmp_path.iterdir()) == []


def test_unknown_layout_and_options(tmp_path):
    with pytest.raises(ConfigError, match="no layout 'hypersin'; did you mean 'hypersim'"):
        write_layout("hypersin", tmp_path / "t", [])
    with pytest.raises(ConfigError, match="packaging is 'E', expected one of A, B, C, D, mat"):
        write_layout("nyud", tmp_path / "t", nyud("0003"), packaging="E")
    with pytest.raises(ConfigError, match="metres_scale is -1"):
        write_layout("cityscapes", tmp_path / "t", [cityscapes()], metres_scale=-1)


@pytest.mark.parametrize(
    ("layout", "sample", "words"),
    [
        ("nyud", lambda: replace(nyud("0003")[0], id="0001"), "'0001': is not among NYUDv2's official ids of .* train"),
        ("nyud", lambda: replace(nyud("0003")[0], id="3"), "'3': is not among"),
        ("nyud", lambda: replace(nyud("0003")[0], split="val"), "no split 'val', only train and test"),
        ("hypersim", lambda: replace(hypersim(), id="ai_1_1/cam_00/frame.0000"), "expected ai_VVV_NNN/cam_CC/frame"),
        ("hypersim", lambda: replace(hypersim(), scene="ai_001_002"), "of scene 'ai_001_002'"),
        ("cityscapes", lambda: replace(cityscapes(), id="aachen_0_19"), "expected city_SSSSSS_FFFFFF"),
        ("cityscapes", lambda: replace(cityscapes(), K=tilt_shift(32, 64)), "only fx, fy, u0 and v0"),
    ],
)
def test_names_that_are_not_of_the_set(tmp_path, layout, sample, words):
    with pytest.raises(DataError, match=words):
        write_layout(layout, tmp_path / "t", [sample()])
    assert not (tmp_path / "t").exists()


def test_samples_are_checked():
    sample = nyud("0003")[0]
    with pytest.raises(DataError, match="depth has shape"):
        replace(sample, depth=sample.depth[1:])
    with pytest.raises(DataError, match="semseg holds 255|semseg holds 40"):
        replace(sample, semseg=np.full_like(sample.semseg, 40))
    with pytest.raises(DataError, match="split is 'dev'"):
        replace(sample, split="dev")


# ----------------------------------------------------------------------------------------------------------- NYUDv2


def test_nyud_a(tmp_path):
    train, test = nyud("0003", "0001")
    assert write_layout("nyud", tmp_path / "t", [train, test]) == 2
    assert (tmp_path / "t/gt_sets/train.txt").read_text() == "0003\n"
    assert (tmp_path / "t/gt_sets/val.txt").read_text() == "0001\n"
    kinds = {"images": "png", "segmentation": "png", "depth": "npy", "normals": "png", "edge": "png"}
    assert set(files(tmp_path / "t")) == {
        "gt_sets/train.txt",
        "gt_sets/val.txt",
        *(f"{folder}/{name}.{kind}" for folder, kind in kinds.items() for name in ("0001", "0003")),
    }
    modes = {folder: Image.open(tmp_path / "t" / folder / "0003.png").mode for folder in kinds if folder != "depth"}
    assert modes == {"images": "RGB", "segmentation": "L", "normals": "RGB", "edge": "L"}
    seg = np.asarray(Image.open(tmp_path / "t/segmentation/0003.png"))
    assert (seg[train.semseg == IGNORE] == 0).all()
    assert (seg[train.semseg != IGNORE] == train.semseg[train.semseg != IGNORE] + 1).all()
    depth = np.load(tmp_path / "t/depth/0003.npy")
    assert depth.dtype == np.float32
    assert depth.shape == (48, 64)
    normals = np.asarray(Image.open(tmp_path / "t/normals/0003.png")) * (2 / 255) - 1
    known = np.abs(train.normals).sum(-1) > 0
    assert np.abs(normals[known] - train.normals[known] * [1, -1, -1]).max() < 1 / 254  # y up, z to the camera
    assert (normals[known][:, 2] > 0).mean() > 0.8  # all but the ceiling, which leans away
    assert (np.linalg.norm(normals[~known], axis=-1) < 0.5).all()
    assert set(np.unique(np.asarray(Image.open(tmp_path / "t/edge/0003.png")))) == {0, 255}


def test_nyud_a_of_full_frames_is_cropped_as_published(tmp_path):
    small = nyud("0003")[0]
    grid = np.arange(480 * 640, dtype=np.float64).reshape(480, 640)
    full = replace(
        small,
        **{key: np.zeros((480, 640), np.uint8) for key in ("semseg", "instance", "edges")},
        image=np.zeros((480, 640, 3), np.uint8),
        normals=np.zeros((480, 640, 3)),
        depth=grid + 1,
    )
    write_layout("nyud", tmp_path / "a", [full])
    depth = np.load(tmp_path / "a/depth/0003.npy")
    assert depth.shape == (425, 560)
    assert depth[0, 0] == 45 * 640 + 40 + 1
    assert depth[-1, -1] == 469 * 640 + 599 + 1
    write_layout("nyud", tmp_path / "b", [full], packaging="B")
    assert np.load(tmp_path / "b/depth/0003.npy").shape == (480, 640)


def test_nyud_b_c_and_d(tmp_path):
    sample = nyud("0003")[0]
    for packaging in "BCD":
        write_layout("nyud", tmp_path / packaging, [sample], packaging=packaging)
    assert Image.open(tmp_path / "B/images/0003.jpg").format == "JPEG"
    normals = np.load(tmp_path / "B/normals/0003.npy")
    assert normals.dtype == np.float32
    assert np.allclose(normals, sample.normals * [1, -1, -1], atol=1e-6)
    assert set(np.unique(np.load(tmp_path / "B/edge/0003.npy"))) == {0, 1}
    assert loadmat(tmp_path / "C/segmentation/0003.mat")["segmentation"].max() == sample.semseg[5:].max() + 1
    assert np.allclose(loadmat(tmp_path / "C/depth/0003.mat")["depth"], sample.depth)
    assert Image.open(tmp_path / "C/normals/0003.jpg").format == "JPEG"
    image, label, depth = (np.load(tmp_path / f"D/train/{key}/0.npy") for key in ("image", "label", "depth"))
    assert (image.min() >= 0, image.max() <= 1, image.shape) == (True, True, (48, 64, 3))
    assert set(np.unique(label)) == {-1, 3, 4, 11, 5, 2, 6} & set(np.unique(label))
    assert label[0, 0] == -1
    assert label[sample.semseg == 0][0] == 11  # wall
    assert depth.shape == (48, 64, 1)
    assert not (tmp_path / "D/gt_sets").exists()


def test_the_mat_file(tmp_path):
    samples = [replace(s, scene=f"office_{k // 2}") for k, s in enumerate(nyud("0001", "0002", "0003"))]
    write_layout("nyud", tmp_path / "t", samples[::-1], packaging="mat")  # order does not matter
    path = tmp_path / "t/nyu_depth_v2_labeled.mat"
    assert path.read_bytes().startswith(b"MATLAB 7.3 MAT-file")
    with h5py.File(path) as file:
        assert file["images"].shape == (3, 3, 64, 48)
        assert file["images"].dtype == np.uint8
        assert file["labels"].dtype == np.uint16
        assert file["depths"].dtype == file["rawDepths"].dtype == np.float32
        assert file["depths"].attrs["MATLAB_class"] == b"single"
        assert np.array_equal(file["images"][2].transpose(2, 1, 0), samples[2].image)
        assert np.allclose(file["depths"][2].T, samples[2].depth)
        classes = map_894_to_40()[file["labels"][2].T]
        assert np.array_equal(classes, np.where(samples[2].semseg == IGNORE, 0, samples[2].semseg + 1))
        names = ["".join(map(chr, file[ref][()].ravel())) for ref in file["scenes"][0]]
    assert names == ["office_0", "office_0", "office_1"]
    with pytest.raises(DataError, match="id 0002 is missing"):
        write_layout("nyud", tmp_path / "gap", [samples[0], samples[2]], packaging="mat")


def test_raw_labels_are_a_preimage_and_objects_are_counted_by_label():
    classes = map_894_to_40()
    assert classes[raw_labels()[:40]].tolist() == list(range(1, 41))
    assert raw_labels()[IGNORE] == 0
    assert raw_labels()[0] == 21  # "wall" of the 894
    labels, objects = np.array([[21, 21, 5, 5, 0]]), np.array([[7, 9, 9, 9, 3]])
    assert instances_within(labels, objects).tolist() == [[1, 2, 1, 1, 0]]


# --------------------------------------------------------------------------------------------------------- Hypersim


def test_hypersim_files(tmp_path):
    sample = hypersim()
    write_layout("hypersim", tmp_path / "t", [sample])
    images = tmp_path / "t/ai_001_001/images"
    geometry = {p.name.split(".")[2]: p for p in (images / "scene_cam_00_geometry_hdf5").iterdir()}
    types = {
        "depth_meters": "float16",
        "normal_cam": "float16",
        "render_entity_id": "int16",
        "semantic": "int16",
        "semantic_instance": "int16",
    }
    assert {key: dataset(path).dtype.name for key, path in geometry.items()} == types
    assert all(path.name == f"frame.0000.{key}.hdf5" for key, path in geometry.items())
    with h5py.File(images / "scene_cam_00_final_hdf5/frame.0000.color.hdf5") as file:
        assert list(file) == ["dataset"]
        assert (file["dataset"].compression, file["dataset"].compression_opts) == ("gzip", 9)
        assert file["dataset"].shape == (48, 64, 3)
        assert file["dataset"].dtype == np.float16
    unknown = sample.depth == 0
    assert np.isnan(dataset(geometry["depth_meters"])[unknown]).all()
    assert (dataset(geometry["render_entity_id"])[unknown] == -1).all()
    assert (dataset(geometry["render_entity_id"])[~unknown] > 0).all()
    semantic = dataset(geometry["semantic"])
    assert (semantic[sample.semseg == IGNORE] == -1).all()
    assert (semantic[sample.semseg == 21] == 22).all()
    normals = dataset(geometry["normal_cam"]).astype(np.float64)
    floor = sample.semseg == 1
    assert (normals[floor & ~unknown][:, 1] > 0.9).all()  # y is up
    with open(tmp_path / "t/metadata_images_split_scene_v1.csv") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {
            "scene_name": "ai_001_001",
            "camera_name": "cam_00",
            "frame_id": "0",
            "included_in_public_release": "True",
            "exclude_reason": "",
            "split_partition_name": "train",
        }
    ]
    assert "meters_per_asset_unit" in (tmp_path / "t/ai_001_001/_detail/metadata_scene.csv").read_text()


def test_hypersim_has_one_camera_a_scene(tmp_path):
    first, other = hypersim(), replace(hypersim(pinhole(48, 64, 1.1)), id=FRAME.replace("0000", "0001"))
    with pytest.raises(DataError, match="one camera and size a scene"):
        write_layout("hypersim", tmp_path / "t", [first, other])
    with pytest.raises(DataError, match="in the split train, not val"):
        write_layout("hypersim", tmp_path / "t", [first, replace(other, K=first.K, split="val")])


@given(
    st.floats(0.4, 2.0),
    st.floats(0.4, 2.0),
    st.floats(0.3, 0.7),
    st.floats(0.3, 0.7),
    st.floats(-0.1, 0.1),
    st.floats(-0.1, 0.1),
)
def test_the_matrix_from_uv_gives_the_same_rays_as_k(fx, fy, cx, cy, tilt_x, tilt_y):
    height, width = 6, 9
    K = np.array([[fx * width, 0.3, cx * width], [0, fy * width, cy * height], [tilt_x, tilt_y, 1.0]])
    M = matrix_from_uv(K, height, width)
    rays = rays_of(K, height, width)
    for i, j in ((0, 0), (2, 7), (5, 8)):
        ray = M @ [(j + 0.5) / width * 2 - 1, 1 - (i + 0.5) / height * 2, 1.0]
        assert ray[2] < 0
        assert np.allclose(ray / -ray[2], rays[:, i, j] * [1, -1, -1])
    depth = np.random.default_rng(0).uniform(0.5, 9, (height, width))
    assert np.allclose(distance_from_depth(depth, M), np.linalg.norm(rays * depth, axis=0))


def test_the_matrix_of_a_standard_camera():
    focal = 1024 / (2 * np.tan(np.pi / 6))  # 886.81
    M = matrix_from_uv(np.array([[focal, 0, 511.5], [0, focal, 383.5], [0, 0, 1]]), 768, 1024)
    assert np.allclose(M, np.diag([np.tan(np.pi / 6), np.tan(np.pi / 6) * 0.75, -1]))
    with pytest.raises(DataError, match="look backward"):
        matrix_from_uv(np.array([[9.0, 0, 4], [0, 9, 3], [2.0, 0, 1]]), 6, 9)


# ------------------------------------------------------------------------------------------------------- Cityscapes


def test_cityscapes_files(tmp_path):
    sample = cityscapes()
    write_layout(
        "cityscapes", tmp_path / "t", [sample, replace(sample, id="bonn_000000_000000", scene="bonn", split="test")]
    )
    names = {
        "leftImg8bit": "leftImg8bit.png",
        "gtFine": "gtFine_labelIds.png",
        "disparity": "disparity.png",
        "camera": "camera.json",
    }
    expected = {f"{folder}/train/aachen/{CITY}_{end}" for folder, end in names.items()}
    assert expected | {f"gtFine/train/aachen/{CITY}_gtFine_instanceIds.png"} <= set(files(tmp_path / "t"))
    modes = {n: Image.open(tmp_path / "t" / n).mode for n in expected if n.endswith("png")}
    assert sorted(modes.values()) == ["I;16", "L", "RGB"]
    stored = np.asarray(Image.open(tmp_path / f"t/disparity/train/aachen/{CITY}_disparity.png")).astype(np.float64)
    camera = json.loads((tmp_path / f"t/camera/train/aachen/{CITY}_camera.json").read_text())
    assert set(camera) == {"extrinsic", "intrinsic"}
    assert set(camera["intrinsic"]) == {"fx", "fy", "u0", "v0"}
    assert set(camera["extrinsic"]) == {"baseline", "pitch", "roll", "x", "y", "yaw", "z"}
    assert np.isclose(camera["intrinsic"]["fx"], sample.K[0, 0] * 32)  # of the full 2048 pixels
    known = sample.depth > 0
    depth = camera["extrinsic"]["baseline"] * camera["intrinsic"]["fx"] / ((stored[known] - 1) / 256)
    assert np.allclose(depth, sample.depth[known] * 8, rtol=1e-3)
    assert (stored[~known] == 0).all()
    assert (np.asarray(Image.open(tmp_path / "t/gtFine/test/bonn/bonn_000000_000000_gtFine_labelIds.png")) == 0).all()


def test_disparities():
    baseline_fx = BASELINE * 2262.52
    stored = disparity(np.array([[0.0, 1e9, 3.9, 4.1, 50.0]]), baseline_fx)
    assert stored.dtype == np.uint16
    assert stored[0, :3].tolist() == [0, 1, 0]  # unknown, infinitely far, nearer than the matcher searches
    assert stored[0, 3] == round(baseline_fx / 4.1 * 256) + 1
    assert stored[0, 4] == round(baseline_fx / 50 * 256) + 1


def test_label_and_object_ids():
    evaluated = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
    assert evaluated <= set(LABEL_ID[:40].tolist()) | {31}
    assert set(LABEL_ID[:40].tolist()) - evaluated == {0, 4, 5}
    assert LABEL_ID[IGNORE] == 0
    ids = object_ids(np.array([[7, 26, 26, 26, 33]], np.uint8), np.array([[4, 9, 3, 0, 9]]))
    assert ids.dtype == np.uint16
    assert ids.tolist() == [[7, 26001, 26000, 26, 33000]]
