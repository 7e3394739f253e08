"""odsF, oisF and AP: known cases, the whole benchmark once more, and every way of summing up."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy import ndimage

from boundary_reference import slow_counts
from m2h_lightning.boundaries.counts import Count, Image
from m2h_lightning.boundaries.maps import THRESHOLDS
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.metrics import boundary
from m2h_lightning.metrics.boundary import BoundaryScore, f_score, local_processes, summarize

SIZE = (60, 80)  # a diagonal of 100 pixels: max_dist 0.05 is 5 pixels


def line(column, rows=slice(10, 50), width=1, value=1.0):
    map_ = torch.zeros(1, 1, *SIZE)
    map_[0, 0, rows, column : column + width] = value
    return map_


def room(seed, height=120, width=160):
    """A label of region borders and a prediction of it: blurred, shifted, noisy, with misses and false lines."""
    rng = np.random.default_rng(seed)

    def borders(count):
        points = rng.random((count, 2)) * (height, width)
        grid = np.moveaxis(np.indices((height, width)), 0, -1)[:, :, None]
        regions = ((grid - points) ** 2).sum(-1).argmin(-1)
        edges = np.zeros((height, width), bool)
        edges[:, :-1] |= regions[:, :-1] != regions[:, 1:]
        edges[:-1] |= regions[:-1] != regions[1:]
        return edges

    def noise(sigma):
        values = ndimage.gaussian_filter(rng.standard_normal((height, width)), sigma)
        return values / values.std()

    label, clutter = borders(12), borders(9)
    lines = 4 * (label * np.clip(0.8 + 0.7 * noise(10), 0, 2) + 0.5 * clutter)
    logits = 5 * ndimage.gaussian_filter(np.roll(lines, 1, axis=1), 1.5) - 2.5 + 0.8 * noise(2)
    prediction = torch.from_numpy(1 / (1 + np.exp(-logits))).float()[None, None]
    return prediction, torch.from_numpy(label).float()[None, None]


def rooms(count, **size):
    made = [room(seed, **size) for seed in range(count)]
    return torch.cat([p for p, _ in made]), torch.cat([t for _, t in made])


def score(prediction, target, sizes=None, max_dist=0.05, **options):
    metric = BoundaryScore(max_dist, workers=0, **options)
    metric.update(prediction, target, sizes)
    return {key: value.item() for key, value in metric.compute().items()}


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert float(a[key]) == float(b[key]) or (np.isnan(float(a[key])) and np.isnan(float(b[key]))), key


# ---- what is counted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_whole_benchmark_once_more(seed):
    """All of it, from 8-bit levels to counts, against code that shares nothing with ours."""
    prediction, label = room(seed, 44, 52)
    levels = np.rint(255 * prediction[0, 0].numpy()).astype(np.uint8)
    labels = label[0, 0].numpy().astype(np.uint8)
    labels[5:15, 20:40] = 255
    found = Count(0.03, exact=True)(Image(levels, labels))[1]
    chosen = [0, 3, 10, 25, 40, 50, 65, 80, 95, 100]
    assert np.array_equal(found[chosen], slow_counts(levels, labels, 0.03, THRESHOLDS[chosen]))
    assert found[10, 0] > 20


def test_a_perfect_prediction():
    found = score(line(40), line(40))
    assert found["odsf"] == found["odsf_fast"] == found["oisf"] == 1
    assert found["odsf_precision"] == found["odsf_recall"] == 1


@pytest.mark.parametrize(
    ("shift", "matched"), [(0, True), (4, True), (5, False), (6, False), (-4, True), (-6, True), (-7, False)]
)
def test_shifts_less_and_more_than_the_tolerance(shift, matched):
    """Five pixels from the true line, which lies on column 39: as a region, a label's border is up and left of it."""
    assert score(line(40 + shift), line(40))["odsf"] == (1 if matched else 0)


def test_the_tolerance_is_a_share_of_the_diagonal():
    near, far = line(43), line(40)
    assert score(near, far, max_dist=0.05)["odsf"] > 0.95
    assert score(near, far, max_dist=0.015)["odsf"] == 0


def test_a_thick_prediction_counts_once():
    thick = score(line(37, width=7, value=0.7), line(40))
    assert thick["odsf"] > 0.9
    assert thick["odsf_precision"] > 0.9


