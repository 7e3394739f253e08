"""Activations, masked losses and pictures of the four tasks."""

import numpy as np
import pytest
import torch
from torch import nn

from m2h_lightning.errors import ConfigError
from m2h_lightning.labels import NYU40_CLASSES, NYU40_PALETTE, class_palette
from m2h_lightning.metrics import MetricsConfig
from m2h_lightning.tasks import Depth, Edges, LossConfig, Normals, Semseg, build_tasks

FACTS = {
    "name": "toy",
    "classes": ["wall", "floor", "chair"],
    "depth_range": [0.1, 10.0],
    "tasks": ["semseg", "depth", "normals", "edges"],
}
TASKS = build_tasks(None, FACTS)


def target_of(name, batch=2, height=5, width=6, valid=True):
    torch.manual_seed(1)
    if name == "semseg":
        return torch.randint(0, 3, (batch, height, width)) if valid else torch.full((batch, height, width), 255)
    if name == "depth":
        return torch.rand(batch, 1, height, width) * 5 + 1 if valid else torch.zeros(batch, 1, height, width)
    if name == "normals":
        n = nn.functional.normalize(torch.randn(batch, 3, height, width), dim=1)
        return n if valid else torch.zeros_like(n)
    edges = (torch.rand(batch, 1, height, width) < 0.3).float()
    return edges if valid else torch.full_like(edges, 255)


@pytest.fixture(params=TASKS.values(), ids=TASKS)
def task(request):
    return request.param


class TestTaskContract:
    """What holds for every task; a new one is added to the registry and nothing else."""

    def test_loss_is_a_finite_float32_scalar_with_gradient(self, task):
        raw = torch.randn(2, task.channels, 5, 6, requires_grad=True)
        loss = task.loss(raw, target_of(task.name))
        loss.backward()
        assert loss.shape == () and loss.dtype == torch.float32 and loss > 0
        assert raw.grad.isfinite().all() and raw.grad.abs().sum() > 0

    def test_no_valid_pixel_is_zero_with_a_graph(self, task):
        raw = torch.randn(2, task.channels, 5, 6, requires_grad=True)
        loss = task.loss(raw, target_of(task.name, valid=False))
        loss.backward()
        assert loss == 0
        assert (raw.grad == 0).all()

    def test_invalid_pixels_do_not_matter(self, task):
        """A sample without labels beside one with labels adds nothing: neither value nor NaN."""
        raw = torch.randn(2, task.channels, 5, 6)
        target = target_of(task.name)
        target[1] = target_of(task.name, valid=False)[1]
        loss = task.loss(raw, target)
        changed = raw.clone()
        changed[1] = 37.0
        assert torch.equal(task.loss(changed, target), loss)
        alone = task.loss(raw[:1], target[:1])
        assert torch.allclose(loss, alone, rtol=1e-5)

    def test_loss_falls_under_descent(self, task):
        raw = torch.zeros(2, task.channels, 5, 6).normal_(std=0.1).requires_grad_()
        target = target_of(task.name)
        optimizer = torch.optim.Adam([raw], lr=0.1)
        start = float(task.loss(raw, target).detach())
        for _ in range(100):
            optimizer.zero_grad()
            loss = task.loss(raw, target)
            loss.backward()
            optimizer.step()
        assert float(loss.detach()) < 0.4 * start

    def test_half_precision_raw_maps(self, task):
        raw = torch.randn(2, task.channels, 5, 6).bfloat16().requires_grad_()
        loss = task.loss(raw, target_of(task.name))
        loss.backward()
        assert loss.dtype == torch.float32 and raw.grad.isfinite().all()

    def test_metrics_take_the_prediction(self, task):
        prediction = task.activate(torch.randn(2, task.channels, 5, 6))
        for stage in ("val", "test"):
            config, scores = MetricsConfig(workers=0, trimap=1), {}
            for metric in task.metrics(config, "toy", stage, details=stage == "test").values():
                metric.update(prediction, target_of(task.name), [(5, 6), (5, 6)])
                assert not set(scores) & set(metric.compute()), "two metrics of one name"
                scores.update(metric.compute())
            assert task.headline_in(config, stage) in scores

    def test_picture(self, task):
        prediction = task.activate(torch.randn(2, task.channels, 5, 6))[0]
        guess, truth = task.picture(prediction, target_of(task.name)[0])
        for rgb in (guess, truth):
            assert rgb.dtype == np.uint8 and rgb.shape == (5, 6, 3)
        assert guess.std() > 0
        assert task.picture(prediction, None)[1] is None

    def test_picture_of_an_unlabelled_target(self, task):
        prediction = task.activate(torch.randn(2, task.channels, 5, 6))[0]
        guess, truth = task.picture(prediction, target_of(task.name, valid=False)[0])
        assert guess.shape == truth.shape


