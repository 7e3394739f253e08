"""Cells of ``m2h fit`` are checked by training's own rules, and their cost is extrapolated; loads torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli_helpers import TINY, m2h, only_run, write
from m2h_lightning.errors import ConfigError, DataError, M2HError
from m2h_lightning.runs.folder import CONFIG, RESULT
from m2h_lightning.sweeps.planning import probe
from m2h_lightning.sweeps.planning.check import checked
from m2h_lightning.sweeps.planning.check_cell import check_devices
from m2h_lightning.sweeps.planning.cost import Measured, extrapolate, makespan
from m2h_lightning.sweeps.planning.file import read_sweep
from m2h_lightning.sweeps.planning.plan import Plan, Request, make_plan

SWEEP = """
method: grid
metric: {name: val/score, goal: maximize}
parameters:
  KEY: {values: VALUES}
  seed_everything: {values: [0, 1]}
command: [python, -m, m2h_lightning, fit, --config, "${envvar:EXPERIMENT}", "${args}"]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EXPERIMENT", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write(tmp_path / "tiny.yaml")
    return tmp_path


def plan_of(key: str, values: str, metric: str = "val/score", **request: object) -> Plan:
    Path("s.yaml").write_text(SWEEP.replace("KEY", key).replace("VALUES", values).replace("val/score", metric))
    return make_plan(read_sweep(Path("s.yaml")), Request(**{"experiment": "tiny.yaml", **request}))  # type: ignore[arg-type]


def refused(*plan: str, kind: type[M2HError] = ConfigError, **request: object) -> str:
    with pytest.raises(kind) as caught:
        checked(plan_of(*plan, **request), 1)
    assert not Path("runs").exists()
    return str(caught.value)


def test_the_digest_is_that_of_the_run(here):
    """A finished run is taken for its cell by this digest; other seeds, which share a check, have others."""
    plan = checked(plan_of("model.wmca.window_size", "[5, 7]"), 1)
    assert len({cell.config_hash for cell in plan.cells}) == 4
    cell = plan.cells[-1]  # the last seed, which no check has read
    words = plan.command_of(cell, cell.overrides or {})
    assert m2h(*words[words.index("fit") :]) == 0
    result = json.loads((plan.folder_of(cell.id) / RESULT).read_text())
    assert result["config_hash"] == cell.config_hash
    checked(plan)
    saved = plan.folder_of(cell.id) / CONFIG
    saved.write_text(saved.read_text().replace("window_size: 7", "window_size: 9"))
    with pytest.raises(ConfigError, match=r"model.wmca.window_size 9 there, 7 now.*--name"):
        checked(plan)


def test_wrong_cells_are_told_in_one_error(here):
    text = refused("model.wmca.heads", "[2, 3, 5]")
    assert "heads=3" in text and "model.wmca.heads: 3 does not divide model.channels 8" in text
    assert "and 3 more cells" in text  # its other seed, and both of 5
    assert "no model 'nosuch'" in refused("model.backbone.name", "[test_convnext, nosuch]")
    text = refused("config", "[tiny.yaml, gone.yaml]")
    assert "gone.yaml" in text and "and 1 more cell)" in text
    assert "model.windows" in refused("model.windows", "[1, 2]")


def test_cells_that_are_the_same(here):
    write(here / "copy.yaml")
    assert "have the same configuration" in refused("config", "[tiny.yaml, copy.yaml]")


def test_metrics_that_cannot_be(here):
    assert "add --run.test=true" in refused("model.wmca.window_size", "[5, 7]", "test/score")
    assert "depth is not trained by every cell" in refused("model.tasks", "[[semseg], [depth]]", "val/depth/rmse_m")


def test_missing_data_name_a_way_without(here):
    (here / "nyu.yaml").write_text("data: NYUDv2\n")
    text = refused("model.wmca.window_size", "[5, 7]", kind=DataError, experiment="nyu.yaml")
    assert text.endswith("--experiment experiments/rooms.yaml (make: EXPERIMENT=experiments/rooms.yaml)")


@pytest.mark.parametrize(
    ("trainer", "gpus", "message"),
    [
        ({"accelerator": "cpu", "devices": 1}, 2, "--gpus-per-cell is 2, but trainer.accelerator is cpu"),
        ({"accelerator": "gpu", "devices": 4}, 1, "give --gpus-per-cell 4"),
        ({"accelerator": "gpu", "devices": [0, 1]}, 1, "--gpus-per-cell 2"),
        ({"accelerator": "auto", "devices": "1"}, 4, "--trainer.devices 4"),
    ],
)
def test_devices_that_do_not_fit(here, trainer, gpus, message):
    with pytest.raises(ConfigError, match=message):
        check_devices({"trainer": trainer}, gpus)
    check_devices({"trainer": {"accelerator": "gpu", "devices": "auto"}}, gpus)


def test_the_schedule_in_seconds():
    fixed = {"setup_s": 10.0, "step_s": 2.0, "val_batch_s": 0.5, "val_end_s": 1.0, "epoch_batches": 100, "epochs": 4}
    fixed |= {"max_batches": None, "val_batches": 6, "val_every_batches": 100, "val_every_epochs": 1, "test_batches": 0}
    assert extrapolate(Measured(**fixed)) == 10 + 800 + 4 * 4
    assert extrapolate(Measured(**fixed | {"val_every_epochs": 2})) == 10 + 800 + 2 * 4
    assert extrapolate(Measured(**fixed | {"val_every_batches": 25})) == 10 + 800 + 16 * 4
    assert extrapolate(Measured(**fixed | {"test_batches": 20})) == 10 + 800 + 16 + 11
    assert extrapolate(Measured(**fixed | {"max_batches": 150})) == 10 + 300 + 4
    assert extrapolate(Measured(**fixed | {"epochs": None})) is None
    assert makespan([3, 1, 1, 1], 2) == 3


def test_a_probe_measures_and_leaves_nothing(here, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    (tmp_path / "tiny.yaml").write_text(TINY.replace("train: 4", "train: 40").replace("max_epochs: 1", "max_epochs: 3"))
    assert probe.main(["--config", "tiny.yaml", "--run.test=true"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (found["epoch_batches"], found["epochs"], found["val_batches"], found["test_batches"]) == (20, 3, 2, 2)
    assert found["step_s"] > 0 and found["val_batch_s"] > 0 and found["peak_memory_mb"]["host"] > 50
    assert 60 * found["step_s"] < found["seconds"]
    assert not list((tmp_path / "t").iterdir()) and not (here / "runs").exists()
    assert m2h("fit", "--config", "tiny.yaml", "--run.test=true") == 0
    real = json.loads((only_run(here) / RESULT).read_text())["wall_time_s"]
    assert found["seconds"] / 4 < real < found["seconds"] * 4  # other work on the machine counts in both
