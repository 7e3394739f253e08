"""The prepared store: what is read is what was stored; damage is told in one line; fast and picklable."""

from __future__ import annotations

import json
import pickle
import shutil
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2h_lightning.data.prepare import run
from m2h_lightning.data.raw import check_raw, decode, encode_normals
from m2h_lightning.data.sources.edges import apply_edge_rule
from m2h_lightning.data.store import PreparedStore, damaged_shards, is_store
from m2h_lightning.data.store.build import Wish
from m2h_lightning.data.store.record import STEP, Layout, decode_edges, depth_stored
from m2h_lightning.data.store.shards import npy_bytes, npy_header
from m2h_lightning.errors import ConfigError, DataError
from toy_source import ToyFar, ToyPosed, ToySource, ToyStereo, draw, toy_pose, write_toy


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy") / "raw")


@pytest.fixture(scope="module")
def stored(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("stores") / "toy"
    run(out, raw, Wish(ToySource, {}, samples=4, workers=1), [])
    return out


@pytest.fixture
def copy(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "copy")


def test_every_sample_comes_back_in_order(raw, stored):
    source, store = ToySource(raw), PreparedStore(stored)
    assert store.splits == ("train", "test")
    for split in store.splits:
        ours, theirs = store.items(split), source.items(split)
        assert [(i.id, i.split, i.scene) for i in ours] == [(i.id, i.split, i.scene) for i in theirs]
        for item, original in zip(ours, theirs, strict=True):
            want, found = source.load(original), store.load(item)
            assert store.size(item) == source.size(original) == found["image"].shape[:2]
            assert np.array_equal(found["image"], want["image"])
            assert np.array_equal(found["semseg"], want["semseg"])
            assert np.array_equal(found["K"], want["K"])
            check_raw(found, len(store.classes))
            assert set(found) - {"depth_code"} == set(want) - {"instance"}
            plain = decode(found)
            if "depth" in want:
                assert np.array_equal(plain["depth"] == 0, want["depth"] == 0)
                assert np.abs(plain["depth"] - want["depth"]).max() <= STEP / 2 + 1e-6
            if "normals" in want:
                known = np.linalg.norm(want["normals"], axis=-1) > 0
                assert np.array_equal(np.linalg.norm(plain["normals"], axis=-1) > 0, known)
                cosine = (plain["normals"] * want["normals"]).sum(-1)[known]
                assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 0.4


@pytest.mark.parametrize("rule", ["provided", "semantic", "instance"])
def test_edges_of_every_rule_are_those_of_the_source(raw, stored, rule):
    source, store = ToySource(raw, edges=rule), PreparedStore(stored, edges=rule)
    lacking = 0
    for item, original in zip(store.items("train"), source.items("train"), strict=True):
        want, found = source.read(original), store.read(item)
        assert ("edges" in want) == ("edges" in found)
        lacking += "edges" not in want
        assert "edges" not in want or np.array_equal(found["edges"], want["edges"])
    assert lacking == (rule == "instance")  # "b/4" has no object numbers
    assert store.provenance["edges"] == source.provenance["edges"]


def test_partial_labels_stay_absent(stored):
    store = PreparedStore(stored)
    samples = {item.id: store.load(item) for item in store.items("train")}
    assert "depth" not in samples["b/3"] and "depth_code" not in samples["b/3"]
    assert "normals" not in samples["b/4"]
    assert "depth" in samples["b/4"]
    counts = store.manifest["splits"]["train"]["with"]
    assert counts["depth"] == counts["normals"] == counts["edges (instance)"] == 8


def test_facts_come_from_the_manifest(raw, stored):
    source, store = ToySource(raw), PreparedStore(stored)
    for fact in ("name", "classes", "tasks", "depth_range", "edge_rules", "official", "provenance", "splits", "edges"):
        assert getattr(store, fact) == getattr(source, fact), fact
    assert source.packaging in store.packaging
    assert is_store(stored) and not is_store(raw) and not is_store(stored / "shards")
    prints = {PreparedStore(stored, edges=rule).fingerprint for rule in ("provided", "semantic")}
    assert len(prints) == 2 and all(text.startswith("toy-") for text in prints)


def test_arrays_are_read_only_views_of_the_map(stored):
    store = PreparedStore(stored)
    item = store.items("train")[0]
    first, second = store.load(item), store.load(item)
    for key in ("image", "semseg", "depth", "normals"):
        assert np.shares_memory(first[key], second[key])
        assert first[key].flags.c_contiguous and not first[key].flags.writeable
        assert first[key].ctypes.data % first[key].itemsize == 0
    assert {key: first[key].dtype for key in ("depth", "normals", "edges")} == {
        "depth": np.uint16,
        "normals": np.uint8,
        "edges": np.uint8,
    }


def test_numpy_alone_opens_a_shard(stored):
    entry = json.loads((stored / "manifest.json").read_text())["shards"][0]
    records = np.load(stored / "shards" / f"{entry['name']}.npy")
    assert len(records) == entry["samples"]
    assert records["image"].shape == (entry["samples"], entry["height"], entry["width"], 3)
    assert zlib.crc32(records[0].tobytes()[4:]) == records["crc"][0]


def test_it_can_be_pickled_and_stays_small(stored):
    store = PreparedStore(stored, edges="semantic")
    items = store.items("train")
    store.load(items[0])
    data = pickle.dumps(store)
    copied = pickle.loads(data)
    assert len(data) < 20_000
    assert np.array_equal(copied.load(items[3])["edges"], store.load(items[3])["edges"])
    assert copied.items("test") == store.items("test")
    assert pickle.loads(pickle.dumps(items)) == items


def test_half_floats_for_far_sets_and_what_lies_beyond_is_counted(tmp_path):
    root = write_toy(tmp_path / "raw", train=2, test=1)
    path = root / "samples" / "b" / "0.npz"
    sample = dict(np.load(path))
    sample["depth"][0, :5] = [99.9, 65504, 65505, 1e6, 1e-9]
    np.savez(path, **sample)
    run(tmp_path / "out", root, Wish(ToyFar, {}, workers=1), [])
    store = PreparedStore(tmp_path / "out")
    found = store.load(store.items("train")[0])
    assert found["depth"].dtype == np.float16
    depth = decode(found)["depth"]
    assert depth[0, 1] == 65504
    assert depth[0, 2] == depth[0, 3] == 0
    assert depth[0, 4] > 0, "what is known stays known"
    near = (sample["depth"] > 0.1) & (sample["depth"] < 65504)
    assert (np.abs(depth - sample["depth"])[near] <= sample["depth"][near] * 2**-11).all()
    assert store.manifest["depth_beyond_half_floats"] == 2


def test_depth_above_the_type_is_refused_and_named(tmp_path):
    root = write_toy(tmp_path / "raw", train=2, test=1)
    path = root / "samples" / "b" / "1.npz"
    sample = dict(np.load(path))
    sample["depth"][3, 4] = 13.2
    np.savez(path, **sample)
    outcome = run(tmp_path / "out", root, Wish(ToySource, {}, workers=1), [])
    assert [name for name, _ in outcome.errors] == ["b/1"]
    assert "13.200 m at row 3, column 4" in outcome.errors[0][1]


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("depth", lambda d: d.__setitem__((0, 0), np.nan), "negative, infinite or NaN"),
        ("depth", lambda d: d.__setitem__((0, 0), -1), "negative, infinite or NaN"),
        ("edges", lambda e: e.__setitem__((0, 0), 7), "other values than 0, 1 and 255"),
        ("semseg", lambda s: s.__setitem__((0, 0), 3), "holds label 3"),
    ],
)
def test_what_breaks_the_contract_is_not_stored(key, change, message):
    layout = Layout(("semseg", "depth", "normals"), "steps", ("provided",), 3)
    sample = {**draw(0, 24, 32), "id": "bad"}
    change(sample[key])
    with pytest.raises(DataError, match=message) as caught:
        layout.encode(sample, layout.empty(24, 32))
    assert "'bad'" in str(caught.value)


