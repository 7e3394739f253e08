"""The checks of verification one by one: units of depth, edges, labels, lists, orphans, maps, the drawn sheet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2h_lightning.data.raw import DepthCode
from m2h_lightning.data.sheet import COLUMNS, depth_span, draw_sheet, hatched, panels, save_png
from m2h_lightning.data.sources.base import Item
from m2h_lightning.data.verify.depths import DepthTally, judge_depth, metres, tally_depth
from m2h_lightning.data.verify.edge_agreement import EdgeTally, changes, judge_edges, tally_edges
from m2h_lightning.data.verify.labels import judge_labels, tally_labels
from m2h_lightning.data.verify.listing import judge_counts, judge_lists, judge_pictures
from m2h_lightning.data.verify.maps import MapTally, judge_maps, tally_map
from m2h_lightning.data.verify.orphans import find_orphans, judge_orphans
from m2h_lightning.data.verify.problems import Finding, ordered, some
from m2h_lightning.data.verify.scan import spread
from m2h_lightning.errors import DataError
from m2h_lightning.labels import class_palette
from verify_sets import room


def depth_finding(change) -> str:
    total = DepthTally()
    for seed in range(3):
        total.add(tally_depth(change(room(seed)["depth"]).astype(np.float32)))
    return " ".join(finding.text for finding in judge_depth(total, (0.1, 10.0)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda z: z, ""),
        (lambda z: z * 1000, "millimetres"),
        (lambda z: np.rint(z * 1000), "millimetres"),
        (lambda z: z * 100, "centimetres"),
        (lambda z: np.rint(z / z.max() * 255), "8-bit"),
        (lambda z: np.rint(z), "whole metres"),
        (lambda z: z / z.max(), "0…1"),
        (lambda z: 1 / z, "inverse"),
        (lambda z: z * 6, "too large"),
        (lambda z: z / 1000, "too small"),
        (lambda z: np.where(z > 3, -1.0, z), "negative"),
        (lambda z: z * 0, ""),
    ],
)
def test_depth_of_a_wrong_unit_is_named(change, said):
    text = depth_finding(change)
    assert said in text if said else not text


@given(st.lists(st.floats(0.01, 1000), min_size=1, max_size=200), st.floats(1, 99))
def test_percentiles_of_the_histogram_are_those_of_the_values(values, percent):
    tally = tally_depth(np.repeat(np.repeat(np.array([values], np.float32), 4, 1), 4, 0))
    exact = np.percentile(np.array(values, np.float32), percent, method="inverted_cdf")
    assert tally.percentile(percent) == pytest.approx(exact, rel=0.013)


def test_depth_is_brought_to_metres_whatever_the_target():
    stored = np.array([[0, 1, 257, 25601]], np.uint16)
    expected = [[0, 0, 450.0, 4.5]]
    for target in ("metric", "disparity", "inverse"):
        np.testing.assert_allclose(metres(stored, DepthCode(baseline_fx=450.0, target=target), target), expected)
    np.testing.assert_allclose(metres(stored, DepthCode(scale=0.001), "metric")[0, 3], 25.601)
    np.testing.assert_allclose(metres(np.array([[0, 0.5]], np.float32), None, "inverse"), [[0, 2]])


def edge_tally(change=lambda e: e) -> EdgeTally:
    total = EdgeTally()
    for seed in range(3):
        maps = room(seed)
        change_map = changes({key: maps[key] for key in ("semseg", "normals")}, maps["depth"].astype(np.float32))
        total.add(tally_edges(change(maps["edges"]), change_map))
    return total


def test_edges_on_the_borders_agree():
    tally = edge_tally()
    assert tally.agreement == 1 and tally.chance < 0.3 and 0.005 < tally.density < 0.1
    assert judge_edges(tally, 3) == []


@pytest.mark.parametrize(
    ("change", "severity", "said"),
    [
        (lambda e: 1 - e, "problem", "inverted"),
        (lambda e: e * 0, "problem", "not one edge pixel"),
        (lambda e: e * 7, "problem", "neither 0, 1"),
        (lambda e: np.random.default_rng(0).permutation(e.reshape(-1)).reshape(e.shape), "warning", "by chance"),
        (lambda e: (np.random.default_rng(0).random(e.shape) < 0.4).astype(np.uint8), "warning", "is usual"),
    ],
)
def test_edges_that_are_wrong_are_told(change, severity, said):
    findings = judge_edges(edge_tally(change), 3)
    assert any(finding.severity == severity and said in finding.text for finding in findings)


def test_unknown_edges_are_not_counted():
    tally = tally_edges(np.full((4, 4), 255, np.uint8), None)
    assert tally.known == 0 and judge_edges(tally, 1) == []


def test_edges_with_nothing_to_compare_with_have_no_agreement():
    assert changes({}, None) is None
    tally = tally_edges(np.eye(40, dtype=np.uint8), None)
    assert np.isnan(tally.agreement) and judge_edges(tally, 1) == []


def test_labels_that_never_occur_and_one_that_always_does():
    counts = tally_labels(np.array([[0, 0], [1, 255]], np.uint8))
    assert counts[[0, 1, 255]].tolist() == [2, 1, 1]
    (never,) = judge_labels(counts, ("a", "b", "c"), complete=True)
    assert never.severity == "warning" and "2 c" in never.text
    assert judge_labels(counts, ("a", "b", "c"), complete=False)[0].severity == "note"
    alone = judge_labels(tally_labels(np.zeros((9, 9), np.uint8)), ("a", "b", "c"), complete=True)
    assert any("class 0 a" in finding.text for finding in alone)
    unlabelled = judge_labels(tally_labels(np.array([[0, 1, 2, 255, 255, 255, 255]])), ("a", "b", "c"), True)
    assert any("unlabelled" in finding.text for finding in unlabelled)


def test_counts_are_compared_with_the_official_ones():
    official = {"train": 10, "val": 5, "test": 2}
    asked = tuple(official)
    findings = judge_counts({"train": 9, "val": 0}, official, asked, partial=False)
    assert [(f.severity, f.text.split("'")[1]) for f in findings] == [
        ("problem", "train"),
        ("problem", "val"),
        ("warning", "test"),
    ]
    assert "9 samples, officially 10" in findings[0].text and "empty" in findings[1].text
    assert judge_counts({"train": 9}, official, ("train",), partial=True)[0].severity == "note"
    assert judge_counts({"train": 9}, {}, (), partial=False) == []


def test_repeated_ids_and_shared_scenes():
    listed = {"train": [Item("a", "train", "s1"), Item("a", "train", "s2")], "val": [Item("b", "val", "s1")]}
    ids, scenes = judge_lists(listed)
    assert ids.severity == "problem" and "a" in ids.text
    assert "s1 (train, val)" in scenes.text and scenes.severity == "warning"
    assert judge_lists({"train": [Item("a", "train", "s1")], "val": [Item("b", "val", "s2")]}) == []


def test_equal_pictures_across_splits_are_a_leak_and_within_one_a_repeat():
    across, within = judge_pictures(
        [
            ("a", "train", "1"),
            ("b", "val", "1"),
            ("c", "val", "2"),
            ("d", "val", "2"),
            ("e", "val", ""),
            ("f", "train", ""),
        ]
    )
    assert (across.severity, across.check) == ("problem", "leak") and "a (train) = b (val)" in across.text
    assert (within.severity, within.check) == ("warning", "repeats") and "c (val) = d (val)" in within.text


def touch(*paths) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_orphans_are_files_of_a_kind_in_use_that_no_sample_names(tmp_path):
    image, label = tmp_path / "leftImg8bit", tmp_path / "gtFine"
    items = []
    for name in ("bonn_000001_000019", "bonn_000002_000019", "ulm_000001_000019"):
        files = {
            "image": image / name.split("_")[0] / f"{name}_leftImg8bit.png",
            "semseg": label / f"{name}_gtFine_labelIds.png",
        }
        touch(*files.values(), label / f"{name}_gtFine_color.png", label / f"{name}_gtFine_polygons.json")
        items.append(Item(name, "train", name, files))
    assert find_orphans(items) == {}
    touch(
        image / "ulm" / "ulm_000007_000019_leftImg8bit.png", image / "ulm" / "notes.txt", image / "ulm" / ".hidden.png"
    )
    found = find_orphans(items)
    assert {key: [path.name for path in paths] for key, paths in found.items()} == {
        "image": ["ulm_000007_000019_leftImg8bit.png"]
    }
    (finding,) = judge_orphans(found)
    assert finding.severity == "warning" and "1 file(s) among those of image" in finding.text
    assert finding.file == str(image / "ulm")


def test_orphans_among_free_names_and_single_files(tmp_path):
    items = [Item(name, "train", name, {"image": tmp_path / f"{name}.jpg"}) for name in ("kitchen", "bath")]
    touch(*(item.files["image"] for item in items), tmp_path / "attic.jpg", tmp_path / "readme.md")
    assert [path.name for path in find_orphans(items)["image"]] == ["attic.jpg"]
    whole = [Item(name, "train", name, {"image": tmp_path / "all.mat"}) for name in ("a", "b")]
    touch(tmp_path / "all.mat", tmp_path / "other.mat")
    assert find_orphans(whole) == {}


def test_maps_are_counted_as_stored_and_as_decoded():
    depth = np.array([[0, 1.0], [3.0, np.nan]], np.float32)
    tally = tally_map("depth", depth.astype(np.float16), depth)
    assert (tally.unknown, tally.not_finite, tally.low, tally.high) == (2, 1, 1.0, 3.0)
    assert tally.mean == 2.0 and tally.unknown_share == 0.5 and dict(tally.dtypes) == {"float16": 1}
    normals = np.zeros((2, 2, 3), np.float32)
    normals[0, 0] = 0, 0, -1
    tally.add(tally_map("depth", depth, depth))
    assert tally.samples == 2 and dict(tally.dtypes) == {"float16": 1, "float32": 1}
    tally = tally_map("normals", normals, normals)
    assert tally.unknown == 3 and tally.values == 3 and tally.mean == pytest.approx(-1 / 3)
    semseg = np.array([[0, 255]], np.uint8)
    assert tally_map("semseg", semseg, semseg).unknown == 1


def test_missing_partial_and_unknown_maps_are_told():
    full = MapTally(samples=4, pixels=16, unknown=0)
    findings = judge_maps({"image": full, "depth": MapTally(samples=3, pixels=9, unknown=9)}, ("depth", "edges"), 4)
    assert [(f.check, f.severity) for f in findings] == [
        ("depth", "warning"),
        ("depth", "problem"),
        ("edges", "problem"),
    ]


@given(st.integers(1, 50), st.integers(1, 60))
def test_samples_are_spread_evenly(total, count):
    items = [Item(str(index), "train", "") for index in range(total)]
    chosen = [int(item.id) for item in spread(items, count)]
    assert len(chosen) == min(total, count) == len(set(chosen))
    if len(chosen) > 1:
        assert chosen[0] == 0 and chosen[-1] == total - 1
        assert max(np.diff(chosen)) - min(np.diff(chosen)) <= 1
    assert spread(items, None) == items


def test_findings_are_one_line_each_and_sorted():
    finding = Finding("problem", "x", "two\nlines", "mend it", "/a/b")
    assert finding.line == "/a/b: two lines; mend it"
    assert Finding("note", "x", "/a/b: bad", "", "/a/b").line == "/a/b: bad"
    notes = [Finding("note", "x", "1"), Finding("problem", "x", "2"), Finding("warning", "x", "3"), finding]
    assert [f.severity for f in ordered(notes)] == ["problem", "problem", "warning", "note"]
    assert some("abcde") == "a, b, c and 2 more" and some("ab") == "a, b"


def test_panels_show_unknown_as_stripes_and_nothing_else():
    maps = room(0)
    for key, unknown in (("semseg", 255), ("depth", 0), ("normals", 0), ("edges", 255)):
        maps[key][:20, :30] = unknown
    drawn = dict(zip(COLUMNS, panels(maps, class_palette(7), (1.0, 3.0)), strict=True))
    stripes = hatched(*maps["image"].shape[:2])
    for key in COLUMNS[1:]:
        assert drawn[key].dtype == np.uint8 and (drawn[key][:20, :30] == stripes[:20, :30]).all()
    assert (drawn["image"] == maps["image"]).all()
    assert (drawn["semseg"][40, 40] == class_palette(7)[maps["semseg"][40, 40]]).all()
    alone = panels({"image": maps["image"]}, class_palette(7), (1.0, 3.0))
    assert all((panel == stripes).all() for panel in alone[1:])


def test_a_sheet_holds_samples_of_several_sizes_and_missing_maps(tmp_path):
    maps = {**room(0), "id": "one"}
    small = {"image": np.zeros((20, 90, 3), np.uint8), "id": "two: ünï"}
    sheet = draw_sheet([maps, small], class_palette(7), width=160, title="toy")
    assert sheet.shape[1] == 5 * 164 + 4 and sheet.dtype == np.uint8
    assert sheet.shape[0] > 120 + 36
    save_png(sheet, tmp_path / "new" / "sheet.png")
    assert (tmp_path / "new" / "sheet.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        save_png(sheet, tmp_path / "file" / "sheet.png")
    assert depth_span([]) == (0.0, 1.0)
    assert depth_span([np.zeros((8, 8))]) == (0.0, 1.0)


def test_thin_edges_survive_a_small_panel():
    edges = np.zeros((800, 1600), np.uint8)
    edges[:, 801] = 1
    sample = {"image": np.zeros((800, 1600, 3), np.uint8), "edges": edges, "id": "line"}
    sheet = draw_sheet([sample], class_palette(2), width=100)
    strip = sheet[-40:-10, 4 + 4 * 104 : 4 + 4 * 104 + 100]
    assert (strip.min(axis=(1, 2)) == 0).all()
