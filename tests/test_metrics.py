"""Every metric against an independent reference (plain loops, sorting, other formulas), whole and in pieces."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m2h_lightning.metrics import DepthError, EdgeFScore, NormalError, SegmentationScore

seeds = st.integers(0, 10_000)


def in_pieces(metric, prediction, target):
    """The same samples in one update, one by one, and summed from two processes' states: one answer."""
    metric.update(prediction, target)
    whole = metric.compute()
    metric.reset()
    for index in range(len(target)):
        metric.update(prediction[index : index + 1], target[index : index + 1])
    single = metric.compute()
    left, right = metric.clone(), metric.clone()
    left.reset(), right.reset()
    left.update(prediction[:1], target[:1])
    right.update(prediction[1:], target[1:])
    for state, reduction in left._reductions.items():
        assert reduction is torch.sum or reduction.__name__ == "dim_zero_sum"
        setattr(left, state, getattr(left, state) + getattr(right, state))
    left._update_count = 1
    summed = left.compute()
    for key, value in whole.items():
        assert torch.allclose(value.double(), single[key].double(), equal_nan=True, rtol=1e-9), key
        assert torch.allclose(value.double(), summed[key].double(), equal_nan=True, rtol=1e-9), key
    return {key: float(value) for key, value in whole.items()}


@given(seeds)
def test_segmentation(seed):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 5, (3, 6, 7))
    target[rng.random(target.shape) < 0.2] = 255
    target[target == 3] = 2  # class 3 never occurs in the targets
    logits = rng.normal(size=(3, 5, 6, 7))
    logits[:, 3] -= 100  # nor in the predictions
    got = in_pieces(SegmentationScore(5), torch.from_numpy(logits), torch.from_numpy(target))
    guess = logits.argmax(1)
    ious = []
    for c in range(5):
        known = target != 255
        union = ((guess == c) | (target == c)) & known
        if union.any():
            ious.append(((guess == c) & (target == c) & known).sum() / union.sum())
    assert got["classes_present"] == len(ious) == 4
    assert got["miou"] == pytest.approx(np.mean(ious))
    assert got["pixel_accuracy"] == pytest.approx((guess == target)[target != 255].mean())


def test_segmentation_is_pooled_not_per_image():
    """Two images in which class 1 is big and small: the pooled IoU is not the mean of the images' IoUs."""
    target = torch.zeros(2, 4, 4, dtype=torch.long)
    target[0] = 1
    target[1, 0, 0] = 1
    guess = target.clone()
    guess[1, 0, 0] = 0
    score = SegmentationScore(2)
    score.update(guess, target)
    assert float(score.compute()["miou"]) == pytest.approx((16 / 17 + 15 / 16) / 2)


def test_segmentation_agrees_with_torchmetrics_jaccard():
    from torchmetrics.classification import MulticlassJaccardIndex

    torch.manual_seed(0)
    guess, target = torch.randint(0, 6, (4, 9, 9)), torch.randint(0, 6, (4, 9, 9))
    target[0, :3] = 255
    score = SegmentationScore(6)
    score.update(guess, target)
    other = MulticlassJaccardIndex(6, average="macro", ignore_index=255)(guess, target)
    assert float(score.compute()["miou"]) == pytest.approx(float(other), abs=1e-6)


@given(seeds)
def test_depth(seed):
    rng = np.random.default_rng(seed)
    target = rng.uniform(0.5, 9, (3, 1, 5, 6)).astype(np.float32)
    target[rng.random(target.shape) < 0.3] = 0
    guess = rng.uniform(0.5, 9, target.shape).astype(np.float32)
    got = in_pieces(DepthError(), torch.from_numpy(guess), torch.from_numpy(target))
    pairs = [(float(p), float(t)) for p, t in zip(guess.ravel(), target.ravel(), strict=True) if t > 0]
    n = len(pairs)
    assert got["rmse_m"] == pytest.approx(math.sqrt(sum((p - t) ** 2 for p, t in pairs) / n))
    assert got["absrel"] == pytest.approx(sum(abs(p - t) / t for p, t in pairs) / n)
    assert got["log_rmse"] == pytest.approx(math.sqrt(sum(math.log(p / t) ** 2 for p, t in pairs) / n))
    assert got["delta1"] == pytest.approx(sum(max(p / t, t / p) < 1.25 for p, t in pairs) / n)


