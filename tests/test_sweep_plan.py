"""Planning of sweeps: cells and their names, folders, what may change between two plans. Loads no torch."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_helpers import m2h
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.sweeps.arguments import existing
from m2h_lightning.sweeps.planning.cells import cell_id, grid
from m2h_lightning.sweeps.planning.check import checked
from m2h_lightning.sweeps.planning.file import read_sweep
from m2h_lightning.sweeps.planning.merge import merged
from m2h_lightning.sweeps.planning.parameters import Parameter
from m2h_lightning.sweeps.planning.plan import PLAN, Plan, Request, fit_words, load_plan, make_plan

CELL = """
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["M2H_CELL"])
folder.mkdir(parents=True, exist_ok=True)
(folder / "result.json").write_text(json.dumps({"metrics": {"val": {"x": len(sys.argv)}}, "wall_time_s": 7200}))
"""

FAKE = """
method: grid
metric: {name: val/x, goal: maximize}
parameters:
  a: {values: [1, 2]}
  seed_everything: {values: [0, 1]}
command: [python, cell.py, "${args}"]
"""

FIT = """
method: grid
metric: {name: val/score, goal: maximize}
parameters:
  model.wmca.window_size: {values: [5, 7]}
  seed_everything: {values: [0]}
command: [python, -m, m2h_lightning, fit, --config, "${envvar:EXPERIMENT}", "${args}"]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EXPERIMENT", raising=False)
    (tmp_path / "cell.py").write_text(CELL)
    (tmp_path / "fake.yaml").write_text(FAKE)
    (tmp_path / "fit.yaml").write_text(FIT)
    (tmp_path / "rooms.yaml").write_text("model: {}\n")
    return tmp_path


def plan_of(file: str = "fake.yaml", **request: object) -> Plan:
    return make_plan(read_sweep(Path(file)), Request(**request))  # type: ignore[arg-type]


def edited(here: Path, file: str, old: str, new: str) -> None:
    text = (here / file).read_text()
    assert old in text
    (here / file).write_text(text.replace(old, new))


def finish(plan: Plan, cell: str, seconds: float = 7200) -> None:
    folder = plan.folder_of(cell)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"metrics": {"val": {"x": 1.0}}, "wall_time_s": seconds}))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"model.wmca.window_size": 7, "seed_everything": 0}, "window_size-7-seed-0-9dc079bd"),
        ({"model.wmca.enabled": True, "model.ggfm.enabled": False}, "wmca.enabled-true-ggfm.enabled-false-8407388b"),
        ({"config": "sweeps/backbone/räume.yaml", "lr": 1e-4}, "config-r-ume-lr-0.0001-c4991c63"),
    ],
)
def test_names_never_change(overrides, name):
    """A finished cell is found again by its name: whoever changes how names are made loses all sweeps."""
    parameters = {key: Parameter(key, "values", (value, "another")) for key, value in overrides.items()}
    assert cell_id(overrides, parameters) == name


scalar = st.one_of(st.booleans(), st.integers(-5, 5), st.floats(-2, 2, width=16), st.text("ab/ é.-", max_size=4))


def _distinct(values: list) -> bool:
    return len({json.dumps(value) for value in values}) == len(values)


@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=5), st.lists(scalar, min_size=1, max_size=3).filter(_distinct), max_size=3
    )
)
def test_names_are_unique_and_folder_names(values):
    parameters = {
        key: Parameter(key, "values" if len(listed) > 1 else "constant", tuple(listed))
        for key, listed in values.items()
    }
    cells = grid(parameters)
    names = [cell_id(cell, parameters) for cell in cells]
    assert len(set(names)) == len(cells)
    assert names == [cell_id(json.loads(json.dumps(cell)), parameters) for cell in cells]
    for name in names:
        assert len(name) <= 80 and "/" not in name and not name.startswith((".", "-"))