def test_disparities_keep_their_numbers_and_become_what_is_asked(tmp_path):
    root = write_toy(tmp_path / "raw", train=3, test=1)
    run(tmp_path / "out", root, Wish(ToyStereo, {}, workers=1), [])
    for target in ("metric", "disparity", "inverse"):
        source, store = ToyStereo(root, depth_target=target), PreparedStore(tmp_path / "out", depth_target=target)
        assert store.depth_range == source.depth_range
        assert store.provenance["depth"] == source.provenance["depth"]
        for item, original in zip(store.items("train"), source.items("train"), strict=True):
            want, found = source.read(original), store.read(item)
            assert np.array_equal(found["depth"], want["depth"])
            assert found["depth_code"] == want["depth_code"]
            assert np.array_equal(decode(found)["depth"], decode(want)["depth"])
    with pytest.raises(ConfigError, match="did you mean 'metric'"):
        PreparedStore(tmp_path / "out", depth_target="metrik")


def test_options_other_than_those_prepared_are_refused(stored, tmp_path, raw):
    PreparedStore(stored, normals="provided")
    for options, message in (
        ({"normals": "none"}, "data.normals is 'none'.*prepared with provided.*--normals none"),
        ({"normal_axes": "x,y,z"}, "data.normal_axes is 'x,y,z'.*--normal-axes x,y,z"),
        ({"depth_target": "inverse"}, "data.depth_target is 'inverse'"),
    ):
        with pytest.raises(ConfigError, match=message):
            PreparedStore(stored, **options)
    with pytest.raises(ConfigError, match=r"data\.edges is 'semantik'.*did you mean 'semantic'"):
        PreparedStore(stored, edges="semantik")
    run(tmp_path / "none", raw, Wish(ToySource, {"normals": "none"}, workers=1), [])
    store = PreparedStore(tmp_path / "none", normals="none")
    assert "normals" not in store.tasks and "normals" not in store.load(store.items("train")[0])