def test_depth_is_pooled_not_averaged_per_image():
    error = DepthError()
    target = torch.ones(2, 1, 1, 2)
    target[1, 0, 0, 1] = 0
    guess = torch.tensor([[[[1.0, 1.0]]], [[[4.0, 1.0]]]])
    error.update(guess, target)
    assert float(error.compute()["rmse_m"]) == pytest.approx(math.sqrt(9 / 3))


def test_the_targets_are_not_changed():
    target = torch.tensor([[[[0.0, 2.0]]]])
    DepthError().update(torch.ones(1, 1, 1, 2), target)
    assert target.tolist() == [[[[0.0, 2.0]]]]


@given(seeds)
def test_normals(seed):
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(3, 3, 5, 6))
    target /= np.linalg.norm(target, axis=1, keepdims=True)
    target[:, :, 0, :2] *= 0.004  # a PNG's "zero"
    guess = rng.normal(size=target.shape) * rng.uniform(0.1, 3)
    got = in_pieces(NormalError(), torch.from_numpy(guess), torch.from_numpy(target))
    angles = []
    for b, i, j in np.ndindex(3, 5, 6):
        t, p = target[b, :, i, j], guess[b, :, i, j]
        if np.linalg.norm(t) >= 0.5:
            angles.append(math.degrees(math.acos(max(-1, min(1, t @ p / np.linalg.norm(p))))))
    angles = np.sort(angles)
    assert got["mean_deg"] == pytest.approx(angles.mean(), abs=1e-5)
    assert got["median_deg"] == pytest.approx(angles[(len(angles) + 1) // 2 - 1], abs=0.01)
    for limit in (11.25, 22.5, 30):
        assert got[f"within_{limit}"] == pytest.approx((angles < limit).mean())


@pytest.mark.parametrize("degrees", [0.02, 0.5, 45.0, 179.9])
def test_small_and_large_angles_keep_their_precision(degrees):
    a = math.radians(degrees)
    error = NormalError()
    error.update(
        torch.tensor([math.sin(a), 0, math.cos(a)]).reshape(1, 3, 1, 1), torch.tensor([0.0, 0, 1]).reshape(1, 3, 1, 1)
    )
    assert float(error.compute()["mean_deg"]) == pytest.approx(degrees, abs=1e-4)


@given(seeds)
def test_edges(seed):
    rng = np.random.default_rng(seed)
    target = (rng.random((3, 1, 6, 8)) < 0.3).astype(np.float32)
    target[0, 0, 0, 0] = 1
    guess = np.clip(0.5 * target + 0.6 * rng.random(target.shape), 0, 0.999).astype(np.float32)
    target[:, :, -1] = 255
    got = in_pieces(EdgeFScore(bins=100), torch.from_numpy(guess), torch.from_numpy(target))
    known = target <= 1
    best = 0.0
    for level in range(100):
        mark = (np.floor(guess * np.float32(100)) >= level) & known
        hit = (mark & (target == 1)).sum()
        if hit:
            p, r = hit / mark.sum(), hit / (target == 1).sum()
            best = max(best, 2 * p * r / (p + r))
    assert got["f_pixel"] == pytest.approx(best)


@pytest.mark.parametrize(
    ("metric", "prediction", "target", "key"),
    [
        (SegmentationScore(3), torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 255), "miou"),
        (DepthError(), torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), "rmse_m"),
        (NormalError(), torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), "mean_deg"),
        (NormalError(), torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), "median_deg"),
        (EdgeFScore(), torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 255.0), "f_pixel"),
    ],
)
def test_without_a_valid_pixel_the_answer_is_nan_not_zero(metric, prediction, target, key):
    metric.update(prediction, target)
    assert math.isnan(float(metric.compute()[key]))
