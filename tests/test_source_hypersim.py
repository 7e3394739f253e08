"""The reader of Hypersim's own files against trees made here from closed forms."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2h_lightning.data.sources import source_class
from m2h_lightning.data.sources.hypersim import HypersimSource
from m2h_lightning.data.sources.hypersim_frame import intrinsics, tonemap, view_rays
from m2h_lightning.data.sources.hypersim_lists import BAD_TRAJECTORIES
from m2h_lightning.errors import ConfigError, DataError, M2HError
from m2h_lightning.geometry import pixel_rays
from m2h_lightning.labels import IGNORE, NYU40_CLASSES

H, W = 24, 32
# Three of the published cameras: the standard one, one with a shifted and one with a tilted image plane.
STANDARD = np.array([[0.5773502886169104, 0, 0], [0, 0.4330127164626828, 0], [0, 0, -1.0]])
SHIFTED = np.array([[0.5773759486498881, 0, -0.011547518714890601], [0, 0.4330319614874161, 0], [0, 0, -1.00004444]])
TILTED = np.array([[0.7903225369878771, 0, 0], [0, 0.4439377392550294, 0], [0, -0.39276232880718764, -1.3688787409561]])
CAMERAS = {"ai_001_001": STANDARD, "ai_026_007": SHIFTED, "ai_026_006": TILTED}
NORMAL = np.array([0.3, -0.6, -0.75]) / np.linalg.norm([0.3, -0.6, -0.75])  # OpenCV, faces the camera
SPLITS = {"ai_001_001": "train", "ai_026_007": "val", "ai_026_006": "test"}


def expected_rays(matrix: np.ndarray, height: int = H, width: int = W) -> np.ndarray:
    """The publishers' formula, pixel by pixel: H×W×3, y up, z backward."""
    rays = np.zeros((height, width, 3))
    for i in range(height):
        for j in range(width):
            u, v = (j + 0.5) / width * 2 - 1, 1 - (i + 0.5) / height * 2
            rays[i, j] = matrix @ [u, v, 1.0]
    return rays


def opencv_rays(matrix: np.ndarray) -> np.ndarray:
    return expected_rays(matrix) * [1, -1, -1]


def plane_depth(matrix: np.ndarray) -> np.ndarray:
    """Planar depth of a plane 3 m away."""
    rays = opencv_rays(matrix)
    return -3.0 / ((rays / rays[..., 2:]) @ NORMAL)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset", data=array, compression="gzip", compression_opts=9)
    return path


def frame_path(root: Path, scene: str, kind: str, camera: str = "cam_00", number: int = 0) -> Path:
    group = "final" if kind == "color" else "geometry"
    return root / scene / "images" / f"scene_{camera}_{group}_hdf5" / f"frame.{number:04d}.{kind}.hdf5"


def semantic() -> np.ndarray:
    labels = (np.arange(H * W) % 41).reshape(H, W)
    return np.where(labels == 0, -1, labels).astype(np.int16)


def frame(root: Path, scene: str, camera: str = "cam_00", number: int = 0) -> None:
    matrix = CAMERAS[scene]
    rays, depth = opencv_rays(matrix), plane_depth(matrix)
    distance = depth / rays[..., 2] * np.linalg.norm(rays, axis=-1)
    stored = np.broadcast_to(NORMAL * [1, -1, -1], (H, W, 3)).copy()
    stored[::2] *= -1  # inward
    stored[:, ::3] *= 0.7  # not unit
    stored[0, 0], stored[0, 1], stored[0, 2] = np.nan, 0, stored[0, 2] * 0.4
    distance[1, :4] = np.nan, np.inf, 0, -1
    rng = np.random.default_rng(number)
    entity = np.ones((H, W), np.int16)
    entity[-1] = -1
    instance = np.full((H, W), 7, np.int16)
    instance[:, 20:], instance[0] = 8, -1
    for kind, array in {
        "color": rng.gamma(1.0, 0.3, (H, W, 3)).astype(np.float16),
        "depth_meters": distance.astype(np.float16),
        "normal_cam": stored.astype(np.float16),
        "normal_bump_cam": np.broadcast_to(np.float16([0, 0.6, 0.8]), (H, W, 3)),
        "render_entity_id": entity,
        "semantic": semantic(),
        "semantic_instance": instance,
        "position": np.zeros((2, 2, 3), np.float16),  # of a wrong size: nobody needs it, so nobody reads it
    }.items():
        save(frame_path(root, scene, kind, camera, number), array)