# ── folders and requests ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_folder_is_found_again_by_file_and_experiment(here, monkeypatch):
    plan = plan_of("fit.yaml", experiment="rooms.yaml")
    assert plan.folder == here / "runs" / "fit-rooms"
    plan.save()
    assert existing(Path("fit.yaml"), "rooms.yaml").folder == plan.folder
    assert existing(Path("runs/fit-rooms")).folder == plan.folder
    monkeypatch.setenv("EXPERIMENT", "rooms.yaml")  # as make exports it
    assert existing(Path("fit.yaml")).folder == plan.folder
    assert plan_of("fit.yaml").experiment == "rooms.yaml"
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    assert existing(Path("../fit.yaml"), "../rooms.yaml", root="../runs").cells == plan.cells


def test_odd_paths(here):
    place = here / "my räume"
    place.mkdir()
    (place / "an experiment ü.yaml").write_text("model: {}\n")
    plan = plan_of("fit.yaml", experiment=str(place / "an experiment ü.yaml"), root=str(place / "all runs"))
    assert plan.folder == place / "all runs" / "fit-an-experiment"
    plan.save()
    assert load_plan(plan.folder) == plan
    words = fit_words(plan.cells[0].command)
    assert words is not None
    assert words[words.index("--run.root") + 1] == str(place / "all runs")


@pytest.mark.parametrize("name", ["a b", "../x", "", ".", "ü"])
def test_a_name_that_is_no_folder(here, name):
    with pytest.raises(ConfigError, match="--name: .* is not a folder name"):
        plan_of(name=name)


@pytest.mark.parametrize("seeds", ["0", "-1", "1,1", "x", "0,-1", ","])
def test_bad_seeds(here, seeds, capsys):
    assert m2h("sweep", "plan", "fake.yaml", f"--seeds={seeds}") == 2
    assert "--seeds" in capsys.readouterr().err


def test_an_experiment_without_a_place_for_it(here):
    with pytest.raises(ConfigError, match=r"--experiment: the command of fake.yaml has no \$\{envvar:EXPERIMENT\}"):
        plan_of(experiment="rooms.yaml")


def test_a_missing_variable(here):
    with pytest.raises(ConfigError, match=r"fit.yaml: command needs .*EXPERIMENT.*: give --experiment FILE"):
        plan_of("fit.yaml")
    edited(here, "fake.yaml", "cell.py", '"${envvar:NOWHERE_SET}"')
    with pytest.raises(ConfigError, match="set the variable NOWHERE_SET"):
        plan_of()


# ── what may change ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sweep_grows_and_keeps_its_names(here):
    first = plan_of(seeds=(0,))
    first.save()
    grown = merged(plan_of(seeds=(0, 1, 2)))
    assert len(grown.cells) == 6
    # With one seed the names tell none; the cells of seed 0 are found again all the same.
    assert [cell for cell in grown.cells if cell.id in {old.id for old in first.cells}] == list(first.cells)
    assert len({cell.id for cell in grown.cells}) == 6
    grown.save()
    edited(here, "fake.yaml", "[1, 2]", "[2, 3]")
    again = merged(plan_of(seeds=(0, 1, 2)))
    assert {(cell.overrides or {})["a"] for cell in again.cells} == {2, 3}
    assert {cell.id for cell in again.cells} & {cell.id for cell in grown.cells} == {
        cell.id for cell in grown.cells if (cell.overrides or {})["a"] == 2
    }


def test_names_that_are_kept_are_in_the_command(here):
    first = plan_of("fit.yaml", experiment="rooms.yaml")
    first.save()
    for cell in merged(plan_of("fit.yaml", experiment="rooms.yaml", seeds=(0, 1))).cells:
        words = list(cell.command)
        assert words[words.index("--run.id") + 1] == cell.id


