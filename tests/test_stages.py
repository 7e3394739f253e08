"""Stages of one run, unfreezing, and learning rates by layer: when what trains, how fast, and after a resume too."""

import json
import logging
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback

from cli_helpers import TINY, m2h, process_environment, write
from m2h_lightning.errors import CheckpointError, ConfigError
from m2h_lightning.network import BackboneConfig, M2HNet
from m2h_lightning.network.backbone import Backbone
from m2h_lightning.objectives import ConsistencyConfig
from m2h_lightning.recipe import OptimizerConfig, ScheduleConfig, StageConfig, Timeline, check_groups
from samples import QUIET, Planes, tiny_module

POLY = ScheduleConfig(name="poly", warmup=0.25, power=1.0)
TWO = [
    StageConfig("pretrain", 8, freeze=True, consistency=False),
    StageConfig("finetune", 2, lr=1e-4, freeze="last_4"),
]


def timeline(stages=None, freeze=True, unfreeze=None, lr=1e-3, schedule=POLY):
    return Timeline(stages, schedule, lr, freeze, unfreeze)


# ── the timeline ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_stage_has_its_own_warm_up_and_decay():
    stages = [StageConfig("a", 2), StageConfig("b", 1, lr=1e-4)]
    found = [timeline(stages).lr_factor(step, 12, 4) for step in range(13)]
    # Stage a has 8 steps, of which 2 warm up and 6 fall to 0; stage b has 4, one of which warms up, at a tenth.
    a = [1 / 2, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    b = [0.1, 0.1, 0.1 * 2 / 3, 0.1 / 3]
    assert found == pytest.approx([*a, *b, 0.0], abs=1e-12)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 5), st.data())
def test_a_stage_goes_as_a_run_of_its_own(epochs, per_epoch, data):
    rates = data.draw(st.lists(st.floats(1e-5, 1e-1), min_size=len(epochs), max_size=len(epochs)))
    line = timeline([StageConfig(str(i), n, lr=r) for i, (n, r) in enumerate(zip(epochs, rates, strict=True))])
    number = data.draw(st.integers(0, len(epochs) - 1))
    alone = timeline(None, lr=rates[number])
    length, begin = epochs[number] * per_epoch, sum(epochs[:number]) * per_epoch
    for step in range(length):
        rate = line.lr * line.lr_factor(begin + step, sum(epochs) * per_epoch, per_epoch)
        assert rate == pytest.approx(rates[number] * alone.lr_factor(step, length, per_epoch), rel=1e-9, abs=1e-15)


def test_without_stages_a_run_is_one_stage():
    line = timeline()
    assert line.epochs is None
    assert line.stage_at(3) is None
    assert line.describe(0) is None
    assert [line.lr_factor(s, 8, 2) for s in range(8)] == [POLY.factor(s, 8) for s in range(8)]
    assert [line.strength(e, 2, 2) for e in (0, 1.9, 2, 2.5, 3, 4, 9)] == [0, 0, 0, 0.25, 0.5, 1, 1]


def test_consistency_acts_in_its_stages_and_rises_in_each_row_of_them():
    stages = [StageConfig(n, 2, consistency=n in "bce") for n in "abcde"]  # epochs 2 to 5 and 8 to 9
    line = timeline(stages)
    share = {e: line.strength(e, 0, 4) for e in (0, 1.99, 2, 3, 4.5, 5.5, 6, 7.9, 8, 9)}
    assert share == {0: 0, 1.99: 0, 2: 0, 3: 0.25, 4.5: 0.625, 5.5: 0.875, 6: 0, 7.9: 0, 8: 0, 9: 0.25}
    assert [line.strength(e, 3, 1) for e in (2.5, 3, 3.5, 4, 6, 8.5)] == [0, 0, 0.5, 1, 0, 0.5], "start_epoch inside"
    assert [line.strength(e, 9, 0) for e in (5, 8.5, 9, 12)] == [0, 0, 1, 1], "the last stage lasts"
    assert line.acting_since(5, 0) == 2


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=5), st.integers(0, 8))
def test_a_consistency_loss_acts_exactly_where_both_allow_it(parts, start):
    line = timeline([StageConfig(str(i), n, consistency=on) for i, (n, on) in enumerate(parts)])
    allowed = [on for n, on in parts for _ in range(n)]
    for epoch, on in enumerate(allowed):
        assert (line.strength(epoch, start, 0) > 0) == (on and epoch >= start)
    never = not any(on and epoch >= start for epoch, on in enumerate(allowed))
    try:
        line.check_length(None, None, {"smoothness": start})
    except ConfigError:
        assert never
    else:
        assert not never


