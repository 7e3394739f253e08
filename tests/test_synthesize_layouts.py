"""``m2h data synthesize rooms --layout``: rooms in the layouts of other data sets, with their cameras."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from m2h_lightning.data.raw import decode
from m2h_lightning.data.sources import source_class
from m2h_lightning.data.sources.nyud_facts import official_ids, run_of
from m2h_lightning.data.synthesis.command import main_synthesize
from m2h_lightning.data.synthesis.layouts import LAYOUTS
from m2h_lightning.data.synthesis.layouts.rooms import SPLITS, camera, frames_of, official_frames
from m2h_lightning.data.synthesis.store import RoomsSpec, RoomsStore, ensure_rooms
from m2h_lightning.errors import ConfigError, DataError, M2HError
from m2h_lightning.geometry import plane_normals

TINY = ["--rooms", "1", "--views", "2", "--height", "48", "--width", "64", "--workers", "1"]


def synthesize(out, layout, *options) -> int:
    return main_synthesize(["rooms", "--layout", layout, "--out", str(out), *TINY, *options])


# ----------------------------------------------------------------------------------------------------- given cameras


def test_caches_without_a_given_camera_keep_their_names():
    spec = RoomsSpec("train", 2, 2, 24, 32, 3)
    assert spec.folder == "rooms-train-24x32-9a4e37f08d6a"  # as before there were given cameras
    assert "intrinsics" not in spec.as_dict()
    assert RoomsSpec("train", 2, 2, 24, 32, 3, "views", (25, 25, 15, 12)).folder != spec.folder


@pytest.mark.parametrize(("mode", "workers"), [("views", 1), ("sequence", 2)])
def test_rooms_are_seen_through_the_given_camera(tmp_path, mode, workers):
    spec = RoomsSpec("val", 2, 2, 24, 32, 3, mode, [26, 27.5, 14.25, 11.5])
    store = RoomsStore(ensure_rooms(tmp_path, spec, workers=workers, progress=False))
    assert store.spec == spec
    for index in range(len(store)):
        assert store.read(index)["K"].tolist() == [[26, 0, 14.25], [0, 27.5, 11.5], [0, 0, 1]]
    assert json.loads((store.path / "manifest.json").read_text())["spec"]["intrinsics"] == [26, 27.5, 14.25, 11.5]


@pytest.mark.parametrize(
    ("intrinsics", "words"),
    [
        ((26, 27), "expected fx, fy, cx, cy"),
        (("a", 1, 1, 1), "expected fx, fy, cx, cy"),
        ((0, 26, 15, 11), "do not suit a width of 32"),
        ((float("nan"), 26, 15, 11), "do not suit"),
        ((26, 26, 99, 11), "outside the image"),
    ],
)
def test_impossible_cameras(intrinsics, words):
    with pytest.raises(ConfigError, match=words):
        RoomsSpec("val", 1, 1, 24, 32, 3, "views", intrinsics)


def test_cameras_of_the_sets():
    assert camera("folder", 48, 64) is None
    assert camera("nyud", 480, 640) == (518.8579, 519.4696, 325.5824, 253.7362)
    assert np.isclose(camera("hypersim", 768, 1024)[0], 886.81, atol=0.01)
    assert camera("cityscapes", 1024, 2048)[0] == 2262.52
    with pytest.raises(ConfigError, match=r"--height 50 --width 64: NYUDv2's files say nothing of the camera"):
        camera("nyud", 50, 64)


# -------------------------------------------------------------------------------------------------------------- names


def test_nyud_ids_are_official_and_rooms_have_runs_of_their_own():
    ids = official_frames("train", 5, 4)
    assert len(set(ids)) == 20
    assert set(ids) <= set(official_ids("train"))
    runs = [{run_of(number) for number in ids[k : k + 4]} for k in range(0, 20, 4)]
    assert all(len(run) == 1 for run in runs)
    assert len(set.union(*runs)) == 5
    assert sorted(official_frames("test", 109, 6)) == list(official_ids("test"))  # 654: all of them
    with pytest.raises(ConfigError, match="NYUDv2 has 654 test ids, not 656"):
        official_frames("test", 82, 8)


def test_ids_of_the_mat_file_are_positions():
    frames = frames_of("nyud", ("train", "test"), 3, 2, "mat")
    assert [name for name, *_ in frames] == [f"{number:04d}" for number in range(1, len(frames) + 1)]
    for name, scene, split, index in frames:
        assert int(name) in official_ids(split)
        assert 0 <= index < 6
        assert (scene <= "room_0003") == (split == "train")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_are_unique_and_scenes_keep_to_one_split(layout):
    frames = frames_of(layout, SPLITS[layout], 40, 5)
    assert len({name for name, *_ in frames}) == len(frames) == 200 * len(SPLITS[layout])
    scenes = {scene: split for _, scene, split, _ in frames}
    assert all(scenes[scene] == split for _, scene, split, _ in frames)


# ------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("layout", "options", "counts"),
    [
        ("nyud", (), {"train": 2, "test": 2}),
        ("nyud", ("--packaging", "mat"), {"train": 2, "test": 2}),
        ("hypersim", (), {"train": 2, "val": 2, "test": 2}),
        ("cityscapes", ("--metres-scale", "10"), {"train": 2, "test": 2}),
        ("folder", (), {"train": 2, "val": 2, "test": 2}),
    ],
)
def test_a_reader_finds_rooms_with_depth_that_fits_the_camera(tmp_path, capsys, layout, options, counts):
    out = tmp_path / "set"
    assert synthesize(out, layout, *options) == 0
    assert capsys.readouterr().out.startswith(f"{layout}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]  # the rendered rooms are cleared up
    own = {"crop": "none"} if "mat" in options else {}
    source = source_class(layout)(out, normals="derived" if layout == "cityscapes" else None, **own)
    items = [item for split in source.splits for item in source.items(split)]
    assert {split: len(source.items(split)) for split in source.splits} == counts
    for item in items:
        raw = source.read(item)
        assert np.isfinite(raw["K"]).all()
        if layout != "folder":
            fx, fy, cx, cy = camera(layout, 48, 64)
            assert np.allclose(raw["K"] / raw["K"][2, 2], [[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        raw = decode(raw)
        assert 0.2 < np.median(raw["depth"][raw["depth"] > 0]) < 80
        assert len(np.unique(raw["semseg"])) > 2
        if "derived" in source.provenance["normals"]:
            continue  # from the same depth and K: nothing to compare
        # The smallest windows cross the fewest creases. With focal lengths 15 % off the median is above 2°.
        fitted = plane_normals(raw["depth"], raw["K"], radii=(1,))
        both = (np.abs(fitted).sum(-1) > 0) & (np.abs(raw["normals"]).sum(-1) > 0)
        assert both.mean() > 0.2
        cosine = np.clip((fitted * raw["normals"]).sum(-1)[both], -1, 1)
        assert np.degrees(np.median(np.arccos(cosine))) < 1.0


def test_what_was_rendered_can_be_kept_for_another_layout(tmp_path):
    for number in range(2):
        synthesize(tmp_path / f"t{number}", "nyud", "--cache", str(tmp_path / "cache"), "--packaging", "AD"[number])
        caches = sorted((tmp_path / "cache").iterdir())
        assert len(caches) == 2
    assert (tmp_path / "t1/train/image/0.npy").is_file()
    assert (tmp_path / "t0/images/0003.png").is_file()


def test_the_same_command_writes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        synthesize(tmp_path / name, "hypersim", "--split", "train")
    pairs = [sorted(p for p in (tmp_path / name).rglob("*") if p.is_file()) for name in ("a", "b")]
    assert len(pairs[0]) == len(pairs[1]) > 10
    assert all(x.read_bytes() == y.read_bytes() for x, y in zip(*pairs, strict=True))


@pytest.mark.parametrize(
    ("layout", "options", "words"),
    [
        ("hypersim", "--packaging B", "--packaging is of the layout nyud, not of hypersim"),
        ("nyud", "--metres-scale 3", "--metres-scale is of the layout cityscapes, not of nyud"),
        ("cityscapes", "--metres-scale 0", "metres_scale is 0.0; it must be above 0"),
        ("nyud", "--split val", "--split is 'val'; the layout nyud has train, test"),
        ("nyud", "--packaging mat --split train", "leave --split out"),
        ("nyud", "--height 50", "NYUDv2's files say nothing of the camera"),
        ("nyud", "--rooms 400", "NYUDv2 has 795 train ids, not 800"),
        ("nyud", "--sheet s.png", "--sheet shows a cache"),
        ("kitti", "", "invalid choice: 'kitti'"),
        ("folder", "--rooms 0", "rooms is 0"),
    ],
)
def test_wrong_options_are_one_line_and_nothing_is_written(tmp_path, layout, options, words):
    with pytest.raises(M2HError) as error:
        synthesize(tmp_path / "out", layout, *options.split())
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_before_anything_is_rendered(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="out: exists and is not an empty folder"):
        synthesize(tmp_path / "out", "nyud")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_layout_options_need_a_layout(tmp_path):
    for option in (["--packaging", "A"], ["--metres-scale", "2"], ["--cache", "x"]):
        with pytest.raises(ConfigError, match=f"{option[0]} is for --layout"):
            main_synthesize(["rooms", "--out", str(tmp_path), *option])


def test_layouts_are_written_without_torch(tmp_path):
    code = (
        "import sys; from m2h_lightning.data.synthesis.command import main_synthesize; main_synthesize(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    )
    options = ["rooms", "--layout", "hypersim", "--split", "val", "--out", str(tmp_path / "t"), *TINY]
    assert subprocess.run([sys.executable, "-c", code, *options], check=False).returncode == 0
