"""The assignment of boundary pixels is one to one and as large as possible, whatever came and went before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from boundary_reference import slow_pairs
from m2h_lightning.boundaries.matching import Matching

MASK = arrays(bool, (7, 8))
RADIUS = st.sampled_from([0.0, 0.9, 1.0, 1.5, 2.0, 2.9, 5.0])


def match(predicted, truth, radius):
    matching = Matching(np.flatnonzero(predicted), truth, radius)
    matching.add(np.arange(int(predicted.sum())))
    return matching


def pairs(predicted, truth, radius):
    return int(match(predicted, truth, radius).assigned().sum())


def sparse_pairs(predicted, truth, radius):
    """Largest number of pairs as the benchmark's cost defines it: distance, and far more for a pixel left alone."""
    a, b = np.argwhere(predicted), np.argwhere(truth)
    near = cKDTree(a).sparse_distance_matrix(cKDTree(b), radius + 1e-9, output_type="coo_matrix")
    alone = np.arange(len(a))
    cost = coo_array(
        (
            np.concatenate([near.data + 1, np.full(len(a), 1e4)]),  # a private column for each prediction left alone
            (np.concatenate([near.row, alone]), np.concatenate([near.col, len(b) + alone])),
        ),
        shape=(len(a), len(b) + len(a)),
    )
    _, columns = min_weight_full_bipartite_matching(cost.tocsr())
    return int((columns < len(b)).sum())


@settings(max_examples=200, deadline=None)
@given(MASK, MASK, RADIUS)
def test_as_many_pairs_as_possible(predicted, truth, radius):
    assert pairs(predicted, truth, radius) == slow_pairs(predicted, truth, radius)[0]


@settings(max_examples=100, deadline=None)
@given(MASK, MASK, RADIUS)
def test_pairs_are_one_to_one_and_within_reach(predicted, truth, radius):
    matching = match(predicted, truth, radius)
    partner = matching.partners()
    used = partner[partner >= 0]
    assert len(set(used.tolist())) == len(used)
    here, there = np.argwhere(predicted)[partner >= 0], np.argwhere(truth)[used]
    assert (((here - there) ** 2).sum(1) <= radius**2).all()


@settings(max_examples=100, deadline=None)
@given(MASK, MASK, RADIUS)
def test_flips_and_transposition_change_nothing(predicted, truth, radius):
    number = pairs(predicted, truth, radius)
    assert pairs(predicted[::-1], truth[::-1], radius) == number
    assert pairs(predicted[:, ::-1], truth[:, ::-1], radius) == number
    assert pairs(predicted.T, truth.T, radius) == number
    assert pairs(truth, predicted, radius) == number
    assert pairs(predicted, truth, radius + 1) >= number


@settings(max_examples=60, deadline=None)
@given(st.lists(MASK, min_size=1, max_size=5), MASK, RADIUS)
def test_any_history_of_predictions(history, truth, radius):
    """Predictions come and go: the number is that of a fresh start each time."""
    possible = np.flatnonzero(np.any(history, axis=0))
    matching = Matching(possible, truth, radius)
    for predicted in history:
        active = predicted.reshape(-1)[possible]
        matching.keep(active)
        matching.add(np.flatnonzero(active & ~matching.assigned()))
        assert int(matching.assigned().sum()) == slow_pairs(predicted, truth, radius)[0]
        assert not (matching.assigned() & ~active).any()


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, (7, 8), elements=st.integers(0, 4)), MASK, RADIUS)
def test_predictions_that_only_come(rank, truth, radius):
    """Those without a partner are never searched again: the number is the largest at every step all the same."""
    matching = Matching(np.flatnonzero(rank), truth, radius)
    ranks = rank[rank > 0]
    total = 0
    for level in (4, 3, 2, 1):
        total += matching.add(np.flatnonzero(ranks == level))
        assert total == int(matching.assigned().sum()) == slow_pairs(rank >= level, truth, radius)[0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("radius", [1.5, 4.0, 7.73])
def test_boundaries_of_usual_size(seed, radius):
    """Wiggling lines and clutter, against scipy's sparse assignment with a private column per pixel."""
    rng = np.random.default_rng(seed)
    predicted, truth = rng.random((2, 90, 110)) < [[[0.03]], [[0.01]]]
    for _ in range(6):
        y = np.clip(rng.integers(90) + rng.integers(-1, 2, 110).cumsum(), 0, 89)
        truth[y, np.arange(110)] = True
        predicted[np.clip(y + rng.integers(-4, 5), 0, 89), np.arange(110)] = True
    assert pairs(predicted, truth, radius) == sparse_pairs(predicted, truth, radius)


def test_a_chain_that_must_be_reassigned_from_end_to_end():
    """Each prediction reaches two true pixels, the last comer only the first one's: all must move."""
    predicted, truth = np.zeros((2, 1, 200), bool)
    truth[0, 1:200:2] = True
    predicted[0, 0:200:2] = True  # between true pixels, reaching both neighbours
    matching = Matching(np.flatnonzero(predicted), truth, 1.0)
    for index in np.random.default_rng(0).permutation(100):
        assert matching.add(np.array([index])) == 1
    assert matching.assigned().all()


def test_the_radius_is_inclusive():
    predicted, truth = np.zeros((2, 10, 10), bool)
    predicted[2, 2] = truth[5, 6] = True  # 3 and 4 pixels apart
    assert pairs(predicted, truth, 5.0) == 1
    assert pairs(predicted, truth, 4.999) == 0


def test_no_pixel_is_used_twice():
    predicted, truth = np.zeros((2, 10, 10), bool)
    predicted[:, 4] = predicted[:, 6] = truth[:, 5] = True
    assert pairs(predicted, truth, 1.0) == 10


def test_nothing_predicted_or_nothing_true():
    empty, full = np.zeros((5, 5), bool), np.ones((5, 5), bool)
    assert pairs(empty, full, 3.0) == pairs(full, empty, 3.0) == pairs(empty, empty, 3.0) == 0
    assert pairs(full, full, 0.0) == 25
