"""Δm: the formula against its definition, its invariances, and what it refuses."""

import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from m2h_lightning.errors import ConfigError
from m2h_lightning.report.collect import read_run
from m2h_lightning.report.compare import Baselines, check_comparable, check_protocols, compare
from m2h_lightning.report.delta import delta_m
from result_files import result, write_run

FOUR = {"semseg": {"miou": True}, "depth": {"rmse_m": False}, "normals": {"mean_deg": False}, "edges": {"odsf": True}}


def by_definition(multi, single, higher):
    total = 0.0
    for task in multi:
        gain = 0.0
        for metric in multi[task]:
            sign = (-1) ** (0 if higher[task][metric] else 1)
            gain += sign * (multi[task][metric] - single[task][metric]) / single[task][metric]
        total += gain / len(multi[task])
    return 100 / len(multi) * total


def test_gains_that_can_be_seen_by_eye():
    multi = {"semseg": {"miou": 46.33}, "depth": {"rmse_m": 0.5363}, "normals": {"mean_deg": 20.18}}
    single = {"semseg": {"miou": 92.66}, "depth": {"rmse_m": 1.0726}, "normals": {"mean_deg": 20.18}}
    found = delta_m(multi, single, FOUR)
    assert found.per_task == pytest.approx({"semseg": -50.0, "depth": 50.0, "normals": 0.0})
    assert found.percent == pytest.approx(0.0)
    assert found.metrics == {"semseg": ("miou",), "depth": ("rmse_m",), "normals": ("mean_deg",)}


def test_lower_is_better_turns_the_sign():
    assert delta_m({"depth": {"rmse_m": 0.9}}, {"depth": {"rmse_m": 1.0}}, FOUR).percent == pytest.approx(10.0)
    assert delta_m({"semseg": {"miou": 0.9}}, {"semseg": {"miou": 1.0}}, FOUR).percent == pytest.approx(-10.0)


def test_tasks_weigh_alike_whatever_their_number_of_metrics():
    multi = {"semseg": {"miou": 1.1}, "depth": {"rmse_m": 1.0, "absrel": 1.0, "silog": 1.0}}
    single = {"semseg": {"miou": 1.0}, "depth": {"rmse_m": 1.0, "absrel": 1.0, "silog": 1.0}}
    higher = {"semseg": {"miou": True}, "depth": {"rmse_m": False, "absrel": False, "silog": False}}
    assert delta_m(multi, single, higher).percent == pytest.approx(5.0)  # a mean over all four metrics would be 2.5


values = st.floats(0.01, 100, allow_nan=False)
scores = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]),
    st.dictionaries(st.sampled_from(["x", "y", "z"]), st.tuples(values, values, st.booleans()), min_size=1),
    min_size=1,
)


@given(scores)
def test_it_is_the_definition(drawn):
    multi, single, higher = (
        {task: {name: entry[i] for name, entry in metrics.items()} for task, metrics in drawn.items()} for i in range(3)
    )
    assert delta_m(multi, single, higher).percent == pytest.approx(by_definition(multi, single, higher), abs=1e-9)


@given(values, values, st.floats(0.001, 1000))
def test_units_cancel(multi, single, factor):
    one = delta_m({"depth": {"rmse_m": multi}}, {"depth": {"rmse_m": single}}, FOUR).percent
    other = delta_m({"depth": {"rmse_m": multi * factor}}, {"depth": {"rmse_m": single * factor}}, FOUR).percent
    assert other == pytest.approx(one, rel=1e-9, abs=1e-7)


@given(values, values)
def test_it_is_zero_only_for_equal_scores(multi, single):
    assume(abs(multi - single) > 1e-6 * single)
    assert delta_m({"semseg": {"miou": single}}, {"semseg": {"miou": single}}, FOUR).percent == 0
    found = delta_m({"semseg": {"miou": multi}}, {"semseg": {"miou": single}}, FOUR).percent
    assert (found > 0) == (multi > single)


@pytest.mark.parametrize(
    ("multi", "single", "words"),
    [
        ({"depth": {"rmse_m": 1.0}}, {}, "no single-task baseline for 'depth'"),
        ({"depth": {"rmse_m": 1.0}}, {"depth": {"rmse_m": 0.0}}, "is 0 in THEIRS"),
        ({"depth": {"rmse_m": 1.0}}, {"depth": {"rmse_m": -1.0}}, "must be above 0"),
        ({"depth": {"rmse_m": 1.0}}, {"depth": {"absrel": 1.0}}, "depth/rmse_m is not a finite number in THEIRS"),
        ({"depth": {"rmse_m": None}}, {"depth": {"rmse_m": 1.0}}, "depth/rmse_m is not a finite number in OURS"),
        ({"depth": {"rmse_m": 1.0}}, {"depth": {"rmse_m": float("nan")}}, "not a finite number in THEIRS"),
        ({"depth": {"rmse_m": float("inf")}}, {"depth": {"rmse_m": 1.0}}, "not a finite number in OURS"),
        ({}, {"depth": {"rmse_m": 1.0}}, "no task"),
        ({"depth": {}}, {"depth": {"rmse_m": 1.0}}, "no metric of 'depth' in common"),
        ({"depth": {"new": 1.0}}, {"depth": {"new": 1.0}}, "nobody said whether higher is better for depth/new"),
    ],
)
def test_it_refuses_what_has_no_meaning(multi, single, words):
    with pytest.raises(ConfigError, match=words) as caught:
        delta_m(multi, single, FOUR, ("OURS", "THEIRS"))
    assert "\n" not in str(caught.value)


