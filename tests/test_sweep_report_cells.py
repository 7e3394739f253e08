"""What the report of a sweep says of single-task cells, of searches, and of cells that are in no table."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import pytest

from cli_helpers import m2h
from m2h_lightning.sweeps.ledger.study import Ledger
from m2h_lightning.sweeps.ledger.workers import register
from m2h_lightning.sweeps.planning.plan import Plan
from report_sweeps import SWEEP, make, planned, put, report
from result_files import result, write_run

THREE = {5: [0.40, 0.41, 0.42], 7: [0.5, 0.51, 0.53]}

TASKS = """
method: grid
metric: {name: test/loss, goal: minimize}
parameters:
  model.tasks: {values: [[semseg, depth], [semseg], [depth]]}
  seed_everything: {values: [0, 1]}
command: [python, -m, m2h_lightning, fit, --config, "${envvar:EXPERIMENT}", "${args}"]
"""

SEARCH = """
method: bayes
metric: {name: val/score, goal: maximize}
run_cap: 20
parameters:
  model.optimizer.lr: {distribution: log_uniform_values, min: 5.0e-5, max: 5.0e-3}
  model.loss_weights.depth: {distribution: uniform, min: 0.25, max: 4.0}
  model.backbone: {parameters: {name: {values: [a, b]}, freeze: {values: [true, false]}}}
  seed_everything: {value: 0}
command: [python, -m, m2h_lightning, fit, --config, "${envvar:EXPERIMENT}", "${args}"]
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def multi(root: Path) -> Plan:
    plan = planned(root, TASKS, "tasks.yaml")
    for cell in plan.cells:
        tasks, seed = cell.overrides["model.tasks"], cell.overrides["seed_everything"]
        own = {2: (0.44, 0.48), 1: (0.40, 0.50)}[len(tasks)]
        scores = {"semseg": {"miou": own[0], "miou_per_image": 2 * own[0]}, "depth": {"rmse_m": own[1]}}
        put(plan, cell.id, result(tasks=tuple(tasks), scores=scores, seed=seed))
    return plan


def test_delta_over_the_single_cells_of_the_sweep(tmp_path, capsys):
    found = report(multi(tmp_path))
    assert found["delta_m_over"] == "the single-task cells of this sweep"
    deltas = {variant["label"]: variant["delta_m"] for variant in found["variants"]}
    assert deltas == {
        "tasks semseg+depth": pytest.approx(100 * (0.04 / 0.40 + 0.02 / 0.50) / 2),
        "tasks semseg": None,
        "tasks depth": None,
    }
    assert {(c["variant"], c["column"]) for c in found["comparisons"]} == {
        ("tasks semseg", "semseg/miou"),
        ("tasks depth", "depth/rmse_m"),
    }
    assert "over the single-task cells of this sweep" in capsys.readouterr().out


def test_delta_over_given_runs(tmp_path, capsys):
    plan = make(tmp_path, THREE)
    singles = {"semseg": {"miou": 0.5}, "depth": {"rmse_m": 0.6}, "normals": {"mean_deg": 20}, "edges": {"odsf": 0.7}}
    folders = [
        write_run(tmp_path / "singles", f"nyud/{task}", result(tasks=(task,), scores={task: scores}))
        for task, scores in singles.items()
    ]
    found = report(plan, "--single", *folders)
    gains = [(0.41 - 0.5) / 0.5, (0.6 - 0.5432) / 0.6, (20 - 19.87) / 20, (0.7651 - 0.7) / 0.7]
    assert found["variants"][0]["delta_m"] == pytest.approx(100 * sum(gains) / 4)
    capsys.readouterr()
    other = write_run(tmp_path / "o", "nyud/x", result(tasks=("semseg",), data={"name": "nyud", "fingerprint": "no"}))
    assert m2h("sweep", "report", plan.folder, "--no-measure", "--no-plots", "--single", other) == 2
    assert "is not comparable with the sweep" in capsys.readouterr().err