def test_depth_stays_inside_its_bounds_with_live_gradients():
    depth = Depth(0.1, 10.0)
    # The released code's ReLU(z) + ε has no gradient at all for z < 0.
    raw = torch.linspace(-8, 8, 200).reshape(1, 1, 10, 20).requires_grad_()
    metres = depth.activate(raw)
    assert metres.min() > 0.1 and metres.max() < 10.0
    metres.log().sum().backward()
    assert (raw.grad > 1e-4).all()
    extreme = depth.activate(torch.tensor([-1e4, 1e4]).reshape(1, 1, 1, 2))
    assert extreme.min() > 0.1 and extreme.max() < 10.0
    # Every depth is held in the precision of float32 even when the network ran in bfloat16.
    assert depth.activate(torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("reached", [0.3, 2.0, 9.0])
def test_every_depth_can_be_reached(reached):
    depth = Depth(0.1, 10.0)
    raw = torch.zeros(1, 1, 2, 2, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        depth.loss(raw, torch.full((1, 1, 2, 2), reached)).backward()
        optimizer.step()
    assert depth.activate(raw).mean().item() == pytest.approx(reached, rel=0.05)


def test_scale_invariance_of_the_depth_loss():
    depth = Depth(0.1, 100.0, si_lambda=1.0, l1_weight=0.0)
    raw = torch.randn(1, 1, 6, 6) * 0.3
    guess = depth.activate(raw)
    assert float(depth.loss(raw, guess * 1.7)) < 2e-3
    assert float(Depth(0.1, 100.0, si_lambda=0.0, l1_weight=0.0).loss(raw, guess * 1.7)) == pytest.approx(
        np.log(1.7), rel=1e-3
    )


def test_normals_have_unit_length_after_a_resize():
    normals = Normals()
    torch.manual_seed(0)
    small = torch.randn(1, 3, 6, 7)
    raw = nn.functional.interpolate(small, (33, 41), mode="bilinear", align_corners=False)
    # Resizing unit vectors shortens them: the flaw that activate() after the resize does not have.
    flawed = nn.functional.interpolate(nn.functional.normalize(small, dim=1), (33, 41), mode="bilinear")
    assert flawed.norm(dim=1).min() < 0.9
    assert torch.allclose(normals.activate(raw).norm(dim=1), torch.ones(1, 33, 41), atol=1e-5)


def test_edge_weights():
    edges = Edges(positive_weight=0.9)
    raw = torch.zeros(1, 1, 1, 2)
    loss = edges.loss(raw, torch.tensor([[[[1.0, 0.0]]]]))
    assert float(loss) == pytest.approx((0.9 + 0.1) * np.log(2) / 2)


def test_semseg_has_no_channel_for_unknown():
    semseg = Semseg(FACTS["classes"])
    assert semseg.channels == 3
    raw = torch.zeros(1, 3, 1, 2, requires_grad=True)
    target = torch.tensor([[[0, 255]]])
    semseg.loss(raw, target).backward()
    assert raw.grad[0, 0, 0, 0] < 0, "class 0 is a class like any other"
    assert (raw.grad[..., 1] == 0).all(), "unknown pixels teach nothing"


def test_subset_and_order():
    assert list(build_tasks(["edges", "semseg"], FACTS)) == ["semseg", "edges"]
    assert list(build_tasks(["depth"], FACTS)) == ["depth"]


@pytest.mark.parametrize(
    ("names", "facts", "words"),
    [
        (["detph"], FACTS, "did you mean 'depth'"),
        (["normals"], {**FACTS, "tasks": ["depth"]}, "'toy' has no labels for 'normals'"),
        ([], FACTS, "at least one"),
        (["depth", "depth"], FACTS, "each once"),
        (None, {**FACTS, "depth_range": [5, 1]}, "depth range"),
    ],
)
def test_bad_tasks_are_refused(names, facts, words):
    with pytest.raises(ConfigError, match=words):
        build_tasks(names, facts)


def test_options_reach_the_losses():
    tasks = build_tasks(None, FACTS, LossConfig(depth_si_lambda=1.0, normals_kind="l1", edges_positive_weight=0.6))
    assert tasks["depth"].si_lambda == 1.0
    assert tasks["normals"].loss_kind == "l1"
    assert tasks["edges"].positive_weight == 0.6
    with pytest.raises(ConfigError, match="edges_positive_weight"):
        build_tasks(None, FACTS, LossConfig(edges_positive_weight=1.0))


def test_palettes():
    assert len(NYU40_CLASSES) == len(NYU40_PALETTE) == 40
    assert NYU40_CLASSES[0] == "wall" and NYU40_CLASSES[39] == "otherprop"
    assert [tuple(c) for c in class_palette(18)[:3]] == [(128, 0, 0), (0, 128, 0), (128, 128, 0)]
    for classes in (5, 40, 200):
        table = class_palette(classes)
        assert len({tuple(colour) for colour in table[:classes]}) == classes
        assert (table[255] == 0).all()