def write_lists(root: Path, rows: list[str] | None = None, cameras: dict[str, np.ndarray] = CAMERAS) -> None:
    if rows is None:
        rows = [f"{scene},cam_00,{n},True,,{split}" for scene, split in SPLITS.items() for n in (0, 1)]
        rows += ["ai_001_001,cam_00,2,False,CONTENT FLAGGED FOR REMOVAL,", "ai_001_001,cam_00,3,False,,train"]
    header = "scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name"
    (root / "metadata_images_split_scene_v1.csv").write_text("\n".join([header, *rows]) + "\n")
    names = [f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3)]
    lines = [",".join(["scene_name,settings_output_img_height,settings_output_img_width,camera_physical_tex", *names])]
    for scene, matrix in cameras.items():
        values = ",".join(repr(float(value)) for value in matrix.ravel())
        lines.append(f'{scene},768.0,1024.0,"AColor(0, 0, 0, 0)",{values}')
    (root / "metadata_camera_parameters.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "hypersim"
    for scene in SPLITS:
        for number in (0, 1):
            frame(root, scene, number=number)
    write_lists(root)
    return root


@pytest.fixture
def root(whole, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(whole, tmp_path / "hypersim"))


def first(source, split="train"):
    return source.items(split)[0]


def load(root, split="train", **options):
    source = HypersimSource(root, **options)
    return source.load(first(source, split))


def refused(message: str, call, error=DataError) -> str:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value) and isinstance(caught.value, M2HError)
    return str(caught.value)


def test_facts_and_lists(whole):
    source = source_class("hypersim")(whole)
    assert source.name == "hypersim" and source.classes == NYU40_CLASSES and source.splits == ("train", "val", "test")
    assert source.official == {"train": 59543, "val": 7386, "test": 7690}
    assert source.tasks == ("semseg", "depth", "normals", "edges") and source.edge_rules == ("semantic", "instance")
    assert [item.id for item in source.items("train")] == ["ai_001_001/cam_00/0000", "ai_001_001/cam_00/0001"]
    assert [item.scene for item in source.items("test")] == ["ai_026_006"] * 2
    assert source.size(first(source)) == (H, W)
    refused("no split 'valid'", lambda: source.items("valid"), ConfigError)
    assert pickle.loads(pickle.dumps(source)).items("val") == source.items("val")


@pytest.mark.parametrize("scene", list(SPLITS))
def test_depth_is_planar_and_normals_face_the_camera(whole, scene):
    raw = load(whole, SPLITS[scene])
    depth, expected = raw["depth"], plane_depth(CAMERAS[scene])
    assert depth.dtype == np.float32 and not depth[1, :4].any()  # NaN, infinite, 0, negative
    known = np.ones((H, W), bool)
    known[1, :4] = False
    assert abs(depth[known] / expected[known] - 1).max() < 1e-3
    normals = raw["normals"]
    assert normals.dtype == np.float32 and not normals[0, :3].any()  # NaN, 0, short
    known = np.ones((H, W), bool)
    known[0, :3] = False
    np.testing.assert_allclose(np.linalg.norm(normals[known], axis=-1), 1, atol=1e-5)
    assert np.degrees(np.arccos(np.clip(normals[known] @ NORMAL, -1, 1))).max() < 0.2


def test_the_popular_shortcut_would_be_wrong_for_the_tilted_camera(whole):
    """The test above can tell the exact ray from f = 886.81 at 1024 pixels."""
    rays = opencv_rays(TILTED)
    distance = plane_depth(TILTED) / rays[..., 2] * np.linalg.norm(rays, axis=-1)
    f = 886.81 * W / 1024
    j, i = np.meshgrid(np.arange(W) - (W - 1) / 2, np.arange(H) - (H - 1) / 2)
    shortcut = distance * f / np.sqrt(j**2 + i**2 + f**2)
    assert abs(shortcut / plane_depth(TILTED) - 1).max() > 0.05


