"""Depth, normals, edges and calibration against definitions written out, torchmetrics and scikit-learn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.metrics import CalibrationError, DepthError, EdgeFScore, NormalError
from m2h_lightning.metrics.depth import RANGE_EDGES
from m2h_lightning.metrics.normals import angle_deg
from metric_cases import CLASSES, draw_depth, draw_edges, draw_normals, draw_semseg, score

seeds = st.integers(0, 10_000)


def depth_errors(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """The textbook figures of predicted and true depths, number by number."""
    n = len(pairs)
    logs = [math.log(p / t) for p, t in pairs]
    worst = [max(p / t, t / p) for p, t in pairs]
    mean_log = sum(logs) / n
    return {
        "rmse_m": math.sqrt(sum((p - t) ** 2 for p, t in pairs) / n),
        "absrel": sum(abs(p - t) / t for p, t in pairs) / n,
        "sqrel": sum((p - t) ** 2 / t for p, t in pairs) / n,
        "log_rmse": math.sqrt(sum(log**2 for log in logs) / n),
        "log10": sum(abs(math.log10(p) - math.log10(t)) for p, t in pairs) / n,
        "silog": 100 * math.sqrt(sum((log - mean_log) ** 2 for log in logs) / n),
        **{f"delta{k}": sum(w < 1.25**k for w in worst) / n for k in (1, 2, 3)},
    }


def pairs_of(guess: np.ndarray, true: np.ndarray, cap: float = math.inf) -> list[tuple[float, float]]:
    return [(min(float(p), cap), float(t)) for p, t in zip(guess.ravel(), true.ravel(), strict=True) if 0 < t < cap]


@given(seeds, st.sampled_from([None, 10.0, 1.5]))
def test_depth(seed, cap):
    guess, true, sizes = draw_depth(np.random.default_rng(seed))
    got = score(DepthError(cap=cap), (guess, true, sizes))
    expected = depth_errors(pairs_of(guess.numpy(), true.numpy(), cap or math.inf))
    assert {key: got[key] for key in expected} == pytest.approx(expected)
    images = [pairs_of(p, t, cap or math.inf) for p, t in zip(guess.numpy(), true.numpy(), strict=True)]
    each = [depth_errors(pairs) for pairs in images if pairs]
    for key in expected:
        assert got[f"{key}_per_image"] == pytest.approx(np.mean([errors[key] for errors in each])), key
    assert set(got) == {key + suffix for key in expected for suffix in ("", "_per_image")}


@given(seeds, st.sampled_from(list(RANGE_EDGES)))
def test_depth_by_range(seed, unit):
    guess, true, sizes = draw_depth(np.random.default_rng(seed))
    true[0, 0, 0, :4] = torch.tensor(RANGE_EDGES[unit][:4])  # an edge belongs to the range above it
    got = score(DepthError(unit, ranges=True), (guess, true, sizes))
    name = {"m": "rmse_m", "px": "rmse_px", "1/m": "rmse_per_m"}[unit]
    bounds = [0.0, *RANGE_EDGES[unit], math.inf]
    for low, high in itertools.pairwise(bounds):
        pairs = [(p, t) for p, t in pairs_of(guess.numpy(), true.numpy()) if low <= t < high]
        expected = depth_errors(pairs) if pairs else {"rmse_m": math.nan, "absrel": math.nan}
        assert got[f"{name}_by_range/{low:g}-{high:g}"] == pytest.approx(expected["rmse_m"], nan_ok=True)
        assert got[f"absrel_by_range/{low:g}-{high:g}"] == pytest.approx(expected["absrel"], nan_ok=True)
    assert sum("/" in key for key in got) == 2 * (len(bounds) - 1)


def test_a_large_image_is_the_sum_of_its_pixels():
    """Larger than the blocks in which images are worked on."""
    rng = np.random.default_rng(0)
    true = rng.uniform(0.5, 9, (2, 1, 300, 301))
    guess = rng.uniform(0.5, 9, true.shape)
    got = score(DepthError(ranges=True), (torch.from_numpy(guess), torch.from_numpy(true), None))
    assert got["rmse_m"] == pytest.approx(math.sqrt(((guess - true) ** 2).mean()))
    near = (true >= 1) & (true < 2)
    assert got["absrel_by_range/1-2"] == pytest.approx((np.abs(guess - true) / true)[near].mean())
    vectors = rng.normal(size=(2, 2, 3, 300, 301))
    cosine = (vectors[0] * vectors[1]).sum(1) / np.prod(np.linalg.norm(vectors, axis=2), axis=0)
    unit = vectors[1] / np.linalg.norm(vectors[1], axis=1, keepdims=True)
    got = score(NormalError(), (torch.from_numpy(vectors[0]), torch.from_numpy(unit), None))
    assert got["mean_deg"] == pytest.approx(np.degrees(np.arccos(cosine)).mean())


def test_the_eigen_crop():
    """Inside the crop all is right; one row or column outside of it all is wrong."""
    true = torch.full((2, 1, 480, 640), 2.0)
    guess = torch.full_like(true, 4.0)
    guess[..., 45:471, 41:601] = 2.0
    assert score(DepthError(crop="eigen"), (guess, true, None))["rmse_m"] == 0
    assert score(DepthError(), (guess, true, None))["rmse_m"] > 0
    for y, x in ((45, 41), (470, 600)):
        corner = torch.where(
            torch.zeros_like(true).index_put(
                (torch.tensor(0), torch.tensor(0), torch.tensor(y), torch.tensor(x)), torch.tensor(1.0)
            )
            > 0,
            4.0,
            guess,
        )
        got = score(DepthError(crop="eigen"), (corner, true, None))
        assert got["rmse_m"] == pytest.approx(2 / math.sqrt(2 * 426 * 560))


def test_the_eigen_crop_is_of_images_not_of_padded_batches():
    true = torch.zeros(1, 1, 500, 700)
    true[..., :480, :640] = 2
    assert score(DepthError(crop="eigen"), (true + 1, true, [(480, 640)]))["rmse_m"] == 1
    for sizes in (None, [(425, 560)]):
        with pytest.raises(ConfigError, match="480×640"):
            DepthError(crop="eigen").update(true + 1, true, sizes)


def test_depth_beyond_the_cap():
    true = torch.tensor([5.0, 9.0, 10.0, 12.0]).reshape(1, 1, 1, 4)
    guess = torch.tensor([5.0, 99.0, 1.0, 1.0]).reshape(1, 1, 1, 4)
    assert score(DepthError(cap=10), (guess, true, None))["rmse_m"] == pytest.approx(math.sqrt(1 / 2))


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_depth_must_be_positive_where_it_counts(value):
    guess, true = torch.tensor([[[[value, -5.0, 1.0]]]]), torch.tensor([[[[2.0, 0.0, 0.0]]]])
    with pytest.raises(DataError, match="0 or negative at 1 scored pixels; depth must be positive"):
        DepthError().update(guess, true)
    DepthError().update(guess.flip(3), true)


def test_labels_that_are_nan_or_infinite_are_not_scored():
    true = torch.tensor([math.nan, math.inf, -1.0, 2.0]).reshape(1, 1, 1, 4)
    assert score(DepthError(), (torch.full_like(true, 3), true, None))["rmse_m"] == 1


def test_pooled_depth_is_not_the_mean_of_images():
    true = torch.ones(2, 1, 1, 2)
    true[1, 0, 0, 1] = 0
    guess = torch.tensor([[[[1.0, 1.0]]], [[[4.0, 1.0]]]])
    got = score(DepthError(), (guess, true, None))
    assert got["rmse_m"] == pytest.approx(math.sqrt(9 / 3))
    assert got["rmse_m_per_image"] == pytest.approx((0 + 3) / 2)


@pytest.mark.parametrize("options", [{"unit": "cm"}, {"crop": "garg"}, {"cap": 0}])
def test_depth_options(options):
    with pytest.raises(ConfigError):
        DepthError(**options)


@given(seeds, st.floats(0.1, 10))
def test_silog_does_not_see_scale(seed, factor):
    guess, true, sizes = draw_depth(np.random.default_rng(seed))
    a, b = (score(DepthError(), (p, true, sizes)) for p in (guess, guess * factor))
    assert a["silog"] == pytest.approx(b["silog"], rel=1e-4)


def angles_of(guess: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Sorted angles at valid pixels, one by one, by the arc cosine in double precision."""
    angles = []
    for p, t in zip(guess.reshape(3, -1).T.astype(float), true.reshape(3, -1).T.astype(float), strict=True):
        if np.linalg.norm(t) >= 0.5:
            cosine = t @ p / np.linalg.norm(p) / np.linalg.norm(t)
            angles.append(math.degrees(math.acos(max(-1.0, min(1.0, cosine)))))
    return np.sort(angles)