def test_two_lines_for_one_are_one_too_many():
    found = score(torch.maximum(line(38), line(43)), line(40))
    assert found["odsf_recall"] > 0.95
    assert found["odsf_precision"] == pytest.approx(0.5, abs=0.03)


def test_labels_are_regions():
    """A line two pixels wide has two sides, and one predicted line can only match one of them."""
    assert score(line(40), line(40, width=2))["odsf_recall"] == pytest.approx(0.5, abs=0.05)


def test_counts_of_a_line():
    (counts,) = Count(0.05, exact=False)(
        Image((255 * line(40, value=0.5)[0, 0]).round().byte().numpy(), line(40)[0, 0].byte().numpy())
    )
    level = 128 / 255  # 127.5 rounds to the even number
    above = level > THRESHOLDS
    assert (counts[above, 3] == 40).all()
    assert (counts[~above] == [0, counts[0, 1], 0, 0]).all()
    assert (counts[above, 0] == 40).all()
    assert counts[0, 1] == 40


def test_the_threshold_is_strict_and_the_lowest_of_equals():
    found = score(line(40, value=0.2), line(40))
    assert found["odsf_threshold"] == pytest.approx(0.001)
    image = Image((51 * line(40)[0, 0]).byte().numpy(), line(40)[0, 0].byte().numpy())  # 51/255 is 0.2
    for counts in Count(0.05, exact=True)(image):
        assert (counts[:20, 3] == 40).all()  # up to 0.19
        assert (counts[20:, 3] == 0).all()
    exactly = torch.maximum(line(40, value=51 / 255), line(70, value=50 / 255))
    # At 0.19 both lines are there, and at 0.20 neither.
    assert score(exactly, line(40))["odsf_precision"] == pytest.approx(0.5)