@pytest.mark.parametrize("scene", list(SPLITS))
def test_intrinsics_give_the_exact_ray(whole, scene):
    raw = load(whole, SPLITS[scene])
    K, rays = raw["K"], opencv_rays(CAMERAS[scene])
    assert K.dtype == np.float64 and K[2, 2] == 1
    np.testing.assert_allclose(pixel_rays(K, H, W).transpose(1, 2, 0), rays / rays[..., 2:], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(view_rays(CAMERAS[scene], H, W).transpose(1, 2, 0), rays, atol=1e-12)
    if scene == "ai_026_006":
        assert abs(K[2, 1]) > 1e-3
    else:
        np.testing.assert_allclose(K[2], [0, 0, 1], atol=1e-12)


def test_intrinsics_of_the_standard_camera():
    K = intrinsics(STANDARD, 768, 1024)
    expected = [[1024 / (2 * STANDARD[0, 0]), 0, 511.5], [0, 768 / (2 * STANDARD[1, 1]), 383.5], [0, 0, 1]]
    np.testing.assert_allclose(K, expected, rtol=1e-12, atol=1e-9)
    assert abs(K[0, 0] - 886.81) < 0.01  # the number everybody knows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-0.3, 0.3), min_size=9, max_size=9), st.floats(0.2, 2), st.floats(0.2, 2), st.integers(2, 12))
def test_any_camera_keeps_its_rays(noise, sx, sy, height):
    matrix = np.array(noise).reshape(3, 3) * [[0.2, 0.2, 0.5], [0.2, 0.2, 0.5], [1, 1, 0]] + np.diag([sx, sy, -1.0])
    rays = expected_rays(matrix, height, 7) * [1, -1, -1]
    found = pixel_rays(intrinsics(matrix, height, 7), height, 7).transpose(1, 2, 0)
    np.testing.assert_allclose(found, rays / rays[..., 2:], rtol=1e-6, atol=1e-7)


def test_labels_and_instances_are_exact(whole):
    raw = load(whole)
    stored = semantic().astype(int)
    assert raw["semseg"].dtype == np.uint8
    assert np.array_equal(raw["semseg"], np.where(stored == -1, IGNORE, stored - 1))
    assert set(np.unique(raw["semseg"])) == {*range(40), IGNORE}
    assert raw["instance"].dtype == np.int32
    assert not raw["instance"][0].any() and set(raw["instance"][1:].ravel()) == {7, 8}


def test_edges(root):
    save(frame_path(root, "ai_001_001", "semantic"), np.full((H, W), 5, np.int16))
    source = HypersimSource(root, edges="instance")
    edges = source.read(first(source))["edges"]
    assert edges[1:, 19].all() and not edges[1:, :19].any() and not edges[1:, 20:].any()
    frame_path(root, "ai_001_001", "semantic_instance").write_bytes(b"cut")
    source = HypersimSource(root)
    assert not source.read(first(source))["edges"].any()  # the rule "semantic" reads no objects
    refused("data.edges is 'provided'", lambda: HypersimSource(root, edges="provided"), ConfigError)


def test_normals_of_choice(whole):
    bump = HypersimSource(whole, bump=True)
    normals = bump.load(first(bump))["normals"]
    rays = opencv_rays(STANDARD)
    expected = np.where(rays @ [0, -0.6, -0.8] > 0, -1, 1)[..., None] * np.array([0, -0.6, -0.8])
    np.testing.assert_allclose(normals, expected, atol=1e-3)
    assert "normal_bump_cam" in bump.provenance["normals"]
    assert bump.fingerprint != HypersimSource(whole).fingerprint
    none = HypersimSource(whole, normals="none")
    assert "normals" not in none.tasks and "normals" not in none.load(first(none))
    derived = load(whole, "test", normals="derived")["normals"]
    known = np.linalg.norm(derived, axis=-1) > 0
    assert known.mean() > 0.5
    assert np.degrees(np.arccos(np.clip(derived[known] @ NORMAL, -1, 1))).mean() < 1
    # Axes are of the stored channels, and the side is turned after them.
    other = load(whole, normal_axes="x,y,z")["normals"]
    wrong = NORMAL * [1, -1, -1]
    side = np.where(rays @ wrong > 0, -1, 1)[3:, :, None]
    np.testing.assert_allclose(other[3:], side * wrong, atol=2e-3)
    refused("normal_axes", lambda: HypersimSource(whole, normal_axes="x,y,y"), ConfigError)


def published_tonemap(colour: np.ndarray, entity: np.ndarray) -> np.ndarray:
    """The rule in the publishers' words, with sorting: float, before rounding."""
    valid = entity != -1
    scale = 1.0
    if valid.any():
        bright = sorted((0.3 * colour[..., 0] + 0.59 * colour[..., 1] + 0.11 * colour[..., 2])[valid].tolist())
        position = 0.9 * (len(bright) - 1)
        low = int(np.floor(position))
        high = min(low + 1, len(bright) - 1)
        current = bright[low] * (1 - (position - low)) + bright[high] * (position - low)
        scale = 0.0 if current < 1e-4 else 0.8**2.2 / current
    return np.clip(np.maximum(scale * colour, 0) ** (1 / 2.2), 0, 1) * 255


def test_tonemap(whole):
    source = HypersimSource(whole)
    item = first(source)
    with h5py.File(item.files["image"]) as file:
        colour = file["dataset"][()].astype(np.float64)
    entity = np.ones((H, W), int)
    entity[-1] = -1
    image = source.load(item)["image"]
    assert image.dtype == np.uint8
    assert abs(image - published_tonemap(colour, entity)).max() <= 0.501
    without = published_tonemap(colour, np.ones((H, W)))
    assert abs(image - without).max() > 0.6  # pixels that show nothing do not count


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.floats(1e-3, 100))
def test_tonemap_of_any_picture(count, seed, brightness):
    rng = np.random.default_rng(seed)
    colour = (rng.random((1, count, 3)) * brightness).astype(np.float16)
    entity = np.where(rng.random((1, count)) < 0.2, -1, 3)
    expected = published_tonemap(colour.astype(np.float64), entity)
    assert abs(tonemap(colour, entity) - expected).max() <= 0.51


