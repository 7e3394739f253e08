"""The gradients of the losses on a shared block: what is measured, when, and that training does not notice."""

import json
import math
import socket
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import cv2
import hypothesis.extra.numpy as arrays
import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy

from cli_helpers import TINY, m2h, process_environment, write
from m2h_lightning.callbacks import GradientConflicts
from m2h_lightning.callbacks.conflicts import block_parameters, compare
from m2h_lightning.callbacks.heatmap import Table, draw_tables
from m2h_lightning.errors import ConfigError
from m2h_lightning.network import BackboneConfig, WMCAConfig
from m2h_lightning.objectives import BalancingConfig, ConsistencyConfig
from m2h_lightning.objectives.config import DepthNormalsConfig
from m2h_lightning.runs.loggers import RunCSVLogger, read_rows
from m2h_lightning.tasks import DEFAULT_LOSS_WEIGHTS
from samples import Planes, PlaneScenes, tiny_module

TASKS = ("semseg", "depth", "normals", "edges")
SHARED = ("backbone", "mstr", "msf", "wmca")
PAIRS = [f"{a}-{b}" for a, b in combinations(TASKS, 2)]


def fit(folder, callbacks, data=None, module=None, **options):
    """Train the tiny network without validation; return module, trainer and the rows with measurements."""
    L.seed_everything(0, verbose=False)
    module = module or tiny_module()
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "limit_val_batches": 0,
        "max_epochs": 1,
    }
    folder.mkdir(exist_ok=True)
    run = L.Trainer(
        **(quiet | options), default_root_dir=folder, logger=RunCSVLogger(folder), callbacks=list(callbacks)
    )
    run.fit(module, data or Planes())
    rows = read_rows(folder / "metrics.csv")[1]
    return module, run, [row for row in rows if any(v and k.startswith("conflicts/") for k, v in row.items())]


def numbers(row):
    return {k: float(v) for k, v in row.items() if k.startswith("conflicts/") and v}


# ── the definitions ─────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(np.float32, (3, 7), elements=st.floats(-100, 100, width=32)))
def test_pairs_are_compared_as_defined(rows):
    lengths, cosines, similarities = compare(torch.from_numpy(rows))
    exact = rows.astype(np.float64)
    for i, j in combinations(range(3), 2):
        a, b = np.linalg.norm(exact[i]), np.linalg.norm(exact[j])
        assert lengths[i] == pytest.approx(a, rel=1e-12)
        if a * b == 0:
            assert math.isnan(cosines[i, j]) and math.isnan(similarities[i, j])
            continue
        assert cosines[i, j] == cosines[j, i] == pytest.approx(exact[i] @ exact[j] / (a * b), abs=1e-9)
        assert similarities[i, j] == pytest.approx(2 * a * b / (a**2 + b**2), rel=1e-9)


def test_long_gradients_are_compared_in_parts():
    rows = torch.randn(2, (1 << 20) + 5, generator=torch.Generator().manual_seed(0))
    rows[:, -5:] = torch.tensor([[3e3], [-3e3]])
    assert compare(rows)[1][0, 1] == pytest.approx(float(torch.cosine_similarity(*rows.double(), dim=0)), abs=1e-12)


# ── what is logged, and when ────────────────────────────────────────────────────────────────────────────────────────


