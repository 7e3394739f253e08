"""What only shows in processes of their own: kill −9 and resume, two processes of a distributed run, the help text."""

import json
import os
import signal
import time

import pytest

from cli_helpers import TINY, only_run, start, write
from m2h_lightning.runs.loggers import read_rows

LONG = ["--config", "tiny.yaml", "--trainer.max_epochs", "12", "--data.train", "4"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def finish(process, timeout=240):
    output = process.communicate(timeout=timeout)[0]
    return process.returncode, output


def test_kill_9_and_resume_give_the_uninterrupted_curve(tmp_path, cache):
    write(tmp_path / "tiny.yaml")
    code, output = finish(start(tmp_path, cache, "fit", *LONG, "--run.id", "whole"))
    assert code == 0, output
    process = start(tmp_path, cache, "fit", *LONG, "--run.id", "cut", log=tmp_path / "cut.log")
    cut, whole = tmp_path / "runs/tiny/cut", tmp_path / "runs/tiny/whole"
    deadline = time.monotonic() + 200
    while not (cut / "checkpoints/epoch002.ckpt").exists():
        assert process.poll() is None, (tmp_path / "cut.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (cut / "result.json").exists()
    rows_before = len(read_rows(cut / "metrics.csv")[1])
    assert 0 < rows_before < len(read_rows(whole / "metrics.csv")[1])

    code, output = finish(start(tmp_path, cache, "fit", "--run.resume", cut))
    assert code == 0, output
    assert (cut / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert (cut / "config.yaml").read_bytes() == (whole / "config.yaml").read_bytes()
    results = [json.loads((run / "result.json").read_text()) for run in (cut, whole)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert sorted(path.name for path in (tmp_path / "runs/tiny").iterdir()) == ["cut", "whole"]
    assert not list(cut.rglob(".*.tmp"))


def test_two_processes_share_one_run_folder(tmp_path, cache):
    write(tmp_path / "tiny.yaml", TINY.replace("devices: 1", "devices: 2\n  strategy: ddp"))
    code, output = finish(start(tmp_path, cache, "fit", "--config", "tiny.yaml", "--data.train", "8"))
    assert code == 0, output
    run = only_run(tmp_path)
    result = json.loads((run / "result.json").read_text())
    assert result["device"]["processes"] == 2
    assert result["steps"] == 2
    assert [path.relative_to(run).as_posix() for path in tmp_path.rglob("config.yaml")] == ["config.yaml"]
    assert len(json.loads((run / "run.json").read_text())["starts"]) == 1
    assert [row["step"] for row in read_rows(run / "metrics.csv")[1] if row["train/loss"]] == ["0", "1"]
    words = ["--run.resume", run, "--trainer.max_epochs", "2"]
    code, output = finish(start(tmp_path, cache, "fit", *words))
    assert code == 0, output
    assert "not with the same random numbers" not in output
    assert json.loads((run / "result.json").read_text())["epochs"] == 2


def test_loading_processes_and_wandb_get_along(tmp_path, cache):
    """W&B watches imports; one that happens in a forked loading process would end the run."""
    write(tmp_path / "tiny.yaml", TINY.replace("wandb: disabled", "wandb: offline"))
    code, output = finish(start(tmp_path, cache, "fit", "--config", "tiny.yaml", "--data.workers", "2"))
    assert code == 0, output
    assert list(only_run(tmp_path).glob("wandb/offline-run-*"))


def test_help_documents_every_key(tmp_path, cache):
    code, output = finish(start(tmp_path, cache, "fit", "--help"))
    assert code == 0
    text = " ".join(output.split())
    for words in (
        "--model.wmca.window_size",
        "Side p of a window",
        "--run.resume",
        "--trainer.max_epochs",
        "--model.optimizer.lr",
    ):
        assert words in text
