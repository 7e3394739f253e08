"""A run under a sweep: stopped by a signal it goes on bit for bit; it reports to a study, which may give it up."""

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
        self._at("setup", trainer)

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
    places = ("step 1", "validation 4 0", "validation 4 0", "step 8", "test 0", "test 0")
    assert stop(*places) == [1, 4, 4, 8, 8, 8]


@pytest.mark.parametrize("place", ["step 2", "validation 4 0", "test 0"])
def test_with_an_average_of_the_weights(stop, place):
    stop(place, words=("--model.ema", "0.9"))


@pytest.mark.parametrize(("place", "step"), [("step 2", 2), ("validation 2 0", 2), ("validation 6 0", 6)])
def test_with_a_validation_inside_the_epoch(stop, place, step):
    assert stop(place, words=("--trainer.val_check_interval", "0.5")) == [step]


def test_accumulated_gradients_are_waited_for(stop):
    assert stop("batch 0", words=("--trainer.accumulate_grad_batches", "2")) == [1]


def test_before_training_there_is_nothing_to_keep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tiny.yaml", CONFIG)
    write(tmp_path / "tell", "setup")
    assert m2h("fit", "--config", "tiny.yaml", "--run.id", "run") == STOPPED
    assert "before the first checkpoint; start anew" in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "runs/tiny/run").glob("checkpoints/*"))


def test_slurm_puts_its_jobs_back_itself(monkeypatch):
    from types import SimpleNamespace

    from lightning.fabric.plugins.environments import SLURMEnvironment

    from m2h_lightning.callbacks.stop import StopAtSignal

    before = signal.getsignal(signal.SIGUSR1)
    for requeue in (True, False):
        environment = SLURMEnvironment(auto_requeue=requeue)
        trainer = SimpleNamespace(_accelerator_connector=SimpleNamespace(cluster_environment=environment), world_size=1)
        with StopAtSignal().listening(trainer):
            assert (signal.getsignal(signal.SIGUSR1) is before) == requeue
        assert signal.getsignal(signal.SIGUSR1) is before


# ── processes of their own ──────────────────────────────────────────────────────────────────────────────────────────


def finish(process):
    output = process.communicate(timeout=240)[0]
    return process.returncode, output


@pytest.mark.parametrize("place", ["step 2", "validation 4 0"])
def test_two_processes_stop_together(tmp_path, cache, place):
    """The signal reaches one of them; the other one has one batch less to validate."""
    write(tmp_path / "tiny.yaml", CONFIG.replace("devices: 1", "devices: 2\n  strategy: ddp"))
    words = ["--config", "tiny.yaml", "--data.batch_size", "1", "--run.test", "false"]
    whole, cut = tmp_path / "runs/tiny/whole", tmp_path / "runs/tiny/cut"
    code, output = finish(start(tmp_path, cache, "fit", *words, "--run.id", "whole"))
    assert code == 0, output
    write(tmp_path / "tell", place)
    code, output = finish(start(tmp_path, cache, "fit", *words, "--run.id", "cut"))
    assert code == STOPPED, output
    assert "stopped by a signal" in output.splitlines()[-1]
    assert (cut / "checkpoints/stopped.ckpt").is_file()
    code, output = finish(start(tmp_path, cache, "fit", "--run.resume", cut))
    assert code == 0, output
    assert "not with the same random numbers" not in output
    same(cut, whole)


def test_two_signals_from_outside(tmp_path, cache):
    """The second one does not kill a process that is closing its files."""
    write(tmp_path / "tiny.yaml", CONFIG)
    log = tmp_path / "log"
    process = start(
        tmp_path, cache, "fit", "--config", "tiny.yaml", "--trainer.max_epochs", 500, "--run.id", "run", log=log
    )
    folder = tmp_path / "runs/tiny/run"
    deadline = time.monotonic() + 200
    while not (folder / "checkpoints/epoch000.ckpt").exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    while process.poll() is None:
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.05)
    assert process.wait() == STOPPED, log.read_text()
    assert log.read_text().splitlines()[-1] == f"m2h: stopped by a signal; continue with --run.resume {folder}"


# ── reporting to a study ────────────────────────────────────────────────────────────────────────────────────────────


def make_study(tmp_path, direction, others=()):
    """A study in a journal with finished trials of these values after each validation, and one that runs."""
    import optuna
    from optuna.trial import TrialState, create_trial

    from m2h_lightning.storages.url import open_storage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage("journal:ledger", tmp_path)
    study = optuna.create_study(study_name="s", storage=storage, direction=direction)
    for value in others:
        rungs = {"completed_rung_0": value}
        study.add_trial(create_trial(state=TrialState.COMPLETE, value=value, system_attrs=rungs))
    return study, study.ask()._trial_id


def tell_child(monkeypatch, tmp_path, trial, metric="val/loss", rule=None):
    values = {"STORAGE": f"journal:{tmp_path / 'ledger'}", "STUDY": "s", "TRIAL": trial, "METRIC": metric}
    for name, value in values.items():
        monkeypatch.setenv(f"M2H_{name}", str(value))
    if rule:
        monkeypatch.setenv("M2H_PRUNER", json.dumps(rule))


RULE = {"type": "hyperband", "min_iter": 1, "eta": 2}


def reported(study, trial):
    found = next(t for t in study.get_trials() if t._trial_id == trial)
    return found.intermediate_values, found.user_attrs.get("pruned_at")