def test_what_trains_when():
    line = timeline(TWO, freeze=False)
    assert [line.freeze_at(e) for e in (0, 7, 8, 9, 20)] == [True, True, "last_4", "last_4", "last_4"]
    assert list(line.freezes.values()) == [True, "last_4"], "model.backbone.freeze is never in force"
    line = timeline(None, True, {5: False, 2: "last_1"})
    assert [line.freeze_at(e) for e in (0, 1, 2, 4, 5, 9)] == [True, True, "last_1", "last_1", False, False]
    assert set(line.freezes.values()) == {True, "last_1", False}
    both = timeline([StageConfig("a", 1), StageConfig("b", 2, lr=1e-5)], True, {1: "last_1", 2: False})
    assert [both.freeze_at(e) for e in range(3)] == [True, "last_1", False]


def test_what_is_said():
    line = timeline(TWO)
    assert [line.describe(e) for e in (0, 7)] == ["stage pretrain: epochs 0–7, lr 0.001, backbone freeze true"] * 2
    assert line.describe(8) == "stage finetune: epochs 8–9, lr 0.0001, backbone freeze last_4"
    assert timeline([StageConfig("a", 1)]).describe(0) == "stage a: epoch 0, lr 0.001, backbone freeze true"
    line = timeline(None, True, {2: "last_1", 5: False})
    words = [None, None, *["from epoch 2 on: backbone freeze last_1"] * 3, "from epoch 5 on: backbone freeze false"]
    assert [line.describe(e) for e in range(6)] == words


@pytest.mark.parametrize(
    ("stages", "unfreeze", "limits", "starts", "words"),
    [
        (TWO, None, (50, -1), {}, r"trainer\.max_epochs is 50, .* has 10 epochs \(pretrain 8, finetune 2\); leave"),
        (TWO, None, (-1, -1), {}, r"trainer\.max_epochs is -1"),
        (TWO, None, (10, 500), {}, r"trainer\.max_steps is 500, .*leave max_steps out"),
        (
            None,
            None,
            (5, -1),
            {"smoothness": 5},
            r"smoothness\.start_epoch is 5, but the run has 5 epochs, .*never act",
        ),
        (TWO, None, (10, -1), {"smoothness": 10}, "the run has 10 epochs"),
        (TWO[::-1], None, (10, -1), {"smoothness": 2}, "is 2, but no stage of model.stages from then on has consist"),
        (None, {4: False}, (4, None), {}, r"model\.backbone\.unfreeze\.4: the run has 4 epochs, counted from 0"),
    ],
)
def test_lengths_that_do_not_fit(stages, unfreeze, limits, starts, words):
    with pytest.raises(ConfigError, match=words) as caught:
        timeline(stages, unfreeze=unfreeze).check_length(*limits, starts)
    assert "\n" not in str(caught.value)


