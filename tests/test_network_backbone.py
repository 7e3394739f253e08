"""Backbones: families of timm, freezing, and weights that are accounted for tensor by tensor."""

from __future__ import annotations

import time

import pytest
import timm
import torch
from torch import nn

from m2h_lightning.errors import CheckpointError, ConfigError
from m2h_lightning.network import Backbone, BackboneConfig, M2HNet, weights

TASKS = {"semseg": 4, "depth": 1}


def backbone(name="test_vit", freeze=True, **options):
    torch.manual_seed(0)
    return Backbone(BackboneConfig(name=name, pretrained=False, freeze=freeze, **options))


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ── families ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "test_vit4", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("size", [(64, 80), (112, 48)])
def test_plain_transformers(name, size):
    net = backbone(name).eval()
    stages = net(torch.randn(2, 3, *size))
    assert net.plain
    assert len(stages) == 4
    for stage in stages:
        assert stage.map.shape == (2, net.channels[0], size[0] // net.multiple, size[1] // net.multiple)
        assert stage.map.stride(1) == 1  # channels-last
        assert stage.summary.shape == (2, net.channels[0])


@pytest.mark.parametrize(
    "name", ["test_convnext", "test_resnet", "test_efficientnet", "test_mambaout", "swin_tiny_patch4_window7_224"]
)
def test_pyramids(name):
    net = backbone(name).eval()
    stages = net(torch.randn(1, 3, 96, 160))
    assert not net.plain
    assert net.strides == [4, 8, 16, 32]
    for stage, stride, channels in zip(stages, net.strides, net.channels, strict=True):
        assert stage.map.shape == (1, channels, 96 // stride, 160 // stride)
        assert stage.map.is_contiguous(memory_format=torch.channels_last)
        assert stage.summary is None


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_tiny_patch16_dinov3_qkvb"])
def test_registers_are_dropped(name):
    net = M2HNet(TASKS, "m2h-small", channels=16, backbone=BackboneConfig(name=name, pretrained=False)).eval()
    assert net.backbone.model.num_prefix_tokens == 5
    with torch.no_grad():
        assert net(torch.randn(1, 3, 70, 101))["semseg"].shape == (1, 4, 70, 101)
        x = torch.randn(1, 3, *(2 * (4 * net.backbone.multiple,)))
        last = net.backbone(x)[-1]
        tokens = net.backbone.model.forward_features(x)
    torch.testing.assert_close(last.summary, tokens[:, 0])
    torch.testing.assert_close(last.map.flatten(2).transpose(1, 2), tokens[:, 5:])


def test_dinov2_small_at_224():
    net = backbone("vit_small_patch14_dinov2.lvd142m").eval()
    assert net.taps == [2, 5, 8, 11]
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        stages, tokens = net(x), net.model.forward_features(x)
        _, expected = net.model.forward_intermediates(x, indices=[2, 5, 8, 11], norm=True)
    torch.testing.assert_close(stages[-1].summary, tokens[:, 0])
    torch.testing.assert_close([stage.map for stage in stages], expected)


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("vit_small_patch14_dinov2", [2, 5, 8, 11]),
        ("vit_large_patch14_dinov2", [5, 11, 17, 23]),
        ("vit_giant_patch14_dinov2", [9, 19, 29, 39]),
        ("vit_large_patch14_reg4_dinov2", [5, 11, 17, 23]),
        ("vit_base_patch16_dinov3", [2, 5, 8, 11]),
    ],
)
def test_stages_are_evenly_spaced(name, taps):
    with torch.device("meta"):  # shapes only: the giant would not fit otherwise
        assert backbone(name).taps == taps


def test_without_class_token_the_mean_is_the_summary():
    with torch.device("meta"):
        net = backbone("vit_base_patch16_siglip_224")
    assert net.model.cls_token is None
    net = backbone("test_vit")
    net._class_token = False
    stage = net(torch.randn(1, 3, 32, 32))[0]
    torch.testing.assert_close(stage.summary, stage.map.mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_smal_patch14_dinov2", "did you mean 'vit_small_patch14_dinov2'"),
        ("vit_small_patch14_dinov2.nonsense", "nonsense"),
        ("test_vit_relpos", "no images of other sizes"),
        ("test_maxvit", "no images of other sizes"),
    ],
)
def test_unusable_names(name, message):
    with pytest.raises(ConfigError, match="model.backbone.name") as caught, torch.device("meta"):
        backbone(name)
    assert message in one_line(caught)


def test_drop_path():
    net = backbone("test_vit2", freeze=False, drop_path=0.5)
    assert any(getattr(m, "drop_prob", 0.0) for m in net.modules())