def _shard(store, number=0):
    return store.path / "shards" / f"{store.manifest['shards'][number]['name']}.npy"


def test_damage_is_one_line_with_the_mend(copy, raw):
    store = PreparedStore(copy)
    items = store.items("train")
    victim = _shard(store)
    content = victim.read_bytes()
    cases = (
        (lambda: victim.unlink(), "missing: run the same 'm2h data prepare' again"),
        (lambda: victim.write_bytes(content[:-9]), "truncated or corrupt .* delete this file and run"),
        (lambda: victim.write_bytes(content[:-900] + b"\xff" + content[-899:]), r"'b/1' \(row 1\) is corrupt"),
        (lambda: victim.write_bytes(b"X" + content[1:]), "corrupt header"),
        (lambda: victim.write_bytes(content.replace(b"'image'", b"'imaqe'")), "something else than its manifest"),
    )
    for damage, message in cases:
        damage()
        with pytest.raises(DataError, match=message) as caught:
            PreparedStore(copy).load(items[1])
        assert "\n" not in str(caught.value) and str(victim) in str(caught.value)
        assert damaged_shards(store) == [victim]
        PreparedStore(copy).load(items[3])  # another shard is still good
        victim.write_bytes(content)
    assert damaged_shards(store) == []
    victim.unlink()
    run(copy, raw, Wish(ToySource, {}, samples=4, workers=1), [])
    assert victim.read_bytes() == content