def test_lengths_that_fit():
    timeline(TWO).check_length(10, -1, {"smoothness": 9})
    timeline(TWO).check_length(None, None, {"smoothness": 0})
    timeline(None, unfreeze={3: False}).check_length(4, -1, {"smoothness": 3})
    timeline(None, unfreeze={30: False}).check_length(-1, 40_000, {"smoothness": 99})  # known when the data are


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StageConfig("a", 0), "'a' has 0 epochs"),
        (lambda: StageConfig("a", 1, lr=math.nan), "'a' has lr nan"),
        (lambda: StageConfig("a", 1, freeze="last_0"), "freeze of stage 'a': got 'last_0'"),
        (lambda: timeline(TWO, unfreeze={2: False}), "unfreeze and freeze of stage 'pretrain'"),
        (lambda: BackboneConfig(unfreeze={0: False}), r"unfreeze\.0: epochs are counted"),
        (
            lambda: BackboneConfig(unfreeze={2: "last_4", 5: "last_4"}),
            r"unfreeze\.5 is 'last_4', after 'last_4'; it mu",
        ),
        (lambda: BackboneConfig(freeze=False, unfreeze={1: True}), r"unfreeze\.1 is 'true', after 'false'"),
        (lambda: BackboneConfig(unfreeze={1: "all"}), r"unfreeze\.1: got 'all', use true, false or last_<n>"),
        (lambda: BackboneConfig(layer_decay=0.0), r"layer_decay is 0\.0"),
        (lambda: BackboneConfig(layer_decay=1.1), r"layer_decay is 1\.1"),
        (
            lambda: tiny_module(stages=[StageConfig("a", 1, freeze="last_5")]),
            "freeze of stage 'a': 'last_5', but .* 4 bl",
        ),
        (lambda: tiny_module(backbone=tiny(unfreeze={1: "last_7"})), r"unfreeze\.1: 'last_7', but test_convnext has 4"),
    ],
)
def test_bad_settings(make, words):
    with pytest.raises(ConfigError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def tiny(name="test_convnext", freeze=True, **options):
    return BackboneConfig(name=name, pretrained=False, freeze=freeze, **options)


# ── layers of the backbone ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "blocks", "places"),
    [
        ("test_vit", 6, {"cls_token": 0, "patch_embed.": 0, "blocks.0.": 1, "blocks.5.": 6, "norm.": 7}),
        ("test_convnext", 4, {"stem.": 0, "stages.0.": 1, "stages.3.": 4}),
        ("test_resnet", 4, {"conv1.": 0, "bn1.": 0, "layer1.": 1, "layer4.": 4}),
        ("test_efficientnet", 5, {"conv_stem.": 0, "blocks.0.": 1, "blocks.3.": 4, "blocks.4.": 5}),
    ],
)
def test_places_of_parameters(name, blocks, places):
    net = Backbone(tiny(name))
    numbers = {key.removeprefix("model."): number for key, number in net.unit_numbers().items()}
    assert len(net.units) >= blocks - 1
    assert list(numbers.values()) == sorted(numbers.values()), "in the order of computation"
    for prefix, number in places.items():
        assert {n for key, n in numbers.items() if key.startswith(prefix)} == {number}, prefix
    for last in range(1, len(net.units) + 1):
        net.set_freeze(f"last_{last}")
        training = {n for n, p in net.named_parameters() if p.requires_grad}
        assert training == net.trainable_names(f"last_{last}")
        assert {numbers[n.removeprefix("model.")] for n in training} >= {len(net.units) - last + 1}
        assert min(numbers[n.removeprefix("model.")] for n in training) == len(net.units) - last + 1
    with pytest.raises(ConfigError, match=f"'last_9', but {name} has {len(net.units)} blocks"):
        net.set_freeze("last_9")


def test_rates_fall_towards_the_image():
    net = M2HNet(
        {"depth": 1}, "m2h-small", channels=8, head_channels=8, backbone=tiny("test_vit", False, layer_decay=0.5)
    )
    groups = {group["name"]: group for group in net.parameter_groups()}
    names = dict(zip(map(id, net.parameters()), dict(net.named_parameters()), strict=True))
    for number in range(8):
        group = groups.get(f"backbone_layer_{number:02d}") or groups[f"backbone_layer_{number:02d}_no_decay"]
        assert group["lr_factor"] == pytest.approx(0.1 * 0.5 ** (7 - number))
        assert {
            names[id(p)].removeprefix("backbone.model.").rsplit(".", 1)[0].split(".")[0] for p in group["params"]
        } <= ({"patch_embed"} if number == 0 else {"norm"} if number == 7 else {"blocks"})
    assert groups["backbone_layer_03_no_decay"]["lr_factor"] == groups["backbone_layer_03"]["lr_factor"]
    assert not groups["backbone_layer_03_no_decay"]["decay"]
    assert groups["network"]["lr_factor"] == 1
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters()), "each once"
    assert "backbone" not in groups


def test_groups_hold_what_ever_trains():
    net = M2HNet({"depth": 1}, "m2h-small", channels=8, head_channels=8, backbone=tiny("test_vit", layer_decay=0.8))
    assert {g["name"] for g in net.parameter_groups()} == {"network", "network_no_decay"}
    groups = net.parameter_groups([True, "last_1", "last_2"])
    assert {g["name"].removesuffix("_no_decay") for g in groups} == {
        "network", *(f"backbone_layer_{number:02d}" for number in (5, 6, 7)),
    }  # fmt: skip
    net.set_freeze("last_2")
    now = net.parameter_groups()
    assert [(g["name"], g["lr_factor"], list(map(id, g["params"]))) for g in now] == [
        (g["name"], g["lr_factor"], list(map(id, g["params"]))) for g in groups
    ]


