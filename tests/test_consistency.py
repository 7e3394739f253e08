"""Consistency between tasks: against loops that follow the definitions, planes of known angle, and broken input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from analytic import analytic_scene, pinhole, tilt_shift
from m2h_lightning.errors import DataError
from m2h_lightning.geometry import normals_from_depth, pixel_rays
from m2h_lightning.metrics.consistency import (
    DepthNormalConsistency,
    EdgeSegmentationAgreement,
    normals_of_depth,
    smooth_pixels,
    spread,
)

ANGLE, FLOOR = "consistency/depth_normals_deg", "consistency/depth_normals_target_deg"
AGREE, AGREE_LABELS = "consistency/edges_semseg_f", "consistency/edges_semseg_target_f"


def unit(x, y, z):
    v = torch.tensor([x, y, z], dtype=torch.float64)
    return v / v.norm()


def plane(normal, K, height, width, distance=2.0):
    """Depth of the plane n·X = −distance, and its normals, 1×1×H×W and 1×3×H×W."""
    rays = pixel_rays(K, height, width)
    depth = -distance / (normal[:, None, None] * rays).sum(0)
    assert (depth > 0).all()
    return depth[None, None].float(), normal.float().reshape(1, 3, 1, 1).expand(1, 3, height, width).contiguous()


def rotated(normal, degrees):
    """The normal turned by an angle about an axis at right angles to it."""
    axis = torch.linalg.cross(normal, unit(0.3, 1.0, 0.2))
    axis = axis / axis.norm()
    angle = math.radians(degrees)
    return math.cos(angle) * normal + math.sin(angle) * torch.linalg.cross(axis, normal)


def geometry_batch(depth, normals, K, image_size=None):
    size = torch.tensor([list(depth.shape[-2:])] * len(depth))
    K = K if K.ndim == 3 else K[None].expand(len(depth), 3, 3)
    image = size if image_size is None else torch.tensor([image_size] * len(depth))
    return {"depth": depth, "normals": normals, "K": K, "label_size": size, "image_size": image}


def score(metric, predictions, batch, sizes=None):
    metric.reset()
    metric.update(predictions, batch, sizes)
    return {key: value.item() for key, value in metric.compute().items()}


def random_geometry(seed, height=9, width=11, batch=3):
    """Rough depth with gaps and steps, and normals with gaps; predictions of both."""
    g = torch.Generator().manual_seed(seed)
    depth = 2 + 0.03 * torch.rand(batch, 1, height, width, generator=g)
    depth[..., 6:] += 1.5  # an occlusion edge
    depth[torch.rand(depth.shape, generator=g) < 0.05] = 0
    normals = F.normalize(torch.randn(batch, 3, height, width, generator=g) - torch.tensor([0, 0, 2.0])[:, None, None])
    normals = normals * (torch.rand(batch, 1, height, width, generator=g) > 0.1)
    predictions = {
        "depth": 2 + 0.05 * torch.rand(batch, 1, height, width, generator=g),
        "normals": 3 * torch.randn(batch, 3, height, width, generator=g),
    }
    return predictions, depth, normals


def slow_depth_normals(predictions, batch, max_step, stride):
    """Sums by pixel loops in float64: [prediction, target, pixels] per image."""

    def normal(depth, inverse, i, j):
        def point(row, column):
            ray = inverse @ np.array([column, row, 1.0])
            return depth[row, column] * ray / ray[2]

        n = np.cross(point(i + 1, j) - point(i - 1, j), point(i, j + 1) - point(i, j - 1))
        return n / np.linalg.norm(n)

    result = []
    for b in range(len(batch["depth"])):
        true, guess = batch["depth"][b, 0].double().numpy(), predictions["depth"][b, 0].double().numpy()
        labels, mine = batch["normals"][b].double().numpy(), predictions["normals"][b].double().numpy()
        (h, w), (ih, iw) = batch["label_size"][b].tolist(), batch["image_size"][b].tolist()
        # Pixel areas map onto pixel areas: u' + ½ = (u + ½) · w/iw.
        resize = np.array([[w / iw, 0, 0.5 * w / iw - 0.5], [0, h / ih, 0.5 * h / ih - 0.5], [0, 0, 1]])
        inverse = np.linalg.inv(resize @ batch["K"][b].double().numpy())
        total = np.zeros(3)
        for i in range(1, true.shape[0] - 1, stride):
            for j in range(1, true.shape[1] - 1):
                around = [true[i, j - 1], true[i, j + 1], true[i - 1, j], true[i + 1, j]]
                if true[i, j] <= 0 or min(around) <= 0 or np.linalg.norm(labels[:, i, j]) < 0.5:
                    continue
                if max(abs(d - true[i, j]) for d in around) > max_step * true[i, j]:
                    continue
                for k, (z, n) in enumerate(((guess, mine), (true, labels))):
                    cosine = normal(z, inverse, i, j) @ n[:, i, j] / np.linalg.norm(n[:, i, j])
                    total[k] += math.degrees(math.acos(min(1.0, max(-1.0, cosine))))
                total[2] += 1
        result.append(total)
    return np.stack(result)


# ── depth and normals ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("camera", [pinhole, tilt_shift], ids=["pinhole", "tilted"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_depth_normals_against_loops(camera, stride):
    predictions, depth, normals = random_geometry(stride)
    batch = geometry_batch(depth, normals, torch.from_numpy(camera(18, 33)), image_size=(18, 33))
    expected = slow_depth_normals(predictions, batch, 0.05, stride)
    assert (expected[:, 2] > 3).all()
    got = score(DepthNormalConsistency(stride=stride, per_batch=True), predictions, batch)
    pooled, each = expected.sum(0), expected / expected[:, 2:]
    for key, column in ((ANGLE, 0), (FLOOR, 1)):
        assert got[key] == pytest.approx(pooled[column] / pooled[2], abs=1e-3)
        assert got[f"{key}_per_image"] == pytest.approx(each[:, column].mean(), abs=1e-3)
        assert got[f"{key}_per_batch"] == got[key]


@pytest.mark.parametrize("camera", [pinhole, tilt_shift], ids=["pinhole", "tilted"])
@pytest.mark.parametrize("sign", [1, -1])
def test_fast_normals_are_those_of_geometry(camera, sign):
    K = sign * camera(60, 80)  # a camera matrix is defined up to a factor, its sign included
    scene = analytic_scene(K, 60, 80)
    expected, valid = normals_from_depth(scene["depth"], K)
    fast = torch.stack(normals_of_depth(torch.from_numpy(scene["depth"]).float(), torch.from_numpy(K)))
    fast = F.normalize(fast, dim=0).double().numpy()
    inner = valid[1:-1, 1:-1]
    assert 0.5 < inner.mean() < 0.999
    cosine = (fast * expected[:, 1:-1, 1:-1]).sum(0)[inner]
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < 0.1
    smooth = smooth_pixels(torch.from_numpy(scene["depth"]), 0.05)
    assert torch.equal(smooth, torch.from_numpy(inner))


@pytest.mark.parametrize("degrees", [0.0, 0.5, 20.0, 90.0, 179.0])
def test_planes_of_known_angle(degrees):
    K, normal = torch.from_numpy(pinhole(40, 60)), unit(0.3, -0.4, -1)
    depth, normals = plane(normal, K, 40, 60)
    predicted = rotated(normal, degrees).float().reshape(1, 3, 1, 1).expand(1, 3, 40, 60)
    result = score(DepthNormalConsistency(), {"depth": depth, "normals": predicted}, geometry_batch(depth, normals, K))
    assert result[ANGLE] == pytest.approx(degrees, abs=0.02)
    assert result[FLOOR] == pytest.approx(0, abs=0.02)


def test_depth_of_another_plane():
    K = torch.from_numpy(pinhole(40, 60))
    first, second = unit(0.1, -0.2, -1), unit(0.4, 0.1, -1)
    depth, normals = plane(first, K, 40, 60)
    other, _ = plane(second, K, 40, 60, distance=5)  # scale does not matter: normals have none
    result = score(DepthNormalConsistency(), {"depth": other, "normals": normals}, geometry_batch(depth, normals, K))
    assert result[ANGLE] == pytest.approx(math.degrees(math.acos(first @ second)), abs=0.02)


def test_camera_is_brought_to_the_size_of_the_labels():
    K, normal = torch.from_numpy(pinhole(30, 50)), unit(0.5, -0.3, -1)
    labels = torch.tensor([[2.0, 0, 0.5], [0, 2.0, 0.5], [0, 0, 1]], dtype=torch.float64) @ K  # of 60 × 100 pixels
    depth, normals = plane(normal, labels, 60, 100)
    predictions = {"depth": depth, "normals": normals}
    metric = DepthNormalConsistency()
    assert score(metric, predictions, geometry_batch(depth, normals, K, (30, 50)))[ANGLE] < 0.02
    assert score(metric, predictions, geometry_batch(depth, normals, K))[ANGLE] > 2  # K of other pixels


def test_the_labels_choose_the_pixels():
    """A prediction that is rough on a smooth surface pays for it; what it says at occlusion edges does not count."""
    K, normal = torch.from_numpy(pinhole(40, 60)), unit(0.0, 0.0, -1)
    depth, normals = plane(normal, K, 40, 60)
    metric = DepthNormalConsistency()
    rough = depth.clone()
    rough[..., ::2] *= 1.5
    rough[..., 1::4] *= 1.2
    assert score(metric, {"depth": rough, "normals": normals}, geometry_batch(depth, normals, K))[ANGLE] > 30
    stepped = depth.clone()
    stepped[..., 30:] *= 1.2
    smooth = depth.clone()
    smooth[..., 29:31] *= 1.1
    predictions = {"depth": smooth, "normals": normals.clone()}
    predictions["normals"][..., 29:31] *= -1
    assert score(metric, predictions, geometry_batch(stepped, normals, K))[ANGLE] > 1  # neighbours at columns 28, 31
    predictions["depth"] = stepped
    assert score(metric, predictions, geometry_batch(stepped, normals, K))[ANGLE] < 0.02


def test_images_without_camera_or_label_are_left_out():
    predictions, depth, normals = random_geometry(0, batch=4)
    K = torch.from_numpy(pinhole(9, 11)).repeat(4, 1, 1)
    K[1] = torch.nan
    depth[2], normals[3] = 0, 0  # how a mixed batch says that a sample has no such label
    metric = DepthNormalConsistency()
    got = score(metric, predictions, geometry_batch(depth, normals, K))
    only = score(metric, {k: v[:1] for k, v in predictions.items()}, geometry_batch(depth[:1], normals[:1], K[:1]))
    assert got == only
    nothing = geometry_batch(depth[1:], normals[1:], K[1:])
    assert all(math.isnan(v) for v in score(metric, {k: v[1:] for k, v in predictions.items()}, nothing).values())
    del nothing["normals"]
    assert math.isnan(score(metric, predictions, nothing)[ANGLE])


def test_padding_does_not_count():
    predictions, depth, normals = random_geometry(5)
    batch = geometry_batch(depth, normals, torch.from_numpy(pinhole(9, 11)))
    padded = {**batch, "depth": F.pad(depth, (0, 4, 0, 3)), "normals": F.pad(normals, (0, 4, 0, 3))}
    wide = {key: F.pad(value, (0, 4, 0, 3), value=torch.nan) for key, value in predictions.items()}
    metric = DepthNormalConsistency()
    # Rounding may differ: other columns share a vector instruction.
    assert score(metric, wide, padded, [(9, 11)] * 3) == pytest.approx(score(metric, predictions, batch), rel=1e-6)


@pytest.mark.parametrize(
    ("task", "value", "message"),
    [
        ("depth", torch.nan, "prediction of depth is NaN or infinite at 1 "),
        ("depth", torch.inf, "prediction of depth is NaN or infinite at 1 "),
        ("depth", 0.0, "prediction of depth is not above 0 at 1 "),
        ("depth", -1.0, "prediction of depth is not above 0 at 1 "),
        ("normals", torch.nan, "prediction of normals is NaN or infinite at 1 "),
    ],
)
def test_broken_predictions(task, value, message):
    K, normal = torch.from_numpy(pinhole(9, 11)), unit(0, 0, -1)
    depth, normals = plane(normal, K, 9, 11)
    predictions = {"depth": depth.clone(), "normals": normals.clone()}
    predictions[task][0, 0, 3, 5] = value
    batch = geometry_batch(depth, normals, K)
    with pytest.raises(DataError, match=message):
        score(DepthNormalConsistency(), predictions, batch)
    # Where the labels are not known it does not matter.
    batch["depth"] = depth.clone()
    batch["depth"][..., 2:5, 4:7] = 0
    assert score(DepthNormalConsistency(), predictions, batch)[ANGLE] < 0.02


def test_other_shape_is_refused():
    predictions, depth, normals = random_geometry(0)
    predictions["depth"] = predictions["depth"][..., :-1]
    with pytest.raises(DataError, match="resize predictions"):
        score(DepthNormalConsistency(), predictions, geometry_batch(depth, normals, torch.from_numpy(pinhole(9, 11))))


def test_normals_without_length_count_90_degrees():
    K, normal = torch.from_numpy(pinhole(9, 11)), unit(0, 0, -1)
    depth, normals = plane(normal, K, 9, 11)
    result = score(
        DepthNormalConsistency(),
        {"depth": depth, "normals": torch.zeros_like(normals)},
        geometry_batch(depth, normals, K),
    )
    assert result[ANGLE] == pytest.approx(90)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 3)])
def test_tiny_images(size):
    K, normal = torch.from_numpy(pinhole(*size)), unit(0, 0, -1)
    depth, normals = plane(normal, K, *size)
    result = score(DepthNormalConsistency(), {"depth": depth, "normals": normals}, geometry_batch(depth, normals, K))
    assert math.isnan(result[ANGLE]) if min(size) < 3 else result[ANGLE] < 0.02


# ── edges and classes ────────────────────────────────────────────────────────────────────────────────────────────────


def random_maps(seed, batch, height, width, bins=10):
    g = torch.Generator().manual_seed(seed)

    def classes():
        coarse = torch.randint(0, 3, (batch, 1, 3, 3), generator=g).float()
        return F.interpolate(coarse, (height, width)).long()[:, 0]

    true = classes()
    true[torch.rand(true.shape, generator=g) < 0.1] = 255
    edges = (torch.rand(batch, 1, height, width, generator=g) < 0.2).float()
    edges[torch.rand(edges.shape, generator=g) < 0.1] = 255
    level = torch.randint(0, 2 * bins, (batch, 1, height, width), generator=g)
    return {"semseg": classes(), "edges": (level + 0.5) / (2 * bins)}, {"semseg": true, "edges": edges}


def slow_agreement(probability, true_edges, classes, true_classes, ratio, bins):
    """Counts per threshold by the definition: (edges near a boundary, edges, boundary near an edge, boundary)."""
    h, w = classes.shape
    reach = max(1, round(ratio * math.hypot(h, w)))
    known = [(i, j) for i in range(h) for j in range(w) if true_classes[i, j] != 255 and true_edges[i, j] <= 1]

    def boundary(labels):
        beside = [(0, 1), (1, 0)]
        return {
            (i, j)
            for i, j in known
            if any((i + a, j + b) in known and labels[i + a, j + b] != labels[i, j] for a, b in beside)
        }

    def near(points, others):
        return sum(any(max(abs(i - k), abs(j - m)) <= reach for k, m in others) for i, j in points)

    def counts(edge, borders):
        return [near(edge, borders), len(edge), near(borders, edge), len(borders)]

    table = [counts({p for p in known if probability[p] >= t / bins}, boundary(classes)) for t in range(1, bins)]
    return np.array(table), np.array(counts({p for p in known if true_edges[p] == 1}, boundary(true_classes)))


def f_of(hit, edge, found, boundary):
    if edge == boundary == 0:
        return math.nan
    if hit == 0 or found == 0:
        return 0.0
    precision, recall = hit / edge, found / boundary
    return 2 * precision * recall / (precision + recall)


@given(
    st.integers(0, 10_000),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([0.0075, 0.15]),
    st.sampled_from([10, 100]),  # with 100 the codes of ignored pixels come close to the end of a byte
)
def test_agreement_against_loops(seed, height, width, ratio, bins):
    predictions, labels = random_maps(seed, 2, height, width, bins)
    got = score(EdgeSegmentationAgreement(ratio, bins), predictions, labels)
    tables, targets = zip(
        *(
            slow_agreement(
                predictions["edges"][b, 0].numpy(),
                labels["edges"][b, 0].numpy(),
                predictions["semseg"][b].numpy(),
                labels["semseg"][b].numpy(),
                ratio,
                bins,
            )
            for b in range(2)
        ),
        strict=True,
    )

    def best(table):
        return np.fmax.reduce([f_of(*row) for row in table])

    expected = {
        AGREE: best(sum(tables)),
        AGREE_LABELS: f_of(*sum(targets)),
        f"{AGREE}_per_image": mean_of_known([best(table) for table in tables]),
        f"{AGREE_LABELS}_per_image": mean_of_known([f_of(*counts) for counts in targets]),
    }
    assert got == pytest.approx(expected, nan_ok=True)


def mean_of_known(values):
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9), st.integers(1, 6))
def test_spread_against_loops(seed, height, width, reach):
    levels = torch.randint(0, 256, (height, width), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    expected = [
        [levels[max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1].max() for j in range(width)]
        for i in range(height)
    ]
    assert torch.equal(spread(levels, reach), torch.tensor(expected, dtype=torch.uint8))


def two_halves(height=60, width=80, at=40):
    classes = torch.zeros(1, height, width, dtype=torch.long)
    classes[..., at:] = 1
    return classes


def line(at, height=60, width=80, value=1.0):
    edges = torch.zeros(1, 1, height, width)
    edges[..., at] = value
    return edges


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (2, 1.0), (3, 0.0), (-2, 1.0), (-3, 0.0)])
def test_agreement_has_a_tolerance(shift, expected):
    """0.02 of a diagonal of 100 pixels are 2 pixels."""
    classes = two_halves()
    labels = {"semseg": classes, "edges": line(39)}
    result = score(EdgeSegmentationAgreement(0.02), {"semseg": classes, "edges": line(39 + shift, value=0.3)}, labels)
    assert result[AGREE] == expected
    assert result[AGREE_LABELS] == 1.0


def test_agreement_is_of_the_predictions_not_of_the_labels():
    moved = {"semseg": two_halves(at=20), "edges": line(20, value=0.9)}
    labels = {"semseg": two_halves(at=60), "edges": line(10)}
    result = score(EdgeSegmentationAgreement(), moved, labels)
    assert result[AGREE] == 1.0
    assert result[AGREE_LABELS] == 0.0


def test_agreement_takes_the_best_threshold():
    edges = line(39, value=0.62)
    edges[..., 5] = 0.31  # an edge without a boundary
    result = score(
        EdgeSegmentationAgreement(),
        {"semseg": two_halves(), "edges": edges},
        {"semseg": two_halves(), "edges": line(39)},
    )
    assert result[AGREE] == 1.0
    constant = {"semseg": two_halves(), "edges": torch.full((1, 1, 60, 80), 0.5)}
    reach = round(0.0075 * 100)
    precision = (2 * reach + 1) / 80
    result = score(EdgeSegmentationAgreement(), constant, {"semseg": two_halves(), "edges": line(39)})
    assert result[AGREE] == pytest.approx(2 * precision / (precision + 1))


def test_agreement_of_ignored_pixels():
    """A boundary needs both of its pixels; an edge in the gap is none and vouches for none."""
    labels = {"semseg": two_halves(), "edges": line(39)}
    labels["semseg"][..., 39] = 255
    result = score(EdgeSegmentationAgreement(0.02), {"semseg": two_halves(), "edges": line(39)}, labels)
    assert math.isnan(result[AGREE]) and math.isnan(result[AGREE_LABELS])
    result = score(EdgeSegmentationAgreement(0.02), {"semseg": two_halves(at=38), "edges": line(39)}, labels)
    assert result[AGREE] == 0.0
    labels["edges"][...] = 255
    assert math.isnan(score(EdgeSegmentationAgreement(), {"semseg": two_halves(), "edges": line(9)}, labels)[AGREE])
    # What is predicted in the gap may be anything.
    labels["edges"] = line(20)
    broken = line(20)
    broken[..., 39] = torch.nan
    assert score(EdgeSegmentationAgreement(), {"semseg": two_halves(at=21), "edges": broken}, labels)[AGREE] == 1.0


def test_agreement_without_boundary_or_edge():
    labels = {"semseg": two_halves(), "edges": line(39)}
    one_class = torch.zeros(1, 60, 80, dtype=torch.long)
    metric = EdgeSegmentationAgreement()
    assert score(metric, {"semseg": one_class, "edges": line(39)}, labels)[AGREE] == 0.0
    assert score(metric, {"semseg": two_halves(), "edges": line(0, value=0.0)}, labels)[AGREE] == 0.0
    assert math.isnan(score(metric, {"semseg": one_class, "edges": line(0, value=0.0)}, labels)[AGREE])
    assert math.isnan(score(metric, {"semseg": one_class}, labels)[AGREE])


def test_agreement_takes_logits_and_refuses_nan():
    predictions, labels = random_maps(3, 2, 20, 30)
    logits = F.one_hot(predictions["semseg"], 3).permute(0, 3, 1, 2).float()
    metric = EdgeSegmentationAgreement()
    assert score(metric, {**predictions, "semseg": logits}, labels) == score(metric, predictions, labels)
    predictions["edges"][0] = torch.nan
    with pytest.raises(DataError, match="prediction of edges is NaN"):
        score(metric, predictions, labels)
    predictions["semseg"] = predictions["semseg"][..., :-1]
    predictions["edges"] = torch.zeros(2, 1, 20, 30)
    with pytest.raises(DataError, match="prediction of semseg has shape"):
        score(metric, predictions, labels)


# ── both ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def whole_and_parts():
    predictions, depth, normals = random_geometry(1, batch=4)
    maps, labels = random_maps(1, 4, 9, 11)
    predictions = {**predictions, **maps}
    return predictions, {**geometry_batch(depth, normals, torch.from_numpy(pinhole(9, 11))), **labels}


def part_of(maps, rows):
    return {key: value[rows] for key, value in maps.items()}


@pytest.mark.parametrize("make", [DepthNormalConsistency, EdgeSegmentationAgreement])
def test_batches_and_processes_add_up(make):
    predictions, batch = whole_and_parts()
    whole = score(make(), predictions, batch)
    pieces, first, second = make(), make(), make()
    for rows in (slice(0, 1), slice(1, 4)):
        pieces.update(part_of(predictions, rows), part_of(batch, rows))
    assert {k: v.item() for k, v in pieces.compute().items()} == pytest.approx(whole, rel=1e-12)
    first.update(part_of(predictions, slice(0, 3)), part_of(batch, slice(0, 3)))
    second.update(part_of(predictions, slice(3, 4)), part_of(batch, slice(3, 4)))
    first.merge_state(second)
    assert {k: v.item() for k, v in first.compute().items()} == pytest.approx(whole, rel=1e-12)
    singles = [score(make(), part_of(predictions, [i]), part_of(batch, [i])) for i in range(4)]
    for key in whole:
        if not key.endswith("_per_image"):
            assert whole[f"{key}_per_image"] == pytest.approx(mean_of_known([one[key] for one in singles]))


def test_inputs_are_left_alone():
    predictions, batch = whole_and_parts()
    before = {key: value.clone() for source in (predictions, batch) for key, value in source.items()}
    score(DepthNormalConsistency(), predictions, batch)
    score(EdgeSegmentationAgreement(), predictions, batch)
    after = {key: value for source in (predictions, batch) for key, value in source.items()}
    assert all(torch.equal(before[key], after[key]) for key in before)
