"""Losses between predictions: closed forms on planes, a NumPy reference, gradients in float64, masks and cameras."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from m2h_lightning.data import transforms as T
from m2h_lightning.data.augment import TrainTransform
from m2h_lightning.data.augment_config import AugmentConfig
from m2h_lightning.data.sample import collate, to_contract
from m2h_lightning.errors import ConfigError
from m2h_lightning.geometry import pixel_rays
from m2h_lightning.labels import IGNORE
from m2h_lightning.objectives import ConsistencyConfig, Moment, Objective
from m2h_lightning.objectives.config import BalancingConfig, DepthNormalsConfig, EdgesSemsegConfig, SmoothnessConfig
from m2h_lightning.objectives.consistency import consistency_losses, image_pixels
from m2h_lightning.objectives.consistency_terms import FLOOR, depth_normals_loss, edges_semseg_loss, smoothness_loss
from m2h_lightning.tasks import build_tasks
from samples import plane_sample

FACTS = {
    "name": "toy",
    "classes": ["wall", "floor", "chair", "lamp", "door"],
    "depth_range": [0.1, 20.0],
    "tasks": ["semseg", "depth", "normals", "edges"],
}
TASKS = build_tasks(None, FACTS)
TERMS = [f"consistency/{name}" for name in ("depth_normals", "edges_semseg", "smoothness")]
GEOMETRY, BORDERS = DepthNormalsConfig(weight=1.0), EdgesSemsegConfig(weight=1.0)
ALL = ConsistencyConfig(GEOMETRY, BORDERS, SmoothnessConfig(weight=1.0))
K = torch.tensor([[[20.0, 0.0, 6.3], [0.0, 21.0, 5.1], [0.0, 0.0, 1.0]]], dtype=torch.float64)


def plane(normal=(0.3, -0.4, -0.85), height=10, width=12, camera=K):
    """Depth 1×1×H×W and normals 1×3×H×W of a plane, float64."""
    n = torch.tensor(normal, dtype=torch.float64)
    n = n / n.norm()
    depth = -3.0 / (n[:, None, None] * pixel_rays(camera[0], height, width)).sum(0)
    return depth[None, None], n.view(1, 3, 1, 1).expand(1, 3, height, width).clone()


def everywhere(maps):
    return torch.ones(len(maps), *maps.shape[-2:], dtype=torch.bool)


def geometry(depth, normals, truth=None, camera=K, inside=None, config=GEOMETRY):
    truth = torch.zeros_like(depth) if truth is None else truth
    return depth_normals_loss(depth, normals, truth, camera, everywhere(depth) if inside is None else inside, config)


def borders(edges, semseg, labels=None, inside=None, config=BORDERS, weight=0.5):
    labels = torch.full(semseg[:, 0].shape, IGNORE) if labels is None else labels
    return edges_semseg_loss(edges, semseg, labels, everywhere(edges) if inside is None else inside, weight, config)


def contract(raw, transform=None, seed=0):
    """A batch of one transformed sample."""
    transform = transform or T.EvalTransform()
    return to_contract(collate([transform(raw, np.random.default_rng(seed))]))


def raw_maps(batch, seed=0):
    """Raw maps of the size of a batch, as a network would give them."""
    g = torch.Generator().manual_seed(seed)
    size = (len(batch["image"]), *batch["image"].shape[-2:])
    return {name: torch.randn(size[0], task.channels, *size[1:], generator=g) for name, task in TASKS.items()}


# ── depth and normals ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("normal", [(0.0, 0.0, -1.0), (0.3, -0.4, -0.85), (-0.6, 0.1, -0.7)])
@pytest.mark.parametrize("degrees", [0.0, 20.0, 90.0, 180.0])
def test_a_plane_costs_one_minus_the_cosine_of_the_angle(normal, degrees):
    depth, normals = plane(normal)
    axis = torch.linalg.cross(normals[0, :, 0, 0], torch.tensor([0.2, 0.9, 0.1], dtype=torch.float64))
    axis = (axis / axis.norm()).view(1, 3, 1, 1).expand_as(normals)
    a = math.radians(degrees)
    turned = math.cos(a) * normals + math.sin(a) * torch.linalg.cross(axis, normals, dim=1)
    loss, used = geometry(depth, turned, truth=depth)
    assert used and loss.item() == pytest.approx(1 - math.cos(a), abs=1e-9)
    assert geometry(7.3 * depth, turned)[0].item() == pytest.approx(1 - math.cos(a), abs=1e-9), "scale does not matter"


def test_another_camera_tilts_the_normals_of_the_same_depth():
    """Inverse depth of a plane is −nᵀK⁻¹[u, v, 1]/d, so that a camera K′ sees the plane with normal ∝ K′ᵀK⁻ᵀn in it."""
    depth, normals = plane()
    n = normals[0, :, 0, 0]
    focal = K * torch.tensor([2.0, 2.0, 1.0])[:, None]
    moved = K + torch.tensor([[0, 0, 6.0], [0, 0, -4.0], [0, 0, 0]])
    for wrong in (focal, moved):
        seen = wrong[0].T @ torch.linalg.solve(K[0].T, n)
        expected = 1 - (seen @ n / seen.norm()).item()
        assert geometry(depth, normals, camera=wrong)[0].item() == pytest.approx(expected, rel=1e-9)
        assert expected > 1e-3


AUGMENT = AugmentConfig(scale=[0.5, 2.0], flip=0.5, rotate=15.0)
CHANGES = {
    "as it is": lambda raw: contract(raw),
    "crop": lambda raw: contract(T.crop(raw, 11, 17, 30, 40)),
    "padding crop": lambda raw: contract(T.crop(raw, -4, -7, 60, 80)),
    "resize": lambda raw: contract(T.resize(raw, 96, 160)),
    "flip": lambda raw: contract(T.flip(raw)),
    "roll": lambda raw: contract(T.roll(raw, 20.0)),
    **{f"augmented {n}": (lambda raw, n=n: contract(raw, TrainTransform((40, 56), AUGMENT), n)) for n in range(6)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_consistent_pair_stays_consistent_under_every_transform(change):
    """Predictions that follow the picture agree with the camera that followed it, and with no other."""
    raw = plane_sample(48, 64)
    batch = change(raw)
    normals = batch["normals"][:, :, 20, 20].view(1, 3, 1, 1)  # of the plane, as the transform turned it
    rays = pixel_rays(batch["K"][0].double(), *batch["image"].shape[-2:])
    depth = (-3.0 / (normals.double()[0] * rays).sum(0))[None, None].float()
    seen = batch["depth"] > 0
    assert torch.allclose(depth[seen], batch["depth"][seen], rtol=0.05), "labels moved otherwise than the camera"
    inside = image_pixels(TASKS, batch)
    right, used = geometry(depth, normals.expand_as(batch["normals"]), batch["depth"], batch["K"], inside)
    assert used and right < 2e-5
    unmoved = torch.from_numpy(raw["K"])[None]
    if not torch.allclose(batch["K"].double(), unmoved, rtol=0.1, atol=1.0):
        assert geometry(depth, normals.expand_as(batch["normals"]), batch["depth"], unmoved, inside)[0] > 50 * right


def test_the_true_depth_says_where_occlusion_edges_are_and_else_the_predicted():
    """A step in the labels leaves out its four columns of neighbours; one that only the network sees does not."""
    depth, normals = plane((0.0, 0.0, -1.0))
    stepped = torch.where(torch.arange(12) < 6, depth, 2 * depth)
    flat, steps = geometry(depth, normals, truth=depth), geometry(stepped, normals, truth=stepped)
    assert flat[0] < 1e-12 and steps[0] < 1e-12
    assert geometry(stepped, normals)[0] < 1e-12, "no label: the prediction's own step"
    assert geometry(stepped, normals, truth=depth)[0] > 0.1, "a network cannot choose its pixels"
    half = torch.where(torch.arange(12) < 6, depth, 0.0)
    assert geometry(stepped, normals, truth=half)[0] < 1e-12, "a step from known to unknown depth is the prediction's"
    assert geometry(stepped, normals, config=replace(GEOMETRY, max_step=1.5))[0] > 0.1


def test_an_unknown_camera_leaves_its_image_out_and_its_gradient_clean():
    depth, normals = plane()
    depth, normals = depth.repeat(2, 1, 1, 1).requires_grad_(), normals.flip(1).repeat(2, 1, 1, 1).requires_grad_()
    camera = torch.cat([torch.full_like(K, torch.nan), K])
    loss, used = geometry(depth, normals, camera=camera)
    loss.backward()
    alone = geometry(depth[1:].detach(), normals[1:].detach())[0]
    assert used and loss.item() == pytest.approx(alone.item(), rel=1e-12)
    for field in (depth, normals):
        assert field.grad.isfinite().all() and (field.grad[0] == 0).all() and (field.grad[1] != 0).any()
    nothing, used = geometry(depth, normals, camera=camera[:1].repeat(2, 1, 1))
    nothing.backward()
    assert nothing == 0 and not used


# ── edges and classes ────────────────────────────────────────────────────────────────────────────────────────────────


def slow_borders(edges, semseg, labels, inside, config, weight):
    """The definition, pixel by pixel in float64."""

    def divergence(target, share):
        parts = ((t, s) for t, s in ((target, share), (1 - target, 1 - share)))
        return sum(t * math.log(t / s) for t, s in parts if t > 0)

    def drawn(share):
        return FLOOR + (1 - 2 * FLOOR) * share

    values = []
    for b, (height, width) in ((b, edges.shape[-2:]) for b in range(len(edges))):
        p = np.exp(semseg[b] - semseg[b].max(0))
        p /= p.sum(0)
        truth = labels[b] if (labels[b] != IGNORE).any() else p.argmax(0)
        for i in range(height - 1):
            for j in range(width - 1):
                near = truth[
                    max(0, i - config.band) : i + config.band + 1, max(0, j - config.band) : j + config.band + 1
                ]
                close = config.band == 0 or len(np.unique(near[near != IGNORE])) > 1
                if not (close and inside[b, i, j] and inside[b, i + 1, j] and inside[b, i, j + 1]):
                    continue
                steps = []
                for there in (p[:, i, j + 1], p[:, i + 1, j]):
                    here = p[:, i, j]
                    steps.append(
                        1 - here @ there if config.boundary == "disagreement" else 0.5 * np.abs(here - there).sum()
                    )
                boundary = max(steps)
                odds = math.exp(edges[b, 0, i, j]) * (1 - weight) / weight
                edge = odds / (1 + odds)
                sides = []
                if config.detach != "edges":
                    sides.append(divergence(boundary, edge))
                if config.detach != "semseg":
                    sides.append(divergence(drawn(edge), drawn(boundary)))
                values.append(np.mean(sides))
    return (float(np.mean(values)) if values else 0.0), len(values)


def random_borders(seed, batch=2, classes=4, height=7, width=8):
    """Blocky classes with gaps, in a batch whose last image has no class label; float64."""
    g = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, classes, (batch, 3, 3), generator=g)
    labels = F.interpolate(blocks[:, None].float(), (height, width))[:, 0].long()
    labels[torch.rand(labels.shape, generator=g) < 0.15] = IGNORE
    labels[-1] = IGNORE
    semseg = 2 * torch.randn(batch, classes, height, width, generator=g, dtype=torch.float64)
    edges = 2 * torch.randn(batch, 1, height, width, generator=g, dtype=torch.float64)
    inside = torch.ones(batch, height, width, dtype=torch.bool)
    inside[0, :, -2:] = False
    return edges, semseg, labels, inside


@given(
    seed=st.integers(0, 2**31),
    band=st.integers(0, 3),
    boundary=st.sampled_from(["disagreement", "variation"]),
    detach=st.sampled_from(["none", "edges", "semseg"]),
    weight=st.sampled_from([0.5, 0.95]),
)
@settings(max_examples=25)
def test_edges_and_classes_against_loops(seed, band, boundary, detach, weight):
    config = EdgesSemsegConfig(1.0, detach=detach, boundary=boundary, band=band)
    edges, semseg, labels, inside = random_borders(seed)
    loss, used = edges_semseg_loss(edges, semseg, labels, inside, weight, config)
    reference, count = slow_borders(*(m.numpy() for m in (edges, semseg, labels, inside)), config, weight)
    assert loss.item() == pytest.approx(reference, rel=1e-9, abs=1e-12) and bool(used) == (count > 0)


@pytest.mark.parametrize("boundary", ["disagreement", "variation"])
def test_edges_drawn_at_the_predicted_borders_cost_nothing(boundary):
    """Sure classes and sure edges; shifted by the weight of the edge loss, as training shifts them."""
    config = replace(BORDERS, boundary=boundary, band=0)
    classes = torch.zeros(1, 8, 9, dtype=torch.int64)
    classes[:, 3:, 4:] = 2
    classes[:, 6:, :2] = 1
    semseg = 40 * F.one_hot(classes, 3).permute(0, 3, 1, 2).double()
    edge = torch.zeros(classes.shape)
    edge[:, :, :-1] += classes[:, :, 1:] != classes[:, :, :-1]
    edge[:, :-1] += classes[:, 1:] != classes[:, :-1]
    logits = torch.where(edge > 0, 30.0, -30.0)[:, None].double() + math.log(0.95 / 0.05)
    assert borders(logits, semseg, config=config, weight=0.95)[0] < 1e-9
    assert borders(logits.roll(1, 3), semseg, config=config, weight=0.95)[0] > 0.5
    half = torch.zeros_like(semseg)
    half[:, 2] = -90
    level = torch.full_like(logits, {"disagreement": 0.0, "variation": -30.0}[boundary])
    assert borders(level, half, config=config)[0] < 1e-9, "both sides unsure: half a chance of another class"


def test_equal_posteriors_have_no_variation_however_their_sum_rounds():
    """In float32 posteriors may add up to more than 1; the entropy of a negative share would be NaN."""
    semseg = torch.randn(50, 40, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 3, 3)
    config = replace(BORDERS, boundary="variation", band=0)
    for row in range(len(semseg)):
        loss, _ = borders(torch.full((1, 1, 3, 3), -40.0), semseg[row : row + 1], config=config)
        assert 0 <= loss < 1e-5, row


def test_only_pixels_near_two_labelled_classes_count():
    edges, semseg, _, _ = (m.requires_grad_() if m.is_floating_point() else m for m in random_borders(0, 1, 4, 20, 24))
    labels = torch.zeros(1, 20, 24, dtype=torch.int64)
    labels[:, :, 12:] = 3
    for labels_, columns in ((labels, range(9, 15)), (labels.masked_fill(labels > 2, IGNORE), ())):
        edges.grad = semseg.grad = None
        loss, used = borders(edges, semseg, labels_, config=replace(BORDERS, band=3))
        loss.backward()
        assert set(edges.grad[0, 0].any(0).nonzero().flatten().tolist()) == set(columns) and bool(used) == bool(columns)
        touched = set(semseg.grad[0].any(0).any(0).nonzero().flatten().tolist())
        assert touched == {*columns, *(c + 1 for c in columns)}
    gap = labels.clone()
    gap[:, :, 11:13] = IGNORE
    assert borders(edges, semseg, gap, config=replace(BORDERS, band=3))[1], "an unlabelled gap is bridged"
    assert not borders(edges, semseg, gap, config=replace(BORDERS, band=1))[1]


# ── smoothness ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_smoothness_of_a_ramp_and_of_a_ramp_at_an_image_edge():
    """d = 1 … 8 in steps of 1 has mean 4.5: 1/4.5 per pixel; a black-to-white edge is worth e⁻¹ of a flat one."""
    ramp = torch.arange(1.0, 9.0, dtype=torch.float64).expand(1, 1, 6, 8)
    image = torch.zeros(1, 3, 6, 8, dtype=torch.float64)
    loss, used = smoothness_loss(ramp, image, everywhere(ramp))
    assert used and loss.item() == pytest.approx(1 / 4.5, rel=1e-12)
    assert smoothness_loss(5 * ramp, image, everywhere(ramp))[0].item() == pytest.approx(1 / 4.5, rel=1e-12)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    image[..., 1::2] += 1 / std  # stripes from black to white: every step of depth lies at an edge
    assert smoothness_loss(ramp, image, everywhere(ramp))[0].item() == pytest.approx(math.exp(-1) / 4.5, rel=1e-6)
    left = torch.arange(8).expand(1, 6, 8) < 4  # of which the mean is 2.5
    loss, _ = smoothness_loss(ramp, torch.zeros_like(image), left)
    assert loss.item() == pytest.approx(1 / 2.5, rel=1e-12)


# ── gradients ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("detach", ["none", "depth", "normals"])
@pytest.mark.parametrize("seed", range(2))
def test_gradients_of_depth_and_normals(detach, seed):
    g = torch.Generator().manual_seed(seed)
    depth = (2 + 0.05 * torch.rand(2, 1, 4, 5, generator=g, dtype=torch.float64)).requires_grad_()
    raw = torch.randn(2, 3, 4, 5, generator=g, dtype=torch.float64).requires_grad_()
    truth = depth.detach() * (torch.rand(depth.shape, generator=g) > 0.1)
    truth[1, :, :, 3:] *= 2
    inside = everywhere(depth)
    inside[0, 0, 2] = False
    camera = torch.cat([K, K + torch.eye(3)])

    def loss(depth, raw):
        return depth_normals_loss(
            depth, F.normalize(raw, dim=1), truth, camera, inside, replace(GEOMETRY, detach=detach)
        )[0]

    assert loss(depth, raw) > 0
    given_side = {"none": (), "depth": (0,), "normals": (1,)}[detach]
    inputs = [depth, raw]
    for side in given_side:
        assert torch.autograd.grad(loss(depth, raw), inputs[side], allow_unused=True)[0] is None
        inputs[side] = inputs[side].detach()
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("boundary", ["disagreement", "variation"])
@pytest.mark.parametrize("seed", range(2))
def test_gradients_of_edges_and_classes(boundary, seed):
    """Each side with the other as its target; both together are their halves, as targets get no gradient."""
    edges, semseg, labels, inside = random_borders(seed, classes=3, height=4, width=5)
    config = EdgesSemsegConfig(1.0, boundary=boundary, band=1)
    edges.requires_grad_(), semseg.requires_grad_()

    def loss(edges, semseg, detach):
        return edges_semseg_loss(edges, semseg, labels, inside, 0.8, replace(config, detach=detach))[0]

    assert torch.autograd.gradcheck(lambda e: loss(e, semseg.detach(), "semseg"), [edges])
    assert torch.autograd.gradcheck(lambda s: loss(edges.detach(), s, "edges"), [semseg])
    both = torch.autograd.grad(loss(edges, semseg, "none"), (edges, semseg))
    for field, detach, given_side in ((0, "semseg", semseg), (1, "edges", edges)):
        value = loss(edges, semseg, detach)
        assert torch.autograd.grad(value, given_side, retain_graph=True, allow_unused=True)[0] is None
        alone = torch.autograd.grad(value, (edges, semseg)[field])[0]
        assert alone.abs().sum() > 0
        torch.testing.assert_close(both[field], alone / 2)


def test_gradients_of_smoothness():
    g = torch.Generator().manual_seed(0)
    inverse = (0.5 + torch.rand(2, 1, 4, 5, generator=g, dtype=torch.float64)).requires_grad_()
    image = torch.randn(2, 3, 4, 5, generator=g, dtype=torch.float64)
    inside = everywhere(inverse)
    inside[1, :, 3:] = False
    assert torch.autograd.gradcheck(lambda d: smoothness_loss(d, image, inside)[0], [inverse])


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_saturated_predictions_keep_losses_and_gradients_finite(scale):
    batch = contract(plane_sample(12, 16))
    raw = {
        name: (scale * field.sign() * field.abs().sqrt()).requires_grad_() for name, field in raw_maps(batch).items()
    }
    for boundary in ("disagreement", "variation"):
        config = replace(ALL, edges_semseg=replace(BORDERS, boundary=boundary, band=0))
        for loss, used in consistency_losses(TASKS, raw, batch, config, TERMS).values():
            assert used and loss.isfinite() and loss >= 0
            grads = torch.autograd.grad(loss, list(raw.values()), allow_unused=True)
            assert all(grad.isfinite().all() for grad in grads if grad is not None)


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_padding_and_what_lies_around_a_crop_do_not_count():
    """Whatever is predicted on padding, on the fill of a crop, and whatever the image holds there: same loss."""
    small, large = plane_sample(20, 24, seed=1), plane_sample(30, 40, seed=2)
    filled = T.crop(plane_sample(30, 30, seed=3), 0, -10, 30, 40)
    transform = T.EvalTransform()
    samples = [transform(raw, np.random.default_rng(0)) for raw in (small, large, filled)]
    batch = to_contract(collate(samples))
    inside = image_pixels(TASKS, batch)
    expected = torch.zeros(3, 30, 40, dtype=torch.bool)
    expected[0, :20, :24] = expected[1] = expected[2, :, 10:] = True
    assert torch.equal(inside, expected)
    raw = raw_maps(batch)
    raw["depth"] *= 0.01  # smooth enough that nothing but the image's size leaves a pixel out
    config = replace(ALL, edges_semseg=replace(BORDERS, band=0))
    before = consistency_losses(TASKS, raw, batch, config, TERMS)
    raw = {name: torch.where(inside[:, None], field, torch.nan) for name, field in raw.items()}
    batch["image"] = torch.where(inside[:, None], batch["image"], 7.0)
    for term, (loss, _) in consistency_losses(TASKS, raw, batch, config, TERMS).items():
        torch.testing.assert_close(loss, before[term][0], msg=term)
    for name in FACTS["tasks"]:
        del batch[name]
    assert torch.equal(image_pixels(TASKS, batch)[2], everywhere(inside)[2]), "no label tells where the image ends"
    assert torch.equal(image_pixels(TASKS, batch)[:2], expected[:2])


def test_batches_without_labels_and_of_images_without_labels_are_alike():
    whole = contract(plane_sample(16, 20))
    raw = raw_maps(whole)
    bare = {key: value for key, value in whole.items() if key not in FACTS["tasks"]}
    unknown = {**whole, "semseg": torch.full_like(whole["semseg"], IGNORE), "depth": torch.zeros_like(whole["depth"])}
    for name in ("normals", "edges"):
        unknown[name] = torch.zeros_like(whole[name]) if name == "normals" else torch.full_like(whole[name], 255.0)
    found = [consistency_losses(TASKS, raw, batch, ALL, TERMS) for batch in (bare, unknown)]
    for term in TERMS:
        assert found[0][term][1] or term == TERMS[0]  # random depth is full of steps: no pixel of it is smooth
        torch.testing.assert_close(found[0][term], found[1][term], msg=term)
    smooth = {**raw, "depth": 0.01 * raw["depth"]}
    assert consistency_losses(TASKS, smooth, bare, ALL, TERMS[:1])[TERMS[0]][1]


def test_nothing_valid_is_zero_with_a_graph_and_every_process_asks_as_often():
    batch = contract(plane_sample(16, 20))
    raw = {name: field.requires_grad_() for name, field in raw_maps(batch).items()}
    nothing = {**batch, "image_size": torch.tensor([[1, 1]]), "K": torch.full_like(batch["K"], torch.nan)}
    asked = {}
    for case, content in (("some", batch), ("none", nothing)):
        calls = []
        found = consistency_losses(TASKS, raw, content, ALL, TERMS, lambda n, calls=calls: calls.append(n) or n)
        asked[case] = len(calls)
        assert all(bool(used) == (case == "some") for _, used in found.values())
    assert asked["some"] == asked["none"] == len(TERMS)
    for loss, _ in found.values():
        assert loss == 0 and loss.dtype == torch.float32
    torch.stack([loss for loss, _ in found.values()]).sum().backward()
    assert all((field.grad == 0).all() for field in raw.values()), "every parameter keeps a gradient"


def test_two_halves_of_a_batch_make_the_loss_of_the_whole():
    """With the mean count over processes, the mean of two processes' losses is the loss of one with all images."""
    raws = [plane_sample(16, 20, seed=seed) for seed in range(2)]
    raws[1]["depth"][:, :15] = 0
    raws[1] = T.crop(raws[1], 0, 0, 9, 20)
    transform = T.EvalTransform()
    samples = [transform(raw, np.random.default_rng(0)) for raw in raws]
    batch = to_contract(collate(samples))
    raw = {name: 0.01 * field if name == "depth" else field for name, field in raw_maps(batch).items()}
    counts = {}

    def part(rows, agree):
        content = {key: value[rows] for key, value in batch.items()}
        maps = {key: value[rows] for key, value in raw.items()}
        return consistency_losses(TASKS, maps, content, ALL, TERMS, agree)

    for rows in (slice(0, 1), slice(1, 2)):
        counts[rows.start] = []
        part(rows, lambda n, seen=counts[rows.start]: seen.append(n) or n)
    means = [(a + b) / 2 for a, b in zip(*counts.values(), strict=True)]
    halves = [part(rows, lambda n, left=iter(means): next(left)) for rows in (slice(0, 1), slice(1, 2))]
    whole = part(slice(0, 2), None)
    for term in TERMS:
        assert counts[0] != counts[1]
        torch.testing.assert_close((halves[0][term][0] + halves[1][term][0]) / 2, whole[term][0])