def test_a_state_of_other_groups_is_refused():
    stored = [{"name": "network", "params": [0, 1]}, {"name": "balancing", "params": [2]}]
    check_groups(stored, [{"name": "network", "params": ["a", "b"]}])
    with pytest.raises(
        CheckpointError, match=r"has tensors of network 2, this run trains backbone 1, network 2: model"
    ):
        check_groups(stored, [{"name": "backbone", "params": ["c"]}, {"name": "network", "params": ["a", "b"]}])


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SILENT = QUIET | {"limit_val_batches": 0}


class Watch(Callback):
    """Notes per step what trained, what moved and how fast."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = {n: p.detach().clone() for n, p in pl_module.net.backbone.named_parameters()}
        self.rate = {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = dict(pl_module.net.backbone.named_parameters())
        moved = {n for n, p in now.items() if not torch.equal(p, self.before[n])}
        trains = {n for n, p in now.items() if p.requires_grad}
        graded = {n for n, p in now.items() if p.grad is not None}
        self.steps.append((trainer.current_epoch, trains, graded, moved, self.rate))


def watched(tmp_path, max_epochs, train=4, **changes):
    L.seed_everything(0)
    module = tiny_module(optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.5), **changes)
    watch = Watch()
    trainer = L.Trainer(**SILENT, default_root_dir=tmp_path, max_epochs=max_epochs, callbacks=[watch])
    trainer.fit(module, Planes(train=train))
    return module, watch.steps


def test_stages_freeze_and_set_rates(tmp_path, caplog):
    stages = [
        StageConfig("whole", 1, freeze=False),
        StageConfig("still", 1, lr=5e-4, freeze=True, consistency=False),
        StageConfig("tail", 1, lr=1e-4, freeze="last_2"),
    ]
    consistency = ConsistencyConfig(smoothness={"weight": 0.1})
    schedule = ScheduleConfig("poly", warmup=0.5, power=1.0)
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        module, steps = watched(
            tmp_path, 3, stages=stages, schedule=schedule, consistency=consistency, backbone=tiny(lr_factor=0.1)
        )
    backbone = module.net.backbone
    sets = [backbone.trainable_names(stage.freeze) for stage in stages]
    assert [epoch for epoch, *_ in steps] == [0, 0, 1, 1, 2, 2]
    for epoch, trains, graded, moved, _ in steps:
        # What is frozen again has running averages and weight decay 0.5, and stays where it is.
        assert trains == graded == moved == sets[epoch]
    rates = [1e-3, 1e-3, 5e-4, 5e-4, 1e-4, 1e-4]  # two steps each: one warms up, one is the peak
    assert [step[-1]["network"] for step in steps] == pytest.approx(rates)
    assert [step[-1]["backbone"] for step in steps] == pytest.approx([r / 10 for r in rates])
    millions = [
        sum(p.numel() for n, p in module.net.named_parameters() if not n.startswith("backbone.") or n[9:] in names)
        / 1e6
        for names in sets
    ]
    expected = [
        f"stage whole: epoch 0, lr 0.001, backbone freeze false ({millions[0]:.2f} M trainable), consistency on",
        f"stage still: epoch 1, lr 0.0005, backbone freeze true ({millions[1]:.2f} M trainable), consistency off",
        f"stage tail: epoch 2, lr 0.0001, backbone freeze last_2 ({millions[2]:.2f} M trainable), consistency on",
    ]
    assert [line for line in caplog.messages if line in expected] == expected


def test_unfreezing_by_epoch_with_rates_by_layer(tmp_path, caplog):
    config = tiny(lr_factor=0.5, layer_decay=0.5, unfreeze={1: "last_1", 2: "last_3"})
    schedule = ScheduleConfig("constant", warmup=0.0)
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        module, steps = watched(tmp_path, 3, train=2, backbone=config, schedule=schedule)
    sets = [module.net.backbone.trainable_names(freeze) for freeze in (True, "last_1", "last_3")]
    assert [len(s) for s in sets] == sorted({len(s) for s in sets}), "each trains more"
    assert [step[1:4] for step in steps] == [(names, names, names) for names in sets]
    rates = {name.removesuffix("_no_decay"): rate for name, rate in steps[0][-1].items()}
    assert rates == pytest.approx(
        {"network": 1e-3, **{f"backbone_layer_{n:02d}": 5e-4 * 0.5 ** (5 - n) for n in (2, 3, 4)}}
    )
    said = [line.split(" (")[0] for line in caplog.messages if line.startswith("from epoch") and ";" not in line]
    assert said == [f"from epoch {e} on: backbone freeze last_{n}" for e, n in ((1, 1), (2, 3))]


def test_a_compiled_network_follows():
    """Whether a parameter trains is a guard of the compiled code: a graph made for frozen ones is not used again."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain, compiled = (Backbone(tiny(freeze=True)) for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    compiled.compile(backend="eager", dynamic=False)
    image = torch.randn(1, 3, 32, 32)
    for freeze, trained in ((True, 0), ("last_1", 22), (True, 0)):
        gradients = []
        for net in (plain, compiled):
            net.set_freeze(freeze)
            out = sum(stage.map.square().sum() for stage in net(image))
            if trained:
                out.backward()
            gradients.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
            net.zero_grad()
        assert len(gradients[0]) == trained
        torch.testing.assert_close(*gradients)


