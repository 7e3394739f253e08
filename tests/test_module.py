"""The Lightning module: training, evaluation, optimiser groups, checkpoints and what stops a run."""

import json
import math

import lightning as L
import numpy as np
import pytest
import torch

from m2h_lightning.callbacks import PicturePanels, TrivialBaseline
from m2h_lightning.callbacks.trivial import TrainingPriors, gradient_magnitude
from m2h_lightning.data.raw import DepthCode, encode_normals
from m2h_lightning.data.sample import collate
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.module import M2HModule
from m2h_lightning.network import BackboneConfig
from m2h_lightning.objectives import Moment
from m2h_lightning.recipe import OptimizerConfig, ScheduleConfig
from m2h_lightning.tasks import DEFAULT_LOSS_WEIGHTS
from samples import QUIET, Planes, PlaneScenes, tiny_module


def trainer(tmp_path, **settings):
    return L.Trainer(**(QUIET | {"default_root_dir": tmp_path, "max_epochs": 1} | settings))


def test_a_few_epochs_beat_the_constants(tmp_path):
    L.seed_everything(0)
    module = tiny_module(optimizer=OptimizerConfig(lr=1e-2, weight_decay=0.0), channels=16, head_channels=16)
    fit = trainer(tmp_path, max_epochs=24, callbacks=[TrivialBaseline(samples=8)])
    data = Planes(train=16, batch_size=4, crop=(48, 64))
    fit.fit(module, data)
    scores = fit.test(module, data, verbose=False)[0]
    for name in ("semseg", "depth", "normals"):
        task = module.tasks[name]
        ours, trivial = scores[f"test/{name}/{task.headline}"], scores[f"test/{name}/trivial_{task.headline}"]
        assert (ours > trivial) if task.higher_is_better else (ours < trivial), (name, ours, trivial)
    # One pixel of 64 is an edge: marking all of them has an F of 2/65. (The image's gradient finds these borders.)
    assert scores["test/edges/f_pixel"] > 2 * 2 / 65
    assert scores["test/edges/trivial_odsf"] > 0.9


def test_every_metric_is_logged_under_its_canonical_name(tmp_path):
    run = trainer(tmp_path)
    run.fit(tiny_module(), Planes())
    keys = set(run.callback_metrics)
    assert {
        "train/loss", "train/semseg/loss", "val/loss", "val/edges/loss", "val/semseg/miou", "val/semseg/pixel_accuracy",
        "val/depth/rmse_m", "val/depth/delta1", "val/normals/mean_deg", "val/normals/median_deg", "val/edges/f_pixel",
        "val/semseg/miou_per_image", "val/depth/rmse_m_per_image", "val/edges/odsf_fast",
    } <= keys  # fmt: skip


def test_metrics_do_not_depend_on_the_batch_size(tmp_path):
    L.seed_everything(0)
    module = tiny_module()
    one, three = (trainer(tmp_path).validate(module, Planes(eval_batch_size=size), verbose=False)[0] for size in (1, 3))
    for key, value in one.items():
        if key != "val/depth/loss" and not key.endswith("val/loss"):  # a loss is a mean of batch means
            assert value == pytest.approx(three[key], rel=1e-4, abs=1e-4), key


def test_the_validation_loss_weighs_batches_by_their_pixels(tmp_path):
    """Batches of three and of one image: the mean loss is that of single images, and not the mean of two batches."""
    L.seed_everything(0)
    module = tiny_module(tasks=["normals"])

    class FourPlanes(Planes):
        def dataset(self, split):
            return PlaneScenes(4, seed=2)

    one, three = (trainer(tmp_path).test(module, FourPlanes(eval_batch_size=n), verbose=False)[0] for n in (1, 3))
    assert three["test/normals/loss"] == pytest.approx(one["test/normals/loss"], rel=1e-5)
    sample = [trainer(tmp_path).test(module, OneOf(FourPlanes(), i), verbose=False)[0] for i in range(4)]
    assert len({round(each["test/normals/loss"], 6) for each in sample}) > 1, "else any weights would do"
    assert one["test/normals/loss"] == pytest.approx(np.mean([each["test/normals/loss"] for each in sample]), rel=1e-5)


class OneOf(Planes):
    """One sample of another data module."""

    def __init__(self, data, index):
        super().__init__()
        self.data, self.index = data, index

    def dataset(self, split):
        return torch.utils.data.Subset(self.data.dataset(split), [self.index])


@pytest.mark.parametrize("tasks", [["depth"], ["edges", "semseg"]])
def test_any_subset_of_tasks(tmp_path, tasks):
    module = tiny_module(tasks=tasks)
    run = trainer(tmp_path)
    run.fit(module, Planes())
    logged = {key.split("/")[1] for key in run.callback_metrics if key.startswith("val/") and key.count("/") == 2}
    assert logged == set(tasks)


