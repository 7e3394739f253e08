"""Segmentation scores against definitions written out, torchmetrics, scikit-learn and the Cityscapes scripts."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.metrics import BoundaryIoU, SegmentationScore, TrimapIoU
from m2h_lightning.metrics import class_maps as class_maps_module
from m2h_lightning.metrics.class_maps import class_map
from m2h_lightning.metrics.protocol import share_work
from metric_cases import CLASSES, draw_semseg, score

seeds = st.integers(0, 10_000)


def maps(seed: int, images: int = 3):
    """Predicted and true classes of the drawn batch as NumPy, and the batch."""
    batch = draw_semseg(np.random.default_rng(seed), images)
    return batch[0].numpy().argmax(1), batch[1].numpy(), batch


def iou_of(guess: np.ndarray, true: np.ndarray, label: int) -> float:
    """IoU of one class over known pixels; NaN where it is in neither."""
    known = true != 255
    union = ((guess == label) | (true == label)) & known
    return ((guess == label) & (true == label) & known).sum() / union.sum() if union.any() else math.nan


@given(seeds)
def test_pooled(seed):
    guess, true, batch = maps(seed)
    got = score(SegmentationScore(CLASSES, per_class=True), batch)
    ious = [iou_of(guess, true, label) for label in range(CLASSES)]
    assert [got[f"iou/{label}"] for label in range(CLASSES)] == pytest.approx(ious, nan_ok=True)
    assert got["classes_present"] == sum(not math.isnan(iou) for iou in ious)
    assert got["miou"] == pytest.approx(np.nanmean(ious))
    assert got["pixel_accuracy"] == pytest.approx((guess == true)[true != 255].mean())
    recalls = [(guess == label)[true == label].mean() for label in range(CLASSES) if (true == label).any()]
    assert got["mean_accuracy"] == pytest.approx(np.mean(recalls))


@given(seeds)
def test_per_image_is_over_the_classes_of_each_target(seed):
    guess, true, batch = maps(seed)
    means = []
    for p, t in zip(guess, true, strict=True):
        present = [label for label in range(CLASSES) if (t == label).any()]
        if present:
            means.append(np.mean([iou_of(p, t, label) for label in present]))
    assert score(SegmentationScore(CLASSES), batch)["miou_per_image"] == pytest.approx(np.mean(means))


def test_a_class_only_in_the_prediction_counts_in_the_pooled_mean_alone():
    true = torch.zeros(1, 2, 2, dtype=torch.long)
    guess = true.clone()
    guess[0, 0, 0] = 1
    got = score(SegmentationScore(3), (guess, true, None))
    assert got["miou"] == pytest.approx((3 / 4 + 0) / 2)
    assert got["miou_per_image"] == pytest.approx(3 / 4)
    assert got["classes_present"] == 2


def test_pooled_is_not_the_mean_of_images():
    """Class 1 is big in one image and small in the other."""
    true = torch.zeros(2, 4, 4, dtype=torch.long)
    true[0] = 1
    true[1, 0, 0] = 1
    guess = true.clone()
    guess[1, 0, 0] = 0
    got = score(SegmentationScore(2), (guess, true, None))
    assert got["miou"] == pytest.approx((16 / 17 + 15 / 16) / 2)
    assert got["miou_per_image"] == pytest.approx((1 + (0 + 15 / 16) / 2) / 2)


@given(seeds)
def test_class_maps_of_any_integer_type_may_stand_for_logits(seed):
    guess, _, (logits, true, sizes) = maps(seed)
    labels = torch.from_numpy(guess)
    for metric in (SegmentationScore(CLASSES), TrimapIoU(CLASSES, 2), BoundaryIoU(CLASSES)):
        expected = score(metric, (logits, true, sizes))
        for kind in (torch.uint8, torch.int32, torch.int64):
            got = score(metric, (labels.to(kind), true.to(kind), sizes))
            assert got == pytest.approx(expected, nan_ok=True)


def test_the_names_of_classes():
    keys = score(
        SegmentationScore(["wall", "shower curtain"], per_class=True),
        (torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1).long(), None),
    )
    assert {"iou/wall", "iou/shower_curtain"} <= set(keys)
    assert not any(
        key.startswith("iou/")
        for key in score(SegmentationScore(2), (torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1).long(), None))
    )
    with pytest.raises(ConfigError, match="same name"):
        SegmentationScore(["wall", "wall"])
    for classes in (0, 256):
        with pytest.raises(ConfigError, match="1 to 255"):
            SegmentationScore(classes)


@pytest.mark.parametrize("classes", [254, 255])
def test_as_many_classes_as_bytes_can_number(classes):
    true = torch.arange(classes).reshape(1, 1, -1)
    guess = true.flip(2)
    got = score(SegmentationScore(classes), (guess, true, None))
    assert got["classes_present"] == classes
    assert got["pixel_accuracy"] == pytest.approx((classes % 2) / classes)


@pytest.mark.parametrize("metric", [SegmentationScore(3), TrimapIoU(3, 1), BoundaryIoU(3)])
@pytest.mark.parametrize(
    ("guess", "true", "message"),
    [
        ([0, 3], [0, 1], "the predicted class is 3"),
        ([0, 255], [0, 1], "the predicted class is 255"),
        ([0, -1], [0, 1], "the predicted class is -1"),
        ([0, 1], [0, 3], "a segmentation label is 3; expected 0 to 2, or 255"),
        ([0, 1], [0, -1], "a segmentation label is -1"),
        ([0, 1], [0, 511], "a segmentation label is 511"),
        ([0.0, 1.0], [0, 1], "give integers"),
    ],
)
def test_labels_that_are_no_classes_are_an_error(metric, guess, true, message):
    guess, true = torch.tensor([[guess]]), torch.tensor([[true]])
    with pytest.raises(DataError, match=message) as caught:
        metric.update(guess, true)
    assert "\n" not in str(caught.value)


def test_a_void_prediction_at_an_ignored_pixel_is_fine():
    got = score(SegmentationScore(3), (torch.tensor([[[0, 255]]]), torch.tensor([[[0, 255]]]), None))
    assert got["miou"] == 1


def test_wrong_number_of_logits():
    with pytest.raises(DataError, match=r"\(1, 40, 2, 2\)"):
        SegmentationScore(40).update(torch.zeros(1, 13, 2, 2), torch.zeros(1, 2, 2).long())


def test_minus_infinity_means_never_unless_all_classes_have_it():
    logits = torch.tensor([0.0, -math.inf]).reshape(1, 2, 1, 1)
    true = torch.zeros(1, 1, 1).long()
    assert score(SegmentationScore(2), (logits, true, None))["miou"] == 1
    with pytest.raises(DataError, match="at 1 scored"):
        SegmentationScore(2).update(logits.fill_(-math.inf), true)


@given(seeds)
def test_both_ways_to_the_largest_logit_agree(seed):
    """Classes last in memory on a CPU take a way of their own; ties, NaN and infinities included."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.integers(0, 4, (2, 6, 5, 7)).astype(np.float32))
    logits[rng.random(logits.shape) < 0.05] = -math.inf
    logits[0, 2, 1, 1] = math.nan
    logits[1, 3, 2, 2] = math.inf
    label, peak = class_map(logits.contiguous(memory_format=torch.channels_last))
    expected = logits.max(1)
    assert torch.equal(peak.nan_to_num(-9), expected.values.nan_to_num(-9))
    there = ~peak.isnan()
    assert torch.equal(logits.gather(1, label.long().unsqueeze(1)).squeeze(1)[there], peak[there])
    first = torch.from_numpy((logits == peak.unsqueeze(1)).numpy().argmax(1))
    assert torch.equal(label.long()[there], first[there])


