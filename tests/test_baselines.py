"""Fewer tasks than a file is written for, and ``m2h baselines``: a run per task, resumed, skipped; Δm at the end."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Callback

from cli_helpers import TINY, m2h, write
from m2h_lightning.commands import baselines
from m2h_lightning.commands.narrowing import words_of_task
from m2h_lightning.commands.plan import plan_of
from m2h_lightning.errors import ConfigError
from m2h_lightning.module import M2HModule

WEIGHTS = """
model:
  loss_weights: {depth: 2.0, edges: 3.0}
  balancing:
    sampling: {edges: 0.5, depth: 0.9}
  consistency:
    depth_normals: {weight: 0.1}
    smoothness: {weight: 0.2}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tiny.yaml")
    write(tmp_path / "weights.yaml", WEIGHTS)
    return tmp_path


def model_of(*words):
    """Return the model's keys that ``fit`` would have."""
    return plan_of(["--config", "tiny.yaml", *words]).tree["model"]


# ── fewer tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_line_narrows_what_files_say(capsys):
    model = model_of("--config", "weights.yaml", "--model.tasks", "[depth]")
    assert model["loss_weights"] == {"depth": 2.0}
    assert model["balancing"]["sampling"] == {"depth": 0.9}
    weights = {name: section["weight"] for name, section in model["consistency"].items()}
    assert weights == {"depth_normals": 0.0, "edges_semseg": 0.0, "smoothness": 0.2}
    model = model_of("--config", "weights.yaml", "--model.tasks=[normals]", "--model.loss_weights.normals", "1.5")
    assert model["loss_weights"] == {"normals": 1.5}
    assert model["balancing"]["sampling"] is None
    assert not any(section["weight"] for section in model["consistency"].values())


def test_all_tasks_or_none_named_leave_the_file_as_it_is():
    every = model_of("--config", "weights.yaml")
    named = model_of("--config", "weights.yaml", "--model.tasks", "[edges, normals, depth]")
    assert named == {**every, "tasks": ["edges", "normals", "depth"]}