def test_per_image(tmp_path):
    found = report(multi(tmp_path), "--protocol", "per_image")
    (first, *_) = found["variants"]
    assert found["protocol"] == "per_image"
    assert first["scores"]["semseg/miou_per_image"] == {"0": 0.88, "1": 0.88}
    assert "semseg/miou" not in first["scores"]


@pytest.mark.parametrize(
    ("word", "said"),
    [("window=7", "does not vary window"), ("window_size=6", "is none of the values"), ("window_size", "KEY=VALUE")],
)
def test_a_baseline_that_is_none(tmp_path, capsys, word, said):
    plan = make(tmp_path, THREE)
    assert m2h("sweep", "report", plan.folder, "--no-measure", "--no-plots", "--baseline", word) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def search(root: Path) -> Plan:
    """A search of 20 runs: two given up, one failed, one running, one waiting; the learning rate decides."""
    plan = planned(root, SEARCH, "find.yaml")
    ledger, worker = Ledger(plan), register(plan.folder)
    ledger.enroll()
    for number in range(19):
        claim = ledger.claim(worker)
        score = -abs(math.log(claim.overrides["model.optimizer.lr"] / 1e-3)) - 0.01 * number / 19
        if number in (4, 9):
            ledger.prune(claim, score, "lags behind after 5 validations")
        elif number == 6:
            ledger.fail(claim, "CUDA out of memory")
        elif number < 18:
            content = result()
            content["metrics"] = {"val": {"score": score}}
            put(plan, claim.cell, content)
            ledger.finish(claim, score)
    return plan


