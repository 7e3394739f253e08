"""The cache of Rooms: atomic, resumable, checked, and refusing nonsense in one line."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from m2h_lightning.data.synthesis import store as rooms_store
from m2h_lightning.data.synthesis.command import main_synthesize
from m2h_lightning.data.synthesis.store import RoomsSpec, RoomsStore, ensure_rooms
from m2h_lightning.errors import ConfigError, DataError

SPEC = RoomsSpec(split="train", rooms=3, views_per_room=2, height=24, width=32, seed=3)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("room-*.npy"))}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return ensure_rooms(tmp_path_factory.mktemp("rooms"), SPEC, workers=1, progress=False)


@pytest.fixture
def copy(cache, tmp_path) -> Path:
    """A copy of the cache that a test may damage."""
    folder = tmp_path / cache.name
    folder.mkdir()
    for path in cache.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_samples_follow_the_contract(cache):
    store = RoomsStore(cache)
    assert len(store) == 6
    raw = store.read(3, extras=True)
    types = {key: (value.dtype, value.shape) for key, value in raw.items() if key != "id"}
    assert types == {
        "image": (np.uint8, (24, 32, 3)),
        "semseg": (np.uint8, (24, 32)),
        "depth": (np.float32, (24, 32)),
        "normals": (np.float32, (24, 32, 3)),
        "edges": (np.uint8, (24, 32)),
        "instance": (np.uint16, (24, 32)),
        "K": (np.float64, (3, 3)),
        "pose": (np.float64, (4, 4)),
    }
    assert raw["id"] == "rooms/train/00001/001"
    assert "pose" not in store.read(3)
    assert len({store.read(index)["id"] for index in range(6)}) == 6
    with pytest.raises(IndexError):
        store.read(6)


def test_two_workers_write_the_same_bytes_and_a_manifest(cache, tmp_path):
    again = ensure_rooms(tmp_path, SPEC, workers=2, progress=False)
    assert _bytes(again) == _bytes(cache)
    manifest = json.loads((again / "manifest.json").read_text())
    assert manifest["samples"] == 6
    assert manifest == json.loads((cache / "manifest.json").read_text())
    assert set(manifest["shards"]) == set(_bytes(cache))


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path):
    spec = RoomsSpec(split="val", rooms=12, views_per_room=2, height=48, width=64, seed=1)
    folder = tmp_path / "killed" / spec.folder
    code = "import sys; from m2h_lightning.data.synthesis.command import main_synthesize; main_synthesize(sys.argv[1:])"
    options = [
        "--rooms",
        "12",
        "--views",
        "2",
        "--height",
        "48",
        "--width",
        "64",
        "--seed",
        "1",
        "--split",
        "val",
        "--workers",
        "2",
    ]
    command = [sys.executable, "-c", code, "rooms", "--out", str(tmp_path / "killed"), *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(folder.glob("room-*.npy")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in folder.glob("room-*.npy")}
    assert 0 < len(done) < 12, "the run was to be killed in the middle"
    assert not (folder / "manifest.json").exists()
    with pytest.raises(DataError, match="missing or incomplete"):
        RoomsStore(folder)
    (folder / ".room-00011.npy.1.tmp").write_bytes(b"half a shard")
    resumed = ensure_rooms(tmp_path / "killed", spec, workers=1, progress=False)
    whole = ensure_rooms(tmp_path / "whole", spec, workers=1, progress=False)
    assert _bytes(resumed) == _bytes(whole)
    assert (resumed / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    assert all((folder / name).stat().st_mtime_ns == mtime for name, mtime in done.items()), "rendered twice"
    assert not list(folder.glob(".*.tmp"))


def test_a_shard_of_wrong_size_is_named_and_rendered_again(copy, cache):
    victim = copy / "room-00001.npy"
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"room-00001\.npy: truncated or corrupt .* delete this file"):
        RoomsStore(copy).read(2)
    RoomsStore(copy).read(0)  # the others are still good
    ensure_rooms(copy.parent, SPEC, workers=1, progress=False)
    assert _bytes(copy) == _bytes(cache)


@pytest.mark.parametrize(("offset", "message"), [(-5000, "checksum differs"), (3, "corrupt header|holds something")])
def test_a_flipped_byte_is_named(copy, offset, message):
    victim = copy / "room-00002.npy"
    content = bytearray(victim.read_bytes())
    content[offset] ^= 0xFF
    victim.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        RoomsStore(copy).read(5)
    assert str(victim) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_and_a_broken_manifest_are_named(copy):
    store = RoomsStore(copy)
    (copy / "room-00000.npy").unlink()
    with pytest.raises(DataError, match=r"room-00000\.npy: shard is missing"):
        store.read(0)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not readable"):
        RoomsStore(copy)


def test_a_cache_of_another_generator_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["generator_version"] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="generator version"):
        RoomsStore(copy)


def test_every_field_and_the_generator_version_name_the_folder(monkeypatch):
    changes = {
        "split": "val",
        "rooms": 4,
        "views_per_room": 3,
        "height": 25,
        "width": 33,
        "seed": 4,
        "mode": "sequence",
    }
    names = {SPEC.folder}
    names |= {RoomsSpec(**{**SPEC.__dict__, key: value}).folder for key, value in changes.items()}
    monkeypatch.setattr(rooms_store.generate, "GENERATOR_VERSION", 10**6)
    names.add(SPEC.folder)
    assert len(names) == len(changes) + 2


def test_a_complete_cache_is_not_touched(cache):
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert ensure_rooms(cache.parent, SPEC, progress=False) == cache
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == before


def test_a_full_disk_is_refused_before_rendering(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"3 rooms need [\d,]+ bytes, 1,000 are free"):
        ensure_rooms(tmp_path, SPEC, progress=False)
    assert not list(tmp_path.rglob("room-*.npy"))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be created"):
        ensure_rooms(tmp_path / "file", SPEC)


def test_two_processes_asking_at_once_share_the_work(tmp_path, cache):
    code = (
        "import sys; from m2h_lightning.data.synthesis.store import *; "
        "ensure_rooms(sys.argv[1], RoomsSpec('train', 3, 2, 24, 32, 3), workers=1, progress=False)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert _bytes(tmp_path / cache.name) == _bytes(cache)


def test_a_failing_worker_is_reported_in_one_line(tmp_path):
    from m2h_lightning.data.synthesis import fill

    folder = tmp_path / SPEC.folder  # was never made: writing fails in the worker
    with pytest.raises(DataError, match=r"rendering room . failed: .*cannot be written") as caught:
        fill.fill(folder, SPEC, [0, 1, 2], workers=2, progress=False)
    assert "\n" not in str(caught.value)


def test_the_store_can_be_pickled(cache):
    store = RoomsStore(cache)
    store.read(0)
    copied = pickle.loads(pickle.dumps(store))
    assert np.array_equal(copied.read(4)["depth"], store.read(4)["depth"])
    assert len(pickle.dumps(store)) < 4096


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--rooms 0", "rooms is 0, expected a whole number from 1"),
        ("--views 0", "views_per_room is 0"),
        ("--height 8", "height is 8"),
        ("--width 100000", "width is 100000"),
        ("--seed -1", "seed is -1"),
        ("--split trian", "did you mean 'train'"),
        ("--mode sequences", "did you mean 'sequence'"),
        ("--workers 0", "workers is 0"),
        ("--rooms many", "invalid int value"),
        ("--room 3", "unrecognized arguments.*did you mean '--rooms'"),
        ("--sheet", "expected one argument"),
    ],
)
def test_nonsense_is_refused_in_one_line(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        main_synthesize(["rooms", "--out", str(tmp_path / "out"), *options.split()])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("room-*.npy"))


def test_the_command_writes_all_splits_and_a_sheet(tmp_path, capsys):
    options = ["--rooms", "1", "--views", "2", "--height", "24", "--width", "32", "--split", "all", "--workers", "1"]
    sheet = tmp_path / "pictures" / "sheet.png"
    assert main_synthesize(["rooms", "--out", str(tmp_path), *options, "--sheet", str(sheet)]) == 0
    assert sheet.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in out.splitlines()] == ["train", "val", "test", "contact sheet"]
    assert len(list(tmp_path.glob("rooms-*"))) == 3


def test_rendering_loads_no_torch(tmp_path):
    code = (
        "import sys; from m2h_lightning.data.synthesis.command import main_synthesize; "
        "main_synthesize(sys.argv[1:]); sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    )
    options = ["--rooms", "1", "--views", "1", "--height", "16", "--width", "16", "--workers", "1"]
    run = subprocess.run([sys.executable, "-c", code, "rooms", "--out", str(tmp_path), *options], check=False)
    assert run.returncode == 0


def test_dataset_is_picklable_and_states_its_facts(tmp_path):
    from m2h_lightning.data.rooms import RoomsDataset

    dataset = RoomsDataset(tmp_path, "val", rooms=1, views_per_room=2, height=24, width=32, seed=3, render_workers=1)
    assert len(dataset) == 2
    copied = pickle.loads(pickle.dumps(dataset))
    sample = copied[1]
    assert np.array_equal(sample["image"], dataset[1]["image"])
    assert set(sample) == {"image", "semseg", "depth", "normals", "edges", "K", "id"}
    assert len(RoomsDataset.classes) == 40
    low, high = RoomsDataset.depth_range
    assert low < sample["depth"].min()
    assert sample["depth"].max() < high
    assert RoomsDataset.name == "rooms"
    assert os.path.isdir(dataset.store.path)