def test_a_later_file_narrows_and_one_line_tells_it(folder, caplog):
    write(folder / "depth.yaml", "model: {tasks: [depth]}")
    files = ["--config", "tiny.yaml", "--config", "weights.yaml", "--config", "depth.yaml"]
    with caplog.at_level("INFO"):
        assert m2h("summary", *files, "--size", 48, 64) == 0
    (told,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert told == (
        "model.tasks is [depth]; what is written for other tasks is left out: model.loss_weights.edges "
        "(weights.yaml:3), model.balancing.sampling.edges (weights.yaml:5), model.consistency.depth_normals.weight "
        "(weights.yaml:7)"
    )
    assert model_of("--config", "weights.yaml", "--config", "depth.yaml")["loss_weights"] == {"depth": 2.0}


@pytest.mark.parametrize(
    ("text", "words", "parts"),
    [
        (WEIGHTS, ["--model.tasks", "[depth]", "--model.loss_weights.edges", "3"], ["model.loss_weights.edges"]),
        (WEIGHTS, ["--model.tasks", "[depth]", "--model.loss_weights", "{edges: 3}"], ["model.loss_weights.edges"]),
        (WEIGHTS, ["--model.tasks", "[depth]", "--model.balancing.sampling.edges", "0.3"], ["sampling", "'edges'"]),
        (
            WEIGHTS,
            ["--model.tasks", "[depth]", "--model.consistency.depth_normals.weight", "0.3"],
            ["model.consistency.depth_normals.weight is 0.3", "normals is not trained"],
        ),
        ("model: {tasks: [depth], loss_weights: {edges: 3}}", [], ["model.loss_weights.edges", "model.tasks: depth"]),
        ("model: {loss_weights: {edgse: 3}}", ["--model.tasks", "[depth]"], ["edgse", "did you mean 'edges'?"]),
        (WEIGHTS, ["--model.tasks", "[depht]"], ["unknown task 'depht'", "did you mean 'depth'?"]),
    ],
)
def test_what_contradicts_itself_is_refused(text, words, parts, folder, capsys):
    write(folder / "bad.yaml", text)
    assert m2h("summary", "--config", "tiny.yaml", "--config", "bad.yaml", *words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("m2h: error: ")
    assert all(part in line for part in parts), line


def test_the_words_of_one_task():
    words = ["--config", "x.yaml", "--model.loss_weights.edges", "3", "--model.loss_weights.depth=2"]
    words += ["--model.balancing.sampling", "{edges: 0.5, depth: 0.25}", "--model.consistency.smoothness.weight", "1"]
    words += [
        "--model.consistency.depth_normals.weight=0.1",
        "--model.loss_weights.typo",
        "1",
        "--trainer.devices",
        "1",
    ]
    assert words_of_task(words, "depth") == [
        "--config", "x.yaml", "--model.loss_weights.depth=2", "--model.balancing.sampling", '{"depth": 0.25}',
        "--model.consistency.smoothness.weight", "1", "--model.loss_weights.typo", "1", "--trainer.devices", "1",
    ]  # fmt: skip
    assert words_of_task(words, "edges")[2:6] == ["--model.loss_weights.edges", "3", "--model.balancing.sampling",
                                                  '{"edges": 0.5}']  # fmt: skip


# ── baselines ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Dies(Callback):
    """Dies in the second epoch of the task that a file names."""

    def on_train_epoch_start(self, trainer, pl_module: M2HModule):
        order = Path("dies")
        if trainer.current_epoch == 1 and order.is_file() and list(pl_module.tasks) == [order.read_text()]:
            raise RuntimeError("out of luck")


@pytest.fixture
def here(monkeypatch):
    """Runs in this process instead of in ones of their own; returns the words of each."""
    started = []

    def fit(words):
        started.append(words)
        try:
            code = m2h("fit", *words)
        except RuntimeError:
            code = 1
        return None if code == 0 else f"failed with exit code {code}"

    monkeypatch.setattr(baselines, "_fit", fit)
    return started


def test_failing_resumed_skipped_compared(folder, here, capsys):
    config = TINY.replace("max_epochs: 1", "max_epochs: 2") + "\nseed_everything: 0\n"
    config = config.replace("trainer:\n", "trainer:\n  callbacks: [{class_path: test_baselines.Dies}]\n")
    config = config.replace("model:\n", "model:\n  metrics: {details: never}\n")
    write(folder / "tiny.yaml", config.replace("model:\n", "model:\n  tasks: [normals, depth]\n"))
    words = ["--config", "tiny.yaml", "--model.loss_weights.normals", "2.0", "--run.pictures", "0"]
    singles = folder / "runs" / "tiny-single"

    (folder / "dies").write_text("normals")
    assert m2h("baselines", *words) == 1
    got = capsys.readouterr()
    assert "m2h baselines: 1 of 2 failed: normals" in got.err
    assert json.loads((singles / "depth/result.json").read_text())["tasks"] == ["depth"]
    assert not (singles / "normals/result.json").exists()
    assert yaml.safe_load((singles / "normals/config.yaml").read_text())["model"]["loss_weights"] == {"normals": 2.0}
    assert yaml.safe_load((singles / "depth/config.yaml").read_text())["model"]["loss_weights"] is None
    assert [words[-9:-8] for words in here] == [["[depth]"], ["[normals]"]], "the order of tables"

    (folder / "dies").unlink()
    assert m2h("baselines", *words) == 0
    out = capsys.readouterr().out
    assert here[2:] == [["--run.resume", "runs/tiny-single/normals"]]
    assert "runs/tiny-single/depth is finished: skipped" in out
    assert "Δm needs a run of several tasks in runs/tiny" in out

    assert m2h("fit", *words, "--run.test", "true", "--run.id", "both") == 0
    assert m2h("baselines", *words) == 0
    assert len(here) == 3, "both are finished"
    out = capsys.readouterr().out
    assert "tiny/both" in out
    assert "Δm ↑" in out

    # Another configuration is not taken for the same run.
    assert m2h("baselines", *words, "--model.optimizer.lr", "0.5", "--model.tasks", "[depth]") == 1
    assert "model.optimizer.lr 0.0001 there, 0.5 now" in capsys.readouterr().err
    assert len(here) == 3

    # A checkpoint of one task is tested with the file of all of them.
    checkpoint = singles / "depth/checkpoints/last.ckpt"
    write(folder / "tiny.yaml", config)
    assert m2h("test", "--config", "tiny.yaml", "--config", "weights.yaml", "--ckpt_path", checkpoint) == 0


def test_what_cannot_start_starts_nothing(folder, here, capsys, monkeypatch):
    for words, parts in (
        (["--run.id", "x"], ["--run.id", "one per task"]),
        (["--run.resume=runs/x"], ["--run.resume", "one per task"]),
        (["--config", "none.yaml"], ["no file none.yaml"]),
        (["--model.chanels", "3"], ["did you mean 'model.channels'?"]),
        (["--model.tasks", "[depht]"], ["unknown task 'depht'", "did you mean 'depth'?"]),
        (["--seed_everything", "true"], ["seed_everything is true", "give a number"]),
        (["--data.batch_size", "0"], ["data.batch_size is 0"]),
    ):
        capsys.readouterr()
        assert m2h("baselines", "--config", "tiny.yaml", *words) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and all(part in lines[0] for part in parts), lines
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(ConfigError, match="without torchrun"):
        baselines.main_baselines(["--config", "tiny.yaml"])
    assert here == []
    assert not (folder / "runs").exists()


def test_seeds_have_runs_of_their_own():
    assert [baselines._run_id("depth", seed) for seed in (0, 3)] == ["depth", "depth-seed3"]


def test_a_run_without_a_checkpoint_is_kept_aside(folder, here):
    empty = folder / "runs" / "tiny-single" / "depth"
    empty.mkdir(parents=True)
    (empty / "failure.txt").write_text("interrupted")
    assert baselines._train(empty, {}, ["--config", "none.yaml"]) == "failed with exit code 2"
    assert [path.name for path in empty.parent.iterdir()] == ["depth-old1"]


PROGRAM = """#!/bin/sh
echo "$@" > words
trap 'ON_INTERRUPT' INT
touch started
while true; do sleep 0.02; done
"""


@pytest.mark.parametrize("on_interrupt", ["echo yes > told; exit 130", ""])
def test_ctrl_c_ends_the_run_under_way(on_interrupt, folder, capfd, monkeypatch):
    """The signal reaches this process alone: the run is told, and where it does not listen it is ended."""
    program = Path(write(folder / "program", PROGRAM.replace("ON_INTERRUPT", on_interrupt)))
    program.chmod(0o755)
    monkeypatch.setattr(baselines, "PROGRAM", (str(program),))
    monkeypatch.setattr(baselines, "GRACE_S", 0.2)
    monkeypatch.setattr(baselines, "END_S", 30.0 if on_interrupt else 0.2)
    over = threading.Event()

    def press():
        while not over.wait(0.02):
            if (folder / "started").exists():
                os.kill(os.getpid(), signal.SIGINT)
                return

    finger = threading.Thread(target=press)
    finger.start()
    try:
        assert m2h("baselines", "--config", "tiny.yaml", "--model.tasks", "[edges, depth]") == 130
    finally:
        over.set()
        finger.join()
    assert capfd.readouterr().err.splitlines()[-1] == "m2h: interrupted"
    assert (folder / "told").exists() == bool(on_interrupt)
    expected = "--config tiny.yaml --model.tasks [edges, depth] --model.tasks [depth] --run.root runs"
    expected += " --run.experiment tiny-single --run.id depth --run.test true"
    assert (folder / "words").read_text().strip() == f"fit {expected}"
