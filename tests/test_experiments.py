"""Every committed experiment runs through the real command line, on rooms a few pixels wide in the files of its set."""

import csv
import json
import re
from pathlib import Path

import pytest
import yaml

from cli_helpers import start
from m2h_lightning.cli import main

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
SMALL = [
    "--data.batch_size", "2", "--data.workers", "0",
    "--model.channels", "8", "--model.head_channels", "8", "--model.wmca.heads", "2",
    "--model.backbone.name", "test_vit", "--model.backbone.pretrained", "false",
    "--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--run.wandb", "disabled",
    "--model.stages", "null",  # so that --trainer.max_epochs can be short
]  # fmt: skip
DATA = {
    "Rooms": [
        "--data.rooms", "[2, 1, 1]", "--data.views", "2", "--data.size", "[48, 64]", "--data.crop", "[48, 64]",
        "--data.render_workers", "1",
    ],
    "NYUDv2": ["--data.crop", "[48, 64]", "--data.eval_batch_size", "2", "--data.holdout", "0.3"],
    "Hypersim": ["--data.crop", "[48, 64]", "--data.eval_batch_size", "2", "--data.partial", "true"],
    "Cityscapes": ["--data.crop", "[48, 64]", "--data.eval_batch_size", "2", "--data.holdout", "0.3"],
    "Folder": ["--data.crop", "[48, 64]", "--data.eval_batch_size", "2"],
}  # fmt: skip
LAYOUTS = {"NYUDv2": "nyud", "Hypersim": "hypersim", "Cityscapes": "cityscapes", "Folder": "folder"}
SIZES = {"cityscapes": ("64", "128")}


def data_class(experiment):
    return yaml.safe_load(experiment.read_text())["data"]["class_path"]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """A data root with a tree of each data set, in its publishers' own layout; NYUDv2 in InvPT's packaging."""
    root = tmp_path_factory.mktemp("data")
    for layout in LAYOUTS.values():
        height, width = SIZES.get(layout, ("48", "64"))
        words = ["--rooms", "3", "--views", "2", "--height", height, "--width", width, "--split", "all"]
        assert main(["data", "synthesize", "rooms", "--layout", layout, "--out", str(root / layout), *words]) == 0
    return root


@pytest.fixture
def run(tmp_path, data_root, monkeypatch):
    """Call the command line in an empty folder; return the newest run folder of an experiment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M2H_DATA", str(data_root))

    def call(verb, experiment, *words):
        assert main([verb, "--config", str(experiment), *SMALL, *DATA[data_class(experiment)], *words]) == 0
        folders = sorted((tmp_path / "runs" / Path(experiment).stem).iterdir(), key=lambda path: path.stat().st_mtime)
        return folders[-1]

    return call


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_fast_dev_run(run, experiment):
    folder = run("fit", experiment, "--trainer.fast_dev_run", "true")
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["channels"] == 8


@pytest.mark.parametrize("name", ["nyud", "hypersim", "cityscapes"])
def test_real_layouts_train_resume_and_test(run, name, tmp_path):
    """Train, continue, test: the same epochs whether in one go or in two, and scores for every label of the set."""
    experiment = ROOT / "experiments" / f"{name}.yaml"
    every = ["--trainer.check_val_every_n_epoch", "1"]
    folder = run("fit", experiment, "--trainer.max_epochs", "1", *every)
    assert main(["fit", "--run.resume", str(folder), "--trainer.max_epochs", "2", "--run.test", "true"]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["epochs"] == 2
    scores = result["metrics"]["test"]
    expected = {"semseg": "miou", "depth": "rmse_m", "normals": "mean_deg", "edges": "odsf"}
    if name == "cityscapes":
        del expected["normals"]
    if name == "hypersim":
        expected["edges"] = "odsf_fast"
    for task, headline in expected.items():
        assert result["headlines"][task]["pooled"] == headline
        for metric in (headline, result["headlines"][task].get("per_image", headline)):
            assert scores[task][metric] >= 0
            assert f"trivial_{metric}" in scores[task]
    assert result["evaluation"]["max_dist"] == (0.011 if name == "nyud" else 0.0075)
    about = result["data"]
    assert about["name"] == name
    assert about["packaging"]
    assert ("provided" if name == "nyud" else "semantic") in about["edge_rule"]
    assert about["validation"] == ("official" if name == "hypersim" else "hold-out 0.3")
    assert set(about["labels"]) >= {"depth", "edges"}
    tested = run("test", experiment, "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"))
    again = json.loads((tested / "result.json").read_text())["metrics"]["test"]
    assert again["depth"]["rmse_m"] == pytest.approx(scores["depth"]["rmse_m"], rel=1e-5)


@pytest.mark.parametrize("name", ["nyud", "hypersim", "cityscapes"])
def test_two_processes_train_on_real_layouts(name, data_root, tmp_path, monkeypatch):
    monkeypatch.setenv("M2H_DATA", str(data_root))
    experiment = ROOT / "experiments" / f"{name}.yaml"
    words = [*SMALL, *DATA[data_class(experiment)], "--data.batch_size", "1", "--trainer.max_epochs", "1"]
    words += ["--trainer.devices", "2", "--trainer.check_val_every_n_epoch", "1", "--run.test", "true"]
    process = start(tmp_path, tmp_path, "fit", "--config", experiment, *words)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    (folder,) = (tmp_path / "runs" / name).iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert result["device"]["processes"] == 2
    assert result["metrics"]["test"]["depth"]["rmse_m"] > 0


@pytest.mark.parametrize(("target", "metric"), [("disparity", "rmse_px"), ("inverse", "rmse_per_m")])
def test_the_unit_of_depth_is_in_the_name_of_the_metric(run, target, metric):
    experiment = ROOT / "experiments" / "cityscapes.yaml"
    folder = run("fit", experiment, "--data.depth_target", target, "--trainer.max_epochs", "1", "--run.test", "true")
    result = json.loads((folder / "result.json").read_text())
    assert result["metrics"]["test"]["depth"][metric] > 0
    assert "rmse_m" not in result["metrics"]["test"]["depth"]
    assert result["data"]["depth_unit"] == {"disparity": "px", "inverse": "1/m"}[target]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_header_says_what_it_costs_and_reaches(experiment):
    header = "".join(line for line in experiment.read_text().splitlines(True) if line.startswith("#"))
    words = ["What", "Data", "Cost", "Reaches", f"--config experiments/{experiment.name}"]
    if not experiment.name.startswith("rooms"):
        words += ["Protocol", "1 GPU", "8 GPUs", "--trainer.devices 8"]
    for word in words:
        assert word in header
    assert not re.search(r"@\w+@", header)


def test_fit_test_validate_predict(run):
    experiment = ROOT / "experiments" / "rooms.yaml"
    folder = run("fit", experiment, "--trainer.max_epochs", "2", "--run.test", "true")
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished" and result["evaluation"]["protocol"] == "pooled"
    scores = result["metrics"]["test"]
    assert set(scores) >= {"semseg", "depth", "normals", "edges"}
    for name, headline in {"semseg": "miou", "depth": "rmse_m", "normals": "mean_deg", "edges": "odsf"}.items():
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
