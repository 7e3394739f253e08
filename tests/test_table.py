"""``m2h table``: what stands where, what is marked, and what is never ranked together."""

import re
import subprocess
import sys

import pytest

from m2h_lightning.report.names import METRICS, OLD_HEADLINES, SUFFIXES, all_metrics, metric_name
from m2h_lightning.report.published import PUBLISHED
from result_files import result, write_run
from table_helpers import output, refusal, rows_of_csv, tables, write_two_runs


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nyud(here):
    return write_two_runs(here)


# ── content ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_runs_side_by_side(nyud, capsys):
    ((title, head, rows),) = tables(output(capsys, "nyud"))
    assert title.startswith("nyud, test split; labels at their own size; depth: no crop, no cap; odsF exact")
    assert head == ["run", "backbone", "seed", "mIoU ↑ (%)", "RMSE ↓ (m)", "mErr ↓ (°)", "odsF ↑ (%)"]
    vit = "vit_small_patch14_dinov2.lvd142m"
    assert rows == [
        ["nyud/a", vit, "0", "45.21", "**0.5432**", "**19.87**", "76.51"],
        ["nyud/b", vit, "1", "**45.83**", "0.5501", "**19.87**", "**77.02**"],
    ]


def test_a_folder_a_file_and_an_experiment_name_the_same_run_once(nyud, capsys):
    ((_, _, rows),) = tables(output(capsys, "nyud/b", "nyud/b/result.json", "nyud", nyud / "nyud" / "a"))
    assert [row[0] for row in rows] == ["nyud/b", "nyud/a"]


def test_the_protocol_chooses_the_scores(nyud, capsys):
    ((_, head, rows),) = tables(output(capsys, "nyud/b", "--protocol", "per_image"))
    assert rows[0][3:] == ["50.00", "0.5011", "19.91", "77.02"]
    ((_, head, rows),) = tables(output(capsys, "nyud/b", "--protocol", "both"))
    assert head[3:5] == ["mIoU pooled ↑ (%)", "mIoU per image ↑ (%)"]
    assert head[-1] == "odsF ↑ (%)"  # of the whole set: one column
    assert rows[0][3:5] == ["45.83", "50.00"]


def test_the_heading_protocol_of_the_runs_is_the_default(here, capsys):
    write_run(here, "x/a", result(evaluation={"protocol": "per_image"}))
    assert "protocol: per image" in output(capsys, "x")
    write_run(here, "x/b")
    text = output(capsys, "x")
    assert "protocol: pooled" in text
    assert "different heading protocols" in text
    write_run(here, "y/a", result(evaluation={"protocol": "per_batch"}))
    text = output(capsys, "y")
    assert "protocol: pooled" in text
    assert "depend on the batch size" in text


def test_what_a_run_lacks_is_a_dash_and_what_is_undefined_is_not_ranked(here, capsys):
    write_run(here, "x/a", result(("semseg",)))
    write_run(here, "x/b", result(("semseg", "depth"), {"semseg": {"miou": None}}))
    ((_, _, rows),) = tables(output(capsys, "x"))
    assert [row[3:] for row in rows] == [["45.21", "–"], ["NaN", "0.5432"]]
    cells = rows_of_csv(output(capsys, "x", "--format", "csv"))
    assert [row["depth/rmse_m (m)"] for row in cells] == ["", "0.5432"]
    assert [row["semseg/miou (%)"] for row in cells] == ["45.21", "NaN"]


def test_a_score_beside_its_ranges_or_classes_is_found(here, capsys):
    from m2h_lightning.runs.folder import nested_metrics

    flat = {
        "test/depth/rmse_m": 0.5,
        "test/depth/rmse_m_by_range/1-2": 0.3,
        "test/semseg/miou": 0.4,
        "test/semseg/iou/wall": 1.0,
    }
    write_run(here, "x/a", result(("semseg", "depth")) | {"metrics": nested_metrics(flat)})
    ((_, _, rows),) = tables(output(capsys, "x"))
    assert rows[0][3:] == ["40.00", "0.5000"]


def test_all_metrics_leave_out_counts_details_thresholds_and_baselines(nyud, capsys):
    ((_, head, rows),) = tables(output(capsys, "nyud/a", "--metrics", "all"))
    assert [re.sub(r" [↑↓].*", "", name) for name in head[3:]] == [
        "mIoU",
        "pixel acc.",
        "RMSE",
        "AbsRel",
        "mErr",
        "median",
        "within 30°",
        "odsF",
        "oisF",
        "pixel F",
    ]
    assert rows[0][4] == "73.12"