def test_a_trainer_of_another_length_is_refused(tmp_path):
    module = tiny_module(stages=[StageConfig("a", 2)])
    trial = L.Trainer(**SILENT, default_root_dir=tmp_path, fast_dev_run=True)
    trial.fit(module, Planes())
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs is 3, but model\.stages has 2 epochs"):
        L.Trainer(**SILENT, default_root_dir=tmp_path, max_epochs=3).fit(module, Planes())
    with pytest.raises(ConfigError, match=r"trainer\.max_steps is 2"):
        L.Trainer(**SILENT, default_root_dir=tmp_path, max_epochs=2, max_steps=2).fit(module, Planes())
    module = tiny_module(consistency=ConsistencyConfig(smoothness={"weight": 0.1, "start_epoch": 2}))
    with pytest.raises(ConfigError, match=r"start_epoch is 2, but the run has 2 epochs"):  # 3 steps an epoch
        L.Trainer(**SILENT, default_root_dir=tmp_path, max_epochs=-1, max_steps=6).fit(module, Planes())
    with pytest.raises(ConfigError, match="set no limit"):
        L.Trainer(**SILENT, default_root_dir=tmp_path, max_epochs=-1).fit(module, Planes())


# ── resume ───────────────────────────────────────────────────────────────────────────────────────────────────────────

STAGES = (
    "[{name: pretrain, epochs: 1, freeze: true, consistency: false}, "
    "{name: finetune, epochs: 2, lr: 1e-3, freeze: last_2}]"
)


class KeepAll(Callback):
    """Writes a checkpoint after every step and at the end of every epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "kept" / f"step{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "kept" / f"end{trainer.current_epoch}.ckpt")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of two stages, two steps an epoch, with all its checkpoints."""
    root = tmp_path_factory.mktemp("resume")
    text = TINY.replace("lr_factor: 1.0}", "lr_factor: 1.0, layer_decay: 0.7, drop_path: 0.3}")
    text = text.replace(
        "  max_epochs: 1\n", "  limit_val_batches: 0\n  callbacks: [{class_path: test_stages.KeepAll}]\n"
    )
    text = text.replace("wandb: disabled", "pictures: 0, wandb: disabled")
    text = text.replace("data:", f"  consistency: {{smoothness: {{weight: 0.1}}}}\n  stages: {STAGES}\ndata:")
    words = ["--run.root", root / "runs", "--run.id", "whole"]
    assert m2h("fit", "--config", write(root / "tiny.yaml", text), *words) == 0
    return root / "runs" / "tiny" / "whole"


def copy_at(whole, target, name):
    """A run that died right after one of the checkpoints was written."""
    (target / "checkpoints").mkdir(parents=True)
    for file in ("config.yaml", "run.json", "metrics.csv"):
        shutil.copy(whole / file, target)
    shutil.copy(whole / "kept" / f"{name}.ckpt", target / "checkpoints")
    return target


def last(run):
    return torch.load(run / "kept" / "end2.ckpt", weights_only=True)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_max_epochs_follow_the_stages(whole):
    result = json.loads((whole / "result.json").read_text())
    assert result["epochs"] == 3 and result["steps"] == 6 and result["budget"]["max_epochs"] == 3
    assert "max_epochs: null" in (whole / "config.yaml").read_text()


