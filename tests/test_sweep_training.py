"""A training run under a sweep: stopped by a signal it goes on bit for bit, and it reports and is given up by a study."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from cli_helpers import TINY, m2h, start, write
from m2h_lightning.runs.cell import STOPPED
from m2h_lightning.runs.loggers import read_rows

CONFIG = (
    TINY.replace("lr_factor: 1.0}", "lr_factor: 1.0, drop_path: 0.3}")  # draws from torch's generator in every step
    .replace("max_epochs: 1", "max_epochs: 2")
    .replace("train: 4", "train: 8, batch_size: 2")
    .replace("model:\n", "model:\n  metrics: {details: never}\n")
    .replace("trainer:\n", "trainer:\n  callbacks: [{class_path: test_sweep_training.Tell}]\n")
    .replace("tensorboard: false}", "tensorboard: false, test: true, pictures: 0}")
)


class Tell(Callback):
    """Sends this process the signal, at the place that the file ``tell`` names: a hook and the step, or batch."""

    def _at(self, place, trainer):
        order = Path("tell")
        if order.is_file() and order.read_text() == place and trainer.is_global_zero:
            order.unlink()
            os.kill(os.getpid(), signal.SIGUSR1)

    def setup(self, trainer, pl_module, stage):
        self._at(f"setup {stage}", trainer)

    def on_train_start(self, trainer, pl_module):
        self._at("train", trainer)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self._at(f"step {trainer.global_step + 1}", trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._at(f"batch {batch_idx}", trainer)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self._at(f"validation {trainer.global_step} {batch_idx}", trainer)

    def on_validation_epoch_end(self, trainer, pl_module):
        self._at(f"scored {trainer.global_step}", trainer)

    def on_train_end(self, trainer, pl_module):
        self._at("trained", trainer)

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self._at(f"test {batch_idx}", trainer)


@pytest.fixture(autouse=True)
def restored():
    """A stopped run leaves the signal ignored: its process is about to end."""
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def outcome(folder):
    """Everything of a finished run that has to be the same whether it was stopped or not."""
    result = json.loads((folder / "result.json").read_text())
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    kept = {key: result[key] for key in ("status", "metrics", "epochs", "steps")}
    return kept, (folder / "metrics.csv").read_bytes(), weights


def same(folder, other):
    (result, rows, weights), (result2, rows2, weights2) = outcome(folder), outcome(other)
    assert rows == rows2
    assert result == result2
    assert weights.keys() == weights2.keys()
    assert all(torch.equal(weights[key], weights2[key]) for key in weights)
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (folder, other)]
    assert names[0] == names[1], "the checkpoint of the stop is removed"
    assert not (folder / "failure.txt").exists()


WHOLE = {}
"""The uninterrupted run of each list of words."""


@pytest.fixture
def stop(tmp_path, monkeypatch, tmp_path_factory):
    """Stops a run at some places, one after the other, resumes it, and compares it with the uninterrupted one."""

    def run(*places, words=()):
        if words not in WHOLE:
            folder = WHOLE[words] = tmp_path_factory.mktemp("whole")
            monkeypatch.chdir(folder)
            write(folder / "tiny.yaml", CONFIG)
            assert m2h("fit", "--config", "tiny.yaml", *words, "--run.id", "run") == 0
        monkeypatch.chdir(tmp_path)
        write(tmp_path / "tiny.yaml", CONFIG)
        folder = tmp_path / "runs/tiny/run"
        steps = []
        command = ["--config", "tiny.yaml", *words, "--run.id", "run"]
        for place in places:
            write(tmp_path / "tell", place)
            assert m2h("fit", *command) == STOPPED, place
            assert not (tmp_path / "tell").exists()
            assert not (folder / "result.json").exists()
            assert (folder / "failure.txt").read_text() == f"stopped by a signal; continue with --run.resume {folder}\n"
            newest = max((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
            steps.append(torch.load(newest, weights_only=True)["global_step"])
            command = ["--run.resume", folder]
        assert m2h("fit", *command) == 0
        same(folder, WHOLE[words] / "runs/tiny/run")
        return steps

    return run


@pytest.mark.parametrize(
    ("place", "step"),
    [
        ("step 2", 2),  # inside an epoch
        ("step 7", 7),  # the last but one of all
        ("step 4", 4),  # the last of an epoch: stops before the validation
        ("validation 4 0", 4),
        ("validation 8 0", 8),
        ("scored 4", 5),  # between two epochs: the next step is the first that can be stopped
        ("test 0", 8),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(stop, place, step):
    assert stop(place) == [step]


def test_a_run_may_be_stopped_again_and_again(stop):
    places = ("step 1", "step 3", "validation 4 0", "validation 4 0", "step 6", "step 8", "test 0", "test 0")
    assert stop(*places) == [1, 3, 4, 4, 6, 8, 8, 8]


@pytest.mark.parametrize("place", ["step 2", "validation 4 0", "test 0"])
def test_with_an_average_of_the_weights(stop, place):
    stop(place, words=("--model.ema", "0.9"))


@pytest.mark.parametrize(("place", "step"), [("step 2", 2), ("validation 2 0", 2), ("validation 6 0", 6)])
def test_with_a_validation_inside_the_epoch(stop, place, step):
    assert stop(place, words=("--trainer.val_check_interval", "0.5")) == [step]


def test_accumulated_gradients_are_waited_for(stop):
    assert stop("batch 0", words=("--trainer.accumulate_grad_batches", "2")) == [1]
