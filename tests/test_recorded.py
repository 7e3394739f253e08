"""Data modules of real data sets: where they look, whom they hold out, what they say of themselves."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli_helpers import m2h
from m2h_lightning.data.cityscapes import Cityscapes
from m2h_lightning.data.folder import Folder
from m2h_lightning.data.hypersim import Hypersim
from m2h_lightning.data.nyud import NYUDv2, NYUDv2_13
from m2h_lightning.data.recorded import hold_out
from m2h_lightning.data.sample import to_contract
from m2h_lightning.data.sources import SETS, Item, source_class
from m2h_lightning.errors import ConfigError, DataError

MODULES = {"nyud": NYUDv2, "nyud13": NYUDv2_13, "hypersim": Hypersim, "cityscapes": Cityscapes, "folder": Folder}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with NYUDv2 as published (A) and a store prepared of it in a place of its own."""
    root = tmp_path_factory.mktemp("data")
    words = ["--rooms", 4, "--views", 2, "--height", 48, "--width", 64, "--split", "all"]
    assert m2h("data", "synthesize", "rooms", "--layout", "nyud", "--out", root / "NYUDv2", *words) == 0
    assert m2h("data", "prepare", "nyud", "--src", root / "NYUDv2", "--out", root / "other" / "nyud-prepared") == 0
    return root


@given(st.lists(st.integers(1, 30), min_size=2, max_size=40), st.floats(0.01, 0.6))
def test_a_hold_out_never_divides_a_scene(sizes, share):
    items = [Item(f"{scene}-{k}", "train", f"scene {scene}") for scene, size in enumerate(sizes) for k in range(size)]
    try:
        stay, held = hold_out(items, share)
    except DataError:  # only where all but one scene are too small together
        assert len(items) - max(sizes) < share * len(items)
        return
    assert {i.scene for i in stay}.isdisjoint({i.scene for i in held})
    assert sorted(i.id for i in stay + held) == sorted(i.id for i in items)
    assert len(held) >= share * len(items)
    assert len(held) < share * len(items) + max(sizes), "no more than the scene that filled it"
    # Neither the order of the list nor the samples of other scenes decide who is held out.
    again = {i.id for i in hold_out(items[::-1], share)[1]}
    assert again == {i.id for i in held}


def test_one_scene_cannot_be_divided():
    with pytest.raises(DataError, match=r"1 scene.*data\.holdout to 0"):
        hold_out([Item(str(k), "train", "only") for k in range(10)], 0.1)


def test_every_set_has_a_module_with_its_facts():
    assert set(MODULES) == set(SETS)
    for name, module in MODULES.items():
        reader = source_class(name)
        assert module.source_name == name
        if name != "folder":
            assert tuple(module.classes) == tuple(reader.classes)
            assert module.name == reader.name


@pytest.mark.parametrize("name", SETS)
def test_missing_data_is_one_line_with_folder_layout_and_command(name, tmp_path):
    data = MODULES[name](root=str(tmp_path))
    with pytest.raises(DataError) as error:
        data.check()
    line = str(error.value)
    assert "\n" not in line
    for word in (str(tmp_path), f"m2h data prepare {name}", "--data.path", "M2H_DATA", *source_class(name).folders[:1]):
        assert word in line
    if name != "folder":
        assert data.facts["classes"], "counting parameters needs no data"


def test_the_command_line_says_so_before_it_builds_a_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    experiment = Path(__file__).parents[1] / "experiments" / "nyud.yaml"
    assert m2h("fit", "--config", experiment) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("m2h: error")]
    assert len(lines) == 1
    assert "data set 'nyud' is not under data" in lines[0]
    assert not list(tmp_path.iterdir())


def test_train_val_and_test_of_a_set_without_validation(root):
    data = NYUDv2(root=str(root), holdout=0.3, workers=0)
    train, val, test = (data.items(split) for split in ("train", "val", "test"))
    assert {i.id for i in train} | {i.id for i in val} == {i.id for i in data.source.items("train")}
    assert {i.scene for i in train}.isdisjoint({i.scene for i in val})
    assert {i.split for i in test} == {"test"}
    assert data.description["validation"] == "hold-out 0.3"
    assert data.fingerprint != NYUDv2(root=str(root), holdout=0.4).fingerprint


