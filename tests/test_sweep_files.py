"""The committed sweep files: read, planned and accepted as they stand; the values of a file on a command line."""

import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from m2h_lightning.errors import ConfigError
from m2h_lightning.runs.folder import slug
from m2h_lightning.sweeps.planning.cells import as_text, assignments, cell_id, grid
from m2h_lightning.sweeps.planning.file import read_sweep
from m2h_lightning.sweeps.planning.parameters import SEED, Parameter, read_parameter
from m2h_lightning.sweeps.planning.plan import Request, fit_words, make_plan

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
EXPERIMENTS = ("nyud", "rooms", "rooms-ablation")
COUNTS = {
    "backbone": 15,
    "balancing": 30,
    "consistency": 18,
    "hparams": 40,
    "single_vs_multi": 15,
    "window_shift": 12,
    "window_size": 18,
    "wmca_depth": 36,
    "wmca_ggfm": 12,
}
by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("EXPERIMENT", raising=False)


def plan(path, experiment="rooms", **request):
    return make_plan(read_sweep(path), Request(experiment=f"experiments/{experiment}.yaml", **request))


# ── the committed files ─────────────────────────────────────────────────────────────────────────────────────────────


def test_all_are_there():
    assert [path.stem for path in FILES] == sorted(COUNTS)


@by_file
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_file_is_planned(path, experiment, tmp_path):
    made = plan(path, experiment, root=str(tmp_path))
    ids = [cell.id for cell in made.cells]
    assert len(ids) == COUNTS[path.stem] == len(set(ids))
    assert all(name == slug(name) for name in ids)
    for cell in made.cells:
        words = fit_words(cell.command)
        assert words[:2] == ["--config", f"experiments/{experiment}.yaml"]
        assert words[words.index("--run.id") + 1] == cell.id
    assert not list(tmp_path.iterdir())


@by_file
def test_a_grid_compares_with_its_first_values_over_three_seeds(path):
    sweep = read_sweep(path)
    if sweep.method != "grid":
        assert sweep.metric == "val/score" and sweep.early_terminate and not sweep.parameters[SEED].swept
        assert not any("run.test" in word for word in sweep.command)  # the test images stay unseen
        return
    assert sweep.metric == "test/score" and sweep.higher_is_better
    assert sweep.parameters[SEED].values == (0, 1, 2)
    cells = plan(path).cells
    first = {name: parameter.values[0] for name, parameter in sweep.parameters.items()}
    assert cells[0].overrides == first
    seeds = [cell.overrides[SEED] for cell in cells]
    assert seeds == sorted(seeds)  # a sweep cut short has whole comparisons
    assert "--run.test=true" in sweep.command


@by_file
def test_the_header_says_what_is_asked_and_how_to_run_it(path):
    text = path.read_text()
    header = list(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))
    assert header[0].endswith(("?", "."))
    name = path.stem.replace("_", "-")
    joined = "\n".join(header)
    for words in (
        f"make sweep-{name} ",
        f"make sweep-{name} EXPERIMENT=experiments/rooms",
        f"m2h sweep run sweeps/{path.name} --experiment experiments/nyud.yaml",
        f"wandb sweep sweeps/{path.name}",
        "EXPERIMENT=experiments/nyud.yaml wandb agent ID",
        "# Cells    ",
        "# Cost     ",
    ):
        assert words in joined
    for file in re.findall(r"(?:experiments|sweeps)/[\w-]+\.yaml", joined):
        assert (ROOT / file).is_file(), file
    runs = re.search(r"(?:= |Cells    )(\d+) runs", joined)
    assert int(runs[1]) == COUNTS[path.stem]
    assert all(len(line) <= 120 for line in text.splitlines())


def test_ids_of_cells_never_change():
    """Runs that people have are found again by these names."""
    for name, index, expected in (
        ("window_size", 1, "window_size-3-seed-0-d336b893"),
        ("window_size", -1, "window_size-14-seed-2-516a4459"),
        ("wmca_ggfm", 1, "wmca.enabled-true-ggfm.enabled-false-seed-0-73a90996"),
        ("consistency", 1, "depth_normals.weight-0.0-edges_semseg.weight-0.1-seed-0-dbbfd536"),
    ):
        assert plan(ROOT / f"sweeps/{name}.yaml").cells[index].id == expected