def normal_errors(angles: np.ndarray) -> dict[str, float]:
    return {
        "mean_deg": angles.mean(),
        "rmse_deg": math.sqrt((angles**2).mean()),
        **{f"within_{limit}": (angles < limit).mean() for limit in (11.25, 22.5, 30)},
    }


@given(seeds)
def test_normals(seed):
    guess, true, sizes = draw_normals(np.random.default_rng(seed))
    got = score(NormalError(), (guess, true, sizes))
    images = [angles_of(p, t) for p, t in zip(guess.numpy(), true.numpy(), strict=True)]
    images = [angles for angles in images if len(angles)]
    pooled = np.sort(np.concatenate(images))
    expected = normal_errors(pooled)
    assert {key: got[key] for key in expected} == pytest.approx(expected, abs=1e-5)
    assert got["median_deg"] == pytest.approx(pooled[(len(pooled) + 1) // 2 - 1], abs=0.0051)
    for key in expected:
        mean = np.mean([normal_errors(angles)[key] for angles in images])
        assert got[f"{key}_per_image"] == pytest.approx(mean, abs=1e-5), key
    medians = [angles[(len(angles) + 1) // 2 - 1] for angles in images]
    assert got["median_deg_per_image"] == pytest.approx(np.mean(medians), abs=0.0051)


@pytest.mark.parametrize("degrees", [0.0, 0.02, 0.5, 45.0, 179.9, 180.0])
@pytest.mark.parametrize("length", [1e-30, 1e-3, 1.0, 1e30])
def test_angles_keep_their_precision_at_any_length(degrees, length):
    a = math.radians(degrees)
    guess = torch.tensor([math.sin(a), 0, math.cos(a)]).reshape(1, 3, 1, 1) * length
    true = torch.tensor([0.0, 0, 1]).reshape(1, 3, 1, 1)
    assert float(angle_deg(guess, true)) == pytest.approx(degrees, abs=1e-5)
    got = score(NormalError(), (guess, true, None))
    assert got["mean_deg"] == pytest.approx(degrees, abs=1e-5)
    assert got["median_deg"] == pytest.approx(degrees, abs=0.0101)


def test_a_vector_without_length_counts_as_a_right_angle():
    true = torch.tensor([0.0, 0, 1]).reshape(1, 3, 1, 1)
    assert score(NormalError(), (torch.zeros(1, 3, 1, 1), true, None))["mean_deg"] == 90


def test_limits_are_exclusive_and_the_target_length_decides():
    true = torch.tensor([[0.0, 0, 1], [0, 0, 0.51], [0, 0, 0.49]]).T.reshape(1, 3, 1, 3)
    guess = torch.tensor([[0.0, 0, 1], [1, 0, 0], [1, 0, 0]]).T.reshape(1, 3, 1, 3)
    got = score(NormalError(), (guess, true, None))
    assert got["mean_deg"] == pytest.approx(45)
    assert got["within_11.25"] == 0.5


def best_f(guess: np.ndarray, true: np.ndarray, bins: int) -> tuple[float, float]:
    """Best F over all thresholds, and the lowest threshold that reaches it."""
    known = true <= 1
    level = np.minimum(np.floor(guess[known] * np.float32(bins)), bins - 1)
    edge = true[known] == 1
    best, at = math.nan, math.nan
    for threshold in range(bins):
        mark = level >= threshold
        if edge.any():
            hit = (mark & edge).sum()
            f = 2 * hit / (mark.sum() + edge.sum())
            if math.isnan(best) or f > best:
                best, at = f, threshold / bins
    return best, at


@given(seeds, st.sampled_from([1, 7, 100]))
@settings(max_examples=25)
def test_edges(seed, bins):
    guess, true, sizes = draw_edges(np.random.default_rng(seed))
    got = score(EdgeFScore(bins), (guess, true, sizes))
    f, at = best_f(guess.numpy(), true.numpy(), bins)
    assert got["f_pixel"] == pytest.approx(f)
    assert got["f_pixel_threshold"] == pytest.approx(at)
    assert got["f_pixel"] == pytest.approx(
        2 * got["f_pixel_precision"] * got["f_pixel_recall"] / (got["f_pixel_precision"] + got["f_pixel_recall"])
    )
    each = [best_f(p, t, bins) for p, t in zip(guess.numpy(), true.numpy(), strict=True)]
    assert got["f_pixel_per_image"] == pytest.approx(np.nanmean([f for f, _ in each]))
    assert got["f_pixel_threshold_per_image"] == pytest.approx(np.nanmean([at for _, at in each]))


@given(seeds)
@settings(max_examples=15)
def test_edges_by_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    guess, true, sizes = draw_edges(np.random.default_rng(seed))
    got = score(EdgeFScore(), (guess, true, sizes))
    known = true.numpy() <= 1
    mark = np.minimum(np.floor(guess.numpy()[known] * np.float32(100)), 99) >= round(got["f_pixel_threshold"] * 100)
    assert got["f_pixel"] == pytest.approx(metrics.f1_score(true.numpy()[known], mark))
    assert got["f_pixel_precision"] == pytest.approx(metrics.precision_score(true.numpy()[known], mark))
    assert got["f_pixel_recall"] == pytest.approx(metrics.recall_score(true.numpy()[known], mark))


@pytest.mark.parametrize("value", [-0.1, 1.1, 255.0])
def test_edges_must_be_probabilities_where_they_count(value):
    guess, true = torch.tensor([[[[value, 0.5]]]]), torch.tensor([[[[1.0, 255.0]]]])
    with pytest.raises(DataError, match=r"outside \[0, 1\] at 1 scored pixels"):
        EdgeFScore().update(guess, true)
    EdgeFScore().update(guess.flip(3), true)


def test_a_certain_edge_is_in_the_last_bin():
    got = score(EdgeFScore(10), (torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), None))
    assert got["f_pixel"] == 1


@given(seeds, st.sampled_from([(15, 1), (15, 2), (4, 3), (1, 1)]))
def test_calibration(seed, options):
    bins, stride = options
    logits, true, sizes = draw_semseg(np.random.default_rng(seed))
    got = score(CalibrationError(bins, stride), (logits, true, sizes))

    def expected(logits, true):
        logits = np.moveaxis(logits.astype(float), 0, -1)[::stride, ::stride][true[::stride, ::stride] != 255]
        true = true[::stride, ::stride][true[::stride, ::stride] != 255]
        odds = np.exp(logits)
        probability = odds / odds.sum(-1, keepdims=True)
        right, sure = probability.argmax(-1) == true, probability.max(-1)
        error = 0.0
        for index in range(bins):
            inside = (sure > index / bins) & (sure <= (index + 1) / bins)
            if inside.any():
                error += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
        return error if len(true) else math.nan

    pooled = (
        expected(np.concatenate(list(logits.numpy()), 1), np.concatenate(list(true.numpy()), 0))
        if stride == 1
        else None
    )
    if pooled is not None:
        assert got["ece"] == pytest.approx(pooled, abs=1e-6)
    each = [expected(p, t) for p, t in zip(logits.numpy(), true.numpy(), strict=True)]
    assert got["ece_per_image"] == pytest.approx(np.nanmean(each), abs=1e-6)


@given(seeds)
@settings(max_examples=15)
def test_calibration_by_torchmetrics(seed):
    from torchmetrics.classification import MulticlassCalibrationError

    logits, true, sizes = draw_semseg(np.random.default_rng(seed))
    known = true != 255
    other = MulticlassCalibrationError(CLASSES, n_bins=15, norm="l1")
    other.update(logits.permute(0, 2, 3, 1)[known].softmax(1), true[known])
    assert score(CalibrationError(stride=1), (logits, true, sizes))["ece"] == pytest.approx(
        float(other.compute()), abs=1e-5
    )


def test_confidences_on_the_edges_of_bins():
    """(0, ½] and (½, 1]: a tie of two classes lies in the first, certainty in the last."""
    logits = torch.tensor([[0.0, 100.0, 0.0, 1.0], [0.0, 0.0, 100.0, 0.0]]).reshape(1, 2, 1, 4)
    true = torch.tensor([[[255, 1, 1, 255]]])
    assert score(CalibrationError(2, 1), (logits, true, None))["ece"] == pytest.approx(0.5)
    # Sure by ½ and wrong; sure by 0.73 and right: two bins, so that the errors do not cancel.
    true = torch.tensor([[[1, 255, 255, 0]]])
    got = score(CalibrationError(2, 1), (logits, true, None))["ece"]
    right = 1 / (1 + math.exp(-1))
    first = int(logits[0, :, 0, 0].max(0).indices)
    assert got == pytest.approx((abs((first == 1) - 0.5) + (1 - right)) / 2)


def test_calibration_of_class_maps_is_not_known():
    _, true, sizes = draw_semseg(np.random.default_rng(0))
    assert all(math.isnan(value) for value in score(CalibrationError(), (true.clamp(max=4), true, sizes)).values())


def test_calibration_options():
    for options in ({"bins": 0}, {"stride": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            CalibrationError(**options)
