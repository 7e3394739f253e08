"""Sweep files and W&B: its client takes them, its words mean the same, and its agent's runs are logged as its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cli_helpers import TINY, process_environment, write
from m2h_lightning.commands.plan import plan_of
from m2h_lightning.runs.folder import RunConfig, flatten, plain
from m2h_lightning.runs.loggers import AgentWandbLogger, _wandb_logger, in_wandb_agent
from m2h_lightning.sweeps.planning.cells import grid
from m2h_lightning.sweeps.planning.file import read_sweep
from m2h_lightning.sweeps.planning.plan import Request, fit_words, make_plan

sweeps = pytest.importorskip("wandb.apis.public.sweeps")
utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def as_args(overrides):
    """What W&B's server hands to an agent: JSON."""
    return json.loads(json.dumps({name: {"value": value} for name, value in overrides.items()}))


def values_of(path):
    """Overrides of the first and the last cell of a grid, of both ends of a search."""
    sweep = read_sweep(path)
    if sweep.method == "grid":
        cells = grid(sweep.parameters)
        return [cells[0], cells[len(cells) // 2], cells[-1]]
    return [
        {name: p.values[0] if p.values else getattr(p, end) for name, p in sweep.parameters.items()}
        for end in ("low", "high")
    ]


@by_file
def test_the_client_of_wandb_takes_the_file(path):
    """The part of ``wandb sweep FILE`` before its server is asked: reading, filling in, writing for the server."""
    config = utils.load_sweep_config(str(path))
    filled = sweeps._validate_config_and_fill_distribution(config)
    assert filled == config  # nothing of ours is left to guess
    assert yaml.safe_load(yaml.dump(filled)) == config
    assert set(config) <= {
        *("name", "description", "program", "project", "entity", "method", "metric"),
        *("parameters", "command", "early_terminate", "run_cap"),
    }
    assert config["program"]


def test_a_range_that_wandb_refuses_is_refused(tmp_path):
    parameters = {"model.optimizer.lr": {"min": 0, "max": 1.5}}
    with pytest.raises(ValueError, match="ambiguous"):
        sweeps._validate_config_and_fill_distribution({"parameters": parameters})


@by_file
def test_words_of_wandb_and_ours_mean_the_same(path, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    file = "experiments/nyud.yaml"
    monkeypatch.setenv("EXPERIMENT", file)
    made = make_plan(read_sweep(path), Request(experiment=file, root=str(tmp_path)))
    config = utils.load_sweep_config(str(path))
    for overrides in values_of(path):
        ours = fit_words(made.command_of(made.cells[0], overrides))
        command = utils.create_sweep_command(list(config["command"]))
        assert file in command  # ${envvar:EXPERIMENT}
        args = utils.create_sweep_command_args({"args": as_args(overrides)})["args"]
        at = command.index("${args}")
        theirs = [*command[command.index("fit") + 1 : at], *args, *command[at + 1 :]]
        one, other = plan_of(ours), plan_of(theirs)
        for tree in (one.tree, other.tree):
            del tree["run"]
            tree["trainer"].pop("enable_progress_bar")
        assert one.tree == other.tree
        assert one.tasks == other.tasks
        flat = flatten(one.tree)
        for name, value in overrides.items():
            if name != "config":  # both ways of logging have one spelling of a key
                assert flat[name] == value, name


SWEEP = """
method: grid
program: m2h_lightning
metric: {name: val/score, goal: maximize}
parameters:
  model.wmca.window_size: {values: [5, 3]}
  model.tasks: {value: [semseg, depth]}
  model.wmca.enabled: {values: [true, false]}
  model.optimizer.lr: {value: 1.0e-05}
command: ["${env}", "${interpreter}", -m, m2h_lightning, fit, --config, "${envvar:EXPERIMENT}", "${args}"]
"""


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """The runs of the real agent: two cells of a sweep, trained for an epoch each, offline."""
    folder = tmp_path_factory.mktemp("agent")
    write(folder / "tiny.yaml", TINY.replace("wandb: disabled", "wandb: auto"))
    path = folder / "try.yaml"
    path.write_text(SWEEP)
    cells = [grid(read_sweep(path).parameters)[index] for index in (0, 3)]
    jobs = [{"run_id": f"run{number}", "args": as_args(cell)} for number, cell in enumerate(cells)]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    env = process_environment(folder)
    env = {key: value for key, value in env.items() if not key.startswith("WANDB_")}
    env |= {
        "EXPERIMENT": "tiny.yaml",
        "WANDB_MODE": "offline",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}",  # the agent calls `python`
        "HOME": str(folder),
    }
    words = [sys.executable, str(Path(__file__).parent / "wandb_agent.py"), "try.yaml", "jobs.json"]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=500)
    runs = sorted((folder / "runs" / "tiny").iterdir())
    assert len(runs) == len(cells), done.stdout + done.stderr
    return runs, cells, done.stdout + done.stderr


def test_the_agent_starts_every_cell_with_its_values(agent):
    runs, cells, output = agent
    for run, cell in zip(runs, cells, strict=True):
        assert json.loads((run / "result.json").read_text())["status"] == "finished", output
        config = flatten(yaml.safe_load((run / "config.yaml").read_text()))
        assert {name: config[name] for name in cell} == cell


def test_a_run_of_the_agent_is_the_agents_own(agent):
    runs, _, output = agent
    for number, run in enumerate(runs):
        (offline,) = (run / "wandb").glob("offline-run-*")
        assert offline.name.endswith(f"-run{number}")
        assert (offline / f"run-run{number}.wandb").is_file()
    for complaint in ("Ignoring run_id", "Ignoring project", "was locked by"):
        assert complaint not in output


def test_the_sweeps_keys_and_the_logged_ones_are_the_same(agent):
    runs, cells, _ = agent
    for run, cell in zip(runs, cells, strict=True):
        (offline,) = (run / "wandb").glob("offline-run-*")
        logged, project = stored(offline)
        expected = plain(flatten(yaml.safe_load((run / "config.yaml").read_text())))
        assert project == "windows"  # of the sweep: $WANDB_PROJECT, which the agent sets
        assert {name: logged[name] for name in cell} == cell
        own = {key: value for key, value in logged.items() if not key.startswith("_")}
        assert own == expected


def stored(offline):
    """What an offline run holds: its configuration and its project, by W&B's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(offline)]
    summary = subprocess.run([*command, "--summary"], capture_output=True, text=True, check=True).stdout
    records = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    projects = set(re.findall(r'"project":"([^"]*)"', records))
    assert len(projects) == 1
    return json.loads(summary)["config"], projects.pop()


# ── who names a run ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def no_agent(monkeypatch):
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_PROJECT", "M2H_CELL"):
        monkeypatch.delenv(name, raising=False)


def test_a_run_of_its_own_is_named_by_its_folder(no_agent, monkeypatch, tmp_path):
    folder = tmp_path / "tiny" / "one"
    monkeypatch.setenv("WANDB_RUN_ID", "forgotten")  # without a sweep: of no agent, and every run would be the same
    assert not in_wandb_agent()
    logger = _wandb_logger(folder, RunConfig(), "offline")
    assert not isinstance(logger, AgentWandbLogger)
    settings = logger._wandb_init
    assert (settings["id"], settings["project"], settings["group"]) == ("one", "m2h-lightning", "tiny")
    assert "job_type" not in settings


def test_a_cell_of_ours_says_that_it_is_one(no_agent, monkeypatch, tmp_path):
    monkeypatch.setenv("M2H_CELL", str(tmp_path / "sweep" / "cell"))
    settings = _wandb_logger(tmp_path / "sweep" / "cell", RunConfig(), "offline")._wandb_init
    assert (settings["id"], settings["group"], settings["job_type"]) == ("cell", "sweep", "cell")


def test_inside_an_agent_the_environment_names_the_run(no_agent, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    logger = _wandb_logger(tmp_path / "tiny" / "one", RunConfig(), "online")
    assert logger.version == "abc"
    assert not {"id", "project", "entity"} & set(logger._wandb_init)
    assert (logger._wandb_init["group"], logger._wandb_init["job_type"]) == ("tiny", "cell")
    asked = _wandb_logger(tmp_path / "tiny" / "one", RunConfig(wandb_project="mine"), "online")._wandb_init
    assert asked["project"] == "mine"  # W&B tells the user that it is not taken


class Config(dict):
    def update(self, values, allow_val_change):
        assert allow_val_change
        super().update(values)
        self.told = sorted(values)


def test_what_the_sweep_has_set_is_not_set_again(no_agent, monkeypatch, tmp_path):
    """W&B has locked it, and would complain of every key; one that differs is left to its complaint."""
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    logger = _wandb_logger(tmp_path / "tiny" / "one", RunConfig(), "offline")
    config = Config({"model.wmca.window_size": 5, "model.optimizer.lr": 1e-5, "seed_everything": 0})
    logger._experiment = type("Run", (), {"config": config})()
    logger.log_hyperparams({"model.wmca.window_size": 5, "model.optimizer.lr": 2e-5, "seed_everything": 0, "a": None})
    assert config.told == ["a", "model.optimizer.lr"]