def test_the_backbones_files_have_one_batch_of_eight():
    sweep = read_sweep(ROOT / "sweeps/backbone.yaml")
    names = [Path(value) for value in sweep.parameters["config"].values]
    assert sorted(names) == sorted(path.relative_to(ROOT) for path in (ROOT / "sweeps/backbone").iterdir())
    for name in names:
        content = yaml.safe_load(name.read_text())
        batch = content["data"]["init_args"]["batch_size"]
        assert batch * content["trainer"]["accumulate_grad_batches"] == 8
    assert [cell.id.rsplit("-seed", 1)[0] for cell in plan(ROOT / "sweeps/backbone.yaml").cells[:2]] == [
        "config-dinov2_s",
        "config-dinov2_b",
    ]


@by_file
def test_every_cell_is_accepted_by_training(path, tmp_path, capsys):
    """As ``m2h sweep plan`` checks it: keys, values and the network of every cell."""
    from m2h_lightning.sweeps.planning.check import checked

    words = ("--model.backbone.pretrained", "false") if path.stem == "backbone" else ()
    made = checked(plan(path, "rooms-ablation", root=str(tmp_path), words=words))
    if made.method == "grid":
        assert len({cell.config_hash for cell in made.cells}) == COUNTS[path.stem]
    assert "not checked" not in capsys.readouterr().err


# ── parameters and cells ────────────────────────────────────────────────────────────────────────────────────────────

words_ = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
scalars = st.one_of(
    st.booleans(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False), words_
)
values = st.one_of(scalars, st.lists(scalars, max_size=3), st.dictionaries(words_, scalars, max_size=3))


def accepted(value):
    try:
        return read_parameter("a.b", {"value": value}, "here").values[0]
    except ConfigError:
        return None


@settings(max_examples=300, deadline=None)
@given(values)
def test_a_value_is_read_alike_from_our_word_and_from_wandbs(value):
    kept = accepted(value)
    if kept is None:
        return
    (word,) = assignments({"a.b": kept})
    ours, theirs = word.partition("=")[2], str(kept)  # wandb.sdk.launch.sweeps.utils: f"{param}={value}"
    if isinstance(value, str):
        assert ours == theirs == value
    else:
        assert yaml.safe_load(ours) == yaml.safe_load(theirs)
        assert json.loads(ours) == kept


def test_plain_values_are_all_accepted():
    for value in (True, 0, -3, 0.1, 1e-05, 5e-324, "cosine", "é", ["semseg", "depth"], [[96, 128]], {"a": True}, []):
        assert accepted(value) == value
    for value in (['it\'s "so"'], ["a\\b"], {"a": "one\nmore"}):
        with pytest.raises(ConfigError, match="reads differently under W&B"):
            read_parameter("a", {"value": value}, "here")


