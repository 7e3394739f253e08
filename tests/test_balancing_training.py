"""Every balancing method under several processes, accumulation, mixed precision, recomputation, compiling, resuming."""

import functools
import itertools
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from balancing_processes import METHODS, Loader, module, scaled_precision, steps, train
from cli_helpers import process_environment
from m2h_lightning.errors import ConfigError
from m2h_lightning.network import BackboneConfig
from m2h_lightning.objectives import BalancingConfig, ConsistencyConfig
from m2h_lightning.objectives.config import GRADIENT_BASED
from m2h_lightning.tasks import LossConfig

SCRIPT = Path(__file__).parent / "balancing_processes.py"
LINEAR = ("static", "dwa", "uncertainty", "rlw")
"""Methods of one backward pass for which the batch's gradient is the mean of its parts'."""

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True, scope="module")
def quiet():
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes with half of each batch found, by method; they run while the first tests do."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    shared = process_environment(folder)
    if "PYTHONPYCACHEPREFIX" not in os.environ:
        del shared["PYTHONPYCACHEPREFIX"]  # two processes that both compile all modules anew take twenty seconds more
    for rank in range(2):
        place = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        environment = shared | place | {"MASTER_PORT": str(port)}
        command = [sys.executable, str(SCRIPT), str(folder)]
        output = (folder / f"{rank}.log").open("w")
        processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))

    def results():
        codes = [process.wait(timeout=300) for process in processes]
        assert codes == [0, 0], "".join((folder / f"{rank}.log").read_text()[-3000:] for rank in range(2))
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]

    yield results
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture(scope="module")
def alone(two_processes, tmp_path_factory):
    """What one process with the whole batches finds, by method, and the checkpoint of its run."""
    folder = tmp_path_factory.mktemp("checkpoints")

    @functools.cache
    def found(method):
        return train(module(method), Loader(), folder / f"{method}.ckpt"), folder / f"{method}.ckpt"

    return found


def difference(first, second):
    assert set(first) == set(second)
    return max(float((first[key] - second[key]).abs().max()) for key in first)


def same_state(first, second, exact):
    assert set(first) == set(second)
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            close = torch.equal if exact else lambda a, b: torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
            assert close(value.nan_to_num(7.0), second[key].nan_to_num(7.0)), key
        else:
            assert value == (second[key] if exact else pytest.approx(second[key], rel=1e-4)), key


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_uninterrupted_one(alone, method):
    whole, checkpoint = alone(method)
    again = train(module(method), Loader(), ckpt_path=checkpoint)
    assert len(whole["weights"]) == steps(method)
    assert again["weights"] == whole["weights"][-2:]
    assert difference(again["parameters"], whole["parameters"]) == 0
    same_state(again["state"], whole["state"], exact=True)


def test_no_two_methods_train_alike(alone):
    found = {
        method: {key: value for key, value in alone(method)[0]["parameters"].items() if key.startswith("net.")}
        for method in METHODS
    }
    for one, other in itertools.combinations(METHODS, 2):
        assert difference(found[one], found[other]) > 1e-4, (one, other)