def test_half_precision_changes_nothing_but_the_rounding_of_its_input():
    batch = contract(plane_sample(16, 20))
    raw = {name: (0.05 * field if name == "depth" else field).bfloat16() for name, field in raw_maps(batch).items()}
    exact = consistency_losses(TASKS, {name: field.float() for name, field in raw.items()}, batch, ALL, TERMS)
    with torch.autocast("cpu", torch.bfloat16):
        found = consistency_losses(TASKS, raw, batch, ALL, TERMS)
    for term in TERMS:
        assert found[term][0].dtype == torch.float32
        torch.testing.assert_close(found[term][0], exact[term][0], rtol=1e-6, atol=1e-7, msg=term)


def test_the_objective_adds_them_with_their_weights():
    batch = contract(plane_sample(16, 20))
    raw = raw_maps(batch)
    weights = dict(zip(TERMS, (0.1, 0.3, 0.7), strict=True))
    config = ConsistencyConfig(DepthNormalsConfig(0.1), EdgesSemsegConfig(0.3), SmoothnessConfig(0.7))
    ones = dict.fromkeys(TASKS, 1.0)
    with_terms = Objective(TASKS, ones, BalancingConfig(), config)(raw, batch, Moment(), dict.fromkeys(TERMS, 0.5))
    without = Objective(TASKS, ones, BalancingConfig(), ConsistencyConfig())(raw, batch, Moment())
    extra = sum(0.5 * weights[term] * with_terms.losses[term] for term in TERMS)
    assert extra > 0
    torch.testing.assert_close(with_terms.total, without.total + extra)


@pytest.mark.parametrize("unit", ["px", "1/m"])
def test_normals_of_disparity_are_refused_and_its_smoothness_is_not(unit):
    tasks = build_tasks(None, FACTS | {"depth_unit": unit})
    ones = dict.fromkeys(tasks, 1.0)
    with pytest.raises(ConfigError, match=rf"^model.consistency.depth_normals.weight .* in {unit} .*; set .*[^\n]$"):
        Objective(tasks, ones, BalancingConfig(), ConsistencyConfig(depth_normals=DepthNormalsConfig(0.1)))
    Objective(tasks, ones, BalancingConfig(), ConsistencyConfig(smoothness=SmoothnessConfig(0.1)))
    batch = contract(plane_sample(16, 20))
    # The raw map is a log scale: the negative one of the same range up to a factor is the inverse.
    raw = {"depth": 0.1 * raw_maps(batch)["depth"]}
    disparity = consistency_losses(tasks, raw, batch, ALL, TERMS[2:])[TERMS[2]][0]
    metric = consistency_losses(TASKS, {"depth": -raw["depth"]}, batch, ALL, TERMS[2:])[TERMS[2]][0]
    torch.testing.assert_close(disparity, metric, rtol=1e-4, atol=0)