def test_probabilities_are_rounded_to_levels():
    """0.9985 is level 255 when rounded, above the last threshold, and 254 when cut off, below it."""
    metric = BoundaryScore(0.05, workers=0)
    metric.update(line(40, value=0.9985), line(40))
    assert (metric.counts[:, 100, 3] == 40).all()
    metric.reset()
    metric.update(line(40, value=0.9975), line(40))  # 254.4
    assert (metric.counts[:, 100, 3] == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_what_always_holds_of_counts(seed):
    prediction, label = room(seed)
    image = Image((255 * prediction[0, 0]).round().byte().numpy(), label[0, 0].byte().numpy())
    fast, exact = Count(0.011, exact=True)(image)
    for counts in (fast, exact):
        assert (counts[:, 0] == counts[:, 2]).all()
        assert (counts[:, 0] <= np.minimum(counts[:, 1], counts[:, 3])).all()
        assert len(set(counts[:, 1])) == 1
    assert (np.diff(fast[:, [0, 3]], axis=0) <= 0).all()
    assert np.array_equal(fast[0], exact[0])  # the lowest threshold is thinned alike
    assert not np.array_equal(fast, exact)


def test_fast_is_close_to_exact():
    found = score(*rooms(4), max_dist=0.011)
    assert 0.5 < found["odsf"] < 0.95
    assert 0 < abs(found["odsf_fast"] - found["odsf"]) < 0.01
    fast = score(*rooms(4), max_dist=0.011, mode="fast")
    assert set(fast) == {"odsf_fast", "oisf_fast", "ap_fast"}
    assert fast["odsf_fast"] == found["odsf_fast"]
    assert abs(fast["oisf_fast"] - found["oisf"]) < 0.01
    assert abs(fast["ap_fast"] - found["ap"]) < 0.02


# ---- what is computed from counts ------------------------------------------------------------------------------------


def test_scores_follow_from_counts():
    counts = np.zeros((101, 4))
    counts[:, 1] = 100
    counts[0], counts[1], counts[2] = [80, 100, 80, 200], [60, 100, 60, 80], [20, 100, 20, 20]
    found = summarize(counts, np.array([30, 100, 30, 40]))
    assert found["odsf"] == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert found["odsf_precision"] == 0.75
    assert found["odsf_recall"] == 0.6
    assert found["odsf_threshold"] == pytest.approx(0.01)
    assert found["oisf"] == pytest.approx(2 * 0.75 * 0.3 / 1.05)
    # Recall 0 (nothing predicted: precision 1), 0.2: 1, 0.6: 0.75, 0.8: 0.4; nothing beyond.
    expected = sum(
        1 if r <= 20 else 1 - 0.25 * (r - 20) / 40 if r <= 60 else 0.75 - 0.35 * (r - 60) / 20 for r in range(81)
    )
    assert found["ap"] == pytest.approx(expected / 100)


def test_ap_of_a_single_recall_is_its_rectangle():
    counts = np.tile([50.0, 100, 50, 60], (101, 1))
    assert summarize(counts, counts[0])["ap"] == pytest.approx(50 / 60 * 0.5)


def test_ap_of_a_perfect_map_is_one():
    perfect = np.tile([100.0, 100, 100, 100], (101, 1))
    assert summarize(perfect, perfect[0])["ap"] == 1
    perfect[-1] = [0, 100, 0, 0]  # nothing reaches the last threshold
    assert summarize(perfect, perfect[0])["ap"] == 1


def test_f_of_nothing_is_zero():
    assert f_score(*np.zeros((4, 1))) == 0
    assert f_score(0, 10, 0, 5) == 0
    assert f_score(5, 5, 5, 5) == 1


def test_each_image_has_its_own_best_threshold():
    sure, unsure = line(40, value=0.9), line(40, value=0.3)
    clutter = line(70, value=0.6)
    prediction = torch.cat([torch.maximum(sure, clutter), unsure])
    target = line(40).repeat(2, 1, 1, 1)
    found = score(prediction, target)
    assert found["oisf"] > 0.95
    assert found["odsf"] == pytest.approx(2 * 80 / (80 + 120), abs=0.02)  # below 0.3, with the clutter


# ---- what is ignored, and what is refused ----------------------------------------------------------------------------


def test_pixels_of_unknown_label_do_not_count():
    target = line(40)
    target[..., 60:] = 255
    predictions = torch.maximum(line(40), line(70))
    assert score(predictions, target)["odsf_precision"] == 1
    assert score(predictions, line(40))["odsf_precision"] == 0.5
    predictions[..., 30, 75] = float("nan")
    assert score(predictions, target)["odsf_precision"] == 1


def test_padding_is_cut_off():
    prediction, target = rooms(2, height=60, width=80)
    small = prediction[1:, :, :50, :70], target[1:, :, :50, :70]
    expected = BoundaryScore(0.05, workers=0)
    expected.update(prediction[:1], target[:1])
    expected.update(*small)
    padded_target = torch.full((2, 1, 64, 96), 255.0)
    padded_prediction = torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    for source, padded in ((target, padded_target), (prediction, padded_prediction)):
        padded[0, :, :60, :80] = source[0]
        padded[1, :, :50, :70] = source[1, :, :50, :70]
    found = BoundaryScore(0.05, workers=0)
    found.update(padded_prediction, padded_target, [(60, 80), (50, 70)])
    same(found.compute(), expected.compute())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.5])
def test_predictions_that_are_no_probabilities(value):
    prediction = line(40)
    prediction[0, 0, 3, 3] = value
    metric = BoundaryScore(0.05, workers=0)
    with pytest.raises(DataError, match=r"^the prediction of edges is .* at 1 scored pixels[^\n]*$"):
        metric.update(prediction, line(40))


@pytest.mark.parametrize("options", [{"max_dist": 0}, {"max_dist": 1.5}, {"mode": "quick"}, {"workers": -1}])
def test_bad_arguments(options):
    with pytest.raises(ConfigError, match="of BoundaryScore is"):
        BoundaryScore(**{"max_dist": 0.01, **options})


# ---- nothing to see --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_no_true_edge_anywhere(mode, value):
    found = score(torch.full((2, 1, 20, 30), value), torch.zeros(2, 1, 20, 30), mode=mode)
    assert all(np.isnan(number) for number in found.values())


def test_nothing_predicted():
    found = score(line(40, value=0), line(40))
    assert found["odsf"] == found["oisf"] == found["ap"] == found["odsf_fast"] == 0


def test_an_image_without_edges_counts_its_false_positives():
    alone = score(line(40), line(40))
    empty = torch.zeros(1, 1, *SIZE)
    same(score(torch.cat([line(40), empty]), torch.cat([line(40), empty])), alone)
    assert score(torch.cat([line(40), line(40)]), torch.cat([line(40), empty]))["odsf_precision"] == 0.5


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (2, 2)])
def test_tiny_images(shape):
    ones, zeros = torch.ones(1, 1, *shape), torch.zeros(1, 1, *shape)
    for prediction in (ones, zeros, 0.5 * ones):
        for target in (ones, zeros):
            assert np.isnan(score(prediction, target)["odsf"])  # a single region has no border


