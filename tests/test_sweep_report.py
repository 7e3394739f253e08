"""The report of a sweep: its statistics against independent ones, and its files from results written by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cli_helpers import TINY, m2h, write
from m2h_lightning.report.plots_pareto import pareto
from m2h_lightning.report.statistics import holm, interval, paired
from m2h_lightning.sweeps.report.efficiency import Budget, in_turn
from report_sweeps import make, report


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=2, max_size=8))
def test_paired_is_scipys(pairs):
    ours, theirs = zip(*pairs, strict=True)
    found = paired(ours, theirs)
    if found.p is None:
        assert max(a - b for a, b in pairs) - min(a - b for a, b in pairs) < 1e-9
    else:
        assert found.p == pytest.approx(stats.ttest_rel(ours, theirs).pvalue, rel=1e-6, abs=1e-12)
        turned = paired(ours[::-1], theirs[::-1])
        assert turned.p == pytest.approx(found.p, rel=1e-6, abs=1e-12)


def test_interval_of_two_by_hand():
    assert interval([1.0, 3.0]) == (2.0, pytest.approx(12.7062, rel=1e-5))


def test_no_spread_has_no_p():
    assert paired([0.3, 0.4], [0.1, 0.2]).p is None
    assert paired([1.0], [0.5]).p is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == [
        pytest.approx(v) if v else None for v in (0.03, 0.06, 0, 0.06, 0.02)
    ]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_does_not_depend_on_the_order(values, random):
    order = list(range(len(values)))
    random.shuffle(order)
    straight, turned = holm(values), holm([values[i] for i in order])
    assert [straight[i] for i in order] == turned
    assert all(c >= p for c, p in zip(straight, values, strict=True))


def test_front():
    assert pareto([(1.0, 5.0), (2.0, 6.0), (3.0, 4.0)], False) == [0, 2]


def test_a_clear_difference_stands_and_noise_does_not(tmp_path, capsys):
    plan = make(tmp_path, {5: [0.40, 0.41, 0.42], 7: [0.500, 0.511, 0.5199]})
    found = report(plan)
    (semseg,) = [c for c in found["comparisons"] if c["column"] == "semseg/miou"]
    assert semseg["verdict"] == "better"
    assert semseg["p_holm"] == pytest.approx(stats.ttest_rel([0.5, 0.511, 0.5199], [0.4, 0.41, 0.42]).pvalue)
    assert {c["verdict"] for c in found["comparisons"]} == {"better", "equal"}
    assert found["variants"][1]["delta_m"] == pytest.approx(100 * ((0.5103 - 0.41) / 0.41) / 4, rel=1e-3)
    text = capsys.readouterr().out
    assert "window_size 7: semseg mIoU better by 10.03" in text
    again = report(plan, "--baseline", "window_size=7")
    assert [c["verdict"] for c in again["comparisons"] if c["column"] == "semseg/miou"] == ["worse"]


def test_one_seed_says_so_and_missing_cells_are_named(tmp_path, capsys):
    plan = make(tmp_path, {5: [0.4], 7: [0.5]})
    found = report(plan)
    assert {c["verdict"] for c in found["comparisons"]} == {"one seed"}
    assert {m["cell"] for m in found["missing"]} == {cell.id for cell in plan.cells[2:]}
    text = capsys.readouterr().out
    assert "One seed: there are no intervals" in text
    assert "2 of 6 cells are in the tables" in text


def test_other_data_stand_apart(tmp_path):
    plan = make(tmp_path, {5: [0.40, 0.41, 0.42], 7: [0.5, 0.51, 0.53]}, data={"name": "nyud", "fingerprint": "other"})
    (missing,) = report(plan)["missing"]
    assert (missing["cell"], missing["state"]) == (plan.cells[-1].id, "not comparable")
    assert "other" in missing["reason"]


def test_csv_has_every_score_and_no_formula(tmp_path):
    plan = make(tmp_path, {5: [0.40, 0.41, 0.42], 7: [0.5, 0.51, 0.53]})
    report(plan)
    rows = list(csv.DictReader((plan.folder / "report" / "report.csv").open()))
    assert sorted(float(r["value"]) for r in rows if r["metric"] == "semseg/miou") == [0.4, 0.41, 0.42, 0.5, 0.51, 0.53]
    assert not any(text[:1] in "=+@" for row in rows for text in row.values() if text)
    units = {r["metric"]: r["unit"] for r in rows}
    assert [units[name] for name in ("semseg/miou", "depth/rmse_m", "normals/mean_deg_per_image", "loss")] == [
        "share", "m", "°", "",
    ]  # fmt: skip


def test_nothing_finished_and_foreign_files_are_refused(tmp_path, capsys):
    plan = make(tmp_path, {5: [], 7: []})
    assert m2h("sweep", "report", plan.folder, "--no-measure", "--no-plots") == 2
    assert "no cell is finished" in capsys.readouterr().err
    assert m2h("sweep", "report", plan.folder, "-o", plan.folder / "plan") == 2
    assert "is no report" in capsys.readouterr().err
    assert json.loads((plan.folder / "plan.json").read_text())["format"] == 1


def test_pictures_are_drawn(tmp_path):
    plan = make(tmp_path, {5: [0.40, 0.41, 0.42], 7: [0.5, 0.51, 0.53]})
    assert m2h("sweep", "report", plan.folder, "--no-measure") == 0
    assert (plan.folder / "report" / "report-scores.png").read_bytes()[:4] == b"\x89PNG"


def test_a_real_network_is_measured(tmp_path, monkeypatch):
    from m2h_lightning.sweeps.report import efficiency

    config = Path(write(tmp_path / "config.yaml", TINY))
    name = efficiency.network_hash(config)
    path = tmp_path / "efficiency.json"
    few = efficiency.efficiency(path, {name: config}, rounds=3)
    cost = few["networks"][name]
    assert (cost["size"], cost["latency_p95_ms"], few["rounds"]["latency"]) == ([32, 32], None, 3)
    assert cost["parameters"] > 1000
    assert efficiency.efficiency(path, {name: config}) == few  # from the file
    many = efficiency.efficiency(path, {name: config}, rounds=20)
    cost = many["networks"][name]
    assert many["rounds"]["latency"] == 20
    assert 0 < cost["latency_p50_ms"] <= cost["latency_p95_ms"]
    monkeypatch.setattr(efficiency, "measure", None)
    assert efficiency.efficiency(path, {name: config}) == many
    assert efficiency.cached(path, {name, "another"}, None) is None
    other = Path(write(tmp_path / "other.yaml", TINY.replace("window_size: 5", "window_size: 7")))
    assert efficiency.network_hash(other) != name
    same = TINY.replace("  channels: 8", "  loss_weights: {depth: 2.0}\n  channels: 8")
    same = Path(write(tmp_path / "same.yaml", f"seed_everything: 3\n{same}"))
    assert efficiency.network_hash(same) == name


def test_rounds_take_turns_and_end_in_time():
    """A pass lasts 1 s by this clock; round by round another network is the first."""
    now, order = [0.0], []

    def network(name):
        def run():
            now[0] += 1.0
            order.append(name)
            return 1.0

        return run

    budget = Budget(rounds=50, needed=6, least=2, wanted_s=10, needed_s=30)
    times = in_turn({"a": network("a"), "b": network("b")}, budget, lambda: now[0])
    assert order[:8] == ["a", "a", "b", "b", "a", "b", "b", "a"]  # two passes each to warm up
    assert {name: len(values) for name, values in times.items()} == {"a": 6, "b": 6}  # 12 s: all that are needed
    assert [budget.goes_on(*at) for at in ((0, 99), (2, 29), (2, 31), (6, 9), (6, 11), (50, 1))] == [
        True, True, False, True, False, False,
    ]  # fmt: skip