def test_units_of_depth_never_share_a_column(here, capsys):
    write_run(here, "x/a")
    inverse = result(("depth",), data={"depth_unit": "px"})
    inverse["metrics"]["test"]["depth"] = {"rmse_px": 4.5}
    inverse["headlines"]["depth"]["pooled"] = "rmse_px"
    write_run(here, "x/b", inverse)
    _, (_, head, rows) = tables(output(capsys, "x"))
    assert ("RMSE ↓ (m)" in head) and ("RMSE ↓ (px)" in head)
    assert rows[0][head.index("RMSE ↓ (m)")] == "–"
    assert rows[0][head.index("RMSE ↓ (px)")] == "4.5000"


def test_sorting_is_by_the_tasks_direction_and_leaves_out_last(here, capsys):
    for name, miou, rmse in (("a", 0.3, 0.5), ("b", 0.5, 0.7), ("c", 0.4, 0.6)):
        write_run(here, f"x/{name}", result(("semseg", "depth"), {"semseg": {"miou": miou}, "depth": {"rmse_m": rmse}}))
    write_run(here, "x/0", result(("normals",)))

    def order(task):
        ((_, _, rows),) = tables(output(capsys, "x", "--sort", task))
        return [row[0][-1] for row in rows]

    assert order("semseg") == ["b", "c", "a", "0"]
    assert order("depth") == ["a", "c", "b", "0"]
    assert "did you mean 'depth'" in refusal(capsys, "x", "--sort", "dept")


def test_output_is_the_same_every_time_and_shows_no_more_than_asked(nyud, capsys):
    words = ("nyud", "--single", "single", "--paper")
    first = output(capsys, *words)
    assert output(capsys, *words) == first
    assert "trivial" not in first


def test_copied_runs_are_told_apart_by_their_places(here, capsys):
    write_run(here / "one", "x/a")
    write_run(here / "two", "x/a")
    ((_, _, rows),) = tables(output(capsys, "one/x/a", "two/x/a"))
    assert [row[0] for row in rows] == ["one/x/a", "two/x/a"]


# ── groups ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluation": {"crop": "eigen"}}, "crop eigen / none"),
        ({"evaluation": {"cap": 10}}, "cap of depth 10 / none"),
        ({"evaluation": {"odsf_test": "fast"}}, "mode of odsF fast / exact"),
        ({"evaluation": {"max_dist": 0.0075}}, "tolerance of odsF 0.0075 / 0.011"),
        ({"data": {"name": "nyud13"}}, "data set nyud13 / nyud"),
        ({"data": {"fingerprint": "beef"}}, "data beef / f00d, holdout 0.1"),
        ({"data": {"eval_size": [448, 576]}}, "input size 448×576 / none"),
        ({"data": {"depth_unit": "px"}}, "unit of depth px / m"),
    ],
)
def test_other_settings_or_data_are_a_group_of_their_own(nyud, capsys, changes, words):
    best = {"semseg": {"miou": 0.99}, "depth": {"rmse_m": 0.01}, "normals": {"mean_deg": 1.0}, "edges": {"odsf": 0.99}}
    write_run(nyud, "other/a", result(scores=best, **changes))
    text = output(capsys, "nyud", "other")
    (_, _, first), (_, _, second) = tables(text)
    assert [row[0] for row in first] == ["nyud/a", "nyud/b"]
    assert second[0][0] == "other/aᵃ"
    assert "**" not in "".join(second[0])
    assert first[1][3] == "**45.83**"  # not beaten by a value of another group
    assert f"ᵃ not comparable with the first group; this / first: {words}" in text


def test_unknown_settings_are_shown_last_with_a_mark_and_never_ranked(nyud, capsys):
    for name in ("a", "b"):
        old = result(scores={"semseg": {"miou": 0.99}}, seed=5)
        for key in ("evaluation", "headlines", "tasks", "network"):
            del old[key]
        write_run(nyud, f"old/{name}", old)
    text = output(capsys, "old", "nyud")
    (_, _, first), (_, _, second) = tables(text)
    assert [row[0] for row in first] == ["nyud/a", "nyud/b"]
    assert [row[0] for row in second] == ["old/aᵃ", "old/bᵃ"]
    assert second[0][3:] == ["99.00", "0.5432", "19.87", "76.51"]
    assert "ᵃ evaluation settings unknown" in text


def test_predictions_of_others_stand_beside_runs(nyud, capsys):
    write_run(nyud, "foreign/a", result(network=None, command="evaluate"))
    ((_, head, rows),) = tables(output(capsys, "nyud/a", "foreign/a", "--paper").split("published")[0])
    assert [row[head.index("source")] for row in rows] == ["run", "predictions"]
    assert [row[head.index("backbone")] for row in rows] == ["vit_small_patch14_dinov2.lvd142m", "–"]


