"""Loss-based balancing in real runs: what is logged and said, famo's second look, and what a checkpoint keeps."""

import logging
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from m2h_lightning.errors import CheckpointError, ConfigError, DataError
from m2h_lightning.module import M2HModule
from m2h_lightning.objectives import BalancingConfig
from m2h_lightning.objectives.config import LOSS_BASED
from m2h_lightning.objectives.second_look import untouched_statistics
from m2h_lightning.recipe import OptimizerConfig
from samples import QUIET, Planes, tiny_module


def trainer(tmp_path, **settings):
    return L.Trainer(**(QUIET | {"default_root_dir": tmp_path, "max_epochs": 1, "limit_val_batches": 0} | settings))


def module_with(name="static", **settings):
    return tiny_module(balancing=BalancingConfig(name=name, **settings), optimizer=OptimizerConfig(lr=1e-2))


@pytest.mark.parametrize("name", LOSS_BASED)
def test_a_run_logs_losses_and_weights_and_says_what_it_costs(tmp_path, caplog, name):
    L.seed_everything(0)
    run = trainer(tmp_path, accumulate_grad_batches=2, max_epochs=2)
    module = module_with(name, sampling={"depth": 0.99})
    with caplog.at_level(logging.INFO):
        run.fit(module, Planes(train=8))
    assert run.global_step == 4
    for task in module.tasks:
        loss, weight = (run.callback_metrics[f"train/{task}/{key}"] for key in ("loss", "weight"))
        assert loss.isfinite() and loss > 0 and weight.isfinite() and weight > 0
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("balancing")]
    assert len(lines) == 1
    start = f"balancing {name} over semseg, depth, normals, edges: one backward pass"
    assert lines[0].startswith(start) and "tasks are drawn: depth 0.99" in lines[0]
    assert ("second forward pass" in lines[0]) == (name == "famo")
    assert ("each of the 2 accumulated batches" in lines[0]) == (name in ("gls", "log", "famo", "stch"))


def test_uncertainty_learns_in_a_group_without_weight_decay(tmp_path):
    L.seed_everything(0)
    run, module = trainer(tmp_path), module_with("uncertainty", uncertainty_lr=0.1)
    run.fit(module, Planes())
    group = next(group for group in run.optimizers[0].param_groups if group["name"] == "balancing")
    assert group["weight_decay"] == 0 and group["initial_lr"] == 0.1
    assert group["params"][0] is module.objective.balancer.log_variances
    assert (module.objective.balancer.log_variances != 0).all()


# famo looks at the same batch again


class Looks(L.Callback):
    """Notes what famo was shown, and the losses of a forward pass of our own."""

    def __init__(self):
        self.before, self.after, self.looked = [], [], []

    def on_train_start(self, trainer, module):
        balancer = module.objective.balancer
        original = balancer.after_step

        def spy(losses, present):
            assert module.net.training and not torch.is_grad_enabled()
            self.before.append(balancer.before.clone())
            self.looked.append(losses.clone())
            original(losses, present)

        balancer.after_step = spy

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        assert len(self.looked) == len(self.after) + 1, "a checkpoint that is written now must know of the second look"
        with torch.no_grad():
            found = module.objective.task_losses(module.net(batch["image"]), batch)
        weights = module.objective.loss_weights
        self.after.append(torch.stack([loss * weights[name] for name, (loss, _) in found.items()]))


def test_famo_sees_the_last_batch_once_more_after_the_update(tmp_path):
    L.seed_everything(0)
    run = trainer(tmp_path, callbacks=[looks := Looks()], accumulate_grad_batches=2)
    module = module_with("famo")
    module.objective.loss_weights["edges"] = 3.0
    run.fit(module, Planes(train=8))
    assert len(looks.looked) == 2, "once per optimiser step, not per batch"
    assert torch.allclose(torch.stack(looks.looked), torch.stack(looks.after), rtol=1e-5)
    assert all((after != before).all() for after, before in zip(looks.looked, looks.before, strict=True))
    assert module.objective.balancer.steps.tolist() == [2] * 4
    assert module._seen is None, "else the batch would stay in memory"


def test_famo_needs_whole_weights():
    module = module_with("famo")
    module._trainer = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy))
    with pytest.raises(ConfigError, match=r"'famo' looks at each batch again.*FSDPStrategy.*use ddp"):
        module.prepare_by_repeat()
    module.objective.balancer.repeats_forward = False
    module.prepare_by_repeat()