def test_tonemap_corner_cases():
    ones = np.ones((2, 5, 3), np.float16)
    ids = np.ones((2, 5), np.int16)
    assert (tonemap(ones * 7, ids) == 204).all()  # 0.8 of 255
    assert (tonemap(ones * 0.25, -ids) == np.rint(0.25 ** (1 / 2.2) * 255)).all()  # nothing valid: scale 1
    assert not tonemap(ones * 5e-5, ids).any()  # a black picture stays black
    bad = ones.copy()
    bad[0, 0], bad[0, 1], bad[0, 2, 0] = np.nan, np.inf, -3
    image = tonemap(bad, np.where(np.arange(10).reshape(2, 5) < 3, -1, 1))
    assert not image[0, 0].any() and (image[0, 1] == 255).all() and image[0, 2, 0] == 0 and (image[1] == 204).all()


@pytest.mark.parametrize("name", ["metadata_images_split_scene_v1.csv", "metadata_camera_parameters.csv"])
def test_lists_are_found_or_asked_for(root, name):
    places = {
        "metadata_images_split_scene_v1.csv": "evermotion_dataset/analysis",
        "metadata_camera_parameters.csv": "contrib/mikeroberts3000",
    }
    for place in ("metadata", places[name]):
        (root / place).mkdir(parents=True)
        shutil.copy(root / name, root / place / name)
    (root / name).unlink()
    (root / "metadata" / name).unlink()
    assert HypersimSource(root).items("train")
    (root / places[name] / name).unlink()
    message = refused("apple/ml-hypersim", lambda: HypersimSource(root))
    assert name in message and places[name] in message and str(root) in message


