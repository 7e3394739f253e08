"""Wrong settings of objectives and recipe: one line on stderr, exit code 2, and no data read or written before."""

import math
import sys

import pytest

from cli_helpers import TINY, m2h, write
from m2h_lightning.errors import ConfigError
from m2h_lightning.network import BackboneConfig
from m2h_lightning.objectives import BalancingConfig, ConsistencyConfig
from m2h_lightning.objectives.config import DepthNormalsConfig, EdgesSemsegConfig, SmoothnessConfig
from m2h_lightning.recipe import StageConfig

ROOMS = TINY.replace(
    "{train: 4}", "{root: data, rooms: [2, 1, 1], views: 1, size: [48, 64], crop: [48, 64], workers: 0, batch_size: 2}"
).replace("samples.Planes", "Rooms")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tiny.yaml", ROOMS)
    return tmp_path


def error_of(capsys, folder, *words):
    """Run a training that cannot start; return its one line."""
    before = sorted(path.name for path in folder.iterdir())
    capsys.readouterr()
    assert m2h("fit", "--config", "tiny.yaml", *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("m2h: error: ")
    assert sorted(path.name for path in folder.iterdir()) == before, "nothing was rendered or written"
    return lines[0]


B, C, S = "--model.balancing.", "--model.consistency.", "--model.stages"
COMMAND_LINE = {
    # balancing
    "unknown method": ([f"{B}name", "dwaa"], ["model.balancing.name is 'dwaa'", "did you mean 'dwa'?"]),
    "unknown terms": ([f"{B}over", "losses"], ["model.balancing.over is 'losses'", "'tasks' or 'all'"]),
    "misspelt key": ([f"{B}temperature", "2"], ["model.balancing.temperature", "model.balancing.dwa_temperature"]),
    "no group": (["--model.balancing", "null"], ["model.balancing is null", "leave it out"]),
    "a word for the group": (["--model.balancing", "dwa"], ["model.balancing is 'dwa'", "group of keys", "name"]),
    "T of 0": ([f"{B}dwa_temperature", "0"], ["model.balancing.dwa_temperature is 0", "above 0"]),
    "T a word": ([f"{B}dwa_temperature", "hot"], ["model.balancing.dwa_temperature is 'hot'", "a number"]),
    "negative rate": ([f"{B}uncertainty_lr", "-1e-3"], ["needs a value", "--model.balancing.uncertainty_lr=-1e-3"]),
    "half a warm-up": ([f"{B}stch_warmup", "0.5"], ["model.balancing.stch_warmup is '0.5'", "a whole number"]),
    # task sampling and weights
    "ratio of 0": ([f"{B}sampling.depth", "0"], ["model.balancing.sampling.depth is 0", "above 0, at most 1"]),
    "ratio of an unknown task": ([f"{B}sampling.dept", "0.5"], ["'dept' is not trained", "did you mean 'depth'?"]),
    "ratio of an absent task": (
        ["--model.tasks", "[depth]", f"{B}sampling.edges", "0.5"],
        ["model.balancing.sampling", "'edges' is not trained"],
    ),
    "weight of an unknown task": (["--model.loss_weights.dept", "1"], ["'dept'", "did you mean 'depth'?"]),
    "weight of an absent task": (
        ["--model.tasks", "[depth]", "--model.loss_weights.edges", "1"],
        ["model.loss_weights.edges", "'edges' is not trained"],
    ),
    "weight not a number": (["--model.loss_weights.depth", ".nan"], ["model.loss_weights.depth is nan"]),
    # what model, data and callbacks cannot do together
    "a block that is not there": (
        [
            "--model.wmca.enabled",
            "false",
            "--trainer.callbacks+",
            "GradientConflicts",
            "--trainer.callbacks.block",
            "wmca",
        ],
        ["GradientConflicts.block is 'wmca'", "model.wmca.enabled is false", "use mstr"],
    ),
    "labels that contradict each other": (
        ["--data.augment.legacy_scale_depth", "true", f"{C}depth_normals.weight", "0.1"],
        ["model.consistency.depth_normals.weight", "data.augment.legacy_scale_depth", "contradict"],
    ),
    # consistency
    "negative λ": ([f"{C}depth_normals.weight", "-0.1"], ["depth_normals.weight is -0.1", "at least 0"]),
    "λ not a number": ([f"{C}edges_semseg.weight", ".nan"], ["edges_semseg.weight is nan", "at least 0"]),
    "λ without its task": (
        ["--model.tasks", "[depth]", f"{C}depth_normals.weight", "0.1"],
        ["depth_normals.weight is 0.1", "normals is not trained"],
    ),
    "start after the last epoch": (
        [f"{C}depth_normals.weight", "0.1", f"{C}depth_normals.start_epoch", "1"],
        ["model.consistency.depth_normals.start_epoch is 1", "1 epochs"],
    ),
    "unknown side": ([f"{C}depth_normals.detach", "dept"], ["depth_normals.detach is 'dept'", "did you mean 'depth'?"]),
    "side of the other loss": ([f"{C}edges_semseg.detach", "depth"], ["edges_semseg.detach is 'depth'", "'semseg'"]),
    "unknown boundary": ([f"{C}edges_semseg.boundary", "soft"], ["boundary is 'soft'", "'disagreement'"]),
    "misspelt loss": ([f"{C}depth_normal.weight", "1"], ["model.consistency.depth_normal'", "depth_normals'?"]),
    "a number for the loss": ([f"{C}depth_normals", "0.1"], ["model.consistency.depth_normals is '0.1'", "weight"]),
    # stages
    "stage of 0 epochs": ([S, "[{name: a, epochs: 0}]"], ["model.stages: stage 'a' has 0 epochs", "at least 1"]),
    "stage without a length": ([S, "[{name: a}]"], ["model.stages", "epochs"]),
    "stage with a wrong key": ([S, "[{name: a, epoch: 1}]"], ["model.stages", "epoch"]),
    "stage with a negative lr": ([S, "[{name: a, epochs: 1, lr: -1}]"], ["stage 'a' has lr -1", "above 0"]),
    "stage with a wrong freeze": ([S, "[{name: a, epochs: 1, freeze: all}]"], ["stage 'a'", "'all'", "last_<n>"]),
    "stages as a number": ([S, "3"], ["model.stages cannot be read", "a list of stages with the keys name, epochs"]),
    "a stage without a name": ([S, "[{epochs: 1}]"], ["model.stages cannot be read", "keys name, epochs"]),
    "a stage with an empty name": ([S, "[{name: '', epochs: 1}]"], ["a stage without a name"]),
    "a stage with an unknown key": ([S, "[{name: a, epochs: 1, wat: 2}]"], ["model.stages", "lr, freeze and"]),
    "unfreezing in no epoch": (["--model.backbone.unfreeze", "{x: false}"], ["unfreeze", "such as {2: last_4"]),
    "half a start": (["--model.init_partial", "true"], ["model.init_partial", "model.init_weights"]),
    "a length besides": ([S, "[{name: a, epochs: 2}]", "--trainer.max_epochs", "3"], ["trainer.max_epochs is 3"]),
    # the rest of the recipe
    "average without decay": (["--model.ema", "1"], ["model.ema is 1"]),
    "no weights to start from": (["--model.init_weights", "none.ckpt"], ["model.init_weights", "none.ckpt"]),
    # labels
    "share of 0": (["--data.labels.shares.depth", "0"], ["data.labels.shares.depth is 0", "above 0, at most 1"]),
    "share of an unknown task": (["--data.labels.shares.dept", "0.5"], ["'rooms'", "'dept'", "did you mean 'depth'?"]),
    "unknown mode": (["--data.labels.mode", "any"], ["data.labels.mode is 'any'", "'independent' or 'one'"]),
    "misspelt label key": (["--data.labels.share", "{}"], ["data.labels.share'", "did you mean 'data.labels.shares'?"]),
    "no group of the data's": (["--data.labels", "null"], ["data.labels is null", "leave it out"]),
    "a word for the data's group": (["--data.labels", "half"], ["data.labels is 'half'", "group of keys", "shares"]),
}


@pytest.mark.parametrize("case", COMMAND_LINE)
def test_command_line(case, folder, capsys):
    words, parts = COMMAND_LINE[case]
    line = error_of(capsys, folder, *words)
    for part in parts:
        assert part in line, line


FILES = {
    "unknown method": ("model:\n  balancing: {name: dwaa}", ["(bad.yaml:2)", "did you mean 'dwa'?"]),
    "absent task in the file that names the tasks": (
        "model:\n  tasks: [depth]\n  loss_weights: {semseg: 1.0}",
        ["model.loss_weights.semseg", "'semseg' is not trained (model.tasks: depth)"],
    ),
    "start after the last epoch": (
        "model:\n  consistency:\n    smoothness:\n      weight: 0.1\n      start_epoch: 4",
        ["model.consistency.smoothness.start_epoch is 4 (bad.yaml:5)", "1 epochs"],
    ),
    "misspelt key": ("model:\n  consistency:\n    smoothness: {wieght: 1}", ["(bad.yaml:3)", "smoothness.weight'?"]),
    "stages of different spelling": ("model:\n  stages:\n  - {name: a, epochs: x}", ["model.stages", "'x'"]),
    "no group": ("model: {consistency: null}", ["model.consistency is null (bad.yaml:1)", "leave it out"]),
    "no group of the data's": (
        "data:\n  class_path: Rooms\n  init_args: {augment: null}",
        ["data.augment is null (bad.yaml:3)", "leave it out"],
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_configuration_file(case, folder, capsys):
    text, parts = FILES[case]
    write(folder / "bad.yaml", text)
    line = error_of(capsys, folder, "--config", "bad.yaml")
    for part in parts:
        assert part in line, line


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BalancingConfig(dwa_temperature=math.nan), "model.balancing.dwa_temperature is nan; .* above 0"),
        (lambda: BalancingConfig(famo_lr=math.inf), "model.balancing.famo_lr is inf; .* above 0"),
        (lambda: BalancingConfig(famo_decay=-1.0), "model.balancing.famo_decay is -1.0; .* at least 0"),
        (lambda: BalancingConfig(stch_mu=0.0), "model.balancing.stch_mu is 0.0; .* above 0"),
        (lambda: BalancingConfig(stch_warmup=-1), "model.balancing.stch_warmup is -1; .* at least 0"),
        (lambda: BalancingConfig(uncertainty_lr=-1e-3), "model.balancing.uncertainty_lr is -0.001; .* above 0"),
        (lambda: BalancingConfig(gradnorm_alpha=-1.0), "model.balancing.gradnorm_alpha is -1.0; .* at least 0"),
        (lambda: BalancingConfig(gradnorm_lr=0.0), "model.balancing.gradnorm_lr is 0.0; .* above 0"),
        (lambda: BalancingConfig(cagrad_c=-0.1), "model.balancing.cagrad_c is -0.1; .* at least 0"),
        (lambda: BalancingConfig(sampling={"depth": 2.0}), "sampling.depth is 2.0; .* at most 1"),
        (lambda: BalancingConfig(sampling={"depth": math.nan}), "sampling.depth is nan"),
        (lambda: DepthNormalsConfig(max_step=0.0), "depth_normals.max_step is 0.0; .* above 0"),
        (lambda: DepthNormalsConfig(start_epoch=-1), "depth_normals.start_epoch is -1"),
        (lambda: DepthNormalsConfig(ramp=-1.0), "depth_normals.ramp is -1.0; .* at least 0"),
        (lambda: EdgesSemsegConfig(weight=math.inf), "edges_semseg.weight is inf; .* at least 0"),
        (lambda: EdgesSemsegConfig(band=-1), "edges_semseg.band is -1; .* at least 0"),
        (lambda: SmoothnessConfig(ramp=math.inf), "smoothness.ramp is inf"),
        (lambda: ConsistencyConfig(smoothness={"weight": -1.0}), "smoothness.weight is -1.0"),
        (lambda: StageConfig("a", 1, freeze="last_0"), "stage 'a'.*'last_0'"),
        (lambda: BackboneConfig(layer_decay=0.0), "model.backbone.layer_decay is 0.0"),
        (lambda: BackboneConfig(lora_rank=-1), "model.backbone.lora_rank is -1"),
        (lambda: BackboneConfig(freeze=False, unfreeze={2: "last_1"}), "unfreeze.2 .* must train more"),
    ],
)
def test_values_out_of_range(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize("method", ["pcgrad", "cagrad", "imtl", "aligned", "upgrad"])
def test_a_missing_package(method, folder, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchjd"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchjd", None)
    line = error_of(capsys, folder, "--model.balancing.name", method)
    assert f"'{method}'" in line
    assert "pip install 'm2h-lightning[balancing]'" in line


def test_a_refused_resume_touches_nothing(tmp_path, capsys):
    """Other balanced losses, other trained parameters, fewer epochs: the run can still go on as it was."""
    write(tmp_path / "planes.yaml", TINY.replace("  max_epochs: 1\n", ""))
    words = ["--model.balancing.name", "dwa", f"{C}smoothness.weight", "0.1", "--run.id", "x"]
    assert m2h("fit", "--config", "planes.yaml", *words, "--model.stages", "[{name: a, epochs: 2}]") == 0
    run = tmp_path / "runs" / "planes" / "x"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for words, message in (
        ([f"{B}over", "all"], "trained with model.balancing.name dwa over semseg, depth, normals, edges, this run"),
        ([f"{B}name", "rlw"], "this run has rlw over"),
        (["--model.backbone.freeze", "true"], "this run trains"),
        (["--model.stages", "[{name: a, epochs: 1}]"], "has 2 epochs, this run is to have 1"),
    ):
        stages = [] if "--model.stages" in words else ["--model.stages", "[{name: a, epochs: 3}]"]
        capsys.readouterr()
        assert m2h("fit", "--run.resume", run, *stages, *words) == 2, words
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}, words