# ── freezing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def small(freeze, name="test_vit", **options):
    torch.manual_seed(0)
    config = BackboneConfig(name=name, pretrained=False, freeze=freeze, **options)
    return M2HNet(TASKS, "m2h-small", channels=8, head_channels=4, backbone=config, **{})


def backward(net):
    net.zero_grad()
    for parameter in net.parameters():
        parameter.grad = None
    sum(m.square().sum() for m in net.train()(torch.randn(2, 3, 64, 64)).values()).backward()
    return {n for n, p in net.backbone.named_parameters() if p.grad is not None}


def test_frozen_gets_no_gradient_and_stays_in_evaluation_mode():
    net = small(True, "test_resnet").train()
    assert not backward(net)
    assert not any(m.training for m in net.backbone.model.modules())
    state = {k: v.clone() for k, v in net.backbone.state_dict().items()}
    net(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(net.backbone.state_dict(), state, rtol=0, atol=0)  # batch statistics too
    assert net.mstr.training


def test_unfrozen_trains():
    net = small(False, "test_resnet")
    assert backward(net) == {n for n, _ in net.backbone.named_parameters()}
    assert all(m.training for m in net.backbone.modules())
    net.eval()
    assert not any(m.training for m in net.backbone.modules())


@pytest.mark.parametrize(
    ("name", "frozen", "trained"),
    [
        ("test_vit", ["patch_embed", "pos_embed", "cls_token", "blocks.0.", "blocks.3."], ["blocks.4.", "blocks.5."]),
        ("test_resnet", ["conv1", "bn1", "layer1.", "layer2."], ["layer3.", "layer4."]),
        ("test_convnext", ["stem", "stages.0.", "stages.1."], ["stages.2.", "stages.3."]),
        ("swin_tiny_patch4_window7_224", ["patch_embed", "layers.0.", "layers.1."], ["layers.2.", "layers.3."]),
    ],
)
def test_last_two_train(name, frozen, trained):
    net = small("last_2", name)
    found = {n.removeprefix("model.") for n in backward(net)}
    names = [n for n, _ in net.backbone.model.named_parameters()]
    for prefix in frozen:
        assert not any(n.startswith(prefix) for n in found), prefix
        assert any(n.startswith(prefix) for n in names), prefix
    for prefix in trained:
        assert {n for n in names if n.startswith(prefix)} <= found
    for module_name, module in net.backbone.model.named_modules():
        if any(module_name.startswith(prefix.rstrip(".")) for prefix in frozen):
            assert not module.training, module_name
    assert net.backbone.model.get_submodule(trained[0].rstrip(".")).training
    if name == "test_vit":
        assert "norm.weight" in found


def test_freezing_can_be_switched():
    net = small(True)
    assert not backward(net)
    net.set_freeze("last_1")
    some = backward(net)
    net.set_freeze(False)
    every = backward(net)
    assert set() < some < every
    net.set_freeze("last_6")  # every block, but not the embeddings
    assert some < backward(net) < every
    net.set_freeze(True)
    assert not backward(net)
    assert not net.backbone.model.training


@pytest.mark.parametrize("freeze", ["last_0", "last_", "last", "yes", "last_-1", "last_7", 3])
def test_bad_freeze(freeze):
    with pytest.raises(ConfigError, match=r"model\.backbone\.freeze") as caught:
        backbone(freeze=freeze)
    one_line(caught)


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def weights_file(tmp_path, change=None, name="test_vit"):
    torch.manual_seed(5)
    model = timm.create_model(name)  # with its classifier, which the backbone has no use for
    state = model.state_dict()
    if change:
        change(state)
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    return str(path), state


def test_checkpoint_is_loaded_and_accounted_for(tmp_path):
    path, state = weights_file(tmp_path)
    net = small(True, checkpoint=path)
    total = len(net.backbone.model.state_dict())
    assert net.loaded_share == (total, total)
    assert net.backbone_report() == f"backbone test_vit: {total}/{total} tensors from {path}; freeze: True"
    for key, value in net.backbone.model.state_dict().items():
        torch.testing.assert_close(value, state[key])


def test_random_weights_are_reported():
    net = small(True)
    assert net.loaded_share[0] == 0
    assert "random initialisation (pretrained: false)" in net.backbone_report()


def test_position_embedding_of_another_grid_is_resampled(tmp_path):
    torch.manual_seed(5)
    path = str(tmp_path / "big.pth")
    torch.save(timm.create_model("test_vit", img_size=320).state_dict(), path)
    net = small(True, checkpoint=path)
    assert net.loaded_share[0] == net.loaded_share[1] > 0


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    _, state = weights_file(tmp_path)
    save_file(state, tmp_path / "weights.safetensors")
    net = small(True, checkpoint=str(tmp_path / "weights.safetensors"))
    torch.testing.assert_close(net.backbone.model.state_dict()["norm.weight"], state["norm.weight"])


def drop(*keys):
    return lambda state: [state.pop(key) for key in keys]


def reshape(state):
    state["blocks.1.mlp.fc1.weight"] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (drop("norm.weight"), ["1 missing (norm.weight)"]),
        (
            drop("blocks.0.norm1.bias", "blocks.2.norm1.bias", "blocks.3.norm1.bias", "norm.bias"),
            ["4 missing (blocks.0.norm1.bias, blocks.2.norm1.bias, blocks.3.norm1.bias, …)"],
        ),
        (reshape, ["1 of another shape (blocks.1.mlp.fc1.weight: (3, 3) for"]),
        (lambda state: state.clear() or state.update(other=torch.zeros(1)), ["fills 0 of", "1 unexpected"]),
    ],
)
def test_partial_checkpoints_are_errors(tmp_path, change, parts):
    path, _ = weights_file(tmp_path, change)
    with pytest.raises(CheckpointError, match=r"model\.backbone\.checkpoint") as caught:
        small(True, checkpoint=path)
    for part in parts:
        assert part in one_line(caught)