def test_broken_lists_are_one_line(root):
    split_list, camera_list = (root / f"metadata_{name}.csv" for name in ("images_split_scene_v1", "camera_parameters"))
    original = split_list.read_text()
    split_list.write_text(original.replace("split_partition_name", "split"))
    refused("has no column split_partition_name", lambda: HypersimSource(root))
    split_list.write_text(original + "ai_001_001,cam_00,9,True,,holdout\n")
    refused("line 10 has frame '9' of split 'holdout'", lambda: HypersimSource(root))
    split_list.write_text(original + "ai_001_001,cam_0")
    refused("line 10 is cut off", lambda: HypersimSource(root))
    split_list.write_text(original)
    write_lists(root, cameras={"ai_001_001": STANDARD * np.nan})
    refused("M_cam_from_uv of ai_001_001", lambda: HypersimSource(root))
    write_lists(root, cameras={"ai_001_001": np.zeros((3, 3))})
    refused("M_cam_from_uv of ai_001_001", lambda: HypersimSource(root))
    write_lists(root, cameras={"ai_026_007": SHIFTED})
    source = HypersimSource(root)
    assert camera_list.name in refused("no row for scene ai_001_001", lambda: source.load(first(source)))


def test_incomplete_copies(root):
    rows = [f"ai_001_001,cam_00,{n},True,,train" for n in (0, 1)]
    rows += [f"ai_00{k}_005,cam_00,0,True,,train" for k in range(2, 7)] + ["ai_026_007,cam_00,0,True,,val"]
    write_lists(root, [*rows, "ai_050_001,cam_00,0,True,,test"])
    source = HypersimSource(root)
    message = refused("5 of 6 scenes of split 'train' are not here", lambda: source.items("train"))
    assert "ai_002_005, ai_003_005, ai_004_005, …" in message and "partial=True" in message and "--partial" in message
    assert len(source.items("val")) == 1
    some = HypersimSource(root, partial=True)
    assert len(some.items("train")) == 2 and some.splits == ("train", "val") and "2 of 8 scenes" in some.packaging
    refused("no frame of split 'test'", lambda: some.items("test"))
    gone = frame_path(root, "ai_001_001", "normal_cam", number=1)
    gone.unlink()
    write_lists(root)
    message = refused("1 files of split 'train' are missing", lambda: HypersimSource(root).items("train"))
    assert gone.name in message
    assert [item.id for item in HypersimSource(root, partial=True).items("train")] == ["ai_001_001/cam_00/0000"]


def test_kinds_that_were_not_downloaded(root):
    for kind in ("normal_cam", "semantic_instance"):
        for path in root.rglob(f"*.{kind}.hdf5"):
            path.unlink()
    source = HypersimSource(root)
    assert source.tasks == ("semseg", "depth", "edges") and source.edge_rules == ("semantic",)
    assert "normal_cam" in source.packaging and "semantic_instance" in source.packaging
    assert "normals" not in source.load(first(source))
    refused("data.normals is 'provided'", lambda: HypersimSource(root, normals="provided"), ConfigError)
    for path in root.rglob("*.semantic.hdf5"):
        path.unlink()
    assert HypersimSource(root).tasks == ("depth",) and HypersimSource(root).edges is None
    for path in root.rglob("*.render_entity_id.hdf5"):
        path.unlink()
    refused("render_entity_id", lambda: HypersimSource(root))


TURN = np.array([[0.0, 0.6, 0.8], [-1, 0, 0], [0, -0.8, 0.6]])


def trajectory(root: Path, scene: str = "ai_001_001", unit: str = "0.0254", camera: str = "cam_00") -> Path:
    """Two rows: the first looks along the world's axes, the second is turned; positions in inches."""
    detail = root / scene / "_detail"
    save(detail / camera / "camera_keyframe_orientations.hdf5", np.stack([np.eye(3), TURN]))
    save(detail / camera / "camera_keyframe_positions.hdf5", np.array([[0.0, 0, 0], [100, -200, 40]]))
    (detail / "metadata_scene.csv").write_text(f"parameter_name,parameter_value\nmeters_per_asset_unit,{unit}\n")
    return detail / camera