def test_it_needs_no_torch():
    code = "import sys, m2h_lightning.report.delta, m2h_lightning.report.command; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────────────

BASE = {"semseg": 0.46, "depth": 0.55, "normals": 19.5, "edges": 0.76}
KEY = {"semseg": "miou", "depth": "rmse_m", "normals": "mean_deg", "edges": "odsf"}


def singles(tmp_path, tasks=tuple(BASE), **changes):
    folders = [
        write_run(tmp_path, f"single/{task}", result((task,), {task: {KEY[task]: BASE[task]}}, **changes))
        for task in tasks
    ]
    return [read_run(folder) for folder in folders]


def test_runs_are_compared_by_their_headlines(tmp_path):
    run = read_run(write_run(tmp_path, "nyud/a"))
    found = compare(run, Baselines.of(singles(tmp_path)), "pooled", "headline")
    expected = {
        "semseg": 100 * (0.4521 / 0.46 - 1),
        "depth": 100 * (1 - 0.5432 / 0.55),
        "normals": 100 * (1 - 19.87 / 19.5),
        "edges": 100 * (0.7651 / 0.76 - 1),
    }
    assert found.per_task == pytest.approx(expected)
    assert found.percent == pytest.approx(sum(expected.values()) / 4)


def test_the_protocol_decides_which_scores_are_compared(tmp_path):
    run = read_run(write_run(tmp_path, "nyud/a", result(scores={"semseg": {"miou_per_image": 0.9604}})))
    found = compare(run, Baselines.of(singles(tmp_path)), "per_image", "headline")
    assert found.per_task["semseg"] == pytest.approx(100.0)  # 0.9604 against 0.4802
    assert found.metrics["edges"] == ("odsf",)  # of the whole set under every protocol
    assert found.metrics["depth"] == ("rmse_m_per_image",)


def test_all_takes_the_shared_metrics_and_no_counts_details_or_fast_modes(tmp_path):
    run = read_run(write_run(tmp_path, "nyud/a", result(scores={"depth": {"silog": 0.1}})))
    found = compare(run, Baselines.of(singles(tmp_path)), "pooled", "all")
    assert found.metrics == {
        "semseg": ("miou", "pixel_accuracy"),
        "depth": ("rmse_m", "absrel"),
        "normals": ("mean_deg", "median_deg", "within_30"),
        "edges": ("odsf", "oisf", "f_pixel"),
    }
    assert found.per_task["depth"] == pytest.approx(100 * (1 - 0.5432 / 0.55) / 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluation": {"crop": "eigen"}}, "crop none / eigen"),
        ({"evaluation": {"cap": 10.0}}, "cap of depth none / 10"),
        ({"evaluation": {"odsf_test": "fast"}}, "mode of odsF exact / fast"),
        ({"evaluation": {"max_dist": 0.0075}}, "tolerance of odsF 0.011 / 0.0075"),
        ({"data": {"name": "nyud13"}}, "data set nyud / nyud13"),
        ({"data": {"fingerprint": "beef"}}, "data f00d, holdout 0.1 / beef"),
        ({"data": {"test": "validation samples"}}, "test samples test split / validation samples"),
        ({"data": {"eval_size": [448, 576]}}, "input size none / 448×576"),
        ({"data": {"depth_unit": "px"}}, "unit of depth m / px"),
        ({"data": {"edge_rule": "semantic"}}, "rule of edges provided by the data set / semantic"),
        ({"backbone": {"name": "resnet50"}}, "backbone vit_small_patch14_dinov2.lvd142m / resnet50"),
        ({"backbone": {"weights": "random"}}, "weights of the backbone timm / random"),
        ({"backbone": {"freeze": False}}, "freezing of the backbone True / False"),
    ],
)
def test_runs_that_say_nothing_about_each_other_are_refused(tmp_path, changes, words):
    run = read_run(write_run(tmp_path, "nyud/a"))
    others = [*singles(tmp_path, ("semseg", "normals", "edges")), *singles(tmp_path / "x", ("depth",), **changes)]
    with pytest.raises(ConfigError) as caught:
        compare(run, Baselines.of(others), "pooled", "headline")
    message = str(caught.value)
    assert words in message
    assert str(run.path) in message
    assert str(others[-1].path) in message
    assert "\n" not in message


