"""fit, validate, test and predict through the real command line, in this process; the traps of LightningCLI, closed."""

import json

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from cli_helpers import TINY, m2h, only_run, write
from m2h_lightning.errors import DataError
from m2h_lightning.runs import folder as runs
from m2h_lightning.runs.loggers import read_rows
from samples import Planes


class Flowers(Planes):
    """Another data set, with other defaults for the arguments of the same name."""

    name = "flowers"
    classes = ("stem", "leaf", "petal", "root")

    def __init__(self, train: int = 10, crop=(48, 48), batch_size: int = 5, workers: int = 0) -> None:
        super().__init__(train, crop, batch_size, workers)


class Fails(Callback):
    """Raises what it is told to when training starts."""

    error: BaseException

    def on_train_start(self, trainer, pl_module):
        raise self.error


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tiny.yaml")
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run; tests do not write in it."""
    root = tmp_path_factory.mktemp("trained")
    file = write(root / "tiny.yaml")
    assert m2h("fit", "--config", file, "--run.root", root / "runs", "--run.id", "first", "--run.test", "true") == 0
    return root / "runs" / "tiny" / "first"


def test_a_run_folder_is_complete(trained):
    result = json.loads((trained / "result.json").read_text())
    assert result["status"] == "finished"
    assert {"train", "val", "test"} <= set(result["metrics"])
    assert result["metrics"]["test"]["depth"]["rmse_m"] > 0
    assert result["budget"]["max_epochs"] == result["epochs"] == 1
    assert result["steps"] == 2
    assert result["seed"] == 0
    data = {"module": "Planes", "name": "planes", "fingerprint": "planes", "depth_unit": "m"}
    data |= {"edge_rule": "the border of the planes", "test_fingerprint": "planes"}
    data |= {"eval_size": None, "eval_labels": "own"}
    assert result["data"] == data
    assert result["parameters"]["total"] > result["parameters"]["trainable"] - 1 > 0
    assert result["peak_memory_mb"]["host"] > 50
    assert result["wall_time_s"] > 0
    assert result["versions"]["torch"] == torch.__version__.split("+")[0] or result["versions"]["torch"]
    assert len(result["config_hash"]) == 16
    rows = read_rows(trained / "metrics.csv")[1]
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1"]
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"epoch000.ckpt", "last.ckpt"}
    assert {path.name for path in trained.iterdir()} >= {"config.yaml", "metrics.csv", "result.json", "run.json"}
    assert not (trained / "failure.txt").exists()


def test_the_saved_configuration_runs_again_in_a_new_folder(trained, folder):
    saved = yaml.safe_load((trained / "config.yaml").read_text())
    assert saved["run"]["experiment"] == "tiny"
    assert saved["run"]["id"] is None
    assert "facts" not in saved["model"]
    assert m2h("fit", "--config", trained / "config.yaml", "--run.root", "runs", "--run.test", "false") == 0
    again = only_run(folder)
    assert again.name != "first"
    # The same seed and configuration: the same numbers, bit for bit.
    losses = [[row["train/loss"] for row in read_rows(run / "metrics.csv")[1]] for run in (trained, again)]
    assert [loss for loss in losses[0] if loss] == [loss for loss in losses[1] if loss] != []


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_evaluation_from_a_checkpoint(verb, trained, folder):
    code = m2h(verb, "--config", "tiny.yaml", "--ckpt_path", trained / "checkpoints/last.ckpt")
    assert code == 0
    run = only_run(folder)
    result = json.loads((run / "result.json").read_text())
    assert result["command"] == verb
    if verb != "predict":
        stage = {"validate": "val", "test": "test"}[verb]
        before = json.loads((trained / "result.json").read_text())["metrics"][stage]
        assert result["metrics"][stage]["depth"]["rmse_m"] == pytest.approx(before["depth"]["rmse_m"], rel=1e-6)


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_fast_dev_run(verb, folder):
    assert m2h(verb, "--config", "tiny.yaml", "--trainer.fast_dev_run", "true") == 0
    run = only_run(folder)
    assert json.loads((run / "result.json").read_text())["fast_dev_run"] is True
    assert (run / "config.yaml").is_file()
    assert {path.name for path in folder.iterdir()} == {"tiny.yaml", "runs"}


def test_summary_prints_and_writes_nothing(folder, capsys):
    assert m2h("summary", "--config", "tiny.yaml", "--size", "48", "64", "--model.ggfm.enabled", "false") == 0
    out = capsys.readouterr().out
    assert "WMCA" in out
    assert "GGFM" not in out
    assert [path.name for path in folder.iterdir()] == ["tiny.yaml"]


# ── trap 1: a checkpoint overrides --model.* without a word ─────────────────────────────────────────────────────────


def test_a_checkpoint_and_another_architecture_do_not_mix(trained, folder, capsys):
    checkpoint = trained / "checkpoints/last.ckpt"
    capsys.readouterr()
    words = ["--config", "tiny.yaml", "--ckpt_path", checkpoint, "--model.wmca.window_size", "9"]
    assert m2h("test", *words) == 2
    line = capsys.readouterr().err.strip()
    assert "model.wmca.window_size is 9" in line
    assert "trained with 5" in line
    assert "leave the key out" in line
    assert not (folder / "runs").exists()


def test_keys_nobody_wrote_come_from_the_checkpoint_and_training_keys_from_the_user(trained, folder):
    short = "data: samples.Planes\n" + TINY[TINY.index("trainer:") :]
    write(folder / "short.yaml", short)
    checkpoint = trained / "checkpoints/last.ckpt"
    words = [
        "--config",
        "short.yaml",
        "--ckpt_path",
        checkpoint,
        "--model.optimizer.lr",
        "0.5",
        "--trainer.max_epochs",
        "2",
    ]
    assert m2h("fit", *words) == 0
    saved = yaml.safe_load((only_run(folder, "short") / "config.yaml").read_text())["model"]
    assert saved["channels"] == 8
    assert saved["wmca"]["window_size"] == 5
    assert saved["optimizer"]["lr"] == 0.5


def test_other_classes_than_the_checkpoints_are_refused(trained, folder, capsys):
    code = m2h("test", "--config", "tiny.yaml", "--data", "Flowers", "--ckpt_path", trained / "checkpoints/last.ckpt")
    assert code == 2
    assert "was built for classes of 'planes'" in capsys.readouterr().err
    assert not (folder / "runs").exists()


# ── trap 2: another class of data keeps the old one's defaults ──────────────────────────────────────────────────────


@pytest.mark.parametrize("first", ["data: samples.Planes", "data: {class_path: samples.Planes, init_args: {}}"])
@pytest.mark.parametrize("by_file", [True, False])
def test_another_data_set_has_its_own_defaults(first, by_file, folder):
    write(folder / "first.yaml", TINY[: TINY.index("data:")] + first + "\n" + TINY[TINY.index("trainer:") :])
    write(folder / "second.yaml", f"data: {__name__}.Flowers\n")
    second = ["--config", "second.yaml"] if by_file else ["--data", "Flowers"]
    assert m2h("fit", "--config", "first.yaml", *second, "--trainer.fast_dev_run", "true") == 0
    data = yaml.safe_load((only_run(folder, "first") / "config.yaml").read_text())["data"]
    assert data["class_path"].endswith("Flowers")
    assert data["init_args"] == {"train": 10, "crop": [48, 48], "batch_size": 5, "workers": 0}


# ── trap 3: the second W&B run in a folder aborts ───────────────────────────────────────────────────────────────────


def test_two_wandb_runs_in_a_row_with_the_canonical_configuration(folder, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    for _ in range(2):
        assert m2h("fit", "--config", "tiny.yaml", "--run.wandb", "offline") == 0
    found = sorted((folder / "runs" / "tiny").iterdir())
    assert len(found) == 2
    for run in found:
        assert (run / "config.yaml").is_file()
        logs = list(run.glob("wandb/offline-run-*/*.wandb"))
        assert len(logs) == 1
        assert logs[0].name == f"run-{run.name}.wandb"
        content = logs[0].read_bytes()
        assert b"model.wmca.window_size" in content
        assert b"val/depth/rmse_m" in content
    assert not (folder / "wandb").exists()


# ── loggers, failures ───────────────────────────────────────────────────────────────────────────────────────────────


def test_csv_stays_with_other_loggers_and_with_none(folder):
    assert m2h("fit", "--config", "tiny.yaml", "--trainer.logger", "false", "--run.id", "none") == 0
    words = ["--run.tensorboard", "true", "--run.id", "board"]
    assert m2h("fit", "--config", "tiny.yaml", *words) == 0
    assert (folder / "runs/tiny/none/metrics.csv").is_file()
    assert (folder / "runs/tiny/board/metrics.csv").is_file()
    assert list((folder / "runs/tiny/board/tensorboard").glob("events.*"))
    assert not (folder / "runs/tiny/none/tensorboard").exists()


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [(DataError("bad\nsample"), 2, "DataError: bad sample"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_a_failed_run_says_why_and_has_no_result(folder, capsys, error, code, reason):
    Fails.error = error
    words = ["--trainer.callbacks", f"{__name__}.Fails", "--run.id", "x"]
    assert m2h("fit", "--config", "tiny.yaml", *words) == code
    run = folder / "runs/tiny/x"
    assert (run / "failure.txt").read_text().splitlines()[0] == reason
    assert not (run / "result.json").exists()


def test_our_own_faults_keep_their_traceback(folder):
    Fails.error = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        m2h("fit", "--config", "tiny.yaml", "--trainer.callbacks", f"{__name__}.Fails", "--run.id", "x")
    text = (folder / "runs/tiny/x/failure.txt").read_text()
    assert text.startswith("ZeroDivisionError: ours")
    assert "Traceback" in text
    assert runs.RUN_DIR_VARIABLE not in __import__("os").environ


# ── resume ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_finished_run_says_so_and_can_be_extended(folder, capsys):
    assert m2h("fit", "--config", "tiny.yaml", "--run.id", "a", "--model.schedule.name", "constant") == 0
    run = folder / "runs/tiny/a"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    capsys.readouterr()
    assert m2h("fit", "--run.resume", run) == 0
    assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert m2h("fit", "--run.resume", run, "--model.channels", "4", "--trainer.max_epochs", "2") == 2
    assert "trained with 8" in capsys.readouterr().err
    assert m2h("fit", "--run.resume", run, "--trainer.max_epochs", "2") == 0
    assert json.loads((run / "result.json").read_text())["epochs"] == 2
    assert [row["step"] for row in read_rows(run / "metrics.csv")[1] if row["train/loss"]] == ["0", "1", "2", "3"]
    assert len(json.loads((run / "run.json").read_text())["starts"]) == 2
    assert only_run(folder) == run


def test_nothing_to_resume(folder, capsys):
    assert m2h("fit", "--config", "tiny.yaml", "--trainer.fast_dev_run", "true", "--run.id", "a") == 0
    capsys.readouterr()
    assert m2h("fit", "--run.resume", "runs/tiny/a") == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert m2h("test", "--run.resume", "runs/tiny/a") == 2