def test_poses_are_metres_and_opencv(root):
    assert not HypersimSource(root).poses
    trajectory(root)
    source = HypersimSource(root)
    assert source.poses
    poses = [source.load(item)["pose"] for item in source.items("train")]
    # The publishers' camera looks along −z with y up: ahead of ours is +z, below is +y.
    ahead, below = np.array([0, 0, 1.0]), np.array([0, 1.0, 0])
    np.testing.assert_allclose(poses[0][:3, :3] @ ahead, [0, 0, -1])
    np.testing.assert_allclose(poses[0][:3, :3] @ below, [0, -1, 0])
    np.testing.assert_allclose(poses[1][:3, :3] @ ahead, TURN @ [0, 0, -1])
    np.testing.assert_allclose(poses[1][:3, 3], [2.54, -5.08, 1.016])
    np.testing.assert_array_equal(poses[1][3], [0, 0, 0, 1])
    assert np.isclose(np.linalg.det(poses[1][:3, :3]), 1)
    assert "pose" not in source.load(first(source, "val"))
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.load(first(source))["pose"], poses[0])


@pytest.mark.parametrize(
    "name", ["camera_keyframe_orientations.hdf5", "camera_keyframe_positions.hdf5", "../metadata_scene.csv"]
)
def test_a_camera_whose_files_are_not_all_here_has_no_poses(root, name):
    (trajectory(root) / name).unlink()
    source = HypersimSource(root)
    assert "pose" not in source.load(first(source))
    assert "pose" not in first(source).files


def test_rows_that_are_not_known_have_no_pose(root):
    camera = trajectory(root)
    save(camera / "camera_keyframe_positions.hdf5", np.array([[0.0, 0, 0], [np.nan, 0, 0]]))
    source = HypersimSource(root)
    assert ["pose" in source.load(item) for item in source.items("train")] == [True, False]


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("positions", np.zeros((1, 3)), "has shape"),
        ("positions", np.zeros((2, 4)), "expected N×3"),
        ("orientations", np.stack([np.eye(3), 2 * TURN]), "row 1 is no rotation"),
        ("orientations", np.stack([np.eye(3), np.diag([1.0, 1, -1])]), "row 1 is no rotation"),
        ("orientations", np.zeros((2, 4, 4)), "expected 2×3×3"),
    ],
)
def test_trajectories_that_are_none_are_one_line(root, name, array, words):
    camera = trajectory(root)
    save(camera / f"camera_keyframe_{name}.hdf5", array)
    source = HypersimSource(root)
    refused(words, lambda: source.load(source.items("train")[1]))


def test_a_frame_without_a_row_and_a_scene_without_unit_are_one_line(root):
    camera = trajectory(root)
    save(camera / "camera_keyframe_positions.hdf5", np.zeros((1, 3)))
    save(camera / "camera_keyframe_orientations.hdf5", np.eye(3)[None])
    source = HypersimSource(root)
    refused("has 1 rows, none for frame 1", lambda: source.load(source.items("train")[1]))
    for unit in ("0", "-1", "x", "nan", "inf"):
        trajectory(root, unit=unit)
        refused("metadata_scene.csv: has no meters_per_asset_unit above 0", lambda: load(root))


def test_frames_left_out(root, tmp_path):
    one = HypersimSource(root, skip=("ai_001_001/cam_00/0000",))
    assert [item.id for item in one.items("train")] == ["ai_001_001/cam_00/0001"] and "skip" in one.packaging
    file = tmp_path / "skip.txt"
    file.write_text("# corrupt\nai_001_001/cam_00/0001  # gzip error\n\nai_026_007/cam_00\n")
    some = HypersimSource(root, skip=str(file), partial=True)
    assert [item.id for item in some.items("train")] == ["ai_001_001/cam_00/0000"] and some.splits == ("train", "test")
    assert HypersimSource(root, skip=("ai_026_006",)).items("val")
    refused("ai_001_001/cam_01", lambda: HypersimSource(root, skip=("ai_001_001/cam_01",)), ConfigError)
    refused("not readable", lambda: HypersimSource(root, skip=str(tmp_path / "no.txt")))
    assert one.fingerprint != HypersimSource(root).fingerprint