class KeepBatches(L.Callback):
    """Keeps what the module is trained on."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)


@pytest.mark.parametrize("block", ["backbone", "shared"])
def test_the_values_are_those_of_one_backward_pass_per_loss(tmp_path, block):
    keep = KeepBatches()
    consistency = ConsistencyConfig(depth_normals=DepthNormalsConfig(weight=0.3))
    settings = {"consistency": consistency, "loss_weights": {"depth": 7.0}, "balancing": BalancingConfig("log")}
    L.seed_everything(0, verbose=False)
    module = tiny_module(**settings)
    L.seed_everything(0, verbose=False)
    fresh = tiny_module(**settings).train()
    _, _, rows = fit(tmp_path, [keep, GradientConflicts(1, block)], module=module, limit_train_batches=1)
    logged = numbers(rows[0])
    (batch,) = keep.batches
    last = [fresh.net.backbone.model.stages[-1]]
    parts = last if block == "backbone" else [getattr(fresh.net, name) for name in SHARED]
    chosen = [p for part in parts for p in part.parameters()]
    step = fresh.objective(fresh.net(batch["image"]), batch, fresh._moment())
    gradients = {}
    for name, weight in {**DEFAULT_LOSS_WEIGHTS, "depth": 7.0, "consistency/depth_normals": 0.3}.items():
        fresh.zero_grad()
        (weight * step.losses[name]).backward(retain_graph=True)
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in chosen]
        gradients[name.removeprefix("consistency/")] = torch.cat([g.flatten() for g in found]).double()
    assert {k.split("/")[-1] for k in logged if "/norm/" in k} == set(gradients)
    for name, gradient in gradients.items():
        assert logged[f"conflicts/norm/{name}"] == pytest.approx(float(gradient.norm()), rel=1e-4)
    for (a, first), (b, second) in combinations(gradients.items(), 2):
        cosine = float(torch.cosine_similarity(first, second, dim=0))
        assert logged[f"conflicts/cosine/{a}-{b}"] == pytest.approx(cosine, abs=1e-4)
        assert logged[f"conflicts/rate/{a}-{b}"] == (cosine < 0)


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}])
def test_training_is_bit_for_bit_what_it_is_without(tmp_path, settings):
    L.seed_everything(0, verbose=False)
    alone, _, _ = fit(tmp_path / "alone", [], module=tiny_module(**settings), max_epochs=2)
    L.seed_everything(0, verbose=False)
    watched, run, rows = fit(
        tmp_path / "watched", [GradientConflicts(every=2)], module=tiny_module(**settings), max_epochs=2
    )
    assert run.global_step == 6
    assert all(
        torch.equal(a, b) for a, b in zip(alone.state_dict().values(), watched.state_dict().values(), strict=True)
    )
    # Every second step, whatever trainer.log_every_n_steps is.
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "0"), ("0", "2"), ("1", "4")]
    kinds = ("cosine", "similarity", "rate")
    names = {f"{kind}/{pair}" for kind in kinds for pair in PAIRS} | {f"norm/{task}" for task in TASKS}
    assert set(numbers(rows[0])) == {f"conflicts/{name}" for name in names}
    signs = np.array([[numbers(row)[f"conflicts/cosine/{pair}"] < 0 for pair in PAIRS] for row in rows])
    rates = np.array([[numbers(row)[f"conflicts/rate/{pair}"] for pair in PAIRS] for row in rows])
    assert np.allclose(rates, signs.cumsum(0) / np.arange(1, 4)[:, None])
    assert 0 < rates[-1].mean() < 1, "else the rate would prove little"


def test_one_batch_of_an_accumulated_step_is_measured(tmp_path):
    callback = GradientConflicts(every=1)
    _, run, rows = fit(tmp_path, [callback], data=Planes(train=8), accumulate_grad_batches=2)
    assert run.global_step == len(rows) == callback.measured == 2


class HalfLabelled(Planes):
    """Every second sample has no depth."""

    def dataset(self, split):
        class Images(PlaneScenes):
            def __getitem__(self, index):
                sample = super().__getitem__(index)
                return {k: v for k, v in sample.items() if k != "depth" or index % 2}

        return Images(6)


def test_a_task_without_label_is_left_out_and_not_counted_as_zero(tmp_path):
    callback = GradientConflicts(every=1)
    _, _, rows = fit(tmp_path, [callback], data=HalfLabelled(batch_size=1), log_every_n_steps=1)
    assert len(rows) == 6
    for row in rows:
        found = numbers(row)
        assert ("conflicts/norm/depth" in found) == any("depth" in name for name in found if "/cosine/" in name)
    assert sum("conflicts/norm/depth" in numbers(row) for row in rows) == 3
    depth = TASKS.index("depth")
    assert callback.counts[depth].tolist() == [3, 0, 3, 3]
    assert callback.counts[0].tolist() == [0, 3, 6, 6]
    state = callback.state_dict()
    assert state["cosines"][0, depth] == pytest.approx(
        sum(numbers(row).get("conflicts/cosine/semseg-depth", 0) for row in rows)
    )


def test_a_block_is_measured_from_the_epoch_in_which_it_trains(tmp_path):
    backbone = BackboneConfig(name="test_convnext", pretrained=False, freeze=True, unfreeze={1: "last_1"})
    module = tiny_module(backbone=backbone)
    assert not block_parameters(module.net, "backbone")
    _, _, rows = fit(tmp_path, [GradientConflicts(1, "backbone")], module=module, max_epochs=2)
    assert [row["epoch"] for row in rows] == ["1"] * 3


def test_the_scale_of_fp16_losses_does_not_show(tmp_path):
    measured = []
    for scale in (256.0, 2.0**40):
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
        _, _, rows = fit(tmp_path / str(scale), [GradientConflicts(every=1)], plugins=[plugin], max_steps=1)
        measured.append(rows)
    full = fit(tmp_path / "float32", [GradientConflicts(every=1)], max_steps=1)[2]
    assert not measured[1], "gradients beyond fp16 are no measurement"
    half, exact = numbers(measured[0][0]), numbers(full[0])
    for task in TASKS:
        assert half[f"conflicts/norm/{task}"] == pytest.approx(exact[f"conflicts/norm/{task}"], rel=0.1)
    for pair in PAIRS:
        assert half[f"conflicts/cosine/{pair}"] == pytest.approx(exact[f"conflicts/cosine/{pair}"], abs=0.05)


def test_several_processes_measure_what_one_does_and_train_as_without(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Compiled modules from where they are installed: compiling all of torch anew takes longer than the test.
    environment = process_environment(tmp_path)
    environment.pop("PYTHONPYCACHEPREFIX")
    environment |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, Path(__file__).with_name("conflict_processes.py"), tmp_path],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    found = [json.loads(output.rpartition("RESULT ")[2]) for output, _ in outputs]
    assert all(result["same"] for result in found)
    _, _, rows = fit(tmp_path / "alone", [GradientConflicts(every=1, block="shared")], data=Planes(train=4))
    assert len(found[0]["rows"]) == len(rows) == 2
    for one, two in zip(map(numbers, rows), map(numbers, found[0]["rows"]), strict=True):
        assert set(one) == set(two)
        for key, value in one.items():
            assert two[key] == pytest.approx(value, rel=1e-3, abs=1e-3), key


# ── state and picture ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_resumed_run_goes_on_counting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callbacks = """
  callbacks:
    - {class_path: m2h_lightning.callbacks.GradientConflicts, init_args: {every: 1, block: wmca}}