def test_two_processes_train_as_one(alone, two_processes):
    first, second = two_processes()
    for method in METHODS:
        mine, whole = first[method], alone(method)[0]
        assert difference(mine["parameters"], second[method]["parameters"]) == 0, f"{method}: the processes part"
        assert difference(mine["parameters"], whole["parameters"]) < 1e-5, method
        same_state(mine["state"], whole["state"], exact=False)
        for ours, theirs in zip(mine["weights"], whole["weights"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4), method


def test_an_overflow_on_one_process_skips_the_step_on_both(two_processes):
    first, second = two_processes()
    assert [found["overflow"]["scale"] for found in (first, second)] == [512.0, 512.0]
    assert difference(first["overflow"]["parameters"], second["overflow"]["parameters"]) == 0
    assert all(value.isfinite().all() for value in first["overflow"]["parameters"].values())
    assert [bool("train/depth/weight" in w) for w in first["overflow"]["weights"]] == [False, True, True]


@pytest.mark.parametrize("method", [*LINEAR, *GRADIENT_BASED])
def test_accumulated_halves_train_as_the_batch(method):
    plain = {"losses": LossConfig(depth_si_weight=0.0), "consistency": ConsistencyConfig(smoothness={"weight": 0.1})}
    steps = 2 if method == "pcgrad" else 1  # one that would show what a step leaves to the next
    whole = train(module(method, **plain), Loader(complete=True), max_steps=steps)
    halves = train(module(method, **plain), Loader(2, complete=True), max_steps=steps, accumulate_grad_batches=2)
    assert difference(halves["parameters"], whole["parameters"]) < 1e-5
    if method == "dwa":  # twice as many losses, and the same means
        first, second = (run["state"]["sums"] / run["state"]["steps"] for run in (halves, whole))
        assert torch.allclose(first, second, rtol=1e-4)
    else:
        same_state(halves["state"], whole["state"], exact=False)
    assert halves["weights"][-1] == pytest.approx(whole["weights"][-1], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("method", ["static", "mgda"])
def test_the_scale_of_float16_changes_nothing(method):
    found = [train(module(method), Loader(), plugins=[scaled_precision(scale)]) for scale in (1.0, 2.0**14)]
    assert difference(*(run["parameters"] for run in found)) < 1e-6
    assert found[1]["weights"] == [pytest.approx(weights, rel=1e-3) for weights in found[0]["weights"]]


def test_a_step_that_overflows_is_skipped_and_its_gradients_weigh_nothing():
    model, plugin = module("gradnorm"), scaled_precision(3e38)
    before = {key: value.clone() for key, value in model.state_dict().items() if value.is_floating_point()}
    run = train(model, Loader(), plugins=[plugin], max_steps=1)
    assert plugin.scaler.get_scale() < 3e38
    assert difference(run["parameters"], before) == 0
    assert run["state"]["first"].eq(0).all(), "the step did not happen, so no loss was seen"


def test_recomputed_activations_give_the_same_training():
    backbone = BackboneConfig(name="test_vit", pretrained=False, freeze="last_1")
    runs = [
        train(module("imtl", backbone=backbone, gradient_checkpointing=again), Loader(), max_steps=2)
        for again in (False, True)
    ]
    assert difference(*(run["parameters"] for run in runs)) < 1e-6


def test_a_compiled_network_gives_the_same_training(monkeypatch):
    """Compiled for one backward pass per step, code gives memory away that several passes need, unless it is told."""
    monkeypatch.setattr("torch._functorch.config.donated_buffer", True)
    runs = []
    for compiled in (False, True):
        model, loader = module("nash", compile=compiled, consistency=ConsistencyConfig()), Loader()
        for name in ("normals", "edges"):
            del loader.batches[0][name]
        # A shared part of it, and without code generation: the whole takes a minute.
        monkeypatch.setattr(model.net, "compile", lambda part=model.net.mstr: part.compile(backend="aot_eager"))
        runs.append(train(model, loader, max_steps=2))
    assert difference(*(run["parameters"] for run in runs)) < 1e-5


def test_consistency_losses_can_be_balanced_too():
    everything = {"balancing": BalancingConfig(name="nash", over="all")}
    runs = [train(module("nash", **changes), Loader(), max_steps=2)["weights"][-1] for changes in ({}, everything)]
    key = "train/consistency/depth_normals/weight"
    assert runs[0][key] == pytest.approx(0.1)
    assert runs[1][key] > 0
    assert runs[1][key] != pytest.approx(0.1)
    alone = module("nash", tasks=["depth"], consistency=ConsistencyConfig(smoothness={"weight": 0.1}), **everything)
    assert set(train(alone, Loader(), max_steps=1)["weights"][0]) > {"train/consistency/smoothness/weight"}
    assert sum(p.numel() for p in alone.parameters()) == alone.objective.balancer.shared_size


def test_a_single_task_trains_as_ever():
    plain = {"tasks": ["normals"], "consistency": ConsistencyConfig()}
    static, *others = (
        train(module(method, **plain), Loader(), max_steps=1)["parameters"] for method in ("static", *GRADIENT_BASED)
    )
    for method, other in zip(GRADIENT_BASED, others, strict=True):
        assert difference(other, static) < 1e-7, method


def test_a_strategy_that_cuts_gradients_to_pieces_is_refused():
    model = module("pcgrad")
    model._trainer = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(ConfigError, match=r"'pcgrad' needs whole gradients .*FSDPStrategy .*use ddp"):
        model.prepare_by_gradient()
    model.objective.balancer = module("static").objective.balancer
    model.prepare_by_gradient()


def test_the_cost_is_told():
    model = module("mgda")
    train(model, Loader(), max_steps=1)
    size = sum(p.numel() for p in model.net.shared_parameters())
    assert model.objective.balancer.cost == (
        "4 backward passes over the shared part instead of 1, "
        f"4 × {size / 1e6:.2f} M gradients kept ({4 * 4 * size / 1e6:.0f} MB)"
    )