# ── published rows ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_published_rows_stand_apart_with_source_and_protocol(nyud, capsys):
    text = output(capsys, "nyud", "--paper")
    found = {title: (head, rows) for title, head, rows in tables(text)}
    assert len(found) == 4
    head, rows = found["published, NYUDv2, 40 classes, 654 images: pooled over the set (protocol of InvPT)"]
    atrc = dict(zip(head, rows[0], strict=True))
    assert atrc["run"] == "ATRC"
    assert atrc["mIoU ↑ (%)"] == "46.33"
    assert "README" in atrc["source"]
    own = next(rows for title, (_, rows) in found.items() if title.startswith("nyud"))
    assert own[1][4] == "**45.83**"  # a published 57.01 does not take it away
    assert "has the settings of 'published" in text
    m2h_row = found["published, NYUDv2: protocol not published"][1][1]
    assert m2h_row[0].startswith("M2H")
    assert re.match(r"13\.81\S", m2h_row[-2])
    assert re.match(r"85\.27\S", m2h_row[-1])
    assert "**" not in "".join(m2h_row)


def test_runs_with_other_settings_are_told_to_differ_from_published_ones(nyud, capsys):
    write_run(nyud, "capped/a", result(evaluation={"cap": 10.0}))
    text = output(capsys, "capped", "--paper")
    assert "is not comparable with 'published, NYUDv2, 40 classes" in text
    assert "cap of depth 10 / none" in text
    assert "has the settings of" not in text


def test_values_of_another_protocol_are_marked(nyud, capsys):
    text = output(capsys, "nyud", "--paper", "--protocol", "per_image")
    row = next(row for _, _, rows in tables(text) for row in rows if row[0].startswith("ATRC"))
    assert row[0] != "ATRC"
    assert "scored pooled, another protocol than the table's" in text
    text = output(capsys, "nyud", "--paper", "--protocol", "both")
    swin = next(
        dict(zip(head, row, strict=True))
        for _, head, rows in tables(text)
        for row in rows
        if row[0].startswith("SwinMTL")
    )
    assert swin["mIoU per image ↑ (%)"] == "58.14"
    assert swin["mIoU pooled ↑ (%)"] == "–"


def test_a_set_without_published_results_is_told(here, capsys):
    write_run(here, "x/a", result(data={"name": "rooms"}))
    text = output(capsys, "x", "--paper")
    assert "there are no published results of the data set 'rooms' here" in text
    assert "InvPT" not in text


@pytest.mark.parametrize("group", PUBLISHED, ids=lambda group: group.title)
def test_published_numbers_are_plausible_and_have_a_source(group):
    assert group.rows
    for row in group.rows:
        assert row.source
        for (task, base), printed in row.values.items():
            name = metric_name(task, base)
            assert name is not None
            assert 0 < float(printed) / name.scale < (1 if name.unit == "%" else 45)
        assert group.ranked <= (group.protocol is not None)
        assert set(row.marks) <= set(row.values)


# ── Δm ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_delta_has_a_column_a_row_of_baselines_and_says_what_it_is(nyud, capsys):
    text = output(capsys, "nyud", "--single", "single")
    ((_, head, rows),) = tables(text)
    assert head[-1] == "Δm ↑ (%)"
    assert rows[0][0] == "single-task networks (4)"
    assert [cell.strip("*") for cell in rows[0][3:]] == ["46.00", "0.5500", "19.50", "76.00", "0.00"]
    by_hand = 100 / 4 * ((0.4521 / 0.46 - 1) - (0.5432 / 0.55 - 1) - (19.87 / 19.5 - 1) + (0.7651 / 0.76 - 1))
    assert rows[1][-1] == f"{by_hand:+.2f}".replace("-", "−")
    assert "variant 'headline' (one metric per task)" in text
    assert "metrics: semseg miou; depth rmse_m; normals mean_deg; edges odsf" in text
    assert "semseg single/semseg; depth single/depth" in text
    text = output(capsys, "nyud", "--single", "single", "--variant", "all")
    assert "variant 'all' (the metrics of a task averaged first, then the tasks)" in text
    assert "depth rmse_m, absrel" in text


def test_delta_of_different_tasks_is_not_ranked(nyud, capsys):
    write_run(nyud, "two/a", result(("semseg", "depth"), {"semseg": {"miou": 0.9}}))
    text = output(capsys, "nyud/a", "two/a", "--single", "single")
    ((_, _, rows),) = tables(text)
    assert all("**" not in row[-1] for row in rows)
    assert "Δm over semseg, depth: the runs have different tasks" in text


def test_other_widths_or_lengths_are_told(nyud, capsys):
    other = result()
    other["network"]["channels"] = 96
    other["network"]["wmca"]["enabled"] = False
    other["budget"]["max_epochs"] = 100
    write_run(nyud, "wide/a", other)
    text = output(capsys, "wide", "--single", "single")
    assert "multi-task and single-task networks differ in: channels 96 / none" in text
    assert "wmca False / True" in text
    assert "max_epochs 100 / 50" in text