@pytest.mark.parametrize(
    ("direction", "others", "pruned"),
    [
        ("minimize", [0.0, 0.0], True),
        ("minimize", [1e9, 1e9], False),
        ("maximize", [1e9, 1e9], True),
        ("maximize", [0.0, 0.0], False),
    ],
)
def test_the_rule_gives_a_run_up_or_not(tmp_path, monkeypatch, direction, others, pruned):
    monkeypatch.chdir(tmp_path)
    study, trial = make_study(tmp_path, direction, others)
    tell_child(monkeypatch, tmp_path, trial, rule=RULE)
    write(tmp_path / "tiny.yaml", CONFIG)
    assert m2h("fit", "--config", "tiny.yaml", "--run.id", "run", "--trainer.max_epochs", 3) == 0
    result = json.loads((tmp_path / "runs/tiny/run/result.json").read_text())
    values, pruned_at = reported(study, trial)
    rows = [float(row["val/loss"]) for row in read_rows(tmp_path / "runs/tiny/run/metrics.csv")[1] if row["val/loss"]]
    assert values == dict(enumerate(rows, 1))
    assert pruned_at == (1 if pruned else None)
    assert result["status"] == ("pruned" if pruned else "finished")
    assert len(rows) == (1 if pruned else 3)
    assert ("test" in result["metrics"]) != pruned
    assert study.get_trials()[-1].state.name == "RUNNING", "the end is for the worker to tell"


def test_a_run_that_is_trained_is_not_given_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, trial = make_study(tmp_path, "minimize", [0.0, 0.0])
    tell_child(monkeypatch, tmp_path, trial, rule=RULE)
    write(tmp_path / "tiny.yaml", CONFIG)
    assert m2h("fit", "--config", "tiny.yaml", "--run.id", "run", "--trainer.max_epochs", 1) == 0
    assert json.loads((tmp_path / "runs/tiny/run/result.json").read_text())["status"] == "finished"


def test_a_resumed_run_reports_each_step_once_and_to_its_new_trial(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study, trial = make_study(tmp_path, "minimize")
    tell_child(monkeypatch, tmp_path, trial, "val/score")
    write(tmp_path / "tiny.yaml", CONFIG)
    write(tmp_path / "tell", "step 5")
    assert m2h("fit", "--config", "tiny.yaml", "--run.id", "run") == STOPPED
    first, _ = reported(study, trial)
    assert list(first) == [1]
    again = study.ask()._trial_id
    tell_child(monkeypatch, tmp_path, again, "val/score")
    assert m2h("fit", "--run.resume", tmp_path / "runs/tiny/run") == 0
    assert reported(study, trial)[0] == first
    values, _ = reported(study, again)
    assert list(values) == [1, 2] and values[1] == first[1]
    score = json.loads((tmp_path / "runs/tiny/run/result.json").read_text())["metrics"]["val"]["score"]
    assert values[2] == pytest.approx(score, rel=1e-6)


def test_a_storage_that_does_not_answer_does_not_end_the_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, trial = make_study(tmp_path, "minimize")
    tell_child(monkeypatch, tmp_path, trial + 1000)
    write(tmp_path / "tiny.yaml", CONFIG)
    with pytest.warns(UserWarning, match="the sweep's storage cannot be reached") as warned:
        assert m2h("fit", "--config", "tiny.yaml", "--run.id", "run", "--run.test", "false") == 0
    assert sum("cannot be reached" in str(warning.message) for warning in warned) == 1


def test_wrong_settings_end_it_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, trial = make_study(tmp_path, "minimize")
    write(tmp_path / "tiny.yaml", CONFIG)
    for metric, rule, parts in (
        ("val/scroe", None, ["no metric val/scroe", "val/score", "change metric.name"]),
        ("test/score", RULE, ["metric.name is test/score", "use val/score"]),
        ("val/loss", {"type": "median"}, ["type 'median' is not known", "hyperband"]),
    ):
        tell_child(monkeypatch, tmp_path, trial, metric, rule)
        assert m2h("fit", "--config", "tiny.yaml") == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("m2h: error: ") and all(part in line for part in parts), line
        monkeypatch.delenv("M2H_PRUNER", raising=False)
    monkeypatch.delenv("M2H_TRIAL")
    assert m2h("fit", "--config", "tiny.yaml") == 2
    assert "M2H_STORAGE is set, but" in capsys.readouterr().err


def test_outside_of_a_sweep_optuna_is_not_imported(tmp_path, cache):
    write(tmp_path / "tiny.yaml", CONFIG)
    program = (
        "import sys; from m2h_lightning.cli import main; code = main(['fit', '--config', 'tiny.yaml', '--run.test', "
    )
    program += "'false', '--trainer.max_epochs', '1']); assert 'optuna' not in sys.modules; sys.exit(code)"
    import subprocess
    import sys

    from cli_helpers import process_environment

    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=process_environment(cache), capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr


def test_two_processes_are_given_up_together(tmp_path, cache, monkeypatch):
    study, trial = make_study(tmp_path, "minimize", [0.0, 0.0])
    tell_child(monkeypatch, tmp_path, trial, rule=RULE)
    write(tmp_path / "tiny.yaml", CONFIG.replace("devices: 1", "devices: 2\n  strategy: ddp"))
    code, output = finish(start(tmp_path, cache, "fit", "--config", "tiny.yaml", "--run.id", "run"))
    assert code == 0, output
    result = json.loads((tmp_path / "runs/tiny/run/result.json").read_text())
    assert (result["status"], result["pruned_at"], result["epochs"]) == ("pruned", 1, 1)
    values, pruned_at = reported(study, trial)
    assert (list(values), pruned_at) == ([1], 1)
    assert len(study.get_trials()) == 3, "no process makes a trial of its own"