def test_a_missing_label_adds_nothing_and_keeps_the_graph():
    module = tiny_module()
    batch = {"image": torch.randn(2, 3, 32, 32), "id": ["a", "b"], "depth": torch.rand(2, 1, 32, 32) + 1}
    raw = module.net(batch["image"])
    step = module.objective(raw, batch, Moment())
    assert step.losses["depth"] > 0
    assert all(step.losses[name] == 0 for name in ("semseg", "normals", "edges"))
    assert {name for name, present in step.present.items() if present} == {"depth"}
    step.total.backward()
    missing = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, "a distributed run would wait for these gradients"


def test_weights_scale_the_loss():
    module = tiny_module(loss_weights={"depth": 3.0, "edges": 0.0})
    batch = next(iter(Planes().train_dataloader()))
    batch = Planes().on_after_batch_transfer(batch, 0)
    step = module.objective(module.net(batch["image"]), batch, Moment())
    weights = {"semseg": DEFAULT_LOSS_WEIGHTS["semseg"], "depth": 3.0, "normals": DEFAULT_LOSS_WEIGHTS["normals"]}
    assert step.total.item() == pytest.approx(sum(w * step.losses[n].item() for n, w in weights.items()), rel=1e-6)
    assert {name: float(weight) for name, weight in step.weights.items()} == {**weights, "edges": 0.0}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_the_samples(tmp_path, value):
    class PoisonedPlanes(Planes):
        def train_dataloader(self):
            loader = super().train_dataloader()
            loader.collate_fn = lambda samples: (batch := collate(samples)) | {"image": batch["image"] * value}
            return loader

    module = tiny_module()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(DataError, match=r"not finite at step 0 .*samples scene-0-\d, scene-0-\d"):
        trainer(tmp_path).fit(module, PoisonedPlanes())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items() if v.is_floating_point())


def test_optimizer_groups(tmp_path):
    module = tiny_module(
        backbone=BackboneConfig(name="test_convnext", pretrained=False, freeze=False, lr_factor=0.1),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.5),
        schedule=ScheduleConfig(name="constant", warmup=0.0),
    )
    run = trainer(tmp_path)
    run.fit(module, Planes())
    groups = {group["name"]: group for group in run.optimizers[0].param_groups}
    assert groups["backbone"]["lr"] == pytest.approx(1e-4)
    assert groups["network"]["lr"] == pytest.approx(1e-3)
    assert groups["network"]["weight_decay"] == 0.5
    assert groups["network_no_decay"]["weight_decay"] == 0
    counted = sum(len(group["params"]) for group in groups.values())
    assert counted == sum(p.requires_grad for p in module.parameters())


def test_a_frozen_backbone_is_not_in_the_optimizer(tmp_path):
    module = tiny_module(backbone=BackboneConfig(name="test_convnext", pretrained=False, freeze=True))
    run = trainer(tmp_path)
    run.fit(module, Planes())
    assert {group["name"] for group in run.optimizers[0].param_groups} == {"network", "network_no_decay"}


def test_schedules():
    poly = ScheduleConfig(name="poly", warmup=0.1, power=0.9)
    assert poly.factor(0, 100) == pytest.approx(0.1)
    assert poly.factor(9, 100) == pytest.approx(1.0)
    assert poly.factor(55, 100) == pytest.approx((1 - 45 / 90) ** 0.9)
    assert poly.factor(100, 100) == 0
    cosine = ScheduleConfig(name="cosine", warmup=0.0, final_factor=0.1)
    assert cosine.factor(50, 100) == pytest.approx(0.1 + 0.9 * 0.5)
    assert cosine.factor(100, 100) == pytest.approx(0.1)
    assert ScheduleConfig(name="constant", warmup=0.0).factor(77, 100) == 1


def test_the_schedule_moves_with_optimizer_steps_not_batches(tmp_path):
    module = tiny_module(schedule=ScheduleConfig(name="poly", warmup=0.0, power=1.0))
    run = trainer(tmp_path, accumulate_grad_batches=3, max_epochs=2)
    run.fit(module, Planes())
    assert run.global_step == 2
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_a_checkpoint_is_plain_data_and_rebuilds_the_module(tmp_path):
    L.seed_everything(1)
    module = tiny_module()
    run = trainer(tmp_path)
    run.fit(module, Planes())
    run.save_checkpoint(tmp_path / "x.ckpt")
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    json.dumps(content["hyper_parameters"])
    again = M2HModule.load_from_checkpoint(tmp_path / "x.ckpt", map_location="cpu", weights_only=True)
    image = torch.randn(1, 3, 40, 50)
    first, second = module.eval()(image), again.eval()(image)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_compile_keeps_the_checkpoint_keys(tmp_path, monkeypatch):
    plain = tiny_module()
    module = tiny_module(compile=True)
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: original(self, backend="eager", **options))
    run = trainer(tmp_path, fast_dev_run=True)
    run.fit(module, Planes())
    assert module.net._compiled_call_impl is not None
    assert list(module.state_dict()) == list(plain.state_dict())


