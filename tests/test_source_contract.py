"""One contract for the readers of all data sets: fixtures in the true formats against the scene they were made of.

Writers and readers were written apart from the same description of the formats, so that what both agree on is a check
and not an echo.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytic import analytic_sample, rays_of
from fixture_corruptions import CORRUPTIONS, Corruption
from fixture_sets import FIXTURES, NYU_K, Expected, nyu_camera
from m2h_lightning.data.raw import check_raw, decode
from m2h_lightning.data.sources import SETS, Item, Source, source_class
from m2h_lightning.data.sources.edges import EDGE_RULES, label_borders
from m2h_lightning.data.synthesis.layouts import LayoutSample, write_layout
from m2h_lightning.data.synthesis.layouts.cityscapes import BASELINE
from m2h_lightning.errors import ConfigError, DataError, M2HError
from m2h_lightning.labels import IGNORE

NAMES = sorted(FIXTURES)


def opened(name: str, root: Path, **options) -> Source:
    fixture = FIXTURES[name]
    return source_class(fixture.set)(fixture.write(root), **{**fixture.options, **options})


def all_items(source: Source) -> list[Item]:
    return [item for split in source.splits for item in source.items(split)]


@cache
def truth(name: str) -> dict[str, Expected]:
    return FIXTURES[name].truth()


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Source]:
    root = tmp_path_factory.mktemp("sets")
    return {name: opened(name, root / name) for name in NAMES}


def expected_of(name: str, item: Item) -> Expected:
    keys = [key for key in truth(name) if key in item.id]
    assert len(keys) == 1, (item.id, keys)
    return truth(name)[keys[0]]


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    """What holds for every set."""

    def test_all_samples_are_found_in_their_splits(self, name, sources):
        source = sources[name]
        items = all_items(source)
        assert len(items) == len(truth(name))
        assert len({item.id for item in items}) == len(items)
        for item in items:
            assert item.split == expected_of(name, item).split
        for split in source.splits:
            assert source.items(split) == source.items(split)
            assert {item.split for item in source.items(split)} == {split}

    def test_no_scene_is_in_two_splits(self, name, sources):
        scenes = {item.scene: item.split for item in all_items(sources[name])}
        assert all(scenes[item.scene] == item.split for item in all_items(sources[name]))

    def test_values_are_those_of_the_scene(self, name, sources):
        source = sources[name]
        for item in all_items(source):
            raw, expected = source.load(item), expected_of(name, item)
            assert raw["id"] == item.id
            assert source.size(item) == raw["image"].shape[:2] == expected.image.shape[:2]
            assert raw["image"].dtype == np.uint8
            difference = np.abs(raw["image"].astype(int) - expected.image)
            assert difference.max() <= expected.image_within
            if expected.semseg is not None:
                assert raw["semseg"].dtype == np.uint8
                assert np.array_equal(raw["semseg"], expected.semseg)
            assert raw["K"].dtype == np.float64
            if expected.K is not None:  # up to a factor, as every pinhole matrix is
                assert np.allclose(raw["K"] / raw["K"][2, 2], expected.K / expected.K[2, 2], rtol=1e-9, atol=1e-9)
            self.check_geometry(decode({key: raw[key] for key in raw if key != "instance"}), expected)
            if expected.edges is not None:
                known = raw["edges"] != IGNORE
                assert np.array_equal(raw["edges"][known], expected.edges[known])
                assert (expected.semseg[~known] == IGNORE).all()
            if expected.instance is not None:
                on = expected.instance > 0
                pairs = set(zip(expected.instance[on].tolist(), raw["instance"][on].tolist(), strict=True))
                assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})

    @staticmethod
    def check_geometry(raw, expected):
        depth = raw["depth"]
        known = expected.depth > 0
        assert depth.dtype == np.float32
        assert np.array_equal(depth > 0, known)
        assert np.isfinite(depth).all()
        assert np.abs(depth[known] / expected.depth[known] - 1).max() < 1e-3
        if expected.normals is None:
            return
        normals = raw["normals"]
        known = np.abs(expected.normals).sum(-1) > 0
        assert normals.dtype == np.float32
        assert np.array_equal(np.linalg.norm(normals, axis=-1) > 0.5, known)
        assert (normals[~known] == 0).all()
        assert np.allclose(np.linalg.norm(normals[known], axis=-1), 1, atol=1e-3)
        cosine = np.clip((normals[known] * expected.normals[known]).sum(-1), -1, 1)
        degrees, share = expected.normals_within
        assert (np.degrees(np.arccos(cosine)) <= degrees).mean() >= share

    def test_what_is_read_keeps_the_contract_and_the_facts(self, name, sources):
        source = sources[name]
        assert source.tasks
        assert set(source.tasks) <= set(source.provenance)
        assert source.packaging
        for item in all_items(source):
            raw = source.read(item)
            assert "instance" not in raw
            check_raw(decode(raw), len(source.classes))
            assert {key for key in ("semseg", "depth", "normals", "edges") if key in raw} == set(source.tasks)

    def test_edge_rules(self, name, sources, tmp_path):
        source = sources[name]
        assert set(source.edge_rules) <= set(EDGE_RULES)
        assert source.edges == source.edge_rules[0]
        item = all_items(source)[0]
        raw = source.load(item)
        for number, rule in enumerate(source.edge_rules):
            edges = opened(name, tmp_path / str(number), edges=rule).read(item_of(source, item, tmp_path / str(number)))
            if rule == "semantic":
                assert np.array_equal(edges["edges"], label_borders(raw["semseg"]))
            if rule == "instance":
                assert np.array_equal(edges["edges"], label_borders(raw["semseg"], raw["instance"]))
        absent = sorted(set(EDGE_RULES) - set(source.edge_rules))
        if absent:
            with pytest.raises(ConfigError, match=absent[0]):
                _ = opened(name, tmp_path / "absent", edges=absent[0]).edges

    def test_sources_and_items_travel_to_other_processes(self, name, sources):
        source = sources[name]
        item = all_items(source)[0]
        source.read(item)  # opens whatever it opens
        other, same = pickle.loads(pickle.dumps((source, item)))
        assert same == item
        assert np.array_equal(other.read(same)["image"], source.read(item)["image"])
        assert other.fingerprint == source.fingerprint

    def test_the_fingerprint_says_what_was_read_and_not_where(self, name, sources, tmp_path):
        source = sources[name]
        assert opened(name, tmp_path / "elsewhere").fingerprint == source.fingerprint
        assert opened(name, tmp_path / "none", normals="none").fingerprint != source.fingerprint
        assert len(source.edge_rules) < 2 or (
            opened(name, tmp_path / "edges", edges=source.edge_rules[1]).fingerprint != source.fingerprint
        )

    def test_no_normals_when_none_are_asked_for(self, name, tmp_path):
        source = opened(name, tmp_path / "t", normals="none")
        assert "normals" not in source.tasks
        assert "normals" not in source.read(all_items(source)[0])

    def test_unknown_splits_and_paths_are_one_line(self, name, sources, tmp_path):
        with pytest.raises(M2HError) as error:
            sources[name].items("trainval")
        assert "\n" not in str(error.value)
        (tmp_path / "empty").mkdir()
        for path in (tmp_path / "nowhere", tmp_path / "empty"):
            with pytest.raises(DataError) as error:
                source_class(FIXTURES[name].set)(path)
            assert str(path) in str(error.value)
            assert "\n" not in str(error.value)


def item_of(source: Source, item: Item, root: Path) -> Item:
    """The same sample in a copy of the tree."""
    files = {
        key: root / path.relative_to(source.path) if source.path.is_dir() else root / path.name
        for key, path in item.files.items()
    }
    return Item(item.id, item.split, item.scene, files)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("nyud-A", lambda root: (root / "gt_sets/train.txt").write_text("0003\n")),
        ("folder", lambda root: (root / "splits/train.txt").write_text("hall/0\n")),
        (
            "hypersim",
            lambda root: (root / "metadata_images_split_scene_v1.csv").write_text(
                "".join(
                    line
                    for line in (root / "metadata_images_split_scene_v1.csv").read_text().splitlines(True)
                    if "cam_01" not in line
                )
            ),
        ),
    ],
)
def test_the_fingerprint_follows_the_lists(name, change, tmp_path):
    before = opened(name, tmp_path / "before").fingerprint
    fixture = FIXTURES[name]
    path = fixture.write(tmp_path / "after")
    change(tmp_path / "after")
    assert source_class(fixture.set)(path, **fixture.options).fingerprint != before


def read_everything(name: str, path: Path) -> None:
    fixture = FIXTURES[name]
    source = source_class(fixture.set)(path, **fixture.options)
    for item in all_items(source):
        check_raw(decode(source.read(item)), len(source.classes))


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=str)
def test_what_is_broken_is_said_in_one_line_with_the_file(corruption: Corruption, tmp_path):
    path = FIXTURES[corruption.fixture].write(tmp_path / "tree")
    corruption.apply(tmp_path / "tree")
    if corruption.finder == "verify":
        read_everything(corruption.fixture, path)  # every file is well-formed: the values have to be looked at
        return
    with pytest.raises((DataError, ConfigError)) as error:
        read_everything(corruption.fixture, path)
    message = str(error.value)
    assert "\n" not in message
    assert len(message.replace(str(tmp_path), "")) < 400
    for word in corruption.words:
        assert word.lower() in message.lower(), message


def test_every_set_has_a_fixture():
    assert {fixture.set for fixture in FIXTURES.values()} == set(SETS)


READ_BY = {"nyud-A": {"nyud", "nyud13"}, "nyud-B": {"nyud", "nyud13"}, "nyud-C": {"nyud", "nyud13"}}
READ_BY |= {"nyud-mat": {"nyud", "nyud13"}}


@pytest.mark.parametrize("name", NAMES)
def test_a_tree_of_another_set_is_refused(name, tmp_path):
    path = FIXTURES[name].write(tmp_path / "tree")
    for other in sorted(set(SETS) - READ_BY.get(name, {FIXTURES[name].set})):
        with pytest.raises(DataError) as error:
            all_items(source_class(other)(path))
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("folder", ["images", "segmentation", ".."])
def test_a_path_one_level_off_is_refused_with_the_right_one(folder, tmp_path):
    path = FIXTURES["nyud-A"].write(tmp_path / "root" / "NYUDv2")
    wrong = path / folder
    with pytest.raises(DataError) as error:
        source_class("nyud")(wrong)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("layout", ["nyud", "hypersim", "cityscapes", "folder"])
@given(seed=st.integers(0, 2**32), height=st.integers(2, 9), width=st.integers(2, 9))
@settings(max_examples=12)
def test_anything_written_is_read_again(layout, seed, height, width):
    """Random labels, depths, normals and cameras, of any small size, with gaps."""
    if layout == "nyud":  # its files do not hold the camera: only sizes of the full frame's shape have one
        height, width = 3 * (height // 2), 4 * (height // 2)
    sample = random_sample(layout, seed, height, width)
    with TemporaryDirectory() as folder:
        write_layout(layout, Path(folder) / "t", [sample])
        source = source_class(layout)(Path(folder) / "t")
        (item,) = source.items("train")
        raw = source.load(item)
    decoded = decode({key: raw[key] for key in raw if key != "instance"})
    assert np.allclose(raw["K"] / raw["K"][2, 2], sample.K / sample.K[2, 2], rtol=1e-8)
    if layout == "cityscapes":
        near = (BASELINE * 2048 / width * sample.K[0, 0]) / np.where(sample.depth > 0, sample.depth * 8, 1) > 126
        expected = np.where(near | (sample.depth * 8 > 80), 0, sample.depth * 8)
    else:
        assert np.array_equal(raw["semseg"], sample.semseg)
        expected = sample.depth
    assert np.allclose(decoded["depth"], expected, rtol=2e-3, atol=6e-4)
    assert np.array_equal(decoded["depth"] > 0, expected > 0)
    if "normals" in decoded:
        assert np.allclose(decoded["normals"], sample.normals, atol=0.01)


def random_sample(layout: str, seed: int, height: int, width: int) -> LayoutSample:
    rng = np.random.default_rng(seed)
    K = np.array(
        [[rng.uniform(0.5, 2) * width, 0, width / 2], [0, rng.uniform(0.5, 2) * height, height / 2], [0, 0, 1.0]]
    )
    if layout == "nyud":
        K = nyu_camera(height, width)
    elif layout != "cityscapes":
        K[0, 1], K[2, :2] = rng.uniform(-1, 1), rng.uniform(-0.02, 0.02, 2)
    rays = rays_of(K, height, width).transpose(1, 2, 0)
    normals = rng.normal(size=(height, width, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals *= -np.sign((normals * rays).sum(-1, keepdims=True))  # towards the camera
    normals[rng.random((height, width)) < 0.2] = 0
    # Below the cap of Cityscapes, where rounding would decide what is known.
    depth = np.where(rng.random((height, width)) < 0.2, 0, rng.uniform(0.5, 9.5, (height, width)))
    return LayoutSample(
        image=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        semseg=rng.choice([*range(40), IGNORE], (height, width)).astype(np.uint8),
        depth=depth,
        normals=normals,
        instance=rng.integers(0, 5, (height, width)),
        edges=rng.integers(0, 2, (height, width)).astype(np.uint8),
        K=K,
        id={"nyud": "0003", "hypersim": "ai_001_001/cam_00/frame.0000", "folder": "a/0"}.get(
            layout, "ulm_000000_000000"
        ),
        scene={"nyud": "s", "hypersim": "ai_001_001", "folder": "a"}.get(layout, "ulm"),
        split="train",
    )


def test_the_crop_of_the_mat_file_keeps_the_rays(tmp_path):
    """480×640 becomes 425×560; the ray of a pixel stays the ray of that pixel."""
    sample = analytic_sample("0001", "s", "test", 12, 16)
    full = {key: np.zeros((480, 640), np.uint8) for key in ("semseg", "instance", "edges")}
    depth = np.full((480, 640), 2.0)
    depth[45 + 7, 40 + 11] = 3.0
    sample = replace(
        sample, **full, image=np.zeros((480, 640, 3), np.uint8), depth=depth, normals=np.zeros((480, 640, 3))
    )
    write_layout("nyud", tmp_path / "t", [sample], packaging="mat")
    source = source_class("nyud")(tmp_path / "t")
    raw = source.load(source.items("test")[0])
    assert raw["depth"].shape == (425, 560)
    assert raw["depth"][7, 11] == 3.0
    assert (raw["depth"] == 3.0).sum() == 1
    ray, whole = (np.linalg.inv(K) @ p for K, p in ((raw["K"], [11, 7, 1]), (NYU_K, [51, 52, 1])))
    assert np.allclose(ray, whole)