def test_without_hold_out_the_test_split_validates_with_a_word(root):
    data = NYUDv2(root=str(root), holdout=0.0)
    with pytest.warns(UserWarning, match="validating on the test split"):
        assert [i.id for i in data.items("val")] == [i.id for i in data.items("test")]
    assert len(data.items("train")) == len(data.source.items("train"))
    assert data.description["validation"] == "test split"


def test_a_prepared_store_is_found_first_and_gives_the_same_labels(root):
    published = NYUDv2(root=str(root), workers=0, batch_size=2, crop=(48, 64), eval_batch_size=2)
    prepared = NYUDv2(path=str(root / "other" / "nyud-prepared"), workers=0, batch_size=2, eval_batch_size=2)
    found = NYUDv2(root=str(root / "other"))
    assert found.source.packaging == prepared.source.packaging != published.source.packaging
    assert published.facts == prepared.facts
    for one, two in zip(published.test_dataloader(), prepared.test_dataloader(), strict=True):
        a, b = to_contract(one), to_contract(two)
        assert a["id"] == b["id"]
        for key in ("image", "semseg", "edges", "K", "normals"):
            assert np.array_equal(a[key], b[key]), key
        assert np.allclose(a["depth"], b["depth"], atol=1.1e-4)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"holdout": 1.0}, "data.holdout"),
        ({"edges": "instance"}, "data.edges"),
        ({"normal_axes": "x,y"}, "data.normal_axes"),
        ({"normal_axes": "-y,x,z"}, ""),
    ],
)
def test_wrong_options_of_a_published_set(root, settings, word):
    if not word:
        NYUDv2(root=str(root), **settings).check()
        return
    with pytest.raises(ConfigError, match=word):
        NYUDv2(root=str(root), **settings).check()


def test_a_store_cannot_be_turned_at_load(root):
    with pytest.raises(ConfigError, match="normal_axes"):
        NYUDv2(path=str(root / "other" / "nyud-prepared"), normal_axes="-y,x,z").check()


def test_a_store_refuses_what_was_settled_when_it_was_made(root):
    with pytest.raises(ConfigError, match=r"data\.stored_crop is 'none'.*prepared with 'gupta'"):
        NYUDv2(path=str(root / "other" / "nyud-prepared"), stored_crop="none").check()


def test_a_hold_out_is_never_called_the_test_split(root, tmp_path):
    store = tmp_path / "train-only"
    assert m2h("data", "prepare", "nyud", "--src", root / "NYUDv2", "--out", store, "--split", "train") == 0
    data = NYUDv2(path=str(store), holdout=0.3)
    assert data.items("val")
    with pytest.raises(DataError, match="test split of 'nyud' is not here"):
        data.items("test")


@pytest.mark.parametrize("key", ["crop", "batch_size", "workers", "augment", "holdout"])
def test_null_is_one_line(root, key):
    with pytest.raises(ConfigError, match=f"data.{key}"):
        NYUDv2(root=str(root), **{key: None})


def test_a_store_of_another_set_is_named(root):
    with pytest.raises(DataError, match="'nyud', not of 'cityscapes'"):
        Cityscapes(path=str(root / "other" / "nyud-prepared")).check()


def test_folder_takes_its_facts_from_its_file(tmp_path):
    words = ["--rooms", 3, "--views", 1, "--height", 48, "--width", 64, "--split", "all"]
    assert m2h("data", "synthesize", "rooms", "--layout", "folder", "--out", tmp_path / "mine", *words) == 0
    described = yaml.safe_load((tmp_path / "mine" / "dataset.yaml").read_text())
    data = Folder(path=str(tmp_path / "mine"), workers=0, batch_size=1, crop=(32, 32))
    assert list(data.classes) == list(described["classes"])
    assert len(next(iter(data.train_dataloader()))["id"]) == 1
    assert json.dumps(data.facts), "facts are plain data"
    assert m2h("data", "prepare", "folder", "--src", tmp_path / "mine", "--out", tmp_path / "store") == 0
    stored = Folder(path=str(tmp_path / "store"), workers=0, batch_size=1, crop=(32, 32))
    assert stored.facts == data.facts