def test_the_arg_max_is_shared_inside_the_context_only(monkeypatch):
    calls = []
    largest = class_maps_module._largest
    monkeypatch.setattr(class_maps_module, "_largest", lambda logits: calls.append(1) or largest(logits))
    batch = draw_semseg(np.random.default_rng(0))
    metrics = [SegmentationScore(CLASSES), TrimapIoU(CLASSES, 1), BoundaryIoU(CLASSES)]
    apart = [score(metric, batch) for metric in metrics]
    assert len(calls) == 3
    calls.clear()
    with share_work():
        together = [score(metric, batch) for metric in metrics]
        other = score(metrics[0], draw_semseg(np.random.default_rng(1)))
    assert len(calls) == 2  # one per tensor
    assert together == [pytest.approx(scores, nan_ok=True) for scores in apart]
    assert other != pytest.approx(apart[0])
    # Outside, the same tensor with other numbers is another prediction.
    batch[0].copy_(batch[0].flip(1).clone())
    assert score(metrics[0], batch) != pytest.approx(apart[0])


@given(seeds)
@settings(max_examples=25)
def test_torchmetrics(seed):
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    guess, true, batch = maps(seed)
    guess, true = torch.from_numpy(guess), torch.from_numpy(true)
    got = score(SegmentationScore(CLASSES, per_class=True), batch)
    jaccard = MulticlassJaccardIndex(CLASSES, average="none", ignore_index=255)(guess, true)
    present = torch.tensor([not math.isnan(got[f"iou/{label}"]) for label in range(CLASSES)])
    assert got["miou"] == pytest.approx(float(jaccard[present].mean()), abs=1e-6)
    micro = MulticlassAccuracy(CLASSES, average="micro", ignore_index=255)(guess, true)
    assert got["pixel_accuracy"] == pytest.approx(float(micro), abs=1e-6)


@given(seeds)
@settings(max_examples=25)
def test_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    guess, true, batch = maps(seed)
    known = true != 255
    guess, true = guess[known], true[known]
    got = score(SegmentationScore(CLASSES), batch)
    assert got["miou"] == pytest.approx(metrics.jaccard_score(true, guess, average="macro"))
    assert got["pixel_accuracy"] == pytest.approx(metrics.accuracy_score(true, guess))
    there = np.unique(true)
    assert got["mean_accuracy"] == pytest.approx(
        metrics.recall_score(true, guess, labels=there, average="macro", zero_division=0)
    )


