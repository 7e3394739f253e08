"""Flip, crop and resize keep image, depth, normals, edges and K consistent."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m2h_lightning.data import transforms as T
from m2h_lightning.data.augment import ColourJitter, TrainTransform
from m2h_lightning.data.augment_config import AugmentConfig
from m2h_lightning.data.raw import DepthCode, decode, encode_normals
from m2h_lightning.data.sample import collate, to_contract
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.geometry import back_project, normals_from_depth, pixel_rays
from samples import plane_sample

normals = st.tuples(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4), st.floats(-1.5, -0.9))


def plane_residual(sample, distance=3.0):
    """Distance of every known pixel's 3-D point from the plane n·X = −3 that its own normal spans, in metres."""
    points = back_project(sample["depth"].astype(np.float64), sample["K"])
    n = np.moveaxis(sample["normals"].astype(np.float64), -1, 0)
    known = sample["depth"] > 0
    return np.abs((points * n).sum(0) + distance)[known], known


@given(normals, st.integers(-20, 30), st.integers(-20, 30), st.integers(20, 60), st.integers(20, 60))
def test_crop_and_flip_are_exact(normal, top, left, height, width):
    sample = T.crop(plane_sample(48, 64, normal), top, left, height, width)
    for part in (sample, T.flip(sample)):
        residual, known = plane_residual(part)
        assert part["image"].shape == (height, width, 3)
        assert residual.max(initial=0) < 1e-4
        assert np.array_equal(part["semseg"] == 255, ~known), "what lies outside the image is unknown in every map"


@given(normals, st.floats(0.4, 2.5))
def test_resize_keeps_the_geometry(normal, scale):
    sample = plane_sample(48, 64, normal)
    height, width = round(48 * scale), round(64 * scale)
    resized = T.resize(sample, height, width)
    residual, _ = plane_residual(resized)
    # A nearest label comes from at most half a stored pixel away: the plane passes within that much of the new point.
    slope = np.abs(np.diff(sample["depth"], axis=0)).max() + np.abs(np.diff(sample["depth"], axis=1)).max()
    assert residual.max() <= 0.5 * slope * 3 + 1e-3
    assert abs(residual.mean()) <= 0.5 * slope * 1.5 + 1e-3
    # Halving takes every second stored row and column: the new depth and the new K still give the plane's normals.
    half = T.resize(plane_sample(96, 128, normal), 48, 64)
    derived, valid = normals_from_depth(half["depth"].astype(np.float64), half["K"], 0.5)
    truth = np.moveaxis(half["normals"], -1, 0)
    assert (derived * truth).sum(0)[valid].mean() > 0.98


@pytest.mark.parametrize("scale", [0.5, 0.77, 1.3, 2.0])
def test_maps_stay_registered_to_each_other(scale):
    """A square drawn into every map has the same centre in every map after a resize, to a quarter pixel."""
    sample = plane_sample(60, 80)
    square = np.zeros((60, 80), bool)
    square[20:40, 30:52] = True
    sample["image"] = np.repeat(square[..., None] * np.uint8(255), 3, -1)
    sample["semseg"] = square.astype(np.uint8)
    out = T.resize(sample, round(60 * scale), round(80 * scale))

    def centre(mass):
        mass = mass / mass.sum()
        rows, cols = np.indices(mass.shape)
        return np.array([(rows * mass).sum(), (cols * mass).sum()])

    image, label = centre(out["image"][..., 0].astype(float)), centre(out["semseg"].astype(float))
    expected = (np.array([29.5, 40.5]) + 0.5) * scale - 0.5
    assert np.abs(image - expected).max() < 0.26
    assert np.abs(label - expected).max() < 0.51
    assert np.abs(image - label).max() < 0.51


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("column", [30, 31, 37])
def test_a_thin_edge_survives_shrinking(scale, column):
    sample = plane_sample(60, 80)
    sample["edges"] = np.zeros((60, 80), np.uint8)
    sample["edges"][:, column] = 1
    out = T.resize(sample, round(60 * scale), round(80 * scale))["edges"]
    per_row = (out == 1).sum(1)
    assert per_row.min() >= 1, "the line is broken"
    assert per_row.max() <= 2


