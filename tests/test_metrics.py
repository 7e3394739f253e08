"""What every per-pixel metric must satisfy: sums over batches and processes, protocols, padding, and bad input."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m2h_lightning.errors import DataError
from m2h_lightning.metrics import DepthError, SegmentationScore
from metric_cases import CASES, cut_out, part, reduced, score

seeds = st.integers(0, 10_000)
every_case = pytest.mark.parametrize("name", CASES)


def drawn(name: str, seed: int, images: int = 3):
    return CASES[name].draw(np.random.default_rng(seed), images)


def nan_mean(values: list[float]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(np.nanmean(values))


@every_case
@settings(max_examples=15)
@given(seed=seeds)
def test_whole_pieces_and_processes_give_one_answer(name, seed):
    """One update, image by image, or two processes with unequal shares: the same pooled and per-image scores."""
    batch = drawn(name, seed)
    make = CASES[name].make
    whole = score(make(), batch)
    assert whole == pytest.approx(score(make(), *(part(batch, i) for i in range(3))), nan_ok=True, rel=1e-9)
    first, second = make(), make()
    first.update(*part(batch, 0))
    second.update(*part(batch, slice(1, 3)))
    assert whole == pytest.approx(reduced(first, second), nan_ok=True, rel=1e-9)


@every_case
@settings(max_examples=15)
@given(seed=seeds)
def test_padding_does_not_count_and_per_image_is_the_mean_of_separate_runs(name, seed):
    batch = drawn(name, seed)
    make = CASES[name].make
    whole = score(make(), batch)
    alone = [score(make(), cut_out(batch, i)) for i in range(3)]
    keys = [key for key in whole if key.endswith("_per_image")]
    assert keys
    for key in keys:
        assert whole[key] == pytest.approx(nan_mean([run[key] for run in alone]), nan_ok=True, rel=1e-6), key


@every_case
@settings(max_examples=10)
@given(seed=seeds)
def test_per_batch_of_single_images_is_the_mean_of_their_pooled_scores(name, seed):
    batch = drawn(name, seed)
    make = CASES[name].make
    singles = [part(batch, i) for i in range(3)]
    got = score(make(per_batch=True), *singles)
    alone = [score(make(), single) for single in singles]
    keys = [key for key in got if key.endswith("_per_batch")]
    assert keys
    for key in keys:
        pooled = key.removesuffix("_per_batch")
        assert got[key] == pytest.approx(nan_mean([run[pooled] for run in alone]), nan_ok=True, rel=1e-9), key
    together = score(make(per_batch=True), batch)
    for key in alone[0]:
        assert together[key] == pytest.approx(got[key], nan_ok=True, rel=1e-9), key


@pytest.mark.parametrize(("metric", "key"), [(SegmentationScore, "miou"), (DepthError, "rmse_m")])
def test_per_batch_drifts_with_the_batch_size_and_pooled_does_not(metric, key):
    """The same four images in batches of 1, 2 and 4: three per-batch figures, one pooled."""
    if metric is SegmentationScore:
        batch = CASES["semseg"].draw(np.random.default_rng(3), 4)
        make = lambda: SegmentationScore(5, per_batch=True)  # noqa: E731
    else:
        batch = CASES["depth"].draw(np.random.default_rng(3), 4)
        make = lambda: DepthError(per_batch=True)  # noqa: E731
    runs = [score(make(), *(part(batch, slice(i, i + n)) for i in range(0, 4, n))) for n in (1, 2, 4)]
    pooled, per_batch = [run[key] for run in runs], [run[f"{key}_per_batch"] for run in runs]
    assert pooled == pytest.approx([pooled[0]] * 3, rel=1e-12)
    assert per_batch[2] == pytest.approx(pooled[2])  # one batch of all is the pooled score
    assert min(abs(a - b) for a, b in itertools.pairwise(per_batch)) > 1e-3 * pooled[0]


@every_case
def test_nothing_of_the_batch_is_changed(name):
    prediction, target, sizes = drawn(name, 1)
    copies = prediction.clone(), target.clone()
    CASES[name].make().update(prediction, target, sizes)
    assert torch.equal(prediction.nan_to_num(-7), copies[0].nan_to_num(-7))
    assert torch.equal(target, copies[1])


@every_case
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_is_an_error_where_it_counts(name, value):
    """One NaN or infinity at one scored pixel of one image; the message is one line and counts it."""
    prediction, target, sizes = drawn(name, 1)
    target[0] = 1  # known to every task, below every cap, and a class
    if name == "normals":
        target[0] = math.sqrt(1 / 3)
    prediction[0, 0, 4, 4] = value
    metric = CASES[name].make()
    with pytest.raises(DataError, match=r"^the prediction of \w+ is NaN or infinite at 1 scored pixels$"):
        metric.update(prediction, target, sizes)


@every_case
def test_without_a_scored_pixel_the_answer_is_nan_not_zero(name):
    prediction, target, sizes = drawn(name, 1)
    target[:] = 0 if name.startswith("depth") or name == "normals" else 255
    got = score(CASES[name].make(), (prediction, target, sizes))
    got.pop("classes_present", None)
    assert got
    assert all(math.isnan(value) for value in got.values()), got


@every_case
@pytest.mark.parametrize("seed", range(3))
def test_images_of_one_pixel(name, seed):
    prediction, target, _ = drawn(name, seed)
    single = prediction[..., :1, :1].contiguous(), target[..., :1, :1].contiguous()
    got = score(CASES[name].make(), (*single, [(1, 1)] * 3))
    assert got == pytest.approx(score(CASES[name].make(), (*single, None)), nan_ok=True)


@every_case
def test_keys_do_not_depend_on_what_was_scored(name):
    """Tables and ``result.json`` rely on it; every mean is there under each protocol that was asked for."""
    metric = CASES[name].make(per_batch=True)
    keys = list(score(metric, drawn(name, 1)))
    assert list(score(metric, part(drawn(name, 5), 1))) == keys
    for key in keys:
        if key.endswith("_per_image"):
            stem = key.removesuffix("_per_image")
            assert stem in keys
            assert f"{stem}_per_batch" in keys


@every_case
def test_scores_are_float64_and_states_are_sums(name):
    metric = CASES[name].make()
    metric.update(*drawn(name, 1))
    assert {value.dtype for value in metric.compute().values()} == {torch.float64}
    assert {getattr(metric, state).dtype for state in metric._defaults} <= {torch.float64, torch.int64}


@every_case
def test_memory_layout_and_half_precision(name):
    """Classes or axes last in memory give the same; bfloat16 predictions are scored as the numbers that they are."""
    prediction, target, sizes = drawn(name, 2)
    make = CASES[name].make
    plain = score(make(), (prediction, target, sizes))
    last = prediction.contiguous(memory_format=torch.channels_last)
    assert plain == pytest.approx(score(make(), (last, target, sizes)), nan_ok=True, rel=1e-6)
    half = prediction.bfloat16()
    assert score(make(), (half, target, sizes)) == pytest.approx(
        score(make(), (half.float(), target, sizes)), nan_ok=True, rel=1e-6
    )


@every_case
def test_a_metric_reset_in_inference_mode_can_be_used_outside(name):
    """Validation runs in inference mode; whoever scores by hand afterwards does not."""
    metric = CASES[name].make()
    with torch.inference_mode():
        metric.update(*drawn(name, 1))
        metric.reset()
        metric.update(*drawn(name, 1))
    metric.update(*drawn(name, 2))
    inside = {key: float(value) for key, value in metric.compute().items()}
    assert inside == pytest.approx(score(CASES[name].make(), drawn(name, 1), drawn(name, 2)), nan_ok=True)


@every_case
def test_a_prediction_of_another_size_is_an_error_not_broadcast(name):
    prediction, target, sizes = drawn(name, 1)
    metric = CASES[name].make()
    with pytest.raises(DataError, match="the prediction of"):
        metric.update(prediction[..., :1, :1], target, sizes)
    with pytest.raises(DataError, match="the prediction of"):
        metric.update(prediction[:1], target, sizes)
