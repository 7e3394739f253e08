"""Adapters on the backbone, the average of the weights, and the summary of what trains."""

import json
import sys
import warnings

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from timm.models.vision_transformer import Attention

from cli_helpers import TINY, m2h, write
from m2h_lightning.errors import ConfigError, MissingExtraError
from m2h_lightning.module import M2HModule
from m2h_lightning.network import BackboneConfig, M2HNet, WMCAConfig
from m2h_lightning.network.lora import base_name, is_adapter
from m2h_lightning.recipe.ema import CURRENT, WeightEMA, decay_at
from samples import Planes, tiny_module

RESNET = {"name": "test_resnet", "pretrained": False, "freeze": False, "lr_factor": 1.0}  # it has batch norms


def net(rank=0, seed=0, checkpointing=False, **backbone):
    torch.manual_seed(seed)
    config = BackboneConfig(**{"name": "test_vit", "pretrained": False, "lora_rank": rank, **backbone})
    made = M2HNet(
        {"semseg": 3, "depth": 1},
        preset="m2h-small",
        channels=8,
        head_channels=8,
        backbone=config,
        wmca=WMCAConfig(heads=2),
        gradient_checkpointing=checkpointing,
    )
    return made.eval()


def like(plain, adapted):
    """Give a network with adapters the weights of one without."""
    state = plain.state_dict()
    adapted.load_state_dict({k: v if is_adapter(k) else state[base_name(k)] for k, v in adapted.state_dict().items()})
    return adapted


def same(one, other, image, tolerance=0.0):
    with torch.no_grad():
        return all(
            (a - b).abs().max() <= tolerance for a, b in zip(one(image).values(), other(image).values(), strict=True)
        )


# ── adapters ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [
        ({}, 12),  # qkv and proj of six blocks; the patch embedding's "proj" is in none
        ({"lora_targets": ["proj", "blocks.1.mlp.fc1"], "lora_alpha": 3.0}, 7),
        ({"name": "test_convnext", "lora_targets": ["fc1", "fc2"]}, 18),
        ({"name": "test_resnet", "lora_targets": ["conv2"], "lora_alpha": 5}, 4),
    ],
)
def test_adapters_change_nothing_at_first_and_then_add_their_product(backbone, layers):
    plain, image = net(**backbone), torch.randn(2, 3, 48, 64)
    adapted = like(plain, net(rank=2, seed=1, **backbone))
    assert len(adapted.backbone.adapted) == layers
    assert same(plain, adapted, image), "B is zero"

    names = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad and "backbone" in name}
    assert names == {n for n in adapted.state_dict() if is_adapter(n)}, "the rest of the backbone is frozen"
    prefix = f"backbone.model.{adapted.backbone.adapted[0]}"
    assert {f"{prefix}.base_layer.weight", f"{prefix}.lora_A.default.weight", f"{prefix}.lora_B.default.weight"} <= set(
        adapted.state_dict()
    )

    generator = torch.Generator().manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if is_adapter(name):
            parameter.data.normal_(0, 0.2, generator=generator)
    state = adapted.state_dict()
    by_hand = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    for name in adapted.backbone.adapted:
        a, b = (state[f"backbone.model.{name}.lora_{x}.default.weight"] for x in "AB")
        product = torch.einsum("or,rixy->oixy", b[..., 0, 0], a) if a.ndim == 4 else b @ a
        by_hand[f"backbone.model.{name}.weight"] += (backbone.get("lora_alpha", 4.0) / 2) * product
    expected = net(**backbone)
    expected.load_state_dict(by_hand)
    # Layer scales and a zeroed last norm hide the blocks of the pyramids: the weights are compared below.
    assert same(expected, adapted, image, 1e-5)
    assert same(plain, adapted, image, 1e-5) == ("name" in backbone)

    adapted.backbone.merge_lora()
    merged = adapted.state_dict()
    assert list(merged) == list(plain.state_dict())
    assert all(torch.allclose(merged[name], by_hand[name], atol=1e-6) for name in merged)
    assert same(expected, adapted, image, 1e-5)
    assert not adapted.backbone_parameters()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_train_whatever_is_frozen(checkpointing):
    adapted = net(rank=2, checkpointing=checkpointing, layer_decay=0.5)
    for freeze in (True, "last_2", False):
        adapted.set_freeze(freeze)
        adapted.train()
        assert adapted.backbone.model.blocks[0].mlp.training == (freeze is False)
        sum(raw.square().mean() for raw in adapted(torch.randn(1, 3, 32, 48)).values()).backward()
        backbone = {n: p for n, p in adapted.backbone.named_parameters() if p.requires_grad}
        assert len([n for n in backbone if is_adapter(n)]) == 24
        assert all(p.grad is not None for p in backbone.values())
        assert all((p.grad != 0).any() for n, p in backbone.items() if "lora_B" in n)
        assert ("model.blocks.4.attn.qkv.base_layer.weight" in backbone) == (freeze is not True)
        assert ("model.blocks.0.attn.qkv.base_layer.weight" in backbone) == (freeze is False)
    groups = {group["name"]: group["lr_factor"] for group in adapted.parameter_groups([True])}
    # The adapters of block 1 of 6 are as slow as the block.
    assert groups["backbone_layer_01"] == pytest.approx(0.1 * 0.5**6)


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ({"lora_targets": ["qvk"]}, r"lora_targets: 'test_vit' has no layer 'qvk' .*qkv, proj, fc1, fc2"),
        ({"name": "test_convnext"}, r"no layer 'qkv' \(the default\) .*fc1, fc2"),
        ({"lora_targets": []}, "lora_targets is empty"),
        ({"lora_rank": -1}, "lora_rank is -1"),
        ({"lora_alpha": 0.0}, "lora_alpha is 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    ],
)
def test_adapters_that_cannot_be(backbone, words):
    with pytest.raises(ConfigError, match=words) as error:
        net(**{"lora_rank": 2, **backbone})
    assert "\n" not in str(error.value)