def test_bad_trajectories(root):
    assert len(BAD_TRAJECTORIES) == 15
    for scene in ("ai_003_001", "ai_015_006"):
        for camera in ("cam_00", "cam_01"):
            for kind in ("final", "geometry"):
                shutil.copytree(
                    root / f"ai_001_001/images/scene_cam_00_{kind}_hdf5",
                    root / scene / f"images/scene_{camera}_{kind}_hdf5",
                )
    rows = [f"{scene},{camera},0,True,,train" for scene in ("ai_001_001",) for camera in ("cam_00",)]
    rows += [
        f"{scene},{camera},0,True,,train" for scene in ("ai_003_001", "ai_015_006") for camera in ("cam_00", "cam_01")
    ]
    write_lists(root, rows)
    assert len(HypersimSource(root).items("train")) == 5
    good = HypersimSource(root, bad_scenes=False)
    assert [item.id for item in good.items("train")] == ["ai_001_001/cam_00/0000", "ai_003_001/cam_01/0000"]
    assert "known as bad" in good.packaging


@pytest.mark.parametrize(
    "kind", ["color", "depth_meters", "normal_cam", "render_entity_id", "semantic", "semantic_instance"]
)
def test_broken_files_are_one_line(root, kind):
    source = HypersimSource(root)
    item = first(source)
    path = frame_path(root, "ai_001_001", kind)
    whole = path.read_bytes()

    def expect(message):
        text = refused(message, lambda: source.load(item))
        assert str(path) in text and f"skip takes the id {item.id}" in text

    path.write_bytes(whole[: len(whole) // 2])
    expect("corrupt or cut off")
    damaged = bytearray(whole)
    damaged[-60:-20] = bytes(40)  # inside the compressed chunk: the file opens, the data does not
    path.write_bytes(damaged)
    expect("corrupt or cut off")
    save(path, np.ones((H - 1, W, 3) if kind in ("color", "normal_cam") else (H - 1, W), np.float16))
    if kind == "color":
        text = refused("its image is 23×32", lambda: source.load(item))
        assert "render_entity_id" in text
        save(path, np.ones((H, W), np.float16))
        expect("expected H×W×3")
    else:
        expect("its image is 24×32")
    path.unlink()
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros(3)
    expect("holds no 'dataset' but data")
    path.unlink()
    expect("missing")


@pytest.mark.parametrize("label", [0, 41, -2])
def test_labels_that_cannot_be(root, label):
    """0 does not occur, say the publishers: a file with it has been shifted by one."""
    save(frame_path(root, "ai_001_001", "semantic"), np.full((H, W), label, np.int16))
    refused(f"semantic.hdf5: holds label {label}, expected -1 or 1..40", lambda: load(root))


def test_not_hypersim(tmp_path, whole):
    refused("does not exist", lambda: HypersimSource(tmp_path / "no"))
    refused("no folder ai_VVV_NNN", lambda: HypersimSource(tmp_path))
    (tmp_path / "ai_099_001").mkdir()
    for path in whole.glob("*.csv"):
        shutil.copy(path, tmp_path)
    refused("none of its scenes", lambda: HypersimSource(tmp_path))


def test_scenes_folder_of_a_clone(whole, tmp_path):
    (tmp_path / "evermotion_dataset/analysis").mkdir(parents=True)
    (tmp_path / "contrib/mikeroberts3000").mkdir(parents=True)
    scenes = tmp_path / "evermotion_dataset/scenes"
    scenes.mkdir()
    for scene in SPLITS:
        (scenes / scene).symlink_to(whole / scene)
    shutil.copy(whole / "metadata_images_split_scene_v1.csv", tmp_path / "evermotion_dataset/analysis")
    shutil.copy(whole / "metadata_camera_parameters.csv", tmp_path / "contrib/mikeroberts3000")
    assert len(HypersimSource(tmp_path / "evermotion_dataset").items("train")) == 2