"""
    config = TINY.replace("  num_sanity_val_steps: 0\n", f"  num_sanity_val_steps: 0{callbacks}")
    assert config.count("GradientConflicts") == 1
    write(tmp_path / "tiny.yaml", config.replace("max_epochs: 1", "max_epochs: 2"))
    steady = ["--model.schedule.name", "constant", "--model.schedule.warmup", 0]
    steady += ["--trainer.limit_val_batches", 0, "--run.pictures", 0]
    found = []
    for name, epochs in (("whole", 2), ("cut", 1)):
        words = ["fit", "--config", "tiny.yaml", *steady, "--trainer.max_epochs", epochs, "--run.id", name]
        assert m2h(*words) == 0
        folder = tmp_path / "runs" / "tiny" / name
        if name == "cut":
            assert m2h("fit", "--run.resume", folder, "--trainer.max_epochs", 2) == 0
        checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        state = next(v for k, v in checkpoint["callbacks"].items() if k.startswith("GradientConflicts"))
        rows = [numbers(row) for row in read_rows(folder / "metrics.csv")[1]]
        picture = cv2.imread(str(folder / "pictures" / "conflicts.png"))
        found.append((state, [row for row in rows if row], picture))
    (whole, whole_rows, whole_picture), (cut, cut_rows, cut_picture) = found
    assert whole["measured"] == 4 and len(whole_rows) == 4
    assert cut_rows == whole_rows
    for key, value in whole.items():
        assert torch.equal(cut[key], value) if isinstance(value, torch.Tensor) else cut[key] == value, key
    assert np.array_equal(whole_picture, cut_picture)


def test_counts_of_another_block_are_not_taken_over(tmp_path, caplog):
    other, here = GradientConflicts(1, "wmca"), GradientConflicts(1, "mstr")
    _, run, _ = fit(tmp_path, [other], max_steps=1)
    here.setup(run, tiny_module(), "fit")
    here.load_state_dict(other.state_dict())
    assert here.measured == 0 and not here.counts.any()
    assert "counted from here" in caplog.text
    here.load_state_dict({**other.state_dict(), "block": "mstr"})
    assert here.measured == 1 and here.counts.sum() == 12


def test_colours_follow_the_values():
    red, white, blue = (178, 24, 43), (247, 247, 247), (33, 102, 172)
    values = np.array([[np.nan, -1.0], [0.0, 2.0]])
    table = Table("cosine", values, (-1, 1), (red, white, blue), "{:+.2f}")
    assert [table.colour(v) for v in (-1.0, 0.0, 1.0, 7.0)] == [red, white, blue, blue]
    assert table.colour(0.5) == tuple(round((a + b) / 2) for a, b in zip(white, blue, strict=True))
    picture = draw_tables(["first", "second"], [table] * 3, "headline")
    painted = {tuple(colour) for colour in picture.reshape(-1, 3)}
    assert {red, white, blue, (228, 228, 228)} <= painted, "every cell, and a neutral one where nothing was measured"


# ── wrong settings ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "words"), [({"every": 0}, "every is 0"), ({"block": "mtsr"}, "did you mean 'mstr'")]
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ConfigError, match=words):
        GradientConflicts(**arguments)


@pytest.mark.parametrize(
    ("block", "changes", "words"),
    [
        ("wmca", {"wmca": WMCAConfig(enabled=False)}, "wmca.enabled is false; use mstr or backbone or shared"),
        ("msf", {"wmca": WMCAConfig(enabled=False)}, "every task has its own; use mstr or backbone or shared"),
        (
            "backbone",
            {"backbone": BackboneConfig(name="test_convnext", pretrained=False, freeze=True)},
            "model.backbone.freeze.*use mstr or wmca or msf or shared",
        ),
    ],
)
def test_blocks_that_cannot_be_measured(block, changes, words):
    with pytest.raises(ConfigError, match=words):
        GradientConflicts(block=block).setup(None, tiny_module(**changes), "fit")


def test_parameters_in_parts_are_refused():
    trainer = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(ConfigError, match="FSDPStrategy.*use ddp"):
        GradientConflicts().setup(trainer, tiny_module(), "fit")


def test_a_single_task_has_nothing_to_compare(tmp_path, caplog):
    module = tiny_module(tasks=["depth"])
    assert fit(tmp_path, [GradientConflicts(every=1)], module=module, max_steps=1)[2] == []
    assert "nothing to compare, depth is trained alone" in caplog.text
    assert not (tmp_path / "pictures").exists()


def test_the_command_line_refuses_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tiny.yaml")
    callback = '{"class_path": "m2h_lightning.callbacks.GradientConflicts", "init_args": {"block": "heads"}}'
    assert m2h("fit", "--config", "tiny.yaml", "--trainer.callbacks", f"[{callback}]") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message == (
        "m2h: error: GradientConflicts.block: unknown 'heads', use one of mstr, wmca, msf, backbone, shared"
    )