@pytest.mark.parametrize("name", ["step1", "step2", "end0", "step3"])
def test_resumed_in_either_stage_and_at_the_border(whole, tmp_path, name):
    run = copy_at(whole, tmp_path / "cut", name)
    assert m2h("fit", "--run.resume", run) == 0
    ended, expected = last(run), last(whole)
    assert set(map(int, expected["optimizer_states"][0]["state"])), "there is a state to compare"
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(ended[key], expected[key]), key


def test_a_finished_run_goes_on_with_longer_stages(whole, tmp_path, capsys):
    run = copy_at(whole, tmp_path / "cut", "end2")
    shutil.copy(whole / "result.json", run)
    assert m2h("fit", "--run.resume", run) == 0
    assert "is finished" in (said := capsys.readouterr().out) and "--model.stages" in said
    assert m2h("fit", "--run.resume", run, "--trainer.max_epochs", "5") == 2
    assert "trainer.max_epochs is 5, but model.stages" in capsys.readouterr().err
    longer = STAGES.replace("epochs: 2", "epochs: 3")
    assert m2h("fit", "--run.resume", run, "--model.stages", longer) == 0
    assert json.loads((run / "result.json").read_text())["epochs"] == 4
    capsys.readouterr()
    assert m2h("fit", "--run.resume", run, "--model.stages", longer.replace("last_2", "last_1")) == 0, "it is finished"
    capsys.readouterr()
    wider = longer.replace("last_2", "last_3").replace("epochs: 3", "epochs: 4")
    assert m2h("fit", "--run.resume", run, "--model.stages", wider) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "checkpoint's optimiser" in lines[-1] and "model.init_weights" in lines[-1]


# ── command line ─────────────────────────────────────────────────────────────────────────────────────────────────────

WRONG = {
    "limit against stages": (
        ["--model.stages", "[{name: a, epochs: 2}]", "--trainer.max_epochs", "3"],
        ["trainer.max_epochs is 3", "model.stages has 2 epochs (a 2)", "leave max_epochs out"],
    ),
    "starts too late": (
        ["--model.consistency.smoothness.weight", "1", "--model.consistency.smoothness.start_epoch", "1"],
        ["model.consistency.smoothness.start_epoch is 1", "the run has 1 epochs", "start it earlier"],
    ),
    "in no stage": (
        ["--model.consistency.smoothness.weight", "1", "--model.stages", "[{name: a, epochs: 1, consistency: false}]"],
        ["model.consistency.smoothness.start_epoch is 0", "no stage of model.stages", "consistency: true"],
    ),
    "unfrozen too late": (["--model.backbone.unfreeze", "{1: false}"], ["unfreeze.1", "the run has 1 epochs"]),
    "no epochs": (["--model.stages", "[{name: a, epochs: 0}]"], ["stage 'a' has 0 epochs"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_words(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = TINY.replace("freeze: false", "freeze: true") if "unfr" in case else TINY
    config = config.replace("  max_epochs: 1\n", "") if "stage" in case else config
    words, parts = WRONG[case]
    assert m2h("fit", "--config", write(tmp_path / "tiny.yaml", config), *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    for part in parts:
        assert part in lines[0], lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_the_line_names_the_file(tmp_path, capsys):
    file = write(tmp_path / "tiny.yaml", TINY + "\n")
    assert m2h("fit", "--config", file, "--model.stages", "[{name: a, epochs: 2}]") == 2
    assert f"trainer.max_epochs is 1 ({file}:" in capsys.readouterr().err


# ── several processes ────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_processes_agree_on_what_trains_since_then(tmp_path):
    """Of parameters that train later, DistributedDataParallel would average nothing; of frozen ones it would wait."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = process_environment(tmp_path)
    if "PYTHONPYCACHEPREFIX" not in os.environ:
        del environment["PYTHONPYCACHEPREFIX"]  # one start: compiling all modules anew would not pay
    command = [sys.executable, Path(__file__).parent / "staged_processes.py", tmp_path, str(port)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["images"] != second["images"], "else they would agree by themselves"
    for run, epochs in first["gradients"].items():
        assert [sorted(names) for names in epochs] == [sorted(names) for names in second["gradients"][run]]
        for names, others in zip(epochs, second["gradients"][run], strict=True):
            assert names == others, run
    assert [len(names) for names in first["gradients"]["stages"]] == first["trained"]
    assert len(set(first["trained"])) == 3
    assert first["weights"] == second["weights"]