def test_famo_stops_at_an_update_that_broke_the_network(tmp_path):
    L.seed_everything(0)
    module = tiny_module(balancing=BalancingConfig(name="famo"), optimizer=OptimizerConfig(lr=1e30))
    with pytest.raises(DataError, match=r"not finite at step \d .*the same batch after the update.*samples scene"):
        trainer(tmp_path).fit(module, Planes())


def test_the_second_look_leaves_batch_norms_alone():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3), nn.BatchNorm2d(4, momentum=None))
    net(torch.randn(2, 3, 5, 5))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = torch.randn(2, 3, 5, 5) * 4 + 1
    with untouched_statistics(net):
        inside = net(x)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert (net[1].momentum, net[2].momentum) == (0.3, None)
    assert torch.equal(inside, net(x)), "normalised by the batch, as in training"
    assert int(net[1].num_batches_tracked) == 2


# Checkpoints


def saved(tmp_path, name, **settings):
    L.seed_everything(0)
    run, module = trainer(tmp_path, max_epochs=2), module_with(name, **settings)
    run.fit(module, Planes())
    run.save_checkpoint(tmp_path / f"{name}.ckpt")
    return module, tmp_path / f"{name}.ckpt"


@pytest.mark.parametrize("pair", [("uncertainty", "static"), ("stch", "uncertainty")])
def test_a_checkpoint_is_tested_under_any_balancing(tmp_path, pair):
    trained, path = saved(tmp_path, pair[0])
    other = module_with(pair[1])
    own = {k: v.clone() for k, v in other.objective.state_dict().items()}
    run = trainer(tmp_path, limit_val_batches=None)
    scores = run.validate(other, Planes(), ckpt_path=path, weights_only=True, verbose=False)[0]
    expected = run.validate(trained, Planes(), verbose=False)[0]
    assert scores == expected
    assert all(torch.equal(own[key], value) for key, value in other.objective.state_dict().items())
    again = M2HModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    assert str(again.objective.balancer.state_dict()) == str(trained.objective.balancer.state_dict())
    loaded = M2HModule.load_from_checkpoint(path, map_location="cpu", balancing=BalancingConfig(name=pair[1]))
    weights = trained.net.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in loaded.net.state_dict().items())


def test_training_goes_on_with_the_same_balancing_only(tmp_path):
    _, path = saved(tmp_path, "dwa")
    resumed = module_with("dwa", dwa_temperature=1.0)
    trainer(tmp_path, max_epochs=3).fit(resumed, Planes(), ckpt_path=path, weights_only=True)
    state = resumed.objective.balancer.state()
    stored = torch.load(path, weights_only=True)["balancing"]
    assert stored["name"] == "dwa" and stored["terms"] == ["semseg", "depth", "normals", "edges"]
    assert state["epoch"] == 2 and state["steps"].tolist() == [3] * 4
    # History moved on by one: the means of the checkpoint's running epoch are the newer half.
    assert torch.equal(state["history"][1], stored["state"]["sums"] / 3)
    assert torch.equal(state["history"][0], stored["state"]["history"][1])

    words = (
        r"^the checkpoint was trained with model.balancing.name dwa over semseg, depth, normals, edges, this run has "
    )
    with pytest.raises(CheckpointError, match=words + r"rlw over .*model\.init_weights$"):
        trainer(tmp_path, max_epochs=3).fit(module_with("rlw"), Planes(), ckpt_path=path, weights_only=True)


def test_a_checkpoint_from_before_balancing_is_one_of_static_weights(tmp_path):
    _, path = saved(tmp_path, "static")
    content = torch.load(path, weights_only=True)
    del content["balancing"]
    torch.save(content, path)
    trainer(tmp_path, limit_val_batches=1).validate(module_with("uncertainty"), Planes(), ckpt_path=path, verbose=False)
    run = trainer(tmp_path, max_epochs=3)
    run.fit(module_with("static"), Planes(), ckpt_path=path)
    assert run.global_step == 9
    with pytest.raises(CheckpointError, match="balancing.name static over .*this run has gls"):
        trainer(tmp_path, max_epochs=3).fit(module_with("gls"), Planes(), ckpt_path=path)
