"""Every committed experiment runs through the real command line, on rooms a few pixels wide."""

import csv
import json
import re
from pathlib import Path

import pytest
import yaml

from m2h_lightning.cli import main

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
SMALL = [
    "--data.rooms", "[2, 1, 1]", "--data.views", "2", "--data.size", "[48, 64]", "--data.crop", "[48, 64]",
    "--data.batch_size", "2", "--data.workers", "0", "--data.render_workers", "1",
    "--model.channels", "8", "--model.head_channels", "8", "--model.wmca.heads", "2",
    "--model.backbone.name", "test_vit", "--model.backbone.pretrained", "false",
    "--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--run.wandb", "disabled",
]  # fmt: skip


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def run(tmp_path, data_root, monkeypatch):
    """Call the command line in an empty folder; return the newest run folder of an experiment."""
    monkeypatch.chdir(tmp_path)

    def call(verb, experiment, *words):
        code = main([verb, "--config", str(experiment), *SMALL, "--data.root", str(data_root), *words])
        assert code == 0
        folders = sorted((tmp_path / "runs" / Path(experiment).stem).iterdir(), key=lambda path: path.stat().st_mtime)
        return folders[-1]

    return call


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_fast_dev_run(run, experiment):
    folder = run("fit", experiment, "--trainer.fast_dev_run", "true")
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["channels"] == 8


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_header_says_what_it_costs_and_reaches(experiment):
    header = "".join(line for line in experiment.read_text().splitlines(True) if line.startswith("#"))
    for word in ("What", "Data", "Cost", "Reaches", f"--config experiments/{experiment.name}"):
        assert word in header
    assert not re.search(r"@\w+@", header)


def test_fit_test_validate_predict(run):
    experiment = ROOT / "experiments" / "rooms.yaml"
    folder = run("fit", experiment, "--trainer.max_epochs", "2", "--run.test", "true")
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished" and result["protocol"] == "pooled"
    scores = result["metrics"]["test"]
    assert set(scores) >= {"semseg", "depth", "normals", "edges"}
    for name, headline in {"semseg": "miou", "depth": "rmse_m", "normals": "mean_deg", "edges": "f_pixel"}.items():
        assert headline in scores[name]
        assert f"trivial_{headline}" in scores[name]
    assert result["data"]["fingerprint"].count("rooms-") == 3
    names = {path.name for path in (folder / "pictures").iterdir()}
    assert {"val-epoch000-0.png", "val-epoch001-0.png", "test-0.png"} <= names
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert any(row.get("val/depth/rmse_m") for row in rows)

    checkpoint = str(folder / "checkpoints" / "last.ckpt")
    tested = run("test", experiment, "--ckpt_path", checkpoint)
    again = json.loads((tested / "result.json").read_text())["metrics"]["test"]
    assert again["depth"]["rmse_m"] == pytest.approx(scores["depth"]["rmse_m"], rel=1e-5)
    validated = run("validate", experiment, "--ckpt_path", checkpoint)
    assert "val" in json.loads((validated / "result.json").read_text())["metrics"]
    run("predict", experiment, "--ckpt_path", checkpoint)


def test_the_table_names_every_task(run, capsys):
    run("test", ROOT / "experiments" / "rooms.yaml")
    out = capsys.readouterr().out
    for word in ("semseg", "depth", "normals", "edges", "trivial", "miou", "rmse_m"):
        assert word in out


def test_every_ablation_is_one_key(run):
    """The switches of the paper, one run each; a run that ignored its key would have the same number of parameters."""
    counts = {}
    for words in (
        (),
        ("--model.wmca.enabled", "false"),
        ("--model.ggfm.enabled", "false"),
        ("--model.wmca.window_size", "5"),
        ("--model.wmca.layers", "1"),
        ("--model.wmca.position_bias", "false"),
        ("--model.wmca.task_embedding", "false"),
        ("--model.backbone.name", "test_convnext"),
        ("--model.tasks", "[depth]"),
    ):
        folder = run("fit", ROOT / "experiments" / "rooms.yaml", *words, "--trainer.fast_dev_run", "true")
        counts[words] = json.loads((folder / "result.json").read_text())["parameters"]["total"]
    assert len(set(counts.values())) == len(counts), counts
