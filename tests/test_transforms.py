"""Flip, crop and resize keep image, depth, normals, edges and K consistent."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m2h_lightning.data import transforms as T
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
    sample = T.TrainTransform((32, 40), T.AugmentConfig())(raw_sample, np.random.default_rng(3))
    assert {k: (tuple(v.shape), v.dtype) for k, v in sample.items() if k != "id"} == {
        "image": ((3, 32, 40), torch.float32),
        "semseg": ((32, 40), torch.int64),
        "depth": ((1, 32, 40), torch.float32),
        "normals": ((3, 32, 40), torch.float32),
        "edges": ((1, 32, 40), torch.float32),
        "K": ((3, 3), torch.float32),
        "size": ((2,), torch.int64),
    }
    assert sample["size"].tolist() == [48, 64]


def test_randomness_comes_from_the_generator_only(raw_sample):
    transform = T.TrainTransform((32, 40), T.AugmentConfig())
    first, second, other = (transform(raw_sample, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["K"], second["K"])
    assert not torch.equal(first["image"], other["image"])


def test_photometry_leaves_labels_alone(raw_sample):
    still = T.AugmentConfig(scale=[1.0, 1.0], flip=0.0)
    loud = T.TrainTransform((48, 64), still)(raw_sample, np.random.default_rng(0))
    plain = T.EvalTransform()(raw_sample, np.random.default_rng(0))
    assert not torch.equal(loud["image"], plain["image"])
    for key in ("semseg", "depth", "normals", "edges", "K"):
        assert torch.equal(loud[key], plain[key])


def test_a_crop_larger_than_the_image_is_padded_with_unknown(raw_sample):
    out = T.TrainTransform((64, 96), T.AugmentConfig(scale=[1.0, 1.0]))(raw_sample, np.random.default_rng(1))
    unknown = out["semseg"] == 255
    assert unknown.sum() == 64 * 96 - 48 * 64
    assert torch.equal(out["depth"][0] == 0, unknown)
    rays = pixel_rays(out["K"].double().numpy(), 64, 96)
    assert np.isfinite(rays).all()


def test_absent_labels_stay_absent(raw_sample):
    del raw_sample["normals"], raw_sample["edges"]
    sample = T.TrainTransform((32, 40), T.AugmentConfig())(raw_sample, np.random.default_rng(0))
    assert "normals" not in sample and "edges" not in sample


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_a_label_names_the_sample(raw_sample, value):
    raw_sample["depth"][3, 4] = value
    with pytest.raises(DataError, match="plane-0.*depth"):
        T.EvalTransform()(raw_sample, np.random.default_rng(0))


@pytest.mark.parametrize("bad", [{"scale": [2.0, 1.0]}, {"scale": [1.0]}, {"flip": 1.5}, {"hue": 0.9}])
def test_bad_augmentation_is_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        T.AugmentConfig(**bad)
