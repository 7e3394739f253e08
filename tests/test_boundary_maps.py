"""Thin boundary maps against their definitions, written out pixel by pixel."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from boundary_reference import slow_orientation, slow_region_boundaries, slow_suppress, slow_thin
from m2h_lightning.boundaries.maps import (
    THRESHOLDS,
    from_levels,
    orientation,
    region_boundaries,
    suppress_non_maxima,
    thin,
)

SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
EIGHT = np.ones((3, 3), bool)


def levels(seed, height=40, width=50):
    """A smooth random map, quantised, with empty regions."""
    rng = np.random.default_rng(seed)
    map_ = ndimage.gaussian_filter(rng.standard_normal((height, width)), 1.5)
    return np.rint(255 * np.clip(map_ / map_.max(), 0, 1)).astype(np.uint8)


@settings(max_examples=150, deadline=None)
@given(arrays(bool, SHAPES))
def test_thinning_is_the_published_algorithm(mask):
    assert np.array_equal(thin(mask), slow_thin(mask))


@pytest.mark.parametrize("seed", range(4))
def test_thinning_of_blobs(seed):
    """Many iterations: pixels are looked at again only where something changed."""
    mask = levels(seed) > 40
    assert np.array_equal(thin(mask), slow_thin(mask))


def test_thinning_is_that_of_scikit_image():
    morphology = pytest.importorskip("skimage.morphology")
    for seed in range(20):
        mask = levels(seed, 80, 90) > 60
        assert np.array_equal(thin(mask), morphology.thin(mask))


@settings(max_examples=100, deadline=None)
@given(arrays(bool, SHAPES))
def test_thinning_keeps_what_is_connected_and_ends(mask):
    line = thin(mask)
    assert not (line & ~mask).any()
    assert np.array_equal(thin(line), line)
    assert ndimage.label(line, EIGHT)[1] == ndimage.label(mask, EIGHT)[1]


def test_a_bar_becomes_a_line_and_a_line_stays():
    bar = np.zeros((20, 30), bool)
    bar[8:13, 5:25] = True
    line = thin(bar)
    assert line[10].sum() == line.sum() >= 15
    assert np.array_equal(thin(line), line)


@settings(max_examples=100, deadline=None)
@given(arrays(np.uint8, SHAPES, elements=st.integers(0, 2)))
def test_boundaries_of_regions(regions):
    assert np.array_equal(region_boundaries(regions), slow_region_boundaries(regions))


def test_lines_of_labels_taken_as_regions():
    """One pixel wide: one line, half a pixel up and left. Two pixels wide: two lines."""
    for width, lines in ((1, 1), (2, 2), (5, 2)):
        label = np.zeros((30, 40), bool)
        label[:, 20 : 20 + width] = True
        boundary = thin(region_boundaries(label))
        assert (boundary[5:-5].sum(1) == lines).all()
    slanted = np.eye(40, dtype=bool)
    assert ndimage.label(thin(region_boundaries(slanted)), EIGHT)[1] == 1


@pytest.mark.parametrize("seed", range(3))
def test_orientation(seed):
    edges = from_levels(levels(seed))
    ours, theirs = orientation(edges), slow_orientation(edges.astype(float))
    turn = np.abs(ours - theirs)
    # Single against double precision: the quotient of two differences near zero may point anywhere.
    assert (np.minimum(turn, np.pi - turn) < 1e-3).mean() > 0.98
    assert ((ours >= 0) & (ours < np.float32(np.pi) + 1e-6)).all()


@pytest.mark.parametrize("seed", range(3))
def test_suppression(seed):
    edges = from_levels(levels(seed))
    ours, theirs = suppress_non_maxima(edges), slow_suppress(edges, slow_orientation(edges))
    assert (np.abs(ours - theirs) < 1e-6).mean() > 0.995
    kept = (ours > 0) & (theirs > 0)
    assert kept.sum() > 100
    assert np.allclose(ours[kept], theirs[kept], rtol=1e-5)
    # The same orientation leaves rounding alone.
    same = slow_suppress(edges, orientation(edges))
    assert ((ours > 0) == (same > 0)).all()


def test_the_largest_across_an_edge_survives():
    ridge = np.zeros((40, 60), np.float32)
    ridge[:, 28:33] = np.float32([0.3, 0.6, 0.9, 0.6, 0.3])
    kept = suppress_non_maxima(ridge)
    assert set(np.flatnonzero(kept[20])) == {30}
    assert kept[20, 30] == np.float32(0.9)


def test_a_neighbour_must_be_larger_by_a_hundredth():
    for value, survives in ((0.895, True), (0.885, False)):  # times 1.01: 0.904, 0.894
        ridge = np.zeros((40, 60), np.float32)
        ridge[:, 30], ridge[:, 31] = 0.9, value
        assert (suppress_non_maxima(ridge)[20, 31] > 0) == survives


def test_the_border_fades():
    plane = suppress_non_maxima(np.ones((30, 40), np.float32))
    assert np.allclose(plane[15, :6], [0, 0.2, 0.4, 0.6, 0.8, 1])
    assert np.allclose(plane[15, -6:], [1, 0.8, 0.6, 0.4, 0.2, 0])
    assert np.allclose(plane[:6, 20], [0, 0.2, 0.4, 0.6, 0.8, 1])
    assert plane[2, 3] == pytest.approx(0.4 * 0.6)  # both axes


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (3, 11)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_tiny_and_constant_maps(shape, value):
    kept = suppress_non_maxima(np.full(shape, value, np.float32))
    assert kept.shape == shape
    assert np.isfinite(kept).all()
    assert thin(kept > 0).shape == shape
    if shape == (1, 1):
        assert kept[0, 0] == value


def test_thresholds():
    assert len(THRESHOLDS) == 101
    assert (np.diff(THRESHOLDS) > 0).all()
    assert np.allclose(THRESHOLDS[[0, 1, 50, 99, 100]], [0.001, 0.01, 0.5, 0.99, 0.999])
    # 51/255 is 0.2 in single precision too: an edge from 0.19 on, but not at 0.2.
    assert (from_levels(np.array([[51]], np.uint8)) > THRESHOLDS).sum() == 20


def test_working_processes_need_no_torch():
    code = "import sys, m2h_lightning.boundaries.counts as c; print(sorted({'torch', 'lightning'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
