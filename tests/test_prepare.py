"""`m2h data prepare`: resumable to the same bytes, honest about what it cannot read, and careful with what is there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import toy_source
from m2h_lightning.data.store import PreparedStore
from m2h_lightning.data.store import build as building
from m2h_lightning.data.store.writer import WriteShard
from m2h_lightning.errors import ConfigError, DataError, M2HError
from prepare_helpers import contents, damage, prepare
from toy_source import write_toy

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy") / "raw")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    toy_source.register(monkeypatch.setattr)


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    """What an uninterrupted run writes."""
    patch = pytest.MonkeyPatch()
    toy_source.register(patch.setattr)
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare(raw, out)
    patch.undo()
    return contents(out)


def test_it_says_what_is_there_and_how_to_use_it(raw, tmp_path, capsys):
    assert prepare(raw, tmp_path / "out") == 0
    out, err = capsys.readouterr()
    assert "train: 9 samples of 5 scenes" in out
    assert "test: 3 samples of 2 scenes" in out
    assert re.search(r"12 samples written in [\d.]+ s, [\d.]+ samples/s", out)
    assert f"--data.path {tmp_path / 'out'}" in out and "<root>/toy-prepared" in out
    assert err == "prepare toy: 12 samples to write\n"


def test_any_number_of_workers_and_any_place_give_the_same_bytes(raw, whole, tmp_path):
    moved = shutil.copytree(raw, tmp_path / "elsewhere")
    prepare(moved, tmp_path / "a" / "b" / "out", "--workers", 2)
    assert contents(tmp_path / "a" / "b" / "out") == whole
    text = whole["manifest.json"].decode()
    assert str(raw) not in text and str(tmp_path) not in text


def test_ten_kills_at_random_moments_and_the_bytes_are_the_same(tmp_path):
    raw = write_toy(tmp_path / "raw", train=80, test=4)
    code = "import sys, toy_source; sys.exit(toy_source.command())"
    words = [sys.executable, "-c", code, "toy", "--src", str(raw), "--samples-per-shard", "2"]

    def start(out, workers, slow=0.0):
        environment = {**os.environ, "PYTHONPATH": str(TESTS), "TOY_SLOW": str(slow)}
        command = [*words, "--out", str(tmp_path / out), "--workers", str(workers)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    chance = random.Random(os.getpid())
    shards = tmp_path / "killed" / "shards"
    seen = []
    for turn in range(10):
        process = start("killed", 1 + turn % 2, 0.05)
        # From before the first line of ours to the middle of a shard.
        target = len(list(shards.glob("*.npy"))) + chance.choice([0, 1, 1, 2])
        deadline = time.monotonic() + 20
        while len(list(shards.glob("*.npy"))) < target and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        seen.append(len(list(shards.glob("*.npy"))))
    assert not (tmp_path / "killed" / "manifest.json").exists(), "the runs were to be killed before the end"
    assert seen[-1] > 2, "the runs were to be killed in the middle"
    (shards / ".train-24x32-0.npy.1.tmp").write_bytes(b"half a shard")
    time.sleep(0.2)  # working processes of the last one finish what they were at
    kept = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.json")}
    process = start("killed", 2)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert int(re.search(r"(\d+) samples written", out)[1]) <= 84 - len(kept)
    for name, moment in kept.items():
        assert (shards / name).stat().st_mtime_ns == moment, "written twice"
    process = start("straight", 2)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(tmp_path):
    raw = write_toy(tmp_path / "raw", train=30, test=3)
    code = "import sys, toy_source; sys.exit(toy_source.command())"
    words = [sys.executable, "-c", code, "toy", "--src", str(raw), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*words, "--workers", "2", "--samples-per-shard", "2"],
        env={**os.environ, "PYTHONPATH": str(TESTS), "TOY_SLOW": "0.1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    shards = tmp_path / "out" / "shards"
    deadline = time.monotonic() + 30
    while not list(shards.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "stopped; give the same command again to go on" in err and "Traceback" not in err
    assert not list(shards.glob(".*")), "nothing half is left"


def test_a_complete_store_is_not_touched(raw, tmp_path, capsys):
    prepare(raw, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.name != ".lock"}
    capsys.readouterr()
    assert prepare(raw, tmp_path / "out") == 0
    out, err = capsys.readouterr()
    assert "nothing to do" in out and err == ""
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("victim", ["shard", "report", "manifest.json", "samples.csv", "sources.sha256"])
def test_whatever_is_missing_is_made_again_and_nothing_else(raw, whole, tmp_path, victim):
    out = tmp_path / "out"
    prepare(raw, out)
    shard = sorted((out / "shards").glob("*.npy"))[2]
    path = {"shard": shard, "report": shard.with_suffix(".json")}.get(victim, out / victim)
    before = {p: p.stat().st_mtime_ns for p in (out / "shards").iterdir() if p.stem != shard.stem}
    if victim == "shard":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    prepare(raw, out)
    assert contents(out) == whole
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_all_corrupt_samples_are_told_and_no_manifest_is_written(raw, tmp_path, capsys, whole):
    broken = shutil.copytree(raw, tmp_path / "raw")
    damage(broken, "b/0", "b/1", "b/7", "c/2")
    (broken / "samples" / "b" / "5.npz").unlink()
    with pytest.raises(
        DataError, match=r"5 sample.s. of toy cannot be read: mend them, or give --skip-corrupt"
    ) as caught:
        prepare(broken, tmp_path / "out", "--workers", 2)
    assert "\n" not in str(caught.value)
    err = capsys.readouterr().err
    assert [name for name in ("b/0", "b/1", "b/5", "b/7", "c/2") if f"  {name}: " in err] == [
        "b/0",
        "b/1",
        "b/5",
        "b/7",
        "c/2",
    ]
    assert not (tmp_path / "out" / "manifest.json").exists()
    kept = set((tmp_path / "out" / "shards").glob("*.npy"))
    assert kept and not list((tmp_path / "out" / "shards").glob(".*"))
    for name in ("b/0", "b/1", "b/5", "b/7", "c/2"):  # mended
        shutil.copy(raw / "samples" / f"{name}.npz", broken / "samples" / f"{name}.npz")
    moments = {path: path.stat().st_mtime_ns for path in kept}
    prepare(broken, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in moments} == moments, "finished shards were kept"
    assert contents(tmp_path / "out") == whole


def test_only_ten_of_many_are_shown(tmp_path, capsys):
    raw = write_toy(tmp_path / "raw", train=20, test=1)
    damage(raw, *(f"b/{number}" for number in range(13)))
    with pytest.raises(DataError, match="13 sample"):
        prepare(raw, tmp_path / "out")
    err = capsys.readouterr().err
    assert err.count("corrupt") == 10 and "and 3 more" in err


def test_corrupt_samples_can_be_left_out(raw, tmp_path, capsys):
    broken = shutil.copytree(raw, tmp_path / "raw")
    damage(broken, "b/0", "b/1", "b/7")  # a whole shard, and one of two
    with pytest.raises(DataError, match="3 sample"):
        prepare(broken, tmp_path / "out")
    assert prepare(broken, tmp_path / "out", "--skip-corrupt") == 0
    assert "left out: 3" in capsys.readouterr().out
    store = PreparedStore(tmp_path / "out")
    assert [item.id for item in store.items("train")] == ["b/2", "b/3", "b/4", "b/5", "b/6", "b/8"]
    source = toy_source.ToySource(broken)
    for item in store.items("train"):
        want = next(one for one in source.items("train") if one.id == item.id)
        assert np.array_equal(store.load(item)["image"], source.load(want)["image"])
    skipped = store.manifest["skipped"]
    assert [(entry["id"], entry["split"]) for entry in skipped] == [
        ("b/0", "train"),
        ("b/1", "train"),
        ("b/7", "train"),
    ]
    assert "samples/b/0.npz: corrupt" in skipped[0]["reason"] and str(tmp_path) not in str(store.manifest)
    assert prepare(broken, tmp_path / "out", "--skip-corrupt") == 0
    assert "nothing to do" in capsys.readouterr().out
    other = tmp_path / "other"
    prepare(broken, other, "--skip-corrupt", "--workers", 2)
    assert contents(other) == contents(tmp_path / "out")
    with pytest.raises(DataError, match="3 sample"):  # without the option, what was left out counts as missing
        prepare(broken, tmp_path / "out")


def test_when_nothing_can_be_read_there_is_no_store(tmp_path):
    raw = write_toy(tmp_path / "raw", train=2, test=1)
    damage(raw, "b/0", "b/1", "c/0")
    with pytest.raises(DataError, match="no sample could be read .samples/b/0.npz: corrupt"):
        prepare(raw, tmp_path / "out", "--skip-corrupt")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_file_that_was_replaced_is_read_again(raw, tmp_path):
    other = shutil.copytree(raw, tmp_path / "raw")
    prepare(other, tmp_path / "out")
    sample = dict(np.load(other / "samples" / "b" / "0.npz"))
    sample["image"] = 255 - sample["image"]
    np.savez(other / "samples" / "b" / "0.npz", **sample, more=np.zeros(9))
    prepare(other, tmp_path / "out")
    prepare(other, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_labels_that_are_made_in_another_way_are_written_again(raw, tmp_path, monkeypatch, capsys):
    prepare(raw, tmp_path / "out")
    original = toy_source.ToySource.__init__

    def other(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.provenance["depth"] = "drawn, and halved"

    monkeypatch.setattr(toy_source.ToySource, "__init__", other)
    capsys.readouterr()
    prepare(raw, tmp_path / "out")
    assert "12 samples written" in capsys.readouterr().out
    assert PreparedStore(tmp_path / "out").provenance["depth"] == "drawn, and halved"

    def wider(self, *args, **kwargs):
        other(self, *args, **kwargs)
        self.depth_range = (0.1, 12.0)

    monkeypatch.setattr(toy_source.ToySource, "__init__", wider)
    prepare(raw, tmp_path / "out")
    assert "0 samples written" not in capsys.readouterr().out
    assert PreparedStore(tmp_path / "out").depth_range == (0.1, 12.0), "facts alone are written again without shards"


def test_more_samples_later_reuse_what_is_there(tmp_path, capsys):
    raw = write_toy(tmp_path / "raw", train=9, test=3)
    prepare(raw, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "shards").glob("*.npy")}
    write_toy(raw, train=15, test=3)
    capsys.readouterr()
    prepare(raw, tmp_path / "out", "--partial")
    written = int(re.search(r"(\d+) samples written", capsys.readouterr().out)[1])
    assert written < 9, "most shards stay what they are"
    assert any(p.exists() and p.stat().st_mtime_ns == moment for p, moment in before.items())
    prepare(raw, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_fewer_samples_than_stored_are_refused(raw, tmp_path):
    prepare(raw, tmp_path / "out")
    fewer = write_toy(tmp_path / "fewer", train=6, test=3)
    before = contents(tmp_path / "out")
    with pytest.raises(DataError, match=r"holds 3 samples that --src does not have \(b/6, b/7, b/8\)"):
        prepare(fewer, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    prepare(fewer, tmp_path / "out", "--overwrite")
    assert len(PreparedStore(tmp_path / "out").items("train")) == 6


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [
        (["--normals", "none"], "toy", 'with options {}, now asked for {"normals": "none"}'),
        (["--split", "test"], "toy", "with prepared_splits"),
        (["--samples-per-shard", "3"], "toy", "with samples_per_shard 2, now asked for 3"),
        ([], "toyfar", 'with set "toy", now asked for "toyfar"'),
    ],
)
def test_other_options_in_the_same_folder_are_refused(raw, tmp_path, options, name, message):
    prepare(raw, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(raw, tmp_path / "out", *options, name=name)
    assert "--overwrite" in str(caught.value) and "\n" not in str(caught.value)
    assert contents(tmp_path / "out") == before
    prepare(raw, tmp_path / "out", *options, "--overwrite", name=name)
    prepare(raw, tmp_path / "fresh", *options, name=name)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_overwriting_removes_nothing_when_the_new_source_is_none(raw, tmp_path):
    prepare(raw, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.zip").write_bytes(b"PK no more")
    for source, words in (("empty", ()), ("broken.zip", ()), (raw, ("--split", "bogus"))):
        with pytest.raises(M2HError):
            prepare(tmp_path / source, tmp_path / "out", "--overwrite", *words)
        assert contents(tmp_path / "out") == before


def test_a_failed_attempt_does_not_claim_the_folder(raw, tmp_path):
    with pytest.raises(M2HError):
        prepare(raw, tmp_path / "out", "--split", "bogus")
    prepare(raw, tmp_path / "out", name="toyfar")


def test_a_folder_with_something_else_is_not_touched(raw, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("ten years of work")
    for options in ((), ("--overwrite",)):
        with pytest.raises(DataError, match=r"is not empty \(thesis.tex\) and no prepared store"):
            prepare(raw, tmp_path / "out", *options)
    with pytest.raises(DataError, match="is not empty"):
        prepare(raw, raw)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "ten years of work"


def test_only_the_splits_asked_for(raw, tmp_path):
    prepare(raw, tmp_path / "out", "--split", "test")
    store = PreparedStore(tmp_path / "out")
    assert store.splits == ("test",) and len(store.items("test")) == 3
    with pytest.raises(ConfigError, match=r"--split tst: .* has train, test; did you mean 'test'"):
        prepare(raw, tmp_path / "other", "--split", "train,tst")


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(raw, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("usage", "total used free")(0, 0, 10_000))
    with pytest.raises(DataError, match=r"shards need [\d,]+ bytes, 10,000 are free: free space"):
        prepare(raw, tmp_path / "out")
    assert not list((tmp_path / "out" / "shards").iterdir())


def test_a_disk_that_gets_full_is_one_line_and_the_run_can_go_on(raw, tmp_path, monkeypatch, whole):
    real, calls = WriteShard._fill, []

    def full(self, shard, path, report):
        calls.append(shard)
        real(self, shard, path, report)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(WriteShard, "_fill", full)
    with pytest.raises(DataError, match="cannot be written .No space left on device") as caught:
        prepare(raw, tmp_path / "out")
    assert "\n" not in str(caught.value)
    shards = tmp_path / "out" / "shards"
    assert len(list(shards.glob("*.npy"))) == 2 and not list(shards.glob(".*"))
    monkeypatch.setattr(WriteShard, "_fill", real)
    prepare(raw, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_a_second_run_into_the_same_folder_is_refused(raw, tmp_path):
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is writing here"):
            prepare(raw, tmp_path / "out")
    assert prepare(raw, tmp_path / "out") == 0


def test_a_fault_of_a_reader_names_the_sample(raw, tmp_path, monkeypatch):
    def faulty(self, item):
        raise IndexError("our mistake")

    monkeypatch.setattr(toy_source.ToySource, "load", faulty)
    with pytest.raises(DataError, match="12 sample"):
        prepare(raw, tmp_path / "out")


def test_a_working_process_that_dies_is_one_line(raw, tmp_path, monkeypatch):
    bad = tmp_path / "modules"
    bad.mkdir()
    (bad / "deadly.py").write_text(
        "import os, toy_source\n"
        "class Deadly(toy_source.ToySource):\n"
        "    def load(self, item):\n"
        "        os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.syspath_prepend(str(bad))
    import deadly

    with pytest.raises(DataError, match=r"shard \S+: its working process died .killed.*fewer --workers") as caught:
        building.build(
            _claimed(tmp_path / "out", deadly.Deadly), raw, building.Wish(deadly.Deadly, {}, workers=2, samples=2)
        )
    assert "\n" not in str(caught.value)


def _claimed(out, source):
    out.mkdir()
    building.claim(out, building.Wish(source, {}, samples=2), False)
    return out


def test_digests_of_the_sources_are_those_of_sha256sum(raw, whole):
    lines = whole["sources.sha256"].decode().splitlines()
    assert len(lines) == 12
    for line in lines:
        digest, name = line.split("  ", 1)
        assert hashlib.sha256((raw / name).read_bytes()).hexdigest() == digest


def test_a_file_that_many_samples_share_is_digested_once(tmp_path, raw, monkeypatch):
    class Shared(toy_source.ToySource):
        def items(self, split):
            items = super().items(split)
            for item in items:
                item.files["lists"] = self.path / "lists.json"
            return items

    Wish = building.Wish
    out = _claimed(tmp_path / "out", Shared)
    first = building.build(out, raw, Wish(Shared, {}, samples=2, workers=1))
    lines = (out / "sources.sha256").read_text().splitlines()
    assert len(lines) == 13 and sum("lists.json" in line for line in lines) == 1
    assert first.manifest["sources"]["files"] == 13
    (out / "manifest.json").unlink()
    assert building.build(out, raw, Wish(Shared, {}, samples=2, workers=1)).manifest == first.manifest
