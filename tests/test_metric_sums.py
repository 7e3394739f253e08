"""What all metrics compute with: sums by bin, masks, and work that several of them share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from m2h_lightning.errors import DataError
from m2h_lightning.metrics import NormalError, WindowGrid
from m2h_lightning.metrics.consistency import DepthNormalConsistency
from m2h_lightning.metrics.normals import normal_angles
from m2h_lightning.metrics.protocol import any_true, count_bins, share_work, shared, sum_bins, zero_outside
from m2h_lightning.metrics.seams import WindowSeams

MASK = torch.tensor([[True, False, True, False, False]])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integers_outside_of_a_mask_become_0(kind):
    mask = MASK.clone()
    assert zero_outside(torch.tensor([[3, 4, 5, 6, 7]], dtype=kind), mask).tolist() == [[3, 0, 5, 0, 0]]
    assert mask.equal(MASK)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_floats_outside_of_a_mask_become_0_even_if_not_finite(kind):
    values = torch.tensor([[-1.5, torch.nan, torch.inf, -torch.inf, 2.0]], dtype=kind)
    assert zero_outside(values, MASK).tolist() == [[-1.5, 0.0, float("inf"), 0.0, 0.0]]
    planes = torch.arange(20.0, dtype=kind).reshape(2, 5, 2).mT  # not contiguous, and the mask is broadcast
    assert zero_outside(planes, MASK).equal(torch.where(MASK, planes, 0.0))


@pytest.mark.parametrize("mask", [[], [False, False], [False, True], [True, True]])
def test_any(mask):
    assert any_true(torch.tensor(mask, dtype=torch.bool)) == any(mask)


@pytest.mark.parametrize("bins", [1, 7, 300])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_sums_by_bin_follow_their_definition(bins, kind):
    rng = np.random.default_rng(bins)
    index, valid = rng.integers(0, bins, (3, 5, 11)), rng.random((3, 5, 11)) < 0.7
    fields = rng.normal(size=(2, 3, 5, 11))
    valid[2] = False
    count, sums = np.zeros((3, bins), int), np.zeros((3, 2, bins))
    for image, row, column in zip(*np.nonzero(valid), strict=True):
        count[image, index[image, row, column]] += 1
        sums[image, :, index[image, row, column]] += fields[:, image, row, column]
    # What is not valid may be any number, and any value.
    index[~valid] = rng.choice([-(2**31), -1, bins, 2**31 - 1], (~valid).sum())
    fields[:, ~valid] = np.nan
    place, known = torch.tensor(index, dtype=kind), torch.tensor(valid)
    assert count_bins(place, known, bins).tolist() == count.tolist()
    found = sum_bins([torch.tensor(field) for field in fields], place, known, bins)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, sums, rtol=1e-12, atol=1e-12)


def test_work_is_shared_for_the_same_tensors_inside_only():
    calls = []

    def add(a, b):
        calls.append(1)
        return a + b

    one, two = torch.ones(2), torch.full((2,), 2.0)
    with share_work():
        first = shared(add, one, two)
        assert shared(add, one, two) is first
        assert shared(add, one, one.clone()).tolist() == [2.0, 2.0]  # equal tensors are others
        assert shared(add, one, 5).tolist() == [6.0, 6.0]
        assert shared(add, one, 6).tolist() == [7.0, 7.0]
    assert len(calls) == 4
    shared(add, one, two)
    shared(add, one, two)
    assert len(calls) == 6
    with share_work():
        assert shared(add, one, two) is not first


def test_a_new_tensor_never_gets_the_work_of_one_that_is_gone():
    with share_work():
        for number in range(50):  # memory, and with it the id, of a temporary tensor would be used again
            assert shared(torch.neg, torch.full((3,), float(number))).tolist() == [-float(number)] * 3


def test_metrics_score_alike_with_and_without_shared_work():
    noise = torch.Generator().manual_seed(0)
    normals, guess = (torch.randn(2, 3, 24, 32, generator=noise) for _ in range(2))
    normals[:, :, 3:6] = 0.0
    guess[:, :, 3:6, 0] = torch.nan
    depth = 2 + 0.001 * torch.rand(2, 1, 24, 32, generator=noise)
    size = torch.tensor([[24, 32]] * 2)
    camera = torch.tensor([[30.0, 0, 16], [0, 30, 12], [0, 0, 1]]).expand(2, 3, 3)
    batch = {"normals": normals, "depth": depth, "K": camera, "image_size": size, "label_size": size}
    grid = WindowGrid((12.0,), (8.0, 16.0, 24.0), (2.0, 2.0))

    def scores():
        own, cross = NormalError(), [DepthNormalConsistency(), WindowSeams(["normals"])]
        own.update(guess, normals)
        for metric in cross:
            metric.update({"normals": guess, "depth": depth}, batch, size.tolist(), grid)
        return {key: value.item() for metric in (own, *cross) for key, value in metric.compute().items()}

    alone = scores()
    with share_work():
        together = scores()
    assert together == pytest.approx(alone, rel=1e-12, nan_ok=True)
    assert alone["mean_deg"] > 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_angles_count_the_scored_pixels_that_are_not_finite(bad):
    guess, true = torch.ones(1, 3, 2, 3), torch.ones(1, 3, 2, 3)
    guess[0, 1:, 0, 0] = bad
    with pytest.raises(DataError, match="normals is NaN or infinite at 1 scored pixels"):
        normal_angles(guess, true)
    true[0, :, 0, 0] = 0.0
    assert normal_angles(guess, true).tolist() == [[[0.0] * 3] * 2]
    true[0, 1, 0, 0] = bad  # a label that is not finite is not known
    assert normal_angles(guess, true).tolist() == [[[0.0] * 3] * 2]