distinct = st.lists(st.one_of(st.integers(-9, 9), words_), min_size=1, max_size=4, unique_by=str)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,3}(\.[a-z]{1,3}){0,2}", fullmatch=True), distinct, min_size=1, max_size=4)
)
def test_a_grid_is_the_product_and_every_cell_has_an_id_of_its_own(content):
    parameters = {name: read_parameter(name, {"values": values}, name) for name, values in content.items()}
    cells = grid(parameters)
    expected = {tuple(map(str, combination)) for combination in itertools.product(*content.values())}
    assert {tuple(map(str, cell.values())) for cell in cells} == expected
    assert len(cells) == len(expected)
    ids = [cell_id(cell, parameters) for cell in cells]
    assert len(set(ids)) == len(ids)
    assert all(name == slug(name) and len(name) <= 69 for name in ids)
    assert ids == [cell_id(dict(reversed(cell.items())), parameters) for cell in cells]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"values": [1, 1]}, "1 twice"),
        ({"values": [1, 1.0]}, "1.0 twice"),
        ({"values": []}, "at least one value"),
        ({"value": None}, "leave the key out"),
        ({"value": float("nan")}, "not a finite number"),
        ({"value": 1, "values": [2]}, "'value' stands alone"),
        ({"values": [1, 2], "min": 0}, "'values' stands alone"),
        ({"values": [1, 2], "distribution": "uniform"}, "'values' stands alone"),
        ({"parameters": {"a": {"value": 1}}, "value": 2}, "'parameters' stands alone"),
        ({"parameters": {"a": {"min": 1, "max": 2}}}, "write its dotted key"),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, "drawn evenly"),
        ({"vlues": [1]}, "did you mean"),
        ({"distribution": "normal", "mu": 0}, "normal is not supported: use uniform"),
        ({"distribution": "log_uniform", "min": -3, "max": 0}, "use log_uniform_values"),
        ({"distribution": "categorical", "min": 0, "max": 1}, "has values, not min and max"),
        ({"distribution": ["uniform"], "min": 0, "max": 1}, "is not supported"),
        ({"min": 1, "max": 2.5}, "of two kinds"),
        ({"min": "1e-4", "max": 1.0}, "write 1.0e-4"),
        ({"min": 2, "max": 1}, "must be below"),
        ({"distribution": "log_uniform_values", "min": 0.0, "max": 1.0}, "begins above 0"),
        ({"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": True}, "step above 0"),
        ([1, 2], "give 'values"),
    ],
)
def test_what_cannot_be_swept_is_told_in_one_line(given_, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read_parameter("model.x", given_, "file.yaml: parameters.model.x")
    assert str(caught.value).startswith("file.yaml: parameters.model.x") and "\n" not in str(caught.value)


def test_ranges_and_groups():
    assert read_parameter("a", {"min": 1, "max": 5}, "") == Parameter("a", "int", (), 1, 5)
    assert read_parameter("a", {"min": 1.0, "max": 5.0}, "").kind == "float"
    assert read_parameter("a", {"values": [1, 2], "distribution": "categorical"}, "").values == (1, 2)
    group = read_parameter("a", {"parameters": {"b": {"values": [1, 2]}, "c": {"value": "x"}}}, "")
    assert group.values == ({"b": 1, "c": "x"}, {"b": 2, "c": "x"})


# ── the rest of a file ──────────────────────────────────────────────────────────────────────────────────────────────

GOOD = """
name: try
method: grid
metric: {name: test/score, goal: maximize}
parameters:
  model.wmca.window_size: {values: [5, 7]}
command: ["${env}", "${interpreter}", -m, m2h_lightning, fit, --config, "${envvar:EXPERIMENT}", "${args}"]
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("method: grid", "method: gird", "'gird'; use one of grid, random, bayes"),
        ("method: grid", "method: bayes", "run_cap: give the number of runs"),
        ("method: grid", "method: grid\nrun_cap: 3", "a grid runs all its cells"),
        ("method: grid", "method: grid\nmethod: grid", ":4: method stands there twice"),
        (
            "{values: [5, 7]}",
            "{values: [5]}\n  model.wmca.window_size: {values: [7]}",
            "window_size stands there twice",
        ),
        ("{values: [5, 7]}", "{min: 5, max: 7}", "a grid needs values"),
        ("model.wmca.window_size", '"--model.wmca"', "is no key of a command"),
        ("goal: maximize", "goal: maximise", "use minimize or maximize"),
        ("goal: maximize", "target: 0.5", "metric.target: every cell is run here"),
        ("name: try", "nmae: try", "did you mean"),
        ("name: try", "controller: {type: local}", "controller is not supported"),
        ("name: try", "early_terminate: {type: hyperband, max_iter: 9, s: 2}", "min_iter = max_iter / eta^s"),
        ("name: try", "early_terminate: {type: hyperband}", "give min_iter"),
        ("name: try", "early_terminate: {type: hyperband, min_iter: 0}", "at least 1"),
        ("${args}", "${args_no_boolean_flags}", "drops what is false"),
        ("${args}", "${args_json}", "is not supported"),
        ("${args}", "args", "'${args}' must stand in it once"),
        ("command:", "comand:", "did you mean"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(tmp_path, old, new, message):
    assert old in GOOD
    path = tmp_path / "try.yaml"
    path.write_text(GOOD)
    assert read_sweep(path).name == "try"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read_sweep(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_missing_file_names_those_that_are_there():
    with pytest.raises(ConfigError, match="window_size.yaml"):
        read_sweep(Path("sweeps/windowsize.yaml"))


# ── make ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def make(tmp_path):
    """Call make in a copy of the repository whose Python notes its words, and ends with the code it is told."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >> calls\ncase "$4" in run) exit "${CODE:-0}";; esac\n')
    python.chmod(0o755)
    (tmp_path / ".venv/.stamp").touch()
    hidden = (
        "EXPERIMENT",
        "DATA",
        "WORKERS",
        "LAUNCHER",
        "SEEDS",
        "ARGS",
        "SLURM",
        "MAKEFLAGS",
        "MAKELEVEL",
        "M2H_DATA",
    )

    def call(*words, **environment):
        (tmp_path / "calls").unlink(missing_ok=True)
        env = {key: value for key, value in os.environ.items() if key not in hidden}
        done = subprocess.run(
            ["make", *words], cwd=tmp_path, env={**env, **environment}, capture_output=True, text=True
        )
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return done, [call.removeprefix("-m m2h_lightning ") for call in calls]

    return call


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
@by_file
def test_every_file_has_a_target(make, path):
    done, calls = make(f"sweep-{path.stem.replace('_', '-')}")
    place = f"sweeps/{path.name} --experiment experiments/nyud.yaml"
    assert done.returncode == 0, done.stderr
    assert calls == [f"sweep run {place}", f"sweep report {place}"]


@needs_make
def test_make_passes_everything_on(make):
    _, calls = make(
        "sweep-window-size", "EXPERIMENT=experiments/rooms.yaml", "DATA=/data", "WORKERS=2", "SEEDS=0,1",
        "ARGS=--retry-oom -- --trainer.max_epochs 1", "SWEEP_NAME=mine", "LAUNCHER=local",
    )  # fmt: skip
    place = "sweeps/window_size.yaml --experiment experiments/rooms.yaml --name mine"
    options = "--data-root /data --seeds 0,1 --workers 2 --launcher local --retry-oom -- --trainer.max_epochs 1"
    assert calls == [f"sweep run {place} {options}", f"sweep report {place}"]
    _, calls = make("sweep-wmca-ggfm", "LAUNCHER=slurm", "SLURM=partition=gpu time=08:00:00")
    assert calls == [
        "sweep run sweeps/wmca_ggfm.yaml --experiment experiments/nyud.yaml --launcher slurm "
        "--slurm partition=gpu --slurm time=08:00:00"
    ]  # nothing is done yet: there is nothing to report


@needs_make
def test_an_empty_variable_is_as_if_absent(make):
    empty = [f"{name}=" for name in ("EXPERIMENT", "DATA", "WORKERS", "LAUNCHER", "SEEDS", "ARGS", "SLURM")]
    assert make("sweep-window-size", *empty)[1] == make("sweep-window-size")[1]
    assert make("train", "EXPERIMENT=")[1] == make("train")[1] == ["fit --config experiments/rooms.yaml"]
    assert make("baselines", "EXPERIMENT=experiments/nyud.yaml")[1] == ["baselines --config experiments/nyud.yaml"]


@needs_make
@pytest.mark.parametrize(("code", "reports"), [("0", 1), ("1", 1), ("2", 0), ("130", 0)])
def test_a_sweep_with_failed_cells_is_reported_and_still_fails(make, code, reports):
    done, calls = make("sweep-balancing", CODE=code)
    assert sum(call.startswith("sweep report") for call in calls) == reports
    assert (done.returncode == 0) == (code == "0")


@needs_make
def test_a_target_without_file_reaches_the_message(make):
    assert make("sweep-windowsize")[1][0].startswith("sweep run sweeps/windowsize.yaml")


@needs_make
def test_help_lists_the_sweeps(make):
    text = make("help")[0].stdout
    for name in ("window-size", "wmca-ggfm", "backbone", "consistency", "balancing"):
        assert f"make sweep-{name} " in text


def test_as_text_keeps_letters():
    assert as_text(["é", "😀"]) == '["é", "😀"]'