def test_a_broken_or_foreign_manifest_is_one_line(copy, tmp_path):
    path = copy / "manifest.json"
    good = json.loads(path.read_text())
    for change, message in (
        ({"format": 99}, "format 99, this version reads 1"),
        ({"kind": "something"}, "not the manifest of a prepared store"),
        ({"shards": [{}]}, "not readable"),
        ({"depth": None}, "not readable"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(DataError, match=message) as caught:
            PreparedStore(copy)
        assert "\n" not in str(caught.value)
    path.write_text("{")
    with pytest.raises(DataError, match="not readable"):
        PreparedStore(copy)
    path.unlink()
    assert is_store(copy), "an unfinished store is one: it says so itself"
    with pytest.raises(DataError, match="not finished"):
        PreparedStore(copy)
    with pytest.raises(DataError, match="does not exist"):
        PreparedStore(tmp_path / "nothing")


def test_an_edited_list_of_samples_is_refused(copy):
    path = copy / "samples.csv"
    path.write_text(path.read_text().replace("b/0", "b/x"))
    with pytest.raises(DataError, match="checksum differs"):
        PreparedStore(copy).items("train")
    path.unlink()
    with pytest.raises(DataError, match="not readable"):
        PreparedStore(copy).items("train")


def test_a_split_that_was_not_prepared(stored):
    with pytest.raises(DataError, match="no split 'val' .prepared: train, test"):
        PreparedStore(stored).items("val")


@given(
    edges=st.lists(st.lists(st.sampled_from([0, 1, 255]), min_size=6, max_size=6), min_size=3, max_size=3),
)
@settings(max_examples=50, deadline=None)
def test_the_edge_code_loses_nothing(edges):
    maps = [np.array(row, np.uint8) for row in edges]
    coded = np.zeros(6, np.uint8)
    for place, one in enumerate(maps):
        coded |= ((one == 1) << np.uint8(2 * place)) | ((one == 255) << np.uint8(2 * place + 1))
    for place, one in enumerate(maps):
        assert np.array_equal(decode_edges(coded, place), one)


def test_coded_normals_are_stored_unchanged():
    layout = Layout(("semseg", "depth", "normals"), "steps", (), 3)
    sample = {**draw(1, 24, 32), "id": "x"}
    sample["normals"] = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    record = layout.empty(24, 32)
    layout.encode(sample, record)
    assert np.array_equal(record["normals"], sample["normals"])
    sample["normals"] = draw(2, 24, 32)["normals"]
    layout.encode(sample, record)
    assert np.array_equal(record["normals"], encode_normals(sample["normals"]))


def test_a_record_keeps_nothing_of_the_one_before():
    layout = Layout(("semseg", "depth", "normals"), "steps", ("provided", "instance"), 3)
    full, bare = {**draw(3, 24, 32), "id": "x"}, draw(4, 24, 32)
    bare = {key: bare[key] for key in ("image", "K")} | {"id": "y"}
    used, fresh = layout.empty(24, 32), layout.empty(24, 32)
    layout.encode(full, used)
    layout.encode(bare, used)
    layout.encode(bare, fresh)
    assert used.tobytes() == fresh.tobytes()
    assert int(used["has"]) == 0


def test_the_type_of_depth_depends_on_the_set_alone():
    assert depth_stored((0.1, 10.0), False) == "steps"
    assert depth_stored((0.1, 13.1), False) == "steps"
    assert depth_stored((0.1, 30.0), False) == "half"
    assert depth_stored((1.0, 80.0), True) == "coded"


@given(st.integers(16, 70), st.integers(16, 70), st.sampled_from(["steps", "half", "coded"]), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_records_are_aligned_and_sizes_are_known_ahead(height, width, depth, rules):
    names = ("provided", "semantic", "instance")[:rules]
    dtype = Layout(("semseg", "depth", "normals"), depth, names, 3).dtype(height, width)
    assert dtype.itemsize % 8 == 0
    for kind, offset, *_ in dtype.fields.values():
        assert offset % kind.base.itemsize == 0
    assert len({len(npy_header(dtype, count)) for count in (0, 1, 9, 10, 64, 99999)}) == 1
    assert npy_bytes(dtype, 3) == len(npy_header(dtype, 3)) + 3 * dtype.itemsize


def test_poses_come_back_exactly_and_stay_absent_where_they_are_not_known(raw, tmp_path):
    run(tmp_path / "out", raw, Wish(ToyPosed, {}, samples=4, workers=1), [])
    store = PreparedStore(tmp_path / "out")
    assert store.poses
    for split in store.splits:
        for item in store.items(split):
            found, number = store.load(item), int(item.id.rpartition("/")[2])
            check_raw(found, len(store.classes))
            assert "pose" in item.files
            assert ("pose" in found) == (number % 3 != 1)
            if "pose" in found:
                assert np.array_equal(found["pose"], toy_pose(number))
    copy = pickle.loads(pickle.dumps(store))
    assert np.array_equal(copy.load(store.items("train")[0])["pose"], toy_pose(0))


def test_stores_without_poses_are_what_they_were_before_there_were_any(stored):
    store = PreparedStore(stored)
    assert not store.poses
    assert "pose" not in store.manifest
    assert "pose" not in store.load(store.items("train")[0])
    assert "pose" not in store.items("train")[0].files
    dtype = store.layout.dtype(24, 32)
    head = [("crc", 0), ("has", 4), ("K", 8), ("depth_scale", 80), ("depth_baseline_fx", 88), ("depth_cap", 96)]
    assert [(name, dtype.fields[name][1]) for name in dtype.names[:6]] == head


def test_loading_is_fast(tmp_path):
    root = write_toy(tmp_path / "raw", train=4, test=1, sizes=((480, 640), (480, 640)))
    run(tmp_path / "out", root, Wish(ToySource, {}, workers=1), [])
    store = PreparedStore(tmp_path / "out")
    items = store.items("train")
    for item in items:
        store.load(item)
    best = min(_seconds(store, items) for _ in range(20))
    assert len(items) / best > 1500, f"{len(items) / best:.0f} reads/s"


def _seconds(store, items):
    start = time.process_time()
    for item in items:
        store.load(item)
    return max(time.process_time() - start, 1e-6)


def test_the_edges_of_the_store_are_those_of_the_rule(stored):
    store = PreparedStore(stored, edges="semantic")
    raw = store.load(store.items("train")[0])
    assert np.array_equal(raw["edges"], apply_edge_rule({**raw}, "semantic")["edges"])


@pytest.mark.parametrize("offset", [0, 6, 8, 10, 40, 100, 126, 127])
def test_damage_in_the_header_of_a_shard_is_one_line(copy, offset):
    shard = next((copy / "shards").glob("*.npy"))
    data = bytearray(shard.read_bytes())
    data[offset] ^= 0xA5
    shard.write_bytes(data)
    store = PreparedStore(copy)

    def read_all():
        for split in store.splits:
            for item in store.items(split):
                store.read(item)

    with pytest.raises(DataError) as caught:
        read_all()
    assert str(shard) in str(caught.value) and "\n" not in str(caught.value).strip()
