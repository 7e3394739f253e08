"""A run that starts from the weights of another: what is taken, what does not fit, and what is said of it."""

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_helpers import TINY, m2h, only_run, write
from m2h_lightning.errors import CheckpointError
from m2h_lightning.network import BackboneConfig, WMCAConfig
from m2h_lightning.network import backbone as backbone_file
from m2h_lightning.network.lora import base_name, is_adapter
from m2h_lightning.recipe import read_source
from m2h_lightning.recipe.warm_start import match
from samples import Planes, tiny_module

VIT = {"name": "test_vit", "pretrained": False, "freeze": False}


def store(path, module, **changes):
    """Write a checkpoint of a module that never trained; return its path as text."""
    content = {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    torch.save(content | changes, path)
    return str(path)


def seeded(seed, **changes):
    torch.manual_seed(seed)
    return tiny_module(**changes)


def equal(one, other):
    """Names of the tensors that are alike, and all names."""
    one, other = one.net.state_dict(), other.net.state_dict()
    return {k for k, v in one.items() if k in other and torch.equal(v, other[k])}, set(one)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A checkpoint of four tasks, and the module it is of."""
    module = seeded(1)
    return store(tmp_path_factory.mktemp("there") / "there.ckpt", module), module


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")
    return lambda: [record.getMessage() for record in caplog.records]


def never(*arguments):
    raise AssertionError("pretrained weights were looked for")


def test_all_weights_are_taken_and_none_are_fetched(there, said, monkeypatch):
    path, module = there
    monkeypatch.setattr(backbone_file, "pretrained_file", never)
    backbone = BackboneConfig(name="test_convnext", pretrained=True, freeze="last_1")
    started = seeded(2, backbone=backbone, init_weights=path)
    alike, names = equal(started, module)
    assert alike == names
    millions = sum(p.numel() for p in module.net.parameters()) / 1e6
    share = f"{len(names)} of {len(names)} tensors of the network ({millions:.2f} of {millions:.2f} M parameters)"
    assert started.init_weights == f"{share} from {path}" and f"model.init_weights: {share} from {path}" in said()
    assert started.backbone_weights == f"init_weights {path} (there: random initialisation (pretrained: false))"
    assert "init_weights" in started.net.backbone_report()
    assert [n for n, p in started.net.named_parameters() if not p.requires_grad], "frozen as configured"

    assert started.hparams["init_weights"] is None and started.hparams["init_partial"] is False
    again = {"state_dict": {}}
    started.on_save_checkpoint(again)
    other = seeded(3)
    other.on_load_checkpoint(again)
    assert (other.init_weights, other.backbone_weights) == (started.init_weights, started.backbone_weights)


def named(text, lines):
    """Tensor names in a message and in the log."""
    return set(re.findall(r"(?:net|backbone|mstr|msf|wmca|ggfm|fusion|heads)\.[\w.]+\w", "\n".join([text, *lines])))


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": ["depth"]},
        {"channels": 16},
        {"wmca": WMCAConfig(heads=2, window_size=3)},
        {"wmca": WMCAConfig(enabled=False)},
        {"facts": {**Planes().facts, "classes": ["a", "b"]}},
        {"backbone": BackboneConfig(name="test_resnet", pretrained=False, freeze=False)},
    ],
)
def test_every_tensor_that_does_not_fit_is_named(there, said, changes):
    path, module = there
    fresh, old = seeded(2, **changes).net.state_dict(), module.net.state_dict()
    with pytest.raises(CheckpointError) as error:
        seeded(2, **changes, init_weights=path)
    text = str(error.value)
    assert "\n" not in text and text.startswith(f"model.init_weights: {path} fills ")
    assert text.endswith("or set model.init_partial=true to take what fits")
    missing, unexpected = set(fresh) - set(old), set(old) - set(fresh)
    shapes = {k for k in set(fresh) & set(old) if fresh[k].shape != old[k].shape}
    for kind, names in (("missing", missing), ("of another shape", shapes), ("unexpected", unexpected)):
        assert (f" {len(names)} {kind} (" in text) == bool(names)
    assert missing | shapes | unexpected == named(text.split(" fills ")[1], said())
    for name in list(shapes)[:1]:
        assert f"{name}: {tuple(old[name].shape)} there, {tuple(fresh[name].shape)} here" in "\n".join([text, *said()])
    assert f" fills {len(set(fresh) & set(old)) - len(shapes)} of {len(fresh)} tensors" in text


def test_partly_on_request(there, said, monkeypatch):
    path, module = there
    monkeypatch.setattr(backbone_file, "pretrained_file", never)
    backbone = BackboneConfig(name="test_convnext", pretrained=True)
    changes = {"tasks": ["depth"], "wmca": WMCAConfig(heads=2, window_size=3), "backbone": backbone}
    started = seeded(2, **changes, init_weights=path, init_partial=True)
    alike, names = equal(started, module)
    old = module.net.state_dict()
    fit = {k for k, v in started.net.state_dict().items() if k in old and old[k].shape == v.shape}
    assert 0 < len(fit) < len(names) and fit <= alike
    listed = next(line for line in said() if "do not fit" in line)
    assert names ^ set(old) | (names - fit) == named("", [listed])
    assert started.init_weights.startswith(f"{len(fit)} of {len(names)} tensors")


def test_a_backbone_that_is_not_filled_keeps_its_own_weights(there, tmp_path):
    """A checkpoint without one stage: the rest is taken, over the configured weights and not over random ones."""
    module = there[1]
    state = {k: v for k, v in module.state_dict().items() if "stages.3" not in k}
    cut = store(tmp_path / "cut.ckpt", module, state_dict=state)
    own = seeded(7)
    weights = {k.removeprefix("backbone.model."): v for k, v in own.net.state_dict().items() if "backbone." in k}
    torch.save(weights, tmp_path / "own.pth")
    backbone = BackboneConfig(name="test_convnext", checkpoint=str(tmp_path / "own.pth"))
    started = seeded(2, backbone=backbone, init_weights=cut, init_partial=True)
    (from_file, names), (from_own, _) = equal(started, module), equal(started, own)
    assert names - from_file <= from_own and any("stages.3" in name for name in names - from_file)
    assert started.backbone_weights.startswith(f"{tmp_path / 'own.pth'}, but ")


def test_adapters_start_anew_on_weights_without_any(tmp_path, said):
    plain = seeded(1, backbone=BackboneConfig(**VIT))
    path = store(tmp_path / "plain.ckpt", plain)
    adapted = seeded(2, backbone=BackboneConfig(**VIT | {"lora_rank": 2, "freeze": True}), init_weights=path)
    state, old = adapted.net.state_dict(), plain.net.state_dict()
    assert all(torch.equal(v, old[base_name(k)]) for k, v in state.items() if not is_adapter(k))
    assert f"model.init_weights: {path} has no adapters; 24 tensors of adapters start anew" in said()
    image = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        assert all(
            torch.equal(a, b) for a, b in zip(adapted.eval()(image).values(), plain.eval()(image).values(), strict=True)
        )

    # From adapters to adapters all is taken; from adapters to none, or of another rank, something does not fit.
    path = store(tmp_path / "adapted.ckpt", adapted)
    again = seeded(3, backbone=BackboneConfig(**VIT | {"lora_rank": 2}), init_weights=path)
    assert equal(again, adapted)[0] == set(state)
    for rank, words in ((0, "24 unexpected"), (3, "24 of another shape")):
        with pytest.raises(CheckpointError, match=words):
            seeded(3, backbone=BackboneConfig(**VIT | {"lora_rank": rank}), init_weights=path)


@pytest.fixture(scope="module")
def small():
    return seeded(1).net


@given(data=st.data())
@settings(max_examples=25)
def test_a_match_accounts_for_every_tensor(small, data):
    """Whatever a checkpoint lacks, has beyond the network, or has in another shape."""
    own = small.state_dict()
    names = sorted(own)
    fate = data.draw(st.lists(st.sampled_from(["fits", "gone", "bent"]), min_size=len(names), max_size=len(names)))
    more = data.draw(st.sets(st.sampled_from(["a.weight", "heads.other.bias", "net.x"])))
    tensors = {name: own[name] for name, kind in zip(names, fate, strict=True) if kind == "fits"}
    tensors |= {name: own[name][None] for name, kind in zip(names, fate, strict=True) if kind == "bent"}
    tensors |= {name: torch.zeros(1) for name in more}
    found = match(small, tensors)
    by_fate = {kind: {n for n, f in zip(names, fate, strict=True) if f == kind} for kind in ("fits", "gone", "bent")}
    assert found.found == {name: name for name in by_fate["fits"]}
    assert (set(found.missing), set(found.shapes), set(found.unexpected)) == (by_fate["gone"], by_fate["bent"], more)
    parameters = {name: p.numel() for name, p in small.named_parameters()}
    assert found.parameters == sum(parameters.get(name, 0) for name in by_fate["fits"])
    assert found.all_parameters == sum(parameters.values())
    assert found.fills("backbone.") == all(f == "fits" for n, f in zip(names, fate, strict=True) if "backbone." in n)


@pytest.mark.parametrize("partial", [False, True])
def test_nothing_that_fits_is_refused_in_any_case(there, tmp_path, partial):
    strange = store(tmp_path / "x.ckpt", there[1], state_dict={"net.else": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"fills 0 of .*1 unexpected \(else\); give a checkpoint of this arch"):
        seeded(2, init_weights=strange, init_partial=partial)


class Unsafe:
    """Something a checkpoint must not bring along."""


def test_files_that_hold_no_network(there, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "damaged.ckpt").write_bytes(b"PK cut short")
    torch.save({"state_dict": {"model.x": torch.ones(1)}}, tmp_path / "other.ckpt")
    torch.save({"state_dict": {}, "x": Unsafe()}, tmp_path / "unsafe.ckpt")
    for name, words in {
        "gone.ckpt": "does not exist; give a run folder",
        "run": "no complete checkpoint in .*checkpoints",
        "damaged.ckpt": "damaged",
        "other.ckpt": "holds no network of this package",
        "unsafe.ckpt": "not loaded for safety",
    }.items():
        with pytest.raises(CheckpointError, match=f"^model.init_weights.*{words}") as error:
            read_source(str(tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="'' does not exist"):
        read_source("")
    # A folder: the newest that can be read.
    shutil.copy(there[0], tmp_path / "run" / "checkpoints" / "a.ckpt")
    (tmp_path / "run" / "checkpoints" / "b.ckpt").write_bytes(b"PK cut short")
    assert read_source(str(tmp_path / "run")).path.name == "a.ckpt"


def test_tensors_that_fit_and_meant_something_else_are_told(there):
    facts = {**Planes().facts, "name": "other", "classes": ["dark", "grey", "bright"], "depth_unit": "px"}
    with (
        pytest.warns(UserWarning, match=r"on 'planes', whose classes are others \(none where 'other' has grey\)"),
        pytest.warns(UserWarning, match="was trained on depth in m, the data set gives it in px"),
    ):
        seeded(2, init_weights=there[0], facts=facts)


def test_through_the_command_line(tmp_path, monkeypatch, capfd, said):
    """Start from a run folder, lose it, resume and test the run that started there."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tiny.yaml", TINY)
    first = tmp_path / "runs" / "pre" / "first"
    (first / "checkpoints").mkdir(parents=True)
    checkpoint = Path(store(first / "checkpoints" / "epoch000.ckpt", seeded(1)))
    short = ["--trainer.limit_val_batches", 1, "--run.pictures", 0]
    fit = ["fit", "--config", "tiny.yaml", "--model.init_weights", first, *short]
    assert m2h(*fit, "--model.channels", 16) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("m2h: error: ")]
    assert len(lines) == 1 and "model.init_partial=true" in lines[0]
    assert not (tmp_path / "runs" / "tiny").exists(), "before anything is made"

    assert m2h(*fit) == 0
    run = only_run(tmp_path)
    network = json.loads((run / "result.json").read_text())["network"]
    assert network["init_weights"].endswith(f"M parameters) from {checkpoint}")
    assert (
        network["backbone"]["weights"]
        == f"init_weights {checkpoint} (there: random initialisation (pretrained: false))"
    )
    assert str(first) in (run / "config.yaml").read_text()

    shutil.rmtree(first)
    assert m2h("fit", "--run.resume", run, "--trainer.max_epochs", 2) == 0
    assert [line for line in said() if line.startswith(f"model.init_weights {first} is not read: weights are from")]
    assert json.loads((run / "result.json").read_text())["network"] == network
    newest = next(Path(run / "checkpoints").glob("epoch*.ckpt"))
    assert m2h("test", "--config", run / "config.yaml", "--ckpt_path", newest, "--run.experiment", "t", *short) == 0
    assert json.loads((only_run(tmp_path, "t") / "result.json").read_text())["network"] == network