def test_an_adapter_that_the_model_goes_past_is_refused(monkeypatch):
    """Some families multiply with a layer's weight and never call the layer."""

    def past(self, x, *args, **kwargs):
        qkv = F.linear(x, self.qkv.weight, self.qkv.bias).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).flatten(2))

    monkeypatch.setattr(Attention, "forward", past)
    with pytest.raises(ConfigError, match=r"without calling them \(blocks\.0\.attn\.qkv\)"):
        net(rank=2)


def test_adapters_need_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"'peft': pip install 'm2h-lightning\[lora\]'"):
        net(rank=2)
    net(rank=0)


# ── the average of the weights ──────────────────────────────────────────────────────────────────────────────────────


class Watch(Callback):
    """Keeps what the network held after every optimiser step and in validation."""

    def __init__(self):
        self.steps, self.validated, self.done = [], [], 0

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step > self.done:
            self.done = trainer.global_step
            self.steps.append(weights(pl_module))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0 and not trainer.sanity_checking:
            self.validated.append(weights(pl_module))


class Bare(ModelCheckpoint):
    """A second kind of checkpoint, as far as Lightning knows."""


def weights(module):
    return {k: v.detach().clone() for k, v in module.state_dict().items() if k.startswith("net.")}


def averages(steps, decay):
    """The averages after each step, from the definition."""
    found = [steps[0]]
    for n, now in enumerate(steps[1:], start=1):
        d = decay_at(decay, n)
        found.append({k: (d * v + (1 - d) * now[k] if v.is_floating_point() else now[k]) for k, v in found[-1].items()})
    return found


def close(one, other):
    return all(torch.allclose(v.double(), other[k].double(), rtol=1e-5, atol=1e-6) for k, v in one.items())


def trainer(tmp_path, **settings):
    quiet = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False, "max_epochs": 2,
        "enable_model_summary": False, "default_root_dir": tmp_path, "enable_checkpointing": False,
        "limit_val_batches": 1, "limit_test_batches": 1,
    }  # fmt: skip
    return L.Trainer(**(quiet | settings))