def test_ignored_edges_stay_ignored():
    sample = plane_sample(60, 80)
    sample["edges"][:] = 255
    assert (T.resize(sample, 30, 40)["edges"] == 255).all()


def test_flip_negates_x_and_moves_cx(raw_sample):
    out = T.flip(raw_sample)
    assert np.allclose(out["normals"][..., 0], -raw_sample["normals"][..., 0])
    assert out["K"][0, 2] == pytest.approx(63 - raw_sample["K"][0, 2])
    assert np.array_equal(T.flip(out)["image"], raw_sample["image"])
    assert np.allclose(T.flip(out)["K"], raw_sample["K"])


def test_sample_contract(raw_sample):
    raw_sample["normals"] = encode_normals(raw_sample["normals"])
    compact = TrainTransform((32, 40), AugmentConfig())(raw_sample, np.random.default_rng(3))
    assert {k: v.dtype for k, v in compact.items() if k in T.MAPS} == {
        **dict.fromkeys(T.MAPS, torch.uint8),
        "depth": torch.float32,
    }
    sample = to_contract(compact)
    assert {k: (tuple(v.shape), v.dtype) for k, v in sample.items() if k != "id"} == {
        "image": ((3, 32, 40), torch.float32),
        "semseg": ((32, 40), torch.int64),
        "depth": ((1, 32, 40), torch.float32),
        "normals": ((3, 32, 40), torch.float32),
        "edges": ((1, 32, 40), torch.float32),
        "K": ((3, 3), torch.float32),
        **dict.fromkeys(("size", "image_size", "label_size"), ((2,), torch.int64)),
    }
    assert sample["image_size"].tolist() == sample["label_size"].tolist() == [32, 40]
    assert sample["size"].tolist() == [48, 64]
    assert sample["image"].abs().max() < 3, "normalised by the ImageNet mean and deviation"
    lengths = sample["normals"].norm(dim=0)
    assert ((lengths - 1).abs() < 1e-5).logical_or(lengths == 0).all()
    again = to_contract(sample)
    assert all(again[key] is sample[key] or torch.equal(again[key], sample[key]) for key in T.MAPS)