def test_delta_of_incomparable_runs_is_refused(nyud, capsys):
    write_run(nyud, "capped/a", result(evaluation={"cap": 10}))
    line = refusal(capsys, "nyud", "capped", "--single", "single")
    assert "cap of depth 10 / none" in line
    assert "capped/a/result.json" in line
    assert "single/semseg/result.json" in line
    assert "is no single-task run" in refusal(capsys, "nyud/a", "--single", "nyud/b")
    assert "no single-task baseline for 'depth'" in refusal(capsys, "nyud/a", "--single", "single/semseg")
    write_run(nyud, "image/a", result(evaluation={"protocol": "per_image"}))
    assert "choose one with --protocol" in refusal(capsys, "image", "--single", "single")
    assert "Δm" in output(capsys, "image", "--single", "single", "--protocol", "pooled")


# ── seeds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_seeds_are_rows_of_their_own_unless_their_mean_is_asked_for(here, capsys):
    values = (0.40, 0.44, 0.45)
    for seed, miou in enumerate(values):
        write_run(here, f"x/{seed}", result(("semseg",), {"semseg": {"miou": miou}}), seed=seed)
    write_run(here, "x/other", result(("semseg",)), seed=0, lr=1e-3)
    assert len(tables(output(capsys, "x"))[0][2]) == 4
    ((_, _, rows),) = tables(output(capsys, "x", "--mean"))
    assert [row[0] for row in rows] == ["x (n = 3)", "x/other"]
    assert rows[0][2:] == ["0, 1, 2", "43.00 ± 2.65"]  # √(((−3)² + 1² + 2²)/2) = 2.6458
    row = rows_of_csv(output(capsys, "x", "--mean", "--format", "csv"))[0]
    assert float(row["semseg/miou (%)"]) == pytest.approx(43.0)
    assert float(row["semseg/miou (%) std"]) == pytest.approx(2.6457513)


def test_delta_of_a_mean_is_the_mean_of_deltas(nyud, capsys):
    single = rows_of_csv(output(capsys, "nyud", "--single", "single", "--format", "csv"))
    mean = rows_of_csv(output(capsys, "nyud", "--single", "single", "--format", "csv", "--mean"))
    each = [float(row["delta_m (%)"]) for row in single[1:]]
    assert float(mean[1]["delta_m (%)"]) == pytest.approx(sum(each) / 2)


def test_the_same_seed_twice_is_no_repetition(here, capsys):
    write_run(here, "x/a", seed=3)
    write_run(here, "x/b", seed=3)
    assert "the same configuration and the same seed 3" in refusal(capsys, "x", "--mean")


def test_a_run_without_configuration_is_not_merged(here, capsys):
    for seed in (0, 1, 2):
        folder = write_run(here, f"x/{seed}", seed=seed)
    (folder / "config.yaml").unlink()
    ((_, _, rows),) = tables(output(capsys, "x", "--mean"))
    assert [row[0] for row in rows] == ["x (n = 2)", "x/2"]
    (here / "x" / "0" / "config.yaml").write_text("a: [")
    assert "config.yaml" in refusal(capsys, "x", "--mean")


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_names_agree_with_the_metrics_themselves():
    from m2h_lightning.metrics.settings import SUFFIXES as OFFICIAL

    assert {protocol: OFFICIAL[protocol] for protocol in SUFFIXES} == SUFFIXES


def test_the_fast_mode_counts_only_where_there_is_no_exact_one():
    assert all_metrics("edges", {"odsf_fast", "f_pixel"}) == ["odsf_fast", "f_pixel"]
    assert all_metrics("edges", {"odsf", "odsf_fast"}) == ["odsf"]
    assert all_metrics("semseg", {"miou", "miou_trimap12", "miou_trimap5", "classes_present"}) == [
        "miou",
        "miou_trimap5",
        "miou_trimap12",
    ]


def test_headlines_of_older_results_are_known_metrics():
    for task, keys in OLD_HEADLINES.items():
        assert set(keys) <= set(METRICS[task])


def test_the_verb_answers_without_torch(nyud):
    code = (
        "import sys; from m2h_lightning.cli import main\n"
        "code = main(['table', 'nyud', '--single', 'single', '--paper', '--mean'])\n"
        "print('HEAVY', sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)), 'CODE', code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=nyud, check=True)
    assert "HEAVY [] CODE 0" in done.stdout


def test_a_test_of_a_part_of_the_split_is_not_ranked_with_the_whole(here, capsys):
    whole, part = result(), result()
    part["metrics"]["test"]["images"] = 6
    write_run(here, "x/a", whole)
    write_run(here, "x/b", part)
    groups = tables(output(capsys, "x"))
    assert len(groups) == 2, "each is a group of its own"