def test_finished_cells_stay_when_a_sweep_shrinks(here):
    plan = plan_of()
    plan.save()
    finish(plan, plan.cells[-1].id)  # a 2, seed 1
    edited(here, "fake.yaml", "[1, 2]", "[1]")
    left = merged(plan_of())
    assert [cell.id for cell in left.cells][-1] == plan.cells[-1].id
    assert len(left.cells) == 3


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("cell.py", "other.py", "command 'python cell.py"),
        ("val/x", "val/y", "metric 'val/x', now it is 'val/y'"),
        ("maximize", "minimize", "goal 'maximize'"),
        ("  a:", "  b:", "parameters 'a', now it is 'b'"),
    ],
)
def test_another_sweep_in_the_folder(here, old, new, key):
    plan_of().save()
    edited(here, "fake.yaml", old, new)
    with pytest.raises(ConfigError, match=f"holds a sweep with {key}.* --name"):
        merged(plan_of())


def test_words_and_storages_are_compared_without_passwords(here):
    plan_of(storage="postgresql://me:secret@host/db").save()
    merged(plan_of(storage="postgresql://me:changed@host/db"))
    with pytest.raises(ConfigError, match="storage 'postgresql://me:.*@host/db'") as caught:
        merged(plan_of(storage="postgresql://me:secret@other/db"))
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="words '', now it is '--x 1'"):
        merged(plan_of(storage="postgresql://me:secret@host/db", words=("--x", "1")))


def test_the_same_experiment_from_another_directory(here, monkeypatch):
    plan = plan_of("fit.yaml", experiment="rooms.yaml")
    plan.save()
    (here / "sub").mkdir()
    monkeypatch.chdir(here / "sub")
    again = merged(plan_of("../fit.yaml", experiment="../rooms.yaml", root="../runs"))
    assert [cell.id for cell in again.cells] == [cell.id for cell in plan.cells]
    (here / "other.yaml").write_text("model: {}\n")
    with pytest.raises(ConfigError, match="holds a sweep with experiment"):
        merged(plan_of("../fit.yaml", experiment="../other.yaml", root="../runs", name="fit-rooms"))


def test_a_search_keeps_its_choices(here):
    search = FAKE.replace("grid", "random").replace("command", "run_cap: 3\ncommand")
    (here / "fake.yaml").write_text(search)
    plan_of().save()
    assert len(merged(plan_of()).cells) == 3
    edited(here, "fake.yaml", "run_cap: 3", "run_cap: 5")
    assert len(merged(plan_of()).cells) == 5
    edited(here, "fake.yaml", "[1, 2]", "[1, 2, 3]")
    with pytest.raises(ConfigError, match="a search keeps its choices"):
        merged(plan_of())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "cells": 3, "parameters": {}}'])
def test_a_damaged_plan(here, text, capsys):
    plan = plan_of()
    plan.save()
    (plan.folder / PLAN).write_text(text)
    with pytest.raises(DataError, match=r"plan\.json: is damaged .*remove it and plan again"):
        merged(plan_of())
    assert m2h("sweep", "plan", "fake.yaml") == 2
    assert capsys.readouterr().err.startswith("m2h: error: ")


# ── words that undo a sweep ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.wmca.window_size", "9"), "--model.wmca.window_size after -- would undo"),
        (("--model.wmca={enabled: false}",), "--model.wmca after -- would undo the sweep over model.wmca.window_size"),
        (("--seed_everything=3",), "--seed_everything after -- would undo"),
        (("--run.id=x",), "--run.id after --: every cell is given its own"),
        (("--run.root", "x"), "--run.root after --"),
        (("--run.experiment", "x"), "--run.experiment after --"),
        (("--run.resume", "x"), "--run.resume after --"),
        (("--ckpt_path=x",), "--ckpt_path after --"),
        (("--print_config",), "--print_config after --: a cell has to train"),
    ],
)
def test_words_that_are_refused(here, words, message):
    with pytest.raises(ConfigError, match=message):
        checked(plan_of("fit.yaml", experiment="rooms.yaml", words=words))
    assert not (here / "runs").exists()