def test_unreadable_checkpoints_are_errors(tmp_path):
    with pytest.raises(CheckpointError, match="no weights file at"):
        small(True, checkpoint=str(tmp_path / "absent.pth"))
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="cannot read") as caught:
        small(True, checkpoint=str(tmp_path / "broken.pth"))
    one_line(caught)


class Payload:
    """What a hostile pickle would call: loading with ``weights_only`` refuses it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_pickles_are_not_executed(tmp_path):
    torch.save({"state_dict": Payload(str(tmp_path / "executed"))}, tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError):
        small(True, checkpoint=str(tmp_path / "hostile.pth"))
    assert not (tmp_path / "executed").exists()


def test_jax_weights_are_accounted_for(tmp_path):
    """The model copies .npz files itself and says nothing: whatever it did not fill must be noticed."""

    class Reader(nn.Module):
        def __init__(self, fills):
            super().__init__()
            self.a, self.b, self.fills = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2)), fills

        @torch.no_grad()
        def load_pretrained(self, path):
            for name in self.fills:
                getattr(self, name).fill_(3.0)

    path = str(tmp_path / "weights.npz")
    (tmp_path / "weights.npz").write_bytes(b"")
    model = Reader("ab")
    assert weights.load_file(model, path, "key") == (2, 2)
    assert model.b.tolist() == [3.0, 3.0]
    with pytest.raises(CheckpointError, match=r"fills 1 of 2 backbone tensors, 1 missing \(b\)"):
        weights.load_file(Reader("a"), path, "key")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens on the discard port
    return tmp_path / "hub"


def test_unavailable_weights_are_one_line(empty_cache):
    begin = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        M2HNet(TASKS, "m2h-small", backbone=BackboneConfig())
    assert time.monotonic() - begin < 30
    message = one_line(caught)
    folder = empty_cache / "models--timm--vit_small_patch14_dinov2.lvd142m"
    for part in (str(folder), "model.safetensors", "model.backbone.checkpoint", "model.backbone.pretrained=false"):
        assert part in message


def test_offline_is_respected(empty_cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights, "_unreachable", lambda url: pytest.fail("asked the network"))
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        Backbone(BackboneConfig(name="test_vit"))


def test_models_without_weights_say_so():
    with pytest.raises(CheckpointError, match="has no pretrained weights"):
        Backbone(BackboneConfig(name="vit_small_patch16_18x2_224"))


def test_cached_weights_need_no_network(empty_cache, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.setattr(weights, "_unreachable", lambda url: pytest.fail("asked the network"))
    hub_id = timm.create_model("test_vit", num_classes=0).pretrained_cfg["hf_hub_id"]
    folder = empty_cache / ("models--" + hub_id.replace("/", "--"))
    snapshot = folder / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123")
    torch.manual_seed(7)
    state = timm.create_model("test_vit").state_dict()
    save_file(state, snapshot / "model.safetensors")
    net = Backbone(BackboneConfig(name="test_vit"))
    assert net.loaded_share[0] == net.loaded_share[1] > 0
    assert net.source == str(snapshot / "model.safetensors")
    torch.testing.assert_close(net.model.state_dict()["norm.bias"], state["norm.bias"])


def test_failed_url_download_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    model = nn.Linear(1, 1)
    model.pretrained_cfg = {"url": "http://127.0.0.1:9/weights.pth"}
    with pytest.raises(CheckpointError, match=r"weights\.pth is missing") as caught:
        weights.pretrained_file(model, "some_model")
    assert "model.backbone.checkpoint" in one_line(caught)