def test_a_search(tmp_path, capsys, recwarn):
    plan = search(tmp_path)
    recwarn.clear()
    before = contents(plan.folder)
    assert m2h("sweep", "report", plan.folder, "--no-measure") == 0
    printed = capsys.readouterr()
    after = contents(plan.folder)
    assert {name: content for name, content in after.items() if not name.startswith("report")} == before
    assert {name for name in after if name.endswith(".png")} == {
        "report/report-history.png",
        "report/report-importance.png",
    }
    found = json.loads(after["report/report.json"])
    scores = [trial["score"] for trial in found["trials"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 15
    assert {m["cell"]: (m["state"], m["reason"]) for m in found["missing"]} == {
        "trial-0004": ("pruned", "lags behind after 5 validations"),
        "trial-0006": ("failed", "CUDA out of memory"),
        "trial-0009": ("pruned", "lags behind after 5 validations"),
        "trial-0018": ("running", ""),
        "trial-0019": ("waiting", ""),
    }
    assert [entry["number"] for entry in found["given_up"]] == [4, 9]
    assert max(found["importance"], key=found["importance"].get) == "model.optimizer.lr"
    assert sum(found["importance"].values()) == pytest.approx(1)
    head = next(line for line in printed.out.splitlines() if line.startswith("| run"))
    assert [word.strip() for word in head.split("|")[1:-1]] == [
        "run", "model.optimizer.lr", "model.loss_weights.depth", "model.backbone.name", "model.backbone.freeze",
        "val/score",
    ]  # fmt: skip
    assert "The best 10 of 15 runs" in printed.out
    assert not [warning for warning in recwarn if "categorical" in str(warning.message)]  # of groups as choices
    with (plan.folder / "report" / "report.csv").open() as file:
        states = {row["cell"]: row["state"] for row in csv.DictReader(file)}
    assert (states["trial-0004"], states["trial-0000"]) == ("pruned", "finished")


def test_importance_needs_different_scores(tmp_path):
    plan = planned(tmp_path, SEARCH, "find.yaml")
    ledger, worker = Ledger(plan), register(plan.folder)
    ledger.enroll()
    for _ in range(2):
        claim = ledger.claim(worker)
        content = result()
        content["metrics"] = {"val": {"score": 0.5}}
        put(plan, claim.cell, content)
        ledger.finish(claim, 0.5)
    found = report(plan)
    assert found["importance"] == {}
    assert any("at least two finished runs with different scores" in note for note in found["notes"])


def test_a_report_changes_nothing_and_names_what_is_missing(tmp_path, capsys):
    """A grid with a failed, a pruned, a running, a waiting and a differently scored cell."""
    plan = planned(tmp_path)
    ledger, worker = Ledger(plan), register(plan.folder)
    ledger.enroll()
    for number, cell in enumerate(plan.cells):
        if number == 5:
            break
        claim = ledger.claim(worker, cell.id)
        if number == 2:
            ledger.fail(claim, "loss is <b>not</b> | finite")
        elif number == 3:
            ledger.prune(claim, 0.1, "lags behind")
        elif number < 2:
            other = {"evaluation": {"crop": "eigen"}} if number else {}
            put(plan, cell.id, result(scores={"semseg": {"miou": 0.4}}, seed=0, **other))
            ledger.finish(claim, 0.4)
    before = contents(plan.folder)
    found = report(plan)
    after = contents(plan.folder)
    assert {name: content for name, content in after.items() if not name.startswith("report")} == before
    states = {missing["cell"]: missing["state"] for missing in found["missing"]}
    names = [cell.id for cell in plan.cells]
    assert states == {
        names[1]: "not comparable",
        names[2]: "failed",
        names[3]: "pruned",
        names[4]: "running",
        names[5]: "waiting",
    }
    (apart,) = [missing for missing in found["missing"] if missing["state"] == "not comparable"]
    assert "eigen" in apart["reason"]
    page = capsys.readouterr().out
    assert "1 of 6 cells are in the tables" in page
    assert "loss is \\<b\\>not\\</b\\> \\| finite" in page


def test_names_are_escaped(tmp_path, capsys):
    """And a key whose last word alone says nothing has the word before."""
    text = SWEEP.replace("[5, 7]", "['a|b', '<i>*x*']").replace("model.wmca.window_size", "model.optimizer.name")
    plan = planned(tmp_path, text)
    for number, cell in enumerate(plan.cells):
        put(plan, cell.id, result(scores={"semseg": {"miou": 0.4 + number / 100}}))
    report(plan)
    page = capsys.readouterr().out
    assert "optimizer.name a\\|b (baseline)" in page
    assert "optimizer.name \\<i\\>\\*x\\*" in page
    assert "<i>" not in page
    again = report(plan, "--baseline", "optimizer.name=<i>*x*")
    assert again["baseline"] == "optimizer.name <i>*x*"


def test_other_commits_and_a_dirty_tree_are_told(tmp_path, capsys):
    plan = make(tmp_path, THREE, git={"commit": "b" * 40, "dirty": True})
    put(plan, plan.cells[0].id, result(scores={"semseg": {"miou": 0.4}}, git={"commit": "a" * 40, "dirty": False}))
    found = report(plan)
    assert any("2 commits" in warning for warning in found["warnings"])
    assert any("uncommitted changes" in warning for warning in found["warnings"])
    assert "> **Warning:** the cells stand on 2 commits" in capsys.readouterr().out


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    plan = make(tmp_path, THREE)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert m2h("sweep", "report", plan.folder, "--no-measure") == 2
    error = capsys.readouterr().err
    assert "matplotlib" in error
    assert "--no-plots" in error
    assert not (plan.folder / "report" / "report.md").exists()
    assert m2h("sweep", "report", plan.folder, "--no-measure", "--no-plots") == 0


def test_the_command_that_goes_on_is_printed(tmp_path, capsys):
    from m2h_lightning.sweeps.planning.again import run_command

    plan = make(tmp_path, THREE)
    report(plan)
    page = capsys.readouterr().out
    assert f"\n{run_command(plan)}\nm2h sweep report {plan.folder} --no-measure" in page
    assert f"--root {plan.folder.parent}" in page


def test_rounds_are_a_number_above_0(tmp_path, capsys):
    plan = make(tmp_path, THREE)
    for word in ("0", "many"):
        assert m2h("sweep", "report", plan.folder, "--rounds", word) == 2
        assert "--rounds" in capsys.readouterr().err