def test_size_of_labels_counts_only_where_the_input_has_a_size_of_its_own(tmp_path):
    one = read_run(write_run(tmp_path, "a/a", result(data={"eval_labels": "input"})))
    other = read_run(write_run(tmp_path, "a/b"))
    check_comparable(one, [other])
    one = read_run(write_run(tmp_path, "b/a", result(data={"eval_labels": "input", "eval_size": [64, 64]})))
    other = read_run(write_run(tmp_path, "b/b", result(data={"eval_labels": "own", "eval_size": [64, 64]})))
    with pytest.raises(ConfigError, match="size of the labels input / own"):
        check_comparable(one, [other])


def test_whole_numbers_and_decimals_are_the_same_setting(tmp_path):
    one = read_run(write_run(tmp_path, "a/a", result(evaluation={"cap": 10})))
    other = read_run(write_run(tmp_path, "a/b", result(evaluation={"cap": 10.0})))
    check_comparable(one, [other])


def test_settings_may_stand_in_either_part_of_the_result(tmp_path):
    """``eval_size`` and ``labels`` are read from the evaluation too."""
    inside = result(evaluation={"eval_size": [64, 64], "labels": "input"})
    del inside["data"]["eval_size"], inside["data"]["eval_labels"]
    one = read_run(write_run(tmp_path, "a/a", inside))
    other = read_run(write_run(tmp_path, "a/b", result(data={"eval_size": [64, 64], "eval_labels": "input"})))
    check_comparable(one, [other])
    assert one.conditions == other.conditions


def test_unknown_settings_or_networks_are_refused(tmp_path):
    run = read_run(write_run(tmp_path, "nyud/a"))
    old = result()
    del old["evaluation"]
    with pytest.raises(ConfigError, match="evaluation settings of .*old.* are unknown"):
        check_comparable(run, [read_run(write_run(tmp_path, "old/a", old))])
    foreign = result(network=None, command="evaluate")
    with pytest.raises(ConfigError, match="network of .*foreign.* is unknown"):
        check_comparable(run, [read_run(write_run(tmp_path, "foreign/a", foreign))])


def test_a_missing_baseline_and_a_run_of_several_tasks_are_refused(tmp_path):
    run = read_run(write_run(tmp_path, "nyud/a"))
    with pytest.raises(ConfigError, match="no single-task baseline for 'normals'.*semseg, depth, edges"):
        compare(run, Baselines.of(singles(tmp_path, ("semseg", "depth", "edges"))), "pooled", "headline")
    with pytest.raises(ConfigError, match="is no single-task run, it has the tasks semseg, depth, normals, edges"):
        Baselines.of([run])


def test_null_and_zero_in_a_baseline_are_refused(tmp_path):
    run = read_run(write_run(tmp_path, "nyud/a"))
    for name, value, words in (("x", None, "not a finite number"), ("y", 0.0, "must be above 0")):
        depth = result(("depth",), {"depth": {"rmse_m": value}})
        others = [
            *singles(tmp_path / name, ("semseg", "normals", "edges")),
            read_run(write_run(tmp_path, f"{name}/d", depth)),
        ]
        with pytest.raises(ConfigError, match=words):
            compare(run, Baselines.of(others), "pooled", "headline")


def test_seeds_of_a_baseline_are_averaged_and_other_differences_are_not(tmp_path):
    def depth(name, value, seed, lr=1e-4):
        return read_run(write_run(tmp_path, name, result(("depth",), {"depth": {"rmse_m": value}}), seed, lr))

    pair = [depth("s/0", 0.5, 0), depth("s/1", 0.7, 1)]
    assert Baselines.of(pair).value("depth", "rmse_m", "pooled") == pytest.approx(0.6)
    undefined = depth("s/4", None, 4)
    assert Baselines.of([*pair, undefined]).value("depth", "rmse_m", "pooled") is None  # not the mean of the others
    with pytest.raises(ConfigError, match="not known to differ in the seed alone"):
        Baselines.of([*pair, depth("s/2", 0.5, 2, lr=1e-3)])
    with pytest.raises(ConfigError, match="same configuration and the same seed 1"):
        Baselines.of([*pair, depth("s/3", 0.5, 1)])
    (pair[1].path.parent / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="not known to differ in the seed alone"):
        Baselines.of(pair)


def test_two_heading_protocols_need_a_choice(tmp_path):
    runs = [
        read_run(write_run(tmp_path, "a/a")),
        read_run(write_run(tmp_path, "a/b", result(evaluation={"protocol": "per_image"}))),
    ]
    with pytest.raises(ConfigError, match="heading protocols pooled and per_image; choose one with --protocol"):
        check_protocols(runs)
    check_protocols(runs[:1])