def test_the_decay_grows_to_what_is_asked_for():
    assert [decay_at(0.5, n) for n in (1, 2, 5, 8, 9, 1000)] == [2 / 11, 3 / 12, 6 / 15, 0.5, 0.5, 0.5]
    assert decay_at(0.999, 10**9) == 0.999


def test_the_average_is_what_is_validated_stored_and_tested(tmp_path):
    """Against the definition, with batch statistics, a frozen part and accumulated batches."""
    L.seed_everything(0)
    backbone = BackboneConfig(**{**RESNET, "freeze": "last_1"})
    module = tiny_module(backbone=backbone, ema=0.4, balancing={"name": "uncertainty"}, optimizer={"lr": 0.01})
    watch = Watch()
    save = {"dirpath": tmp_path, "save_top_k": -1, "every_n_train_steps": 1, "auto_insert_metric_name": False}
    whole = ModelCheckpoint(**save, filename="{step}")
    bare = Bare(**save, filename="bare{step}", save_weights_only=True)
    run = trainer(
        tmp_path,
        max_epochs=3,
        accumulate_grad_batches=2,
        callbacks=[whole, bare, watch],
        enable_checkpointing=True,
        log_every_n_steps=1,
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run.fit(module, Planes(train=8))
    assert not [str(w.message) for w in told if "verag" in str(w.message) or "EMA" in str(w.message)]

    assert run.global_step == 6 and len(watch.steps) == 6, "twelve batches, in pairs"
    expected = averages(watch.steps, 0.4)
    assert not close(expected[-1], watch.steps[-1])
    assert [close(seen, expected[i]) for seen, i in zip(watch.validated, (1, 3, 5), strict=True)] == [True] * 3
    frozen = [n for n, p in module.named_parameters() if not p.requires_grad]
    assert frozen and all(torch.equal(expected[0][n], module.state_dict()[n]) for n in frozen)
    counters = [k for k in expected[-1] if k.endswith("num_batches_tracked") and expected[-1][k] > 0]
    assert counters and all(module.state_dict()[k] == watch.steps[-1][k] == 12 for k in counters)
    assert close(expected[-1], weights(module)), "and it stays in the module"

    for step in range(1, 7):
        stored = torch.load(tmp_path / f"{step}.ckpt", weights_only=True)
        assert close(expected[step - 1], stored["state_dict"])
        assert all(torch.equal(v, stored[CURRENT][k]) for k, v in watch.steps[step - 1].items())
        assert close(expected[step - 1], torch.load(tmp_path / f"bare{step}.ckpt", weights_only=True)["state_dict"])
    uncertainty = [k for k in stored["state_dict"] if k.startswith("objective.")]
    assert uncertainty and all((stored["state_dict"][k] != stored[CURRENT][k]).any() for k in uncertainty)

    # Once training is over the same trainer leaves the module alone, and still knows which is which.
    run.validate(module, Planes(), verbose=False)
    assert close(expected[-1], weights(module))
    run.test(module, Planes(), ckpt_path=tmp_path / "2.ckpt", weights_only=True, verbose=False)
    assert close(expected[1], weights(module)), "the average of that checkpoint"
    loaded = M2HModule.load_from_checkpoint(tmp_path / "6.ckpt", weights_only=True)
    assert close(expected[-1], weights(loaded))

    # A run without an average goes on from the training weights.
    alone = tiny_module(backbone=backbone, balancing={"name": "uncertainty"})
    trainer(tmp_path, max_epochs=3).fit(alone, Planes(train=8), ckpt_path=tmp_path / "6.ckpt", weights_only=True)
    assert all(torch.equal(v, watch.steps[-1][k]) for k, v in weights(alone).items())


def test_a_checkpoint_after_training_or_inside_a_validation_holds_both(tmp_path):
    class Inside(Callback):
        def on_validation_batch_start(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / "inside.ckpt")

    L.seed_everything(0)
    module, watch = tiny_module(ema=0.3), Watch()
    run = trainer(tmp_path, callbacks=[watch, Inside()], num_sanity_val_steps=0)
    run.fit(module, Planes())
    run.save_checkpoint(tmp_path / "after.ckpt")
    for name in ("inside", "after"):
        stored = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        assert close(averages(watch.steps, 0.3)[-1], stored["state_dict"])
        assert all(torch.equal(v, stored[CURRENT][k]) for k, v in watch.steps[-1].items())


def test_the_average_lives_where_the_module_trains(tmp_path):
    """Lightning copies the module before it moves it; "meta" stands for a GPU."""
    module, ema = tiny_module(), WeightEMA(0.9)
    run = trainer(tmp_path)
    ema.setup(run, module, "fit")
    ema.on_fit_start(run, module.to("meta"))
    assert all(p.is_meta for p in ema._average_model.module.parameters())


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_decay_that_averages_nothing(decay):
    with pytest.raises(ConfigError, match=r"model\.ema is .*as 0\.999"):
        tiny_module(ema=decay)


CONFIG = TINY.replace("name: test_convnext, pretrained: false, freeze: false", "NAME").replace(
    "  num_sanity_val_steps: 0",
    """  num_sanity_val_steps: 0
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {every_n_train_steps: 1, save_last: true, save_top_k: 0, dirpath: DIRPATH}
    - class_path: samples.Crash
""",
)


def test_adapters_and_average_go_on_after_a_crash_as_if_nothing_happened(tmp_path, monkeypatch, capsys):
    """Through the command line, inside an epoch; then the summary of the same configuration."""
    monkeypatch.chdir(tmp_path)
    text = CONFIG.replace(
        "NAME", "name: test_vit, pretrained: false, freeze: true, lora_rank: 2, layer_decay: 0.5"
    ).replace("model:\n", "model:\n  ema: 0.8\n  balancing: {name: dwa}\n")
    text = text.replace("max_epochs: 1", "max_epochs: 2")
    found = {}
    for name in ("whole", "cut"):
        folder = tmp_path / "runs" / "tiny" / name
        write(tmp_path / "tiny.yaml", text.replace("DIRPATH", str(folder / "checkpoints")))
        start = ["fit", "--config", "tiny.yaml", "--run.id", name, "--run.pictures", 0]
        start += ["--trainer.limit_val_batches", 1]
        if name == "cut":
            (tmp_path / "crash-after").write_text("3")
            with pytest.raises(RuntimeError, match="out of luck"):
                m2h(*start)
            start = ["fit", "--run.resume", folder]
        assert m2h(*start) == 0
        found[name] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    whole, cut = found["whole"], found["cut"]
    for part in ("state_dict", CURRENT):
        assert all(torch.equal(cut[part][key], value) for key, value in whole[part].items()), part
    assert whole["averaging_state"]["n_averaged"] == cut["averaging_state"]["n_averaged"] == 4
    assert any((whole[CURRENT][k] != v).any() for k, v in whole["state_dict"].items() if is_adapter(k))
    result = json.loads((tmp_path / "runs" / "tiny" / "cut" / "result.json").read_text())
    assert result["parameters"]["trainable"] < result["parameters"]["total"] / 2

    capsys.readouterr()
    stages = "[{name: pre, epochs: 1}, {name: fine, epochs: 1, freeze: last_1}]"
    assert m2h("summary", "--config", "tiny.yaml", "--size", "32", "48", "--model.stages", stages) == 0
    lines = capsys.readouterr().out.splitlines()
    numbers = sum(v.numel() for k, v in whole["state_dict"].items() if is_adapter(k))
    assert (
        f"LoRA: rank 2, alpha 4, on 12 layers (qkv, proj), {numbers / 1e6:.3f} M parameters, lr 1 × the network's"
        in lines
    )
    # Unit 1 of 6 is 6 from the end; "last_1" trains the norm after the last unit, too, which is not slowed down.
    assert "layer decay 0.5: backbone's lr from 1.6e-06 in the first layers that train to 0.0001" in lines
    plan = next(line for line in lines if line.startswith("stage pre"))
    assert "stage pre: epoch 0, lr 0.0001, backbone freeze true" in plan
    assert "stage fine: epoch 1, lr 0.0001, backbone freeze last_1" in plan
    assert "EMA: average of the weights with decay 0.8, which is validated and tested" in lines
    assert any(line.startswith("balancing dwa: ") for line in lines)
