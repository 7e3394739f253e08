"""The search for the axes of stored normals, and for what depth is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2h_lightning.data.sources.axes import ALL_AXES, apply_axes
from m2h_lightning.data.verify.axes_findings import compose, judge_axes, judge_facing
from m2h_lightning.data.verify.axes_search import AxesTally, angle_sums, decide, tally_axes
from m2h_lightning.data.verify.flatness import FlatnessTally, judge_flatness, tally_flatness
from m2h_lightning.data.verify.planes import IDEAS, blocks_of, fit_planes, smooth_blocks
from m2h_lightning.geometry import pixel_rays
from verify_sets import SIZE, K, room

ROOMS = [{key: room(seed)[key] for key in ("depth", "normals")} for seed in range(3)]
RAYS = pixel_rays(K, *SIZE)
LENGTH = np.linalg.norm(RAYS, axis=0)
DEPTHS = {
    "planar": lambda z: z,
    "distance": lambda z: z * LENGTH,
    "inverse": lambda z: 1 / z,
    "divided": lambda z: z / LENGTH,
}


def pooled(change_normals=lambda n: n, change_depth=lambda z: z, rooms=ROOMS, camera=K, independent=True) -> AxesTally:
    total = AxesTally()
    for index, maps in enumerate(rooms):
        depth = change_depth(maps["depth"]).astype(np.float32)
        normals = change_normals(maps["normals"]).astype(np.float32)
        total.add(tally_axes(depth, normals, camera, f"room {index}", independent))
    return total


def inverse_axes(axes: str) -> str:
    return next(other for other in ALL_AXES if compose(other, axes) == "x,y,z")


@pytest.mark.parametrize("idea", IDEAS)
def test_planes_are_fitted_exactly_under_the_true_idea(idea):
    depth = DEPTHS[idea](ROOMS[0]["depth"]).astype(np.float32)
    blocks = blocks_of(K, SIZE, 4)
    use = smooth_blocks(depth, 4)
    truth = ROOMS[0]["normals"][2::4, 2::4]
    same = (np.ptp(ROOMS[0]["normals"].reshape(18, 4, 24, 4, 3), axis=(1, 3)) == 0).all(-1)
    fitted, rest = fit_planes(depth, blocks, idea)
    assert use.mean() > 0.5
    cosines = np.einsum("hwc,hwc->hw", fitted, truth)[use & same]
    assert np.degrees(np.arccos(np.clip(cosines, -1, 1))).max() < 0.1
    assert rest[use & same].max() < 1e-9


def test_a_general_camera_is_fitted_too():
    tilted = K.copy()
    tilted[2, :2] = 0.0006, -0.0009
    rays = pixel_rays(tilted, *SIZE)
    n = np.array([0.3, -0.5, -0.8]) / np.linalg.norm([0.3, -0.5, -0.8])
    depth = (-2.0 / np.einsum("c,chw->hw", n, rays)).astype(np.float32)
    fitted, _ = fit_planes(depth, blocks_of(tilted, SIZE, 6), "planar")
    np.testing.assert_allclose(fitted, np.broadcast_to(n, fitted.shape), atol=1e-4)


def test_blocks_with_a_jump_or_a_gap_are_not_smooth():
    depth = np.full((8, 12), 2.0, np.float32)
    depth[:, 6:] = 2.5
    depth[0, 0] = 0
    assert smooth_blocks(depth, 4).tolist() == [[False, False, True], [True, False, True]]


def test_the_identity_is_found_when_all_is_well():
    verdict = decide(pooled())
    assert (verdict.state, verdict.convention, verdict.idea) == ("agree", "x,y,z", "planar")
    assert verdict.mean < 0.5 and verdict.runner_up_mean > 5
    assert judge_axes(pooled(), verdict, "x,-y,-z", "") == []


@given(st.sampled_from(ALL_AXES), st.sampled_from(ALL_AXES))
def test_every_convention_is_found_and_told_in_terms_of_the_stored_channels(truth, used):
    # Stored in such a way that reading them with `truth` is right, but read with `used`.
    def change(normals):
        return apply_axes(apply_axes(normals, inverse_axes(truth)), used)

    tally = pooled(change, rooms=ROOMS[:1])
    verdict = decide(tally)
    findings = [finding for finding in judge_axes(tally, verdict, used, "") if finding.check == "axes"]
    if used == truth:
        assert verdict.state == "agree" and not findings
    else:
        assert verdict.state == "axes"
        assert f"data.normal_axes='{truth}'" in findings[0].text and findings[0].severity == "problem"
        assert f"mean {verdict.mean:.1f}° instead of" in findings[0].text


@given(st.sampled_from(ALL_AXES), st.sampled_from(ALL_AXES), st.randoms())
def test_composition_is_what_applying_both_does(found, used, random):
    stored = np.array([[random.uniform(-1, 1) for _ in range(3)]])
    both = apply_axes(apply_axes(stored, used), found)
    np.testing.assert_array_equal(apply_axes(stored, compose(found, used)), both)


def test_the_mean_decides_where_the_median_ties():
    """One dominant wall seen head-on, and a floor that only the mean listens to."""
    rng = np.random.default_rng(0)
    truth = np.array([[0.0, 0.0, -1.0]] * 90 + [[0.0, -1.0, 0.0]] * 10)
    noisy = truth + rng.normal(0, 0.004, truth.shape)
    noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
    rays = np.array([[0.1, 0.4, 1.0]] * 100)
    identity, flipped = ALL_AXES.index("x,y,z"), ALL_AXES.index("x,-y,z")
    cosines = [np.einsum("nc,nc->n", apply_axes(noisy, axes), truth) for axes in ("x,y,z", "x,-y,z")]
    medians = [np.median(np.degrees(np.arccos(np.clip(cosine, -1, 1)))) for cosine in cosines]
    assert abs(medians[0] - medians[1]) < 0.2
    means = angle_sums(noisy, truth, rays)[0] / 100
    assert means[identity] < 1 and means[flipped] > 15


@pytest.mark.parametrize("idea", ["distance", "inverse", "divided"])
def test_what_depth_is_is_found(idea):
    verdict = decide(pooled(change_depth=DEPTHS[idea]))
    assert (verdict.state, verdict.idea, verdict.convention) == ("depth", idea, "x,y,z")
    (finding,) = judge_axes(pooled(change_depth=DEPTHS[idea]), verdict, "x,y,z", "")
    assert finding.severity == "problem" and "not planar depth" in finding.text and finding.mend


def test_wrong_axes_and_wrong_depth_together_are_found():
    tally = pooled(lambda n: apply_axes(n, "x,-y,-z"), DEPTHS["inverse"])
    verdict = decide(tally)
    assert (verdict.state, verdict.idea) == ("both", "inverse")
    text = judge_axes(tally, verdict, "x,y,z", "")[0].text
    assert "data.normal_axes='x,-y,-z'" in text and "inverse depth" in text


def test_depth_in_another_unit_changes_nothing():
    assert decide(pooled(change_depth=lambda z: z * 1000)).state == "agree"


@pytest.mark.parametrize("axes", ["x,-y,-z", "z,x,y", "-y,z,-x"])
def test_axes_are_found_below_a_reader_that_turns_normals_to_the_camera(axes):
    def change(normals):
        wrong = apply_axes(normals, inverse_axes(axes))
        return np.where((np.einsum("hwc,chw->hw", wrong, RAYS) > 0)[..., None], -wrong, wrong)

    verdict = decide(pooled(change))
    # A convention and its opposite are the same to such a reader.
    opposite = ",".join(part[1:] if part[0] == "-" else f"-{part}" for part in axes.split(","))
    assert verdict.state == "axes" and verdict.convention in (axes, opposite) and verdict.mean < 0.5


def test_normals_that_face_away_are_counted_and_told():
    rng = np.random.default_rng(0)
    some = pooled(lambda n: np.where(rng.random(SIZE)[..., None] < 0.05, -n, n))
    assert 0.03 < some.away / some.seen < 0.07
    (finding,) = judge_facing(some)
    assert finding.severity == "warning"
    blocks = (np.add.outer(np.arange(SIZE[0]) // 6, np.arange(SIZE[1]) // 6) % 3 == 0)[..., None]
    many = pooled(lambda n: np.where(blocks, -n, n))
    assert judge_facing(many)[0].severity == "problem"
    assert decide(many).state == "facing"


def test_all_flipped_normals_are_a_matter_of_axes():
    verdict = decide(pooled(lambda n: -n))
    assert (verdict.state, verdict.convention) == ("axes", "-x,-y,-z")


def test_one_wall_is_too_little_to_decide_and_that_is_said():
    tally = pooled(rooms=[room(0, planes=1)])
    verdict = decide(tally)
    assert verdict.state == "ambiguous" and "-x,y,z" in verdict.tied
    (finding,) = judge_axes(tally, verdict, "x,y,z", "")
    assert finding.severity == "note" and "too few orientations" in finding.text


def test_a_wrong_convention_is_told_even_if_several_fit():
    tally = pooled(lambda n: apply_axes(n, "z,x,y"), rooms=[room(0, planes=1)])
    findings = judge_axes(tally, decide(tally), "x,y,z", "")
    assert [finding.severity for finding in findings] == ["problem", "note"]
    assert "fit as well" in findings[1].text


def test_normals_of_other_pictures_fit_nothing():
    rng = np.random.default_rng(0)

    def random_tiles(normals):
        tiles = rng.normal(size=(SIZE[0] // 6, SIZE[1] // 6, 3))
        tiles /= np.linalg.norm(tiles, axis=-1, keepdims=True)
        return np.kron(tiles, np.ones((6, 6, 1)))

    tally = pooled(random_tiles)
    assert decide(tally).state == "no fit"
    assert "under any of the 48" in judge_axes(tally, decide(tally), "x,y,z", "")[0].text


def test_a_single_sample_that_disagrees_is_named():
    tally = pooled(rooms=[room(seed) for seed in range(12)])
    wrong = tally_axes(ROOMS[0]["depth"].astype(np.float32), -ROOMS[0]["normals"].astype(np.float32), K, "odd", True)
    tally.add(wrong)
    findings = [finding for finding in judge_axes(tally, decide(tally), "x,y,z", "") if "odd" in finding.text]
    assert findings and findings[0].severity == "warning"


def test_without_a_camera_nothing_is_compared_and_that_is_said():
    tally = pooled(camera=np.full((3, 3), np.nan))
    assert tally.count == 0 and tally.no_camera == 3 and decide(tally) is None
    (finding,) = judge_axes(tally, None, "x,y,z", "")
    assert finding.severity == "note" and "K is not known in 3 sample(s)" in finding.text


def test_derived_normals_are_no_evidence():
    tally = pooled(lambda n: -n, independent=False)
    assert tally.count == 0
    findings = judge_axes(tally, decide(tally), "x,y,z", "derived from depth")
    assert any("derived, not checked" in finding.text for finding in findings)


def test_noise_does_not_change_the_verdict():
    rng = np.random.default_rng(1)

    def noisy(normals):
        out = normals + rng.normal(0, 0.25, normals.shape)
        return out / np.linalg.norm(out, axis=-1, keepdims=True)

    verdict = decide(pooled(noisy, lambda z: z * (1 + 0.003 * rng.standard_normal(z.shape))))
    assert verdict.state == "agree" and verdict.idea == "planar"


@pytest.mark.parametrize("idea", IDEAS)
def test_flat_walls_tell_what_depth_is_without_normals(idea):
    total = FlatnessTally()
    for seed in range(8):
        total.add(tally_flatness(DEPTHS[idea](room(seed)["depth"]).astype(np.float32), K))
    assert IDEAS[int(total.votes.argmax())] == idea
    findings = judge_flatness(total)
    assert len(findings) == (idea != "planar")
    assert all(finding.severity == "warning" for finding in findings)