# ---- adding up -------------------------------------------------------------------------------------------------------


def test_whole_and_in_pieces_and_merged():
    prediction, target = rooms(4, height=60, width=80)
    whole = score(prediction, target)
    pieces, rest = BoundaryScore(0.05, workers=0), BoundaryScore(0.05, workers=0)
    for index in range(3):
        pieces.update(prediction[index : index + 1], target[index : index + 1])
    rest.update(prediction[3:], target[3:])
    pieces.merge_state(rest)
    same(pieces.compute(), whole)
    assert pieces.counts.dtype == torch.int64


@pytest.mark.parametrize("workers", [1, 2])
def test_working_processes_change_nothing(workers):
    prediction, target = rooms(7, height=60, width=80)
    metric = BoundaryScore(0.05, workers=workers)
    metric.update(prediction[:5], target[:5])
    metric.update(prediction[5:], target[5:])
    processes = processes_of(metric)
    assert len(processes) == workers
    same(metric.compute(), score(prediction, target))
    assert all(process.poll() is not None for process in processes)
    metric.reset()
    metric.update(prediction[:1], target[:1])
    same(metric.compute(), score(prediction[:1], target[:1]))


def processes_of(metric):
    return metric._crew._end.peek()[2][0]


def test_work_under_way_is_kept_where_the_metric_goes():
    prediction, target = rooms(3, height=60, width=80)
    expected = score(prediction, target)
    metric = BoundaryScore(0.05, workers=1)
    metric.update(prediction[:2], target[:2])
    copies = [copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone().to("cpu"), metric]
    other = BoundaryScore(0.05, workers=1)
    other.update(prediction[:2], target[:2])
    merged = BoundaryScore(0.05, workers=1)
    merged.merge_state(other)
    for one in (*copies, merged):
        one.workers = 0
        one.update(prediction[2:], target[2:])
        same(one.compute(), expected)


def test_forward_scores_the_batch_and_adds_it():
    prediction, target = rooms(2, height=60, width=80)
    metric = BoundaryScore(0.05, workers=1)
    metric.update(prediction[:1], target[:1])
    same(metric(prediction[1:], target[1:]), score(prediction[1:], target[1:]))
    same(metric.compute(), score(prediction, target))


def test_reset_forgets_what_is_under_way():
    prediction, target = rooms(3, height=60, width=80)
    metric = BoundaryScore(0.05, workers=1)
    metric.update(prediction[:2], target[:2])
    processes = processes_of(metric)
    metric.reset()
    assert all(process.poll() is not None for process in processes)
    metric.update(prediction[2:], target[2:])
    same(metric.compute(), score(prediction[2:], target[2:]))


def test_a_dead_process_is_one_line():
    prediction, target = rooms(2, height=60, width=80)
    metric = BoundaryScore(0.05, workers=1)
    metric.update(prediction, target)
    processes_of(metric)[0].kill()
    processes_of(metric)[0].wait()
    metric.update(prediction[:0], target[:0])
    with pytest.raises(DataError, match=r"^matching boundaries: its working process died [^\n]*metrics.workers[^\n]*$"):
        submit_until_told(metric, prediction, target)
    assert metric._crew is None


def submit_until_told(metric, prediction, target):
    for _ in range(5):
        metric.update(prediction, target)
    metric.compute()


def test_processes_are_taken_for_large_images_only(monkeypatch):
    monkeypatch.setattr(boundary, "cores", lambda: 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    large, small = 425 * 560, 240 * 320
    assert BoundaryScore(0.01)._processes(large) == 8
    assert BoundaryScore(0.01)._processes(small) == 0
    assert BoundaryScore(0.01, mode="fast")._processes(large) == 0
    assert BoundaryScore(0.01, workers=3)._processes(small) == 3
    assert BoundaryScore(0.01, workers=0)._processes(large) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert local_processes() == 4
    assert BoundaryScore(0.01)._processes(large) == 2
    monkeypatch.setattr(boundary, "cores", lambda: 4)
    assert BoundaryScore(0.01)._processes(large) == 0  # one core: nothing to gain