@given(seeds)
@settings(max_examples=25)
def test_cityscapes_scripts(seed):
    """Their IoU of a class from a confusion matrix over the whole set; their label ids stand for our classes."""
    evaluation = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    ids = [label.id for label in labels if not label.ignoreInEval][:CLASSES]
    void = next(label.id for label in labels if label.ignoreInEval and label.id >= 0)
    guess, true, batch = maps(seed)
    size = max(ids) + 1
    matrix = np.zeros((size, size), dtype=np.longlong)
    for p, t in zip(guess.ravel(), true.ravel(), strict=True):
        matrix[void if t == 255 else ids[t], ids[p]] += 1
    arguments = SimpleNamespace(evalLabels=[*ids, void])
    theirs = [evaluation.getIouScoreForLabel(label, matrix, arguments) for label in ids]
    got = score(SegmentationScore(CLASSES, per_class=True), batch)
    assert [got[f"iou/{label}"] for label in range(CLASSES)] == pytest.approx(theirs, nan_ok=True)


@given(seeds, st.integers(1, 14))
def test_trimap(seed, width):
    """By looking at every pixel around every pixel; ignored pixels make borders, padding and frame do not."""
    guess, true, batch = maps(seed, 2)
    band = np.zeros(true.shape, bool)
    for near, labels, (height, breadth) in zip(band, true, batch[2], strict=True):
        for y, x in np.ndindex(height, breadth):
            around = labels[
                max(y - width, 0) : min(y + width + 1, height), max(x - width, 0) : min(x + width + 1, breadth)
            ]
            near[y, x] = (around != labels[y, x]).any()
    inside = np.where(band, true, 255)
    got = score(TrimapIoU(CLASSES, width), batch)
    expected = score(SegmentationScore(CLASSES), (torch.from_numpy(guess), torch.from_numpy(inside), None))
    for suffix in ("", "_per_image"):
        assert got[f"miou_trimap{width}{suffix}"] == pytest.approx(expected[f"miou{suffix}"], nan_ok=True)


def test_an_error_far_from_borders_is_not_in_the_trimap():
    true = torch.zeros(1, 20, 20).long()
    true[:, :, 10:] = 1
    guess = true.clone()
    guess[:, :, 0] = 1
    assert score(TrimapIoU(2, 3), (guess, true, None))["miou_trimap3"] == 1
    guess[:, 0, 9] = 1
    assert score(TrimapIoU(2, 3), (guess, true, None))["miou_trimap3"] < 1


@given(seeds, st.sampled_from([0.02, 0.1, 0.2, 0.5, 0.9]))
def test_boundary_iou(seed, ratio):
    """By the definition: masks of each class, eroded d times by a 3×3 square with nothing outside the image."""
    guess, true, batch = maps(seed)
    counts = np.zeros((3, 3, CLASSES))
    for index, (height, width) in enumerate(batch[2]):
        p, t = guess[index, :height, :width], true[index, :height, :width]
        d = max(1, round(ratio * math.hypot(height, width)))
        for label in range(CLASSES):
            regions = []
            for mask in ((p == label) & (t != 255), t == label):
                regions.append(mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=d))
            counts[index, :, label] = (regions[0] & regions[1]).sum(), regions[0].sum(), regions[1].sum()

    def mean(hit, predicted, expected, only):
        ious = [h / (p + e - h) for h, p, e in zip(hit, predicted, expected, strict=True) if (e if only else p + e)]
        return np.mean(ious) if ious else math.nan

    got = score(BoundaryIoU(CLASSES, ratio), batch)
    assert got["boundary_iou"] == pytest.approx(mean(*counts.sum(0), False))
    images = [mean(*image, True) for image in counts]
    assert got["boundary_iou_per_image"] == pytest.approx(np.nanmean(images))


def test_boundary_iou_of_a_perfect_prediction_is_one_beside_ignored_pixels():
    _, true, (_, target, sizes) = maps(4)
    guess = torch.from_numpy(np.where(true == 255, 0, true))
    assert score(BoundaryIoU(CLASSES), (guess, target, sizes))["boundary_iou"] == 1


def test_boundary_iou_sees_a_lost_rim_that_iou_hardly_sees():
    true = torch.zeros(1, 100, 100).long()
    true[:, 20:80, 20:80] = 1
    guess = torch.zeros_like(true)
    guess[:, 22:78, 22:78] = 1
    batch = (guess, true, None)
    assert score(SegmentationScore(2), batch)["miou"] > 0.88
    assert score(BoundaryIoU(2), batch)["boundary_iou"] < 0.6


@pytest.mark.parametrize("make", [lambda: TrimapIoU(3, 0), lambda: BoundaryIoU(3, 0.0), lambda: BoundaryIoU(3, 1.5)])
def test_options_out_of_range(make):
    with pytest.raises(ConfigError):
        make()
