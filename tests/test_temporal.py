"""Temporal stability: closed forms, a slow reference, and walks through rendered rooms with known cameras."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analytic import tilt_shift
from m2h_lightning.data.prepare import run
from m2h_lightning.data.raw import decode
from m2h_lightning.data.sample import collate, to_contract
from m2h_lightning.data.sources import source_class
from m2h_lightning.data.sources.base import Item
from m2h_lightning.data.sources.sequence import consecutive
from m2h_lightning.data.store import PreparedStore
from m2h_lightning.data.store.build import Wish
from m2h_lightning.data.synthesis.command import main_synthesize
from m2h_lightning.data.synthesis.store import RoomsStore
from m2h_lightning.data.transforms import EvalTransform
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.metrics.temporal import Frames, TemporalStability, temporal_scores

H, W = 20, 28
K = np.array([[24.0, 0, 13.1], [0, 25, 9.4], [0, 0, 1]])


def pose_of(angles=(0.0, 0.0, 0.0), position=(0.0, 0.0, 0.0)) -> np.ndarray:
    """Camera-to-world of rotations about x, y, z (radians)."""
    pose = np.eye(4)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        pose[:3, :3] = pose[:3, :3] @ turn
    pose[:3, 3] = position
    return pose


def render(pose, camera=K, height=H, width=W, planes=(((0.2, -0.3, -1.0), 3.0),), ball=None):
    """Depth and label of planes n · X = −d of the world and of a ball (centre, radius), by rays through each pixel."""
    v, u = np.mgrid[:height, :width].astype(float)
    rays = np.linalg.solve(camera, np.stack([u, v, np.ones_like(u)]).reshape(3, -1))
    rays = pose[:3, :3] @ (rays / rays[2])
    depth, label = np.full(height * width, np.inf), np.zeros(height * width, np.int64)
    for number, (normal, distance) in enumerate(planes):
        z = (-distance - np.dot(normal, pose[:3, 3])) / (normal @ rays)
        nearer = (z > 0) & (z < depth)
        depth[nearer], label[nearer] = z[nearer], number
    if ball is not None:
        c = np.asarray(ball[0]) - pose[:3, 3]
        a, b = (rays * rays).sum(0), c @ rays
        root = b * b - a * (c @ c - ball[1] ** 2)
        z = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
        depth, label = np.where(z < depth, z, depth), np.where(z < depth, len(planes), label)
    return depth.reshape(height, width), label.reshape(height, width)


def frames(true, pose, camera=K, **more) -> Frames:
    """One frame; arrays get a batch dimension."""

    def of(value, channel=False):
        if value is None or isinstance(value, torch.Tensor):
            return value
        value = torch.from_numpy(np.asarray(value))[None]
        return value[None] if channel else value

    more = {key: value if key == "sizes" else of(value, key == "depth") for key, value in more.items()}
    return Frames(of(camera), of(pose), of(true, True), **more)


def score(first, second, **options) -> dict[str, float]:
    metric = TemporalStability(**options)
    metric.update(first, second)
    return {key.removeprefix("temporal/"): value.item() for key, value in metric.compute().items()}


A, B = pose_of((0.02, -0.03, 0.01)), pose_of((-0.01, 0.05, 0.06), (0.11, -0.07, 0.16))


# -------------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(("camera", "slack"), [(K, 1e-12), (tilt_shift(H, W), 5e-5)])
def test_true_depth_of_a_plane_moves_onto_itself(camera, slack):
    a, b = (render(pose, camera)[0] for pose in (A, B))
    got = score(frames(a, A, camera, depth=a), frames(b, B, camera, depth=b))
    assert got["covered_share"] > 0.7
    for key in ("depth_absrel", "depth_rmse_m", "target_depth_absrel", "target_depth_rmse_m"):
        assert got[key] < slack
    assert got["depth_flicker"] < 1e-12
    assert np.isnan(got["label_flip_rate"])
    assert (got["pairs"], got["pairs_left_out"]) == (1, 0)


def test_a_constant_factor_costs_only_the_motion_along_the_axis():
    a, b = (render(pose)[0] for pose in (A, B))
    got = score(frames(a, A, depth=1.3 * a), frames(b, B, depth=1.3 * b))
    along = (np.linalg.inv(B) @ A)[2, 3]
    assert abs(along) > 0.1
    assert np.isclose(got["depth_rmse_m"], 0.3 * abs(along))
    assert got["depth_flicker"] < 1e-12
    still = score(frames(a, A, depth=1.3 * a), frames(a, A, depth=1.3 * a))
    assert still["depth_absrel"] < 1e-12


def test_factors_that_change_flicker_by_their_difference():
    a, b = (render(pose)[0] for pose in (A, B))
    got = score(frames(a, A, depth=1.1 * a), frames(b, B, depth=0.95 * b))
    assert np.isclose(got["depth_flicker"], 0.15)
    still = score(frames(a, A, depth=1.1 * a), frames(a, A, depth=0.95 * a))
    assert np.isclose(still["depth_absrel"], 0.15)
    assert np.isclose(still["depth_rmse_m"], 0.15 * np.sqrt(np.mean(a**2)))


def whole_pixels(step=3):
    """Two frames of a wall 2 m away; the second camera stands ``step`` pixels further right."""
    wall = np.full((H, W), 2.0)
    return wall, np.eye(4), pose_of(position=(step * 2.0 / K[0, 0], 0, 0))


def test_a_flipped_region_is_the_flip_rate():
    wall, here, there = whole_pixels()
    classes = np.zeros((H, W), np.int64)
    after = classes.copy()
    after[5:9, 4:10] = 3
    got = score(frames(wall, here, classes=classes), frames(wall, there, classes=after))
    assert got["covered_share"] == (W - 3) / W
    assert np.isclose(got["label_flip_rate"], 24 / (H * (W - 3)))
    assert np.isnan(got["target_label_flip_rate"])
    assert np.isnan(got["depth_absrel"])
    after = np.zeros((H, W), np.int64)
    after[:, W - 3 :] = 3  # leaves no trace: these columns of b see what a does not
    assert score(frames(wall, here, classes=classes), frames(wall, there, classes=after))["label_flip_rate"] == 0


def test_flips_count_where_labels_agree_and_labels_have_a_floor():
    wall, here, there = whole_pixels()
    zero = np.zeros((H, W), np.int64)
    label_a, label_b = zero.copy(), zero.copy()
    label_a[0], label_b[1] = 255, 7  # a row unknown in a, a row of another label in b
    after = zero.copy()
    after[:3] = 1
    first, second = frames(wall, here, classes=zero, labels=label_a), frames(wall, there, classes=after, labels=label_b)
    got = score(first, second)
    assert np.isclose(got["label_flip_rate"], 1 / (H - 2))
    assert np.isclose(got["target_label_flip_rate"], 1 / (H - 1))


def test_logits_are_classes():
    wall, here, there = whole_pixels()
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, H, W))
    pair = [frames(wall, pose, classes=maps) for pose, maps in zip((here, there), logits, strict=True)]
    plain = [frames(wall, pose, classes=maps.argmax(0)) for pose, maps in zip((here, there), logits, strict=True)]
    assert 0.5 < score(*pair)["label_flip_rate"] == score(*plain)["label_flip_rate"]


def test_what_is_hidden_in_the_second_frame_is_not_scored():
    planes, ball = (((0, 0, -1.0), 4.0),), ((0.1, 0, 1.5), 0.4)
    here, there = pose_of(), pose_of(position=(0.5, 0, 0))
    (a, label_a), (b, label_b) = (render(pose, planes=planes, ball=ball) for pose in (here, there))
    # The prediction is wrong by a metre wherever the second frame shows the ball, and true elsewhere.
    got = score(
        frames(a, here, depth=a, classes=label_a * 0), frames(b, there, depth=b + (label_b == 1), classes=label_b)
    )
    # By hand: a point of the wall moves left by 24 · 0.5 / 4 = 3 pixels; behind the ball it is hidden.
    hidden = sum(label_a[i, j] == 0 and j >= 3 and label_b[i, j - 3] == 1 for i in range(H) for j in range(W))
    assert hidden > 10
    wall_only = np.where(label_a == 1, 0.0, a)
    alone = score(
        frames(wall_only, here, depth=a, classes=label_a * 0),
        frames(b, there, depth=b + (label_b == 1), classes=label_b),
    )
    assert alone["depth_absrel"] < 1e-12
    assert alone["label_flip_rate"] == 0
    shown = sum(label_a[i, j] == 0 and j >= 3 and label_b[i, j - 3] == 0 for i in range(H) for j in range(W))
    assert np.isclose(alone["covered_share"], shown / (label_a == 0).sum())
    assert got["label_flip_rate"] > 0.02  # the visible part of the ball did change its class


# --------------------------------------------------------------------------------------------------- a slow reference


def reference(a: Frames, b: Frames, tolerance: float) -> dict[str, float]:
    """The definition, pixel by pixel."""
    Ka, Kb = a.K[0].numpy(), b.K[0].numpy()
    Ta, Tb = a.pose[0].numpy(), b.pose[0].numpy()
    da, db, pa, pb = (x[0, 0].numpy() for x in (a.true_depth, b.true_depth, a.depth, b.depth))
    la, lb, ca, cb = (x[0].numpy() for x in (a.labels, b.labels, a.classes, b.classes))
    height, width = db.shape
    known = covered = agree = flips = labelled = differ = 0
    error, square, change, floor, floor2 = [], [], [], [], []

    def moved(u, v, z):
        ray = np.linalg.solve(Ka, [u, v, 1.0])
        point = Ta @ np.array([*(ray / ray[2] * z), 1.0])
        return (np.linalg.inv(Tb) @ point)[:3]

    for i in range(da.shape[0]):
        for j in range(da.shape[1]):
            if da[i, j] <= 0:
                continue
            known += 1
            X = moved(j, i, da[i, j])
            if X[2] <= 0:
                continue
            p = Kb @ X
            u, v = p[0] / p[2], p[1] / p[2]
            if not (0 <= u <= width - 1 and 0 <= v <= height - 1):
                continue
            around = [
                ((1 - abs(u - x)) * (1 - abs(v - y)), y, x)
                for y in range(height)
                for x in range(width)
                if abs(u - x) < 1 and abs(v - y) < 1
            ]
            if any(db[y, x] <= 0 for _, y, x in around):
                continue
            z = 1 / sum(w / db[y, x] for w, y, x in around)
            if abs(z - X[2]) > tolerance * X[2]:
                continue
            covered += 1
            ratio = sum(w * pb[y, x] / db[y, x] for w, y, x in around)
            difference = moved(j, i, pa[i, j])[2] - ratio * z
            error.append(abs(difference) / X[2])
            square.append(difference**2)
            change.append(abs((ratio - 1) - (pa[i, j] / da[i, j] - 1)))
            floor.append(abs(X[2] - z) / X[2])
            floor2.append((X[2] - z) ** 2)
            y, x = round(v), round(u)
            if la[i, j] != 255 and lb[y, x] != 255:
                labelled += 1
                differ += la[i, j] != lb[y, x]
                if la[i, j] == lb[y, x]:
                    agree += 1
                    flips += ca[i, j] != cb[y, x]
    nan = float("nan")
    return {
        "depth_absrel": np.mean(error) if error else nan,
        "depth_rmse_m": np.sqrt(np.mean(square)) if error else nan,
        "depth_flicker": np.mean(change) if error else nan,
        "label_flip_rate": flips / agree if agree else nan,
        "target_depth_absrel": np.mean(floor) if error else nan,
        "target_depth_rmse_m": np.sqrt(np.mean(floor2)) if error else nan,
        "target_label_flip_rate": differ / labelled if labelled else nan,
        "covered_share": covered / known if known else nan,
    }


def random_pair(seed: int, size_a=(9, 12), size_b=(10, 11)) -> tuple[Frames, Frames]:
    rng = np.random.default_rng(seed)
    planes = (((0.3, -0.9, -0.3), 1.0), ((0.1, 0.05, -1.0), 2.5), ((-1.0, 0, -0.2), 1.2))
    ball = (rng.uniform([-0.4, -0.4, 1.0], [0.4, 0.4, 1.8]), 0.35)
    out = []
    for height, width in (size_a, size_b):
        camera = np.array([[rng.uniform(8, 14), 0, width / 2 - 0.4], [0, rng.uniform(8, 14), height / 2], [0, 0, 1]])
        pose = pose_of(rng.uniform(-0.2, 0.2, 3), rng.uniform(-0.3, 0.3, 3))
        depth, label = render(pose, camera, height, width, planes, ball)
        predicted = depth * rng.uniform(0.8, 1.2, depth.shape)
        depth[rng.random(depth.shape) < 0.03] = 0
        label[rng.random(depth.shape) < 0.1] = 255
        classes = rng.integers(0, 3, depth.shape)
        out.append(frames(depth, pose, camera, depth=predicted, classes=classes, labels=label))
    return out[0], out[1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.02, 0.1]))
def test_the_definition_pixel_by_pixel(seed, tolerance):
    first, second = random_pair(seed)
    got, want = score(first, second, tolerance=tolerance), reference(first, second, tolerance)
    assert {key: got[key] for key in want} == pytest.approx(want, nan_ok=True, rel=1e-6, abs=1e-9)
    assert {key: got[f"{key}_per_image"] for key in want} == pytest.approx(want, nan_ok=True, rel=1e-6, abs=1e-9)


# ---------------------------------------------------------------------------------------- sums, batches, what is absent


def padded(pairs: list[tuple[Frames, Frames]], side: int, fill: float) -> Frames:
    """The ``side`` of several pairs as one padded batch; predictions are ``fill`` in the padding."""
    parts = [pair[side] for pair in pairs]
    height, width = (max(part.true_depth.shape[k] for part in parts) for k in (-2, -1))

    def stack(key: str, value: float) -> torch.Tensor:
        maps = [getattr(part, key) for part in parts]
        pad = [(0, width - m.shape[-1], 0, height - m.shape[-2]) for m in maps]
        return torch.cat([torch.nn.functional.pad(m, p, value=value) for m, p in zip(maps, pad, strict=True)])

    return Frames(
        torch.cat([part.K for part in parts]),
        torch.cat([part.pose for part in parts]),
        stack("true_depth", 0),
        stack("depth", fill),
        stack("classes", 1),
        stack("labels", 255),
        [tuple(part.true_depth.shape[-2:]) for part in parts],
    )


def test_batches_padding_and_processes_add_up():
    pairs = [random_pair(seed, *sizes) for seed, sizes in enumerate([((9, 12), (10, 11)), ((12, 9), (8, 14))])]
    singly = TemporalStability(per_batch=True)
    for pair in pairs:
        singly.update(*pair)
    together = TemporalStability()
    together.update(padded(pairs, 0, float("nan")), padded(pairs, 1, float("nan")))
    want = {key: value.item() for key, value in singly.compute().items()}
    got = {key: value.item() for key, value in together.compute().items()}
    assert want["temporal/pairs"] == 2
    assert got == pytest.approx({key: want[key] for key in got})
    assert want["temporal/depth_absrel_per_batch"] == pytest.approx(want["temporal/depth_absrel_per_image"])
    assert abs(want["temporal/depth_absrel"] - want["temporal/depth_absrel_per_image"]) > 1e-5
    processes = [TemporalStability() for _ in pairs]
    for process, pair in zip(processes, pairs, strict=True):
        process.update(*pair)
    for name in ("sums", "image_scores", "image_count"):
        assert torch.allclose(sum(getattr(p, name) for p in processes), getattr(singly, name))


def test_pairs_without_camera_or_depth_are_left_out_and_counted():
    first, second = random_pair(1)
    nan_pose, nan_K = torch.full_like(first.pose, torch.nan), torch.full_like(first.K, torch.nan)
    metric = TemporalStability()
    for change in ({"pose": None}, {"pose": nan_pose}, {"K": nan_K}, {"true_depth": None}):
        metric.update(replace(first, **change), second)
        metric.update(first, replace(second, **change))
    got = metric.compute()
    assert (got["temporal/pairs"], got["temporal/pairs_left_out"]) == (0, 8)
    assert all(value.isnan() for key, value in got.items() if "pairs" not in key)
    metric.update(first, second)
    assert {k: v.item() for k, v in metric.compute().items() if "pairs" not in k} == pytest.approx(
        {f"temporal/{k}": v for k, v in score(first, second).items() if "pairs" not in k}, nan_ok=True
    )


def test_frames_that_share_nothing_score_nothing():
    a, turned = render(A)[0], pose_of((0, np.pi, 0))
    got = score(frames(a, A, depth=a), frames(a, turned, depth=a))
    assert got["covered_share"] == 0
    assert got["pairs"] == 1
    assert np.isnan(got["depth_absrel"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_predictions_that_are_no_numbers_are_refused_where_they_count(value):
    wall, here, there = whole_pixels()
    bad = wall.copy()
    bad[:, :3] = value  # of a: these columns are outside of b
    assert score(frames(wall, here, depth=bad), frames(wall, there, depth=wall))["depth_absrel"] < 1e-12
    bad[4, 3] = value
    metric = TemporalStability()
    with pytest.raises(DataError, match="depth is NaN or infinite at 1 scored pixels"):
        metric.update(frames(wall, here, depth=bad), frames(wall, there, depth=wall))
    logits = np.zeros((2, H, W))
    logits[1, 2, 2] = value
    with pytest.raises(DataError, match="semseg is NaN or infinite"):
        metric.update(frames(wall, here, classes=logits), frames(wall, there, classes=np.zeros((2, H, W))))
    assert metric.sums.sum() == 0


def test_zero_and_negative_depths_are_predictions_too():
    wall, here, _ = whole_pixels()
    got = score(frames(wall, here, depth=wall * 0), frames(wall, here, depth=-wall))
    assert np.isclose(got["depth_absrel"], 1)
    assert np.isclose(got["depth_flicker"], 1)


@pytest.mark.parametrize("tolerance", [0, -0.1, 1, float("nan")])
def test_a_tolerance_that_is_none(tolerance):
    with pytest.raises(ConfigError, match="tolerance is"):
        TemporalStability(tolerance)


# ----------------------------------------------------------------------------------------------------- order of frames


def listed(*names, scene="s", posed=True, split="test"):
    return [Item(name, split, scene, {"pose": None} if posed else {}) for name in names]


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["f1", "f2", "f10", "f3"], [(0, 1), (1, 3)]),  # natural order, and a gap
        (["f0", "f10", "f20", "f40", "f50"], [(0, 1), (1, 2), (3, 4)]),  # every tenth frame, one is gone
        (["left_1", "left_2", "right_2", "right_3"], [(0, 1), (2, 3)]),  # two cameras
        (["b", "a", "c"], [(1, 0), (0, 2)]),
        (["t17", "t45", "t46", "t60", "t99"], [(0, 1), (1, 2), (2, 3), (3, 4)]),  # time stamps: no usual step
        (["only"], []),
        ([], []),
    ],
)
def test_consecutive_frames(names, pairs):
    assert consecutive(listed(*names)) == pairs


def test_frames_of_different_scenes_or_without_pose_do_not_follow_each_other():
    items = listed("a/1", "a/2", scene="a") + listed("a/3", scene="b") + listed("a/4", "a/5", scene="b", posed=False)
    assert consecutive(items) == [(0, 1)]
    assert consecutive(items, posed=False) == [(0, 1), (2, 3), (3, 4)]


# -------------------------------------------------------------------------------------- rendered walks, read and stored


SIZE = (48, 64)


def synthesize(out, layout, *options) -> None:
    shape = ("--height", str(SIZE[0]), "--width", str(SIZE[1]))
    many = ("--rooms", "2", "--views", "5", "--workers", "1", "--split", "test")
    assert main_synthesize(["rooms", "--layout", layout, "--out", str(out), *many, *shape, *options]) == 0


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    root = tmp_path_factory.mktemp("walks")
    for layout in ("folder", "hypersim"):
        synthesize(root / layout, layout, "--walk", "--cache", str(root / f"{layout}-cache"))
    return root


def scores_of(source, change=lambda batch: batch, transform=None) -> dict[str, float]:
    items = source.items("test")
    calls = []

    def frame(place):
        calls.append(place)
        sample = (transform or EvalTransform())(source.read(items[place]), np.random.default_rng(0))
        batch = change(to_contract(collate([sample])))
        return batch, {"depth": 1.1 * batch["depth"], "semseg": batch["semseg"]}

    pairs = consecutive(items)
    got = temporal_scores(frame, pairs)
    assert calls == sorted(set(calls))  # each frame is read once
    return {key.removeprefix("temporal/"): value.item() for key, value in got.items()}


@pytest.mark.parametrize("layout", ["folder", "hypersim"])
def test_poses_of_a_walk_are_those_of_the_renderer(walks, layout):
    source = source_class(layout)(walks / layout)
    truth = RoomsStore(next((walks / f"{layout}-cache").glob("rooms-test-*")))
    items = source.items("test")
    assert source.poses
    for index, item in enumerate(items):
        np.testing.assert_allclose(source.read(item)["pose"], truth.read(index, extras=True)["pose"], atol=1e-12)
    assert consecutive(items) == [(k, k + 1) for k in range(9) if k != 4]  # two rooms of five frames


@pytest.mark.parametrize("layout", ["folder", "hypersim"])
def test_true_depth_of_a_walk_moves_onto_itself(walks, layout):
    source = source_class(layout)(walks / layout)
    got = scores_of(source)
    assert (got["pairs"], got["pairs_left_out"]) == (8, 0)
    assert got["covered_share"] > 0.85
    assert got["target_depth_absrel"] < 0.003
    assert got["target_label_flip_rate"] < 0.05
    assert got["label_flip_rate"] == 0
    assert got["depth_flicker"] < 1e-6
    # Poses of a wrong convention show: points do not meet where they should.
    flip = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
    for wrong in (torch.linalg.inv, lambda pose: pose @ flip, lambda pose: flip @ pose.mT @ flip):
        broken = scores_of(source, lambda batch, wrong=wrong: batch | {"pose": wrong(batch["pose"])})
        # Points that miss by more than the tolerance are taken for hidden: the floor rises, but never above it.
        assert broken["covered_share"] < got["covered_share"]
        assert 4 * got["target_depth_absrel"] < broken["target_depth_absrel"] < 0.03
        assert broken["target_label_flip_rate"] > 1.5 * got["target_label_flip_rate"]


def test_an_image_smaller_than_its_labels_changes_nothing(walks):
    source = source_class("folder")(walks / "folder")
    small = EvalTransform((30, 52), "own")
    assert scores_of(source, transform=small) == pytest.approx(scores_of(source), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("layout", ["folder", "hypersim"])
def test_a_prepared_store_keeps_poses(walks, tmp_path, layout):
    source = source_class(layout)(walks / layout)
    run(tmp_path / "store", walks / layout, Wish(source_class(layout), {}, ("test",), samples=4, workers=1), [])
    store = PreparedStore(tmp_path / "store")
    assert store.poses
    for ours, theirs in zip(store.items("test"), source.items("test"), strict=True):
        assert np.array_equal(store.read(ours)["pose"], source.read(theirs)["pose"])
        assert store.read(ours)["pose"].dtype == np.float64
        assert np.abs(decode(store.read(ours))["depth"] - decode(source.read(theirs))["depth"]).max() < 0.02
    got, want = scores_of(store), scores_of(source)
    assert got == pytest.approx(want, rel=0.05, abs=1e-4)


def test_only_walks_have_poses_in_a_folder(tmp_path):
    synthesize(tmp_path / "folder", "folder")
    assert not (tmp_path / "folder" / "pose").exists()
    source = source_class("folder")(tmp_path / "folder")
    assert not source.poses
    assert consecutive(source.items("test")) == []
    assert "pose" not in source.read(source.items("test")[0])


def test_a_walk_is_the_same_each_time_and_contradictions_are_refused(tmp_path, walks):
    synthesize(tmp_path / "again", "folder", "--mode", "sequence")
    for path in (walks / "folder" / "pose").rglob("*.txt"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(walks / "folder")).read_bytes()
    with pytest.raises(ConfigError, match="--walk is --mode sequence, but --mode is 'views'"):
        main_synthesize(["rooms", "--out", str(tmp_path), "--walk", "--mode", "views"])


def test_scores_of_a_reader(walks):
    source = source_class("folder")(walks / "folder")
    items = source.items("test")

    def frame(place, bad=False):
        batch = collate([EvalTransform()(source.read(items[place]), np.random.default_rng(0))])
        batch = to_contract(batch)
        return batch, {"depth": batch["depth"] * (torch.nan if bad and place == 2 else 1)}

    got = temporal_scores(frame, [(0, 1), (3, 4)])
    assert got["temporal/pairs"] == 2
    assert "temporal/target_label_flip_rate" in got
    assert not any(key.startswith("temporal/label_") for key in got)
    with pytest.raises(DataError, match=rf"depth is NaN.*; samples {items[1].id}, {items[2].id}$"):
        temporal_scores(lambda place: frame(place, True), [(0, 1), (1, 2)])