def test_keys_that_a_file_may_not_give(here):
    edited(here, "fit.yaml", "model.wmca.window_size", "run.id")
    with pytest.raises(ConfigError, match=r"fit.yaml: parameters.run.id: every cell is given its own"):
        checked(plan_of("fit.yaml", experiment="rooms.yaml"))
    (here / "fit.yaml").write_text(FIT.replace("--config,", "--run.root=x, --config,"))
    with pytest.raises(ConfigError, match=r"fit.yaml: command: --run.root"):
        checked(plan_of("fit.yaml", experiment="rooms.yaml"))


# ── m2h sweep plan ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_table_is_of_cells_states_costs_and_commands(here, capsys):
    plan = plan_of()
    finish(plan, plan.cells[0].id, seconds=3600)  # a 1, seed 0
    finish(plan, plan.cells[1].id, seconds=7200)  # a 2, seed 0
    before = everything(here)
    assert m2h("sweep", "plan", "fake.yaml", "--workers", 2) == 0
    assert everything(here) == before  # nothing is written
    out, err = capsys.readouterr()
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:5]}
    assert [rows[cell.id][0] for cell in plan.cells] == ["done", "done", "waiting", "waiting"]
    assert [rows[cell.id][1:3] for cell in plan.cells[2:]] == [["1.0", "h"], ["2.0", "h"]]
    assert "4 cells: 2 done, 2 waiting" in out
    assert "2.00 h with 2 workers, 3.00 h in all" in out  # one hour and two, side by side
    assert f"run the commands in: {here}" in out
    assert "not m2h fit: not checked" in err
    for cell in plan.cells:
        assert shlex.join(plan.command_of(cell, cell.overrides or {})) in out


def test_a_printed_command_runs_its_cell(here, capsys):
    assert m2h("sweep", "plan", "fake.yaml", "--commands", "--data-root", "some where") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4
    assert f"from {here}" in err
    subprocess.run(out.splitlines()[0], shell=True, cwd=here, check=True)
    assert m2h("sweep", "plan", "fake.yaml", "--commands", "--data-root", "some where") == 0
    again, err = capsys.readouterr()
    assert again.splitlines() == out.splitlines()[1:]
    assert "1 finished cell is left out" in err
    assert f"M2H_DATA='{here}/some where'" in again


def test_the_ledger_of_a_sweep_that_runs_is_read_and_left_alone(here, capsys):
    (here / "cell.py").write_text(
        CELL.replace("folder.mkdir", "'--a=2' in sys.argv and sys.exit('no luck')\nfolder.mkdir")
    )
    assert m2h("sweep", "run", "fake.yaml") == 1
    before = everything(here / "runs")
    capsys.readouterr()
    assert m2h("sweep", "plan", "fake.yaml") == 0
    assert "4 cells: 2 done, 2 failed" in capsys.readouterr().out
    assert everything(here / "runs") == before


def test_passwords_are_not_printed(here, capsys):
    url = "sqlite:///" + str(here / "l.db")
    plan = replace(plan_of(), storage="postgresql://me:secret@host/db")
    from m2h_lightning.sweeps.verbs import plan as verb

    verb._print_totals(plan, dict.fromkeys([c.id for c in plan.cells], "waiting"), [], {}, 1)
    out = capsys.readouterr().out
    assert "secret" not in out and "postgresql://me" in out
    assert m2h("sweep", "plan", "fake.yaml", "--storage", url) == 0


def test_no_torch_for_other_programs(here):
    code = (
        "import sys; from m2h_lightning.cli import main; main(['sweep', 'plan', 'fake.yaml']);"
        "sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=here).returncode == 0


def test_commands_of_a_search_are_not_known(here, capsys):
    (here / "fake.yaml").write_text(FAKE.replace("grid", "random").replace("command", "run_cap: 3\ncommand"))
    assert m2h("sweep", "plan", "fake.yaml", "--commands") == 2
    assert "values are drawn when a run starts" in capsys.readouterr().err
    assert m2h("sweep", "plan", "fake.yaml") == 0
    assert "3 cells: 3 waiting" in capsys.readouterr().out
