"""`m2h data verify` on whole sets: healthy ones, and ones broken in known ways."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from m2h_lightning.data.sources.axes import apply_axes
from m2h_lightning.data.verify.command import main_verify, verify
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.geometry import pixel_rays
from verify_sets import SIZE, K, ToySource, make_set, open_toy

LENGTH = np.linalg.norm(pixel_rays(K, *SIZE), axis=0)


def run(root: Path, *words: object) -> int:
    return main_verify(["nyud", str(root), "--workers", "1", *map(str, words)], open_toy)


def failure(root: Path, *words: object) -> str:
    with pytest.raises(DataError) as caught:
        run(root, *words)
    return str(caught.value)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    return make_set(tmp_path_factory.mktemp("verify") / "healthy")


def test_a_healthy_set_passes_and_nothing_is_written(healthy, capsys):
    before = sorted(healthy.rglob("*"))
    assert run(healthy) == 0
    out = capsys.readouterr().out
    assert "healthy: no problem found" in out
    assert "toy: toy set [v1]" in out  # brackets are no markup
    assert "train 10 of 10, val 8 of 8; looked at 18, readable 18" in out
    assert "72×96 (18)" in out and "best axes x,y,z" in out
    assert "warnings" not in out and "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 100
    assert sorted(healthy.rglob("*")) == before


def test_the_report_holds_all_numbers_and_does_not_depend_on_the_processes(healthy, tmp_path):
    assert run(healthy, "--json", tmp_path / "one" / "a.json") == 0
    assert run(healthy, "--json", tmp_path / "b.json", "--workers", 3) == 0
    text = (tmp_path / "one" / "a.json").read_text()
    assert text == (tmp_path / "b.json").read_text()
    report = json.loads(text)
    assert report["healthy"] and report["findings"] == []
    assert report["counts"] == {"train": 10, "val": 8} == report["official_counts"]
    assert report["maps"]["depth"]["stored as"] == {"float32": 18}
    assert report["normals"]["search"]["state"] == "agree" and report["normals"]["facing_away"] == 0
    assert sum(report["class_shares"].values()) == pytest.approx(1, abs=1e-4)
    assert report["edges"]["agreement"] == 1
    assert report["depth"]["p5"] < report["depth"]["p50"] < report["depth"]["max"]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"normals": lambda n: apply_axes(n, "x,-y,-z")}, "with data.normal_axes='x,-y,-z' they agree (mean 0."),
        ({"normals": lambda n: apply_axes(n, "y,z,x")}, "with data.normal_axes='z,x,y' they agree"),
        ({"normals": lambda n: -n}, "with data.normal_axes='-x,-y,-z' they agree"),
        ({"depth": lambda z: z * 1000}, "looks like millimetres"),
        ({"depth": lambda z: np.rint(z * 1000).astype(np.uint16)}, "looks like millimetres"),
        ({"depth": lambda z: z * LENGTH}, "depth looks like the Euclidean distance"),
        ({"depth": lambda z: 3 / z}, "depth looks like inverse depth or disparity"),
        ({"depth": lambda z: np.where(z > 2.5, np.nan, z)}, "NaN or infinite"),
        ({"depth": lambda z: z * 0}, "depth is unknown in every pixel"),
        ({"edges": lambda e: 1 - e}, "they look inverted"),
        ({"edges": lambda e: e * 255}, "not one edge pixel"),
        ({"semseg": lambda s: s + 1}, "semseg holds label 7; expected 0..6 or 255"),
        ({"semseg": lambda s: s[:, :-1]}, "semseg has shape (72, 95), expected (72, 96)"),
        ({"image": lambda i: i.astype(np.float32)}, "the contract is uint8"),
        ({"K": [[1, 0, 0], [0, 0, 0], [0, 0, 1]]}, "K cannot be inverted"),
        ({"official": {"train": 12, "val": 6}}, "split 'train' has 6 samples, officially 12"),
    ],
)
def test_a_set_broken_in_a_known_way_fails_with_the_reason(tmp_path, capsys, changes, said):
    root = make_set(tmp_path / "set", (6, 6), **changes)
    message = failure(root)
    out = capsys.readouterr().out
    assert said in out
    assert f"in {root}: first " in message and message.endswith("see the list above (--json FILE keeps it)")
    assert "\n" not in message and "healthy" not in out


def test_turned_normals_in_part_are_told(tmp_path, capsys):
    blocks = (np.add.outer(np.arange(SIZE[0]) // 6, np.arange(SIZE[1]) // 6) % 3 == 0)[..., None]
    assert "facing" in failure(make_set(tmp_path / "set", (6, 6), normals=lambda n: np.where(blocks, -n, n))) or (
        "face away" in capsys.readouterr().out
    )


def test_axes_are_found_below_a_reader_that_turns_normals(tmp_path, capsys):
    root = make_set(tmp_path / "set", (6, 6), normals=lambda n: apply_axes(n, "z,x,y"), turned=True, axes="x,-y,-z")
    failure(root)
    assert "with data.normal_axes='y,z,x' they agree" in capsys.readouterr().out
    assert run(root, "--normal-axes", "y,z,x") == 0


def test_the_mend_for_axes_mends_it(tmp_path):
    root = make_set(tmp_path / "set", (6, 6), normals=lambda n: apply_axes(n, "-y,x,-z"))
    found = failure(root).split("data.normal_axes='")[1].split("'")[0]
    assert run(root, "--normal-axes", found) == 0


def test_every_corrupt_file_is_listed_with_its_mend(tmp_path, capsys):
    root = make_set(tmp_path / "set", (6, 6))
    broken = [root / "train" / "depth" / "train_0001.npy", root / "val" / "image" / "val_0003.npy"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:100])
    gone = root / "val" / "normals" / "val_0005.npy"
    gone.unlink()
    message = failure(root, "--json", tmp_path / "report.json", "--workers", 2)
    assert message.startswith("3 problems in") and "report.json" in message
    out = capsys.readouterr().out
    assert "readable 9" in out and all(f"  - {path}: " in out for path in [*broken, gone])
    findings = json.loads((tmp_path / "report.json").read_text())["findings"]
    problems = [finding for finding in findings if finding["severity"] == "problem"]
    assert [finding["file"] for finding in problems] == [str(path) for path in [*broken, gone]]
    assert all("get this file again" in finding["mend"] for finding in problems)


def test_a_set_of_which_nothing_can_be_read_still_gets_its_report(tmp_path, capsys):
    root = make_set(tmp_path / "set", (2, 2))
    for path in root.glob("*/image/*.npy"):
        path.write_bytes(b"nothing")
    message = failure(root, "--sheet", tmp_path / "sheet.png")
    assert message.startswith("5 problems")
    assert "none was written" in capsys.readouterr().out and not (tmp_path / "sheet.png").exists()


def test_leaks_repeats_and_orphans_are_told(tmp_path, capsys):
    root = make_set(tmp_path / "set", (6, 6), scenes={"train_0001": "kitchen", "val_0002": "kitchen"})
    np.save(root / "val" / "image" / "val_0000.npy", np.load(root / "train" / "image" / "train_0002.npy"))
    np.save(root / "train" / "image" / "train_0004.npy", np.load(root / "train" / "image" / "train_0005.npy"))
    np.save(root / "val" / "depth" / "val_0099.npy", np.zeros(SIZE))
    message = failure(root)
    out = capsys.readouterr().out
    assert message.startswith("1 problem in") and "train_0002 (train) = val_0000 (val)" in message
    assert "1 scene(s) in more than one split: kitchen (train, val)" in out
    assert "1 picture(s) twice in one split: train_0004 (train) = train_0005 (train)" in out
    assert "1 file(s) among those of depth that no sample uses: val_0099.npy" in out


def test_warnings_alone_do_not_fail(tmp_path, capsys):
    root = make_set(tmp_path / "set", (6, 6))
    np.save(root / "val" / "depth" / "val_0099.npy", np.zeros(SIZE))
    assert run(root) == 0
    out = capsys.readouterr().out
    assert "warnings (1)" in out and "healthy" in out


def test_an_empty_split_and_repeated_ids_fail(tmp_path, capsys):
    root = make_set(tmp_path / "set", (6, 0))
    (root / "train" / "list.txt").write_text("train_0001 train_0001 train_0002 train_0003 train_0004 train_0005")
    failure(root)
    out = capsys.readouterr().out
    assert "split 'val' is empty" in out and "1 id(s) occur more than once: train_0001" in out


def test_an_unknown_camera_is_said_and_is_no_fault(tmp_path, capsys):
    nothing = [[float("nan")] * 3] * 3
    assert run(make_set(tmp_path / "set", (4, 4), K=nothing)) == 0
    out = capsys.readouterr().out
    assert "K is not known in 8 sample(s)" in out and "best axes" not in out and "facing:" not in out


def test_derived_normals_are_not_checked_and_depth_is_by_flatness(tmp_path, capsys):
    assert run(make_set(tmp_path / "right", (6, 6), derived=True)) == 0
    assert "normals are derived, not checked" in capsys.readouterr().out
    assert run(make_set(tmp_path / "wrong", (6, 6), derived=True, depth=lambda z: z * LENGTH)) == 0
    assert "depth looks like the Euclidean distance" in capsys.readouterr().out


def test_one_split_and_some_samples(healthy, capsys):
    assert run(healthy, "--split", "val", "--samples", 3) == 0
    out = capsys.readouterr().out
    assert "samples: val 8 of 8; looked at 3, readable 3" in out
    assert "train" not in out


def test_the_sheet_shows_samples_of_all_splits(healthy, tmp_path, capsys):
    import cv2

    assert run(healthy, "--sheet", tmp_path / "new" / "sheet.png") == 0
    assert "contact sheet: " in capsys.readouterr().out
    picture = cv2.imread(str(tmp_path / "new" / "sheet.png"))
    assert picture.shape[1] > 1000 and picture.shape[0] > 10 * 200


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--split", "vall"], "did you mean 'val'"),
        (["--samples", "0"], "--samples is 0"),
        (["--workers", "-1"], "--workers is -1"),
        (["--sampels", "3"], "did you mean '--samples'"),
        (["--normal-axes", "x,y"], "data.normal_axes is 'x,y'"),
    ],
)
def test_wrong_arguments_are_one_line(healthy, words, said):
    with pytest.raises(ConfigError, match=said) as caught:
        run(healthy, *words)
    assert "\n" not in str(caught.value)


def test_unwritable_places_are_one_line(healthy, tmp_path):
    (tmp_path / "file").write_text("")
    for option, name in (("--json", "x.json"), ("--sheet", "x.png")):
        assert "cannot be written" in failure(healthy, option, tmp_path / "file" / name)


def test_a_report_is_written_over_nothing_but_a_report(healthy, tmp_path):
    inside = next(path for path in healthy.rglob("*") if path.is_file())
    before = inside.read_bytes()
    for option, target in (("--json", inside), ("--sheet", inside), ("--json", "/dev/null"), ("--sheet", "sheet.jpg")):
        with pytest.raises(ConfigError, match=option):
            run(healthy, option, str(target))
    png = healthy / "mine.png"
    png.write_bytes(b"a picture of the set")
    with pytest.raises(ConfigError, match="a file of the data set"):
        run(healthy, "--sheet", str(png))
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="no plain file"):
        run(healthy, "--json", str(link))
    assert inside.read_bytes() == before and png.read_bytes() == b"a picture of the set"
    png.unlink()


def test_what_is_no_set_at_all_is_the_readers_line(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        main_verify(["nyud", str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        main_verify(["nyud", str(tmp_path / "empty")])
    assert str(tmp_path / "empty") in str(caught.value)


class Faulty(ToySource):
    """A reader with a fault of its own."""

    def load(self, item):
        raise KeyError("our fault")


def test_a_fault_of_the_reader_is_not_hidden(healthy):
    with pytest.raises(KeyError, match="our fault"):
        verify(Faulty(healthy))


def test_the_command_starts_without_torch():
    code = "import sys, m2h_lightning.data.verify.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


INTERRUPTED = """
import sys, time
from verify_sets import ToySource, open_toy
import verify_sets
from m2h_lightning.cli import one_line
from m2h_lightning.data.verify.command import main_verify

if __name__ == "__main__":
    print("ready", flush=True)
    try:
        main_verify(["nyud", sys.argv[1], "--workers", "2", "--json", sys.argv[2]], open_toy)
    except KeyboardInterrupt:
        print("m2h: interrupted", file=sys.stderr)
        sys.exit(130)
"""


def test_an_interrupt_ends_the_processes_and_leaves_nothing(tmp_path):
    root = make_set(tmp_path / "set", (200, 0), planes=3)
    script = tmp_path / "run.py"
    script.write_text(INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(script), str(root), str(tmp_path / "report.json")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert "Traceback" not in error and error.strip() == "m2h: interrupted"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.py", "set"]