def test_randomness_comes_from_the_generator_only(raw_sample):
    transform = TrainTransform((32, 40), AugmentConfig())
    first, second, other = (transform(raw_sample, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["K"], second["K"])
    assert not torch.equal(first["image"], other["image"])


def test_photometry_leaves_labels_alone(raw_sample):
    still = AugmentConfig(scale=[1.0, 1.0], flip=0.0)
    loud = TrainTransform((48, 64), still)(raw_sample, np.random.default_rng(0))
    plain = T.EvalTransform()(raw_sample, np.random.default_rng(0))
    assert not torch.equal(loud["image"], plain["image"])
    for key in ("semseg", "depth", "normals", "edges", "K"):
        assert torch.equal(loud[key], plain[key])


def test_a_crop_larger_than_the_image_is_padded_with_unknown(raw_sample):
    out = TrainTransform((64, 96), AugmentConfig(scale=[1.0, 1.0]))(raw_sample, np.random.default_rng(1))
    unknown = out["semseg"] == 255
    assert unknown.sum() == 64 * 96 - 48 * 64
    assert torch.equal(out["depth"][0] == 0, unknown)
    rays = pixel_rays(out["K"].double().numpy(), 64, 96)
    assert np.isfinite(rays).all()


def test_absent_labels_stay_absent(raw_sample):
    del raw_sample["normals"], raw_sample["edges"]
    sample = TrainTransform((32, 40), AugmentConfig())(raw_sample, np.random.default_rng(0))
    assert "normals" not in sample and "edges" not in sample


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_a_label_names_the_sample(raw_sample, value):
    raw_sample["depth"][3, 4] = value
    with pytest.raises(DataError, match="plane-0.*depth"):
        T.EvalTransform()(raw_sample, np.random.default_rng(0))


@pytest.mark.parametrize("bad", [{"scale": [2.0, 1.0]}, {"scale": [1.0]}, {"flip": 1.5}, {"hue": 0.9}])
def test_bad_augmentation_is_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        AugmentConfig(**bad)


def anywhere(wide=0.5):
    return st.tuples(st.floats(-wide, wide), st.floats(-wide, wide), st.floats(-1.5, -0.9))


CHAINS = {
    "scale": AugmentConfig(scale=[0.5, 2.0], flip=0.0),
    "flip": AugmentConfig(scale=[1.0, 1.0], flip=1.0),
    "roll": AugmentConfig(scale=[1.0, 1.0], flip=0.0, rotate=30.0),
    "all": AugmentConfig(scale=[0.5, 2.0], flip=0.5, rotate=20.0, cat_max_ratio=0.75),
}


@pytest.mark.parametrize("chain", CHAINS)
@given(anywhere(), st.integers(0, 2**31), st.booleans())
def test_depth_and_normals_agree_after_any_chain(chain, normal, seed, coded):
    """Each known 3-D point lies on the plane that its own normal spans: before, and after any chain."""
    raw = plane_sample(48, 64, normal)
    raw["image"][:] = 128
    if coded:
        raw["normals"] = encode_normals(raw["normals"])
    sample = to_contract(TrainTransform((40, 56), CHAINS[chain])(raw, np.random.default_rng(seed)))
    depth, K = sample["depth"][0].double().numpy(), sample["K"].double().numpy()
    points = back_project(depth, K)
    turned = sample["normals"].double().numpy()
    known = (depth > 0) & (np.linalg.norm(turned, axis=0) > 0.5)
    distance = -(points * turned).sum(0)[known]
    # A nearest label comes from up to half a stored pixel away, and a byte of a normal is up to 0.4 degrees off.
    slope = np.abs(np.diff(raw["depth"], axis=0)).max() + np.abs(np.diff(raw["depth"], axis=1)).max()
    tolerance = 1.5 * slope + 1e-3 + (0.008 * np.linalg.norm(points, axis=0)[known].max(initial=0) if coded else 0)
    assert np.abs(distance - 3.0).max(initial=0) < tolerance
    if chain == "flip":  # nothing is resampled: depth itself gives the normal back
        derived, valid = normals_from_depth(depth, K, 0.5)
        assert (derived * turned).sum(0)[valid & known].min(initial=1) > 0.999


def test_a_roll_turns_normals_and_keeps_depth():
    raw = plane_sample(96, 96, (0.3, 0.0, -1.0))
    raw["K"] = np.array([[80.0, 0, 47.5], [0, 80.0, 47.5], [0, 0, 1]])
    from m2h_lightning.geometry import pixel_rays

    n = raw["normals"][0, 0].astype(np.float64)
    raw["depth"] = (-3.0 / np.einsum("c,chw->hw", n, pixel_rays(raw["K"], 96, 96))).astype(np.float32)
    out = T.roll(raw, 90.0)
    assert np.allclose(out["normals"][48, 48], [0.0, n[0], n[2]], atol=1e-6), "x turns into y"
    assert out["depth"][48, 48] == pytest.approx(raw["depth"][48, 48], rel=0.02)
    residual, known = plane_residual(out)
    assert known.mean() > 0.95 and residual.max() < 0.1


def test_crop_and_resize_keep_the_pose_and_what_moves_the_camera_drops_it(raw_sample):
    raw = {**raw_sample, "pose": np.eye(4)}
    assert T.crop(raw, 2, 3, 10, 12)["pose"] is raw["pose"]
    assert T.resize(raw, 10, 12)["pose"] is raw["pose"]
    assert "pose" not in T.flip(raw)
    assert "pose" not in T.roll(raw, 5.0)
    assert "pose" in raw


def test_a_roll_needs_the_camera(raw_sample):
    raw_sample["K"] = np.full((3, 3), np.nan)
    with pytest.raises(DataError, match="K"):
        TrainTransform((32, 40), AugmentConfig(rotate=5.0))(raw_sample, np.random.default_rng(0))
    sample = TrainTransform((32, 40), AugmentConfig())(raw_sample, np.random.default_rng(0))
    assert torch.isnan(sample["K"]).all(), "unknown stays unknown"


@given(st.integers(0, 2**31), st.floats(0.5, 2.0), st.booleans())
def test_the_legacy_protocol_divides_depth_and_keeps_the_focal_length(seed, scale, coded):
    """InvPT's protocol: depth / s with the focal length as it was; normals then belong to another plane."""
    raw = plane_sample(48, 64, (0.5, 0.0, -1.0))
    f = raw["K"][0, 0]
    if coded:
        code = DepthCode(scale=0.0002)
        raw["depth"], raw["depth_code"] = np.rint(raw["depth"] / code.scale).astype(np.uint16), code
    config = AugmentConfig(scale=[scale, scale], flip=0.0, legacy_scale_depth=True)
    sample = to_contract(TrainTransform((24, 32), config)(raw, np.random.default_rng(seed)))
    assert sample["K"][0, 0] == pytest.approx(f)
    known = sample["depth"][sample["depth"] > 0]
    full = decode(raw)["depth"]
    assert full.min() / scale * 0.999 <= known.min() and known.max() <= full.max() / scale * 1.001
    assert torch.equal(sample["normals"][:, 12, 16], torch.from_numpy(raw["normals"][24, 32]))


def test_one_class_does_not_fill_a_crop():
    raw = plane_sample(64, 64)
    raw["semseg"][:] = 0
    raw["semseg"][:, 40:] = 1
    shares = {}
    for ratio in (1.0, 0.75):
        transform = TrainTransform((32, 32), AugmentConfig(scale=[1.0, 1.0], cat_max_ratio=ratio))
        crops = [transform(raw, np.random.default_rng(seed))["semseg"] for seed in range(40)]
        shares[ratio] = np.mean([max((c == 0).float().mean(), (c == 1).float().mean()) > 0.78 for c in crops])
    assert shares[1.0] > 0.3
    assert shares[0.75] < 0.05


def test_steps_are_drawn_independently(raw_sample):
    """Flip and colours must not go together: each step has draws of its own."""
    raw_sample["image"][:] = 100
    raw_sample["semseg"][:] = 0
    raw_sample["semseg"][:, :10] = 1
    transform = TrainTransform((48, 64), AugmentConfig(scale=[1.0, 1.0], contrast=0, saturation=0, hue=0))
    flips, lights = [], []
    for seed in range(300):
        sample = transform(raw_sample, np.random.default_rng(seed))
        flips.append(float(sample["semseg"][0, 0] == 0))
        lights.append(float(sample["image"].float().mean()))
    assert 0.4 < np.mean(flips) < 0.6
    assert abs(np.corrcoef(flips, lights)[0, 1]) < 0.2


def reference_colours(image, brightness, contrast, saturation):
    """The textbook's way, one step after the other, in floats (torchvision's definitions, without clipping)."""
    luma = np.array((0.299, 0.587, 0.114))
    x = image.astype(np.float64) * brightness
    x = contrast * x + (1 - contrast) * (x @ luma).mean()
    grey = (x @ luma)[..., None]
    return np.clip(saturation * x + (1 - saturation) * grey, 0, 255)


@given(st.floats(0.5, 1.5), st.floats(0.5, 1.5), st.floats(0.0, 1.8), st.integers(0, 2**31))
def test_colours_change_as_the_textbook_says(brightness, contrast, saturation, seed):
    image = np.random.default_rng(seed).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    out = ColourJitter(0, 0, 0, 0).apply(image, brightness, contrast, saturation, 0.0)
    assert out.dtype == np.uint8
    error = np.abs(out - reference_colours(image, brightness, contrast, saturation))
    assert error.max() <= 1, "a level: OpenCV computes bytes in fixed point"


@given(st.floats(-0.5, 0.5), st.floats(0.0, 2.0))
def test_hue_and_saturation_leave_luma_and_grey_alone(hue, saturation):
    matrix = ColourJitter.matrix(saturation, hue)
    assert np.allclose(matrix @ np.ones(3), 1, atol=1e-9)
    assert np.allclose(ColourJitter.LUMA @ matrix, ColourJitter.LUMA, atol=2e-3)
    assert np.allclose(ColourJitter.matrix(1.0, hue) @ ColourJitter.matrix(1.0, -hue), np.eye(3), atol=1e-9)
    if abs(hue) == 0.5 or abs(hue) < 1e-9:
        return
    assert not np.allclose(ColourJitter.matrix(1.0, hue), np.eye(3), atol=1e-12)


def test_a_third_of_a_turn_of_hue_makes_red_green():
    red = np.full((2, 2, 3), (200, 60, 60), np.uint8)
    turned = [ColourJitter(0, 0, 0, 0).apply(red, 1.0, 1.0, 1.0, hue)[0, 0].argmax() for hue in (1 / 3, -1 / 3)]
    assert sorted(turned) == [1, 2], "to green one way, to blue the other"


def test_more_photometric_steps_by_name(raw_sample):
    still = {"scale": [1.0, 1.0], "flip": 0.0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    plain = TrainTransform((48, 64), AugmentConfig(**still))(raw_sample, np.random.default_rng(0))
    blur = AugmentConfig(**still, photometric=[{"name": "GaussianBlur", "p": 1.0, "blur_limit": [5, 7]}])
    blurred = TrainTransform((48, 64), blur)(raw_sample, np.random.default_rng(0))
    assert blurred["image"].float().std() < 0.7 * plain["image"].float().std()
    assert torch.equal(blurred["depth"], plain["depth"])


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"name": "Rotate"}, "moves pixels"),
        ({"name": "GausianBlur"}, "GaussianBlur"),
        ({"name": "Normalize"}, "device"),
        ({"name": "GaussianBlur", "strength": 3}, "strength"),
        ({"name": "GaussianBlur", "p": "often"}, "GaussianBlur"),
        ({}, "name"),
        ({"name": "ToGray", "num_output_channels": 1}, "ToGray"),
    ],
)
def test_a_wrong_photometric_step_is_one_line(entry, word):
    with pytest.raises(ConfigError, match=word) as error:
        TrainTransform((32, 32), AugmentConfig(photometric=[entry]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [{"rotate": 200.0}, {"cat_max_ratio": 0.0}])
def test_bad_new_keys_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        AugmentConfig(**bad)


@pytest.mark.parametrize("size", [(48, 64), (24, 32), (96, 128), (33, 47)])
def test_half_float_depth_passes_through_every_step(raw_sample, size):
    raw_sample["depth"] = raw_sample["depth"].astype(np.float16)
    raw_sample["depth_code"] = DepthCode()
    out = T.roll(T.flip(T.resize(raw_sample, *size)), 10.0)
    assert out["depth"].dtype == np.float16
    values = set(np.unique(out["depth"]).tolist())
    assert values <= set(np.unique(raw_sample["depth"]).tolist()) | {0.0}, "a label is copied, never mixed"


@given(st.integers(0, 2**31))
def test_coded_normals_are_close_and_unknown_stays_unknown(seed):
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(20, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    normals[:5] = 0
    normals[5] = np.nan
    coded = encode_normals(normals)
    raw = {"normals": coded, "image": np.zeros((1, 20, 3), np.uint8), "K": np.eye(3), "id": "x"}
    back = decode(raw)["normals"]
    assert (back[:6] == 0).all()
    angles = np.degrees(np.arccos(np.clip((back[6:] * normals[6:]).sum(1), -1, 1)))
    assert angles.max() < 0.4
    # The device decodes the same numbers, and a mirrored code is the code of the mirrored normal.
    tensor = to_contract({"normals": torch.from_numpy(coded.T.copy())[:, :, None]})["normals"][..., 0].T.numpy()
    assert np.allclose(tensor, back, atol=1e-6)
    mirrored = T.flip_map("normals", coded[None])[0]
    assert np.allclose(decode({**raw, "normals": mirrored})["normals"], back[::-1] * [-1, 1, 1], atol=1e-6)


def test_a_batch_lies_channels_last(raw_sample):
    transform = TrainTransform((32, 40), AugmentConfig())
    batch = collate([transform(raw_sample, np.random.default_rng(seed)) for seed in range(3)])
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert to_contract(batch)["image"].is_contiguous(memory_format=torch.channels_last)