def test_other_facts_are_refused(tmp_path):
    facts = {**Planes().facts, "name": "other", "classes": ["a", "b"]}
    with pytest.raises(ConfigError, match="'other'.*'planes'"):
        trainer(tmp_path).validate(tiny_module(facts=facts), Planes(), verbose=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"facts": None}, "facts"),
        ({"loss_weights": {"depht": 1.0}}, "did you mean 'depth'"),
        ({"loss_weights": {"depth": -1.0}}, "depth"),
        ({"loss_weights": {"depth": math.nan}}, "depth"),
    ],
)
def test_bad_arguments(changes, words):
    with pytest.raises(ConfigError, match=words):
        tiny_module(**changes)


@pytest.mark.parametrize(
    "make",
    [
        lambda: OptimizerConfig(lr=0.0),
        lambda: OptimizerConfig(weight_decay=-1.0),
        lambda: ScheduleConfig(warmup=1.0),
        lambda: ScheduleConfig(final_factor=2.0),
    ],
)
def test_bad_optimizer_settings(make):
    with pytest.raises(ConfigError, match=r"model\."):
        make()


def test_labels_of_no_task_stop_an_evaluation(tmp_path):
    class Unlabelled(Planes):
        def dataset(self, split):
            class Images(PlaneScenes):
                def __getitem__(self, index):
                    return {k: v for k, v in super().__getitem__(index).items() if k in ("image", "K", "id")}

            return Images(2)

    with pytest.raises(DataError, match="not one val sample"):
        trainer(tmp_path).validate(tiny_module(), Unlabelled(), verbose=False)


def test_pictures(tmp_path):
    import cv2

    module = tiny_module()
    run = trainer(tmp_path, callbacks=[PicturePanels(count=2)], max_epochs=2)
    run.fit(module, Planes())
    run.test(module, Planes(), verbose=False)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == [
        "test-0.png", "test-1.png",
        "val-epoch000-0.png", "val-epoch000-1.png", "val-epoch001-0.png", "val-epoch001-1.png",
    ]  # fmt: skip
    picture = cv2.imread(str(tmp_path / "pictures" / "val-epoch001-0.png"))
    height, width = picture.shape[:2]
    assert height > 2 * 4 * 48 and width > 5 * 4 * 64, "small images are drawn larger"


def test_trivial_constants_are_those_of_the_training_set():
    priors = TrainingPriors(3)
    samples = [PlaneScenes(4)[index] for index in range(4)]
    for sample in samples:
        priors.add(sample)
    depth = np.concatenate([s["depth"].ravel() for s in samples]).astype(float)
    assert float(priors.predict("depth", torch.zeros(1, 1, 2, 2))[0, 0, 0, 0]) == pytest.approx(depth.mean(), rel=1e-5)
    label = np.bincount(np.concatenate([s["semseg"].ravel() for s in samples])).argmax()
    assert (priors.predict("semseg", torch.zeros(1, 2, 2, dtype=torch.long)) == label).all()
    normals = priors.predict("normals", torch.zeros(1, 3, 2, 2))
    mean = np.concatenate([s["normals"].reshape(-1, 3) for s in samples]).mean(0)
    assert np.allclose(normals[0, :, 0, 0], mean / np.linalg.norm(mean), atol=1e-5)


def test_the_gradient_of_an_image_is_strongest_at_its_step():
    image = torch.zeros(2, 3, 20, 30)
    image[0, 1, :, 12:] = 1.0
    image[1, :, 8:] = -2.0
    edges = gradient_magnitude(image)
    assert edges.shape == (2, 1, 20, 30) and edges.min() >= 0 and edges.max() == 1
    # The step lies between pixels 11 and 12 (7 and 8): its two neighbours are the strongest, equally.
    assert set(edges[0, 0, 10].topk(2).indices.tolist()) == {11, 12}
    assert set(edges[1, 0, :, 10].topk(2).indices.tolist()) == {7, 8}
    assert torch.allclose(edges[0, 0, :, :4], torch.zeros(20, 4), atol=1e-3)
    assert (gradient_magnitude(torch.ones(1, 3, 4, 5)) == 0).all(), "a flat image has no edge"


def test_trivial_constants_of_coded_samples_are_those_of_what_they_code():
    plain, coded = TrainingPriors(3), TrainingPriors(3)
    for index in range(4):
        sample = PlaneScenes(4)[index]
        plain.add(sample)
        code = DepthCode(scale=0.0002)
        steps = np.rint(sample["depth"] / code.scale).astype(np.uint16)
        coded.add({**sample, "depth": steps, "depth_code": code, "normals": encode_normals(sample["normals"])})
    for task, shape in (("depth", (1, 1, 2, 2)), ("normals", (1, 3, 2, 2))):
        target = torch.zeros(shape)
        assert torch.allclose(coded.predict(task, target), plain.predict(task, target), atol=3e-3)
