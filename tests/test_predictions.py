"""Predictions as files: names without collision, exact formats, strict reading of one's own files and others'."""

import json
import string

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.predictions import formats
from m2h_lightning.predictions.find import find
from m2h_lightning.predictions.names import escape, flatten, unescape
from prediction_helpers import SIZE, angle, arrays, put, read, zeros

FACTS = {
    "name": "planes",
    "classes": ["dark", "none", "bright"],
    "tasks": ["semseg", "depth", "normals", "edges"],
    "depth_unit": "m",
    "depth_range": [0.1, 20.0],
}
IDS = ["0001", "a/b c", "ä%"]

odd_names = st.text(st.sampled_from(string.ascii_lowercase + "/%._ ä2E\n"), min_size=1, max_size=8)


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(odd_names)
def test_an_id_can_be_read_back_and_stays_in_the_folder(name):
    path = escape(name)
    assert unescape(path) == name
    assert all(part and not part.startswith(".") for part in path.split("/"))
    assert set(path) <= set(string.ascii_letters + string.digits + "-_.~%/")


@given(odd_names, odd_names)
def test_no_two_ids_share_a_file_and_no_file_is_a_folder(a, b):
    if a == b:
        return
    assert escape(a) != escape(b)
    for first, second in ((a, b), (b, a)):
        assert not f"{escape(first)}.png/".startswith("/")
        assert not escape(second).startswith(f"{escape(first)}.png/")


def test_plain_ids_keep_their_names():
    for name in ("0001", "rooms/test/00000/001", "frankfurt_000000_000294", "ai_001_001/cam_00/frame.0000"):
        assert escape(name) == name


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def saved(folder, form="files", ids=IDS, size=SIZE):
    """Write predictions of all samples; return them."""
    written = {name: arrays(seed, size) for seed, name in enumerate(ids)}
    formats.start(folder)
    for name, values in written.items():
        formats.write_prediction(folder, form, name, values)
    about = formats.describe(form, list(FACTS["tasks"]), FACTS)
    formats.finish(folder, {**about, "data": {"name": "planes"}, "split": "test", "samples": len(ids)})
    return written


@pytest.mark.parametrize(("form", "degrees"), [("files", 0.03), ("seism", 0.4)])
def test_round_trip(tmp_path, form, degrees):
    written = saved(tmp_path, form)
    found = find(tmp_path, IDS, FACTS, "test", None, "{id}")
    assert list(found.tasks) == FACTS["tasks"]
    for name, values in written.items():
        got = {task: read(task, found.tasks[task].files[name]) for task in found.tasks}
        np.testing.assert_array_equal(got["semseg"], values["semseg"])
        np.testing.assert_array_equal(got["depth"], values["depth"])
        np.testing.assert_array_equal(np.rint(255 * got["edges"]), np.rint(255 * values["edges"]))
        assert 0 < angle(got["normals"], values["normals"]).max() < degrees
        np.testing.assert_allclose(np.linalg.norm(got["normals"], axis=-1), 1, atol=1e-6)


def test_seism_files_are_what_the_field_takes(tmp_path):
    """Names and types as their code reads them, with readers that are not ours."""
    written = saved(tmp_path, "seism", ["0001"])["0001"]
    for place in ("edge/0001.png", "edge/img/0001.png"):
        edges = np.asarray(Image.open(tmp_path / place))
        assert edges.dtype == np.uint8
        np.testing.assert_array_equal(edges, np.rint(255 * written["edges"]))
    assert len(list((tmp_path / "edge").glob("*png"))) == 1
    coded = np.asarray(Image.open(tmp_path / "normals/0001.png"), np.float64)
    np.testing.assert_allclose(coded, 255 * (written["normals"] + 1) / 2, atol=0.501)
    np.testing.assert_array_equal(np.load(tmp_path / "depth/0001.npy"), written["depth"])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "semseg/0001.png")), written["semseg"])


def test_half_written_folders_are_told_apart(tmp_path):
    saved(tmp_path)
    assert (tmp_path / formats.PREDICTIONS_JSON).is_file()
    formats.start(tmp_path)
    assert not (tmp_path / formats.PREDICTIONS_JSON).exists()
    assert (tmp_path / formats.UNFINISHED).exists()
    formats.check_folder(tmp_path)  # may be continued
    formats.finish(tmp_path, {})
    assert not (tmp_path / formats.UNFINISHED).exists()


def test_nothing_of_others_is_overwritten(tmp_path):
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth" / "0001.npy", np.ones(SIZE))
    with pytest.raises(ConfigError, match="did not write"):
        formats.check_folder(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        formats.check_folder(tmp_path / "depth" / "0001.npy")
    formats.check_folder(tmp_path / "new")


@pytest.mark.parametrize("task", ["depth", "normals", "edges"])
def test_nan_is_not_saved(tmp_path, task):
    values = arrays()
    values[task].flat[3] = np.nan
    with pytest.raises(DataError, match=f"sample 'x': the prediction of {task} is NaN"):
        formats.write_prediction(tmp_path, "files", "x", values)
    assert not list(tmp_path.rglob("*.*"))


def test_to_arrays_refuses_nan_scores():
    from m2h_lightning.callbacks.predictions import to_arrays

    scores = torch.zeros(3, 4, 4)
    assert to_arrays({"semseg": scores})["semseg"].max() == 0
    scores[1, 2, 2] = float("nan")
    with pytest.raises(DataError, match="semseg is NaN"):
        to_arrays({"semseg": scores})


# ── finding ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        ({"x/1": "semseg/x/1.png", "x/2": "semseg/x/2.png"}, "{id}"),
        ({"x/1": "segmentation/x_1.png", "x/2": "segmentation/x_2.png"}, "{id}"),
        ({"x/1": "seg/1_pred.png", "x/2": "seg/2_pred.png"}, "{name}_pred"),
        ({"x/1": "semseg/deep/1.npy", "x/2": "semseg/deep/2.npy"}, "deep/{name}"),
    ],
)
def test_names_of_others(tmp_path, files, pattern):
    for place in files.values():
        put(tmp_path / place, zeros())
    put(tmp_path / files["x/1"].replace("1", "77"), zeros())
    found = find(tmp_path, list(files), FACTS, "test", None, pattern)
    assert {name: path.relative_to(tmp_path).as_posix() for name, path in found.tasks["semseg"].files.items()} == files
    assert len(found.tasks["semseg"].extra) == 1
    assert list(found.tasks) == ["semseg"]


def test_numbers_are_preferred_to_pictures_of_them(tmp_path):
    put(tmp_path / "depth/1.png", zeros())
    put(tmp_path / "depth/1.npy", zeros(np.float32))
    put(tmp_path / "normals/1.png", np.zeros((*SIZE, 3), np.uint8))
    put(tmp_path / "normals/1.npy", zeros(np.float32))
    found = find(tmp_path, ["1"], FACTS, "test", None, "{id}")
    assert {task: where.files["1"].suffix for task, where in found.tasks.items()} == {
        "depth": ".npy",
        "normals": ".npy",
    }
    assert not found.tasks["depth"].extra


def test_edges_below_img_and_nothing_counted_twice(tmp_path):
    put(tmp_path / "edge/img/1.png", zeros())
    assert find(tmp_path, ["1"], FACTS, "test", None, "{id}").tasks["edges"].folder == tmp_path / "edge/img"
    put(tmp_path / "edge/1.png", zeros())
    found = find(tmp_path, ["1"], FACTS, "test", None, "{id}").tasks["edges"]
    assert found.folder == tmp_path / "edge"
    assert not found.extra


def test_a_folder_of_one_task_and_an_archive_of_all(tmp_path):
    put(tmp_path / "one/1.png", zeros())
    found = find(tmp_path / "one", ["1"], FACTS, "test", ["edges"], "{id}")
    assert found.tasks["edges"].files["1"] == tmp_path / "one/1.png"
    with pytest.raises(DataError, match="no prediction of any"):
        find(tmp_path / "one", ["1"], FACTS, "test", None, "{id}")
    put(tmp_path / "all/1.npz", {"depth": zeros(np.float32), "semseg": zeros()})
    put(tmp_path / "all/1.png", zeros())
    assert list(find(tmp_path / "all", ["1"], FACTS, "test", None, "{id}").tasks) == ["semseg", "depth"]


def test_two_samples_of_one_file(tmp_path):
    put(tmp_path / "semseg/a_b.png", zeros())
    assert flatten("a/b") == flatten("a b") == "a_b"
    with pytest.raises(DataError, match="two samples, 'a/b' and 'a b'"):
        find(tmp_path, ["a/b", "a b"], FACTS, "test", None, "{id}")


def test_the_digest_follows_the_list_of_files(tmp_path):
    saved(tmp_path)
    before = find(tmp_path, IDS, FACTS, "test", None, "{id}").digest()
    assert find(tmp_path, IDS, FACTS, "test", None, "{id}").digest() == before
    assert find(tmp_path, IDS[:2], FACTS, "test", None, "{id}").digest() != before


BAD_ABOUT = {
    "not JSON": ("{", "not readable"),
    "a list": ("[]", "not readable"),
    "without tasks": ({"tasks": None}, "not readable"),
    "newer": ({"format_version": 99}, "does not know"),
    "other data": ({"data": {"name": "rooms"}}, "data set of the predictions is 'rooms', of the labels 'planes'"),
    "other split": ({"split": "val"}, "split of the predictions is 'val'"),
}


@pytest.mark.parametrize("case", BAD_ABOUT)
def test_a_wrong_predictions_json(tmp_path, case):
    saved(tmp_path)
    change, message = BAD_ABOUT[case]
    path = tmp_path / formats.PREDICTIONS_JSON
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((DataError, ConfigError), match=message):
        find(tmp_path, IDS, FACTS, "test", None, "{id}")


@pytest.mark.parametrize(
    ("facts", "message"),
    [({"classes": ["a", "b"]}, "3 classes"), ({"depth_unit": "px"}, "unit of depth of the predictions is 'm'")],
)
def test_predictions_of_other_labels(tmp_path, facts, message):
    saved(tmp_path)
    with pytest.raises(ConfigError, match=message):
        find(tmp_path, IDS, FACTS | facts, "test", None, "{id}")


@pytest.mark.parametrize("pattern", ["x", "{", "{foo}", "{id.x.y}", "{0}", "{id[x]}"])
def test_wrong_patterns(tmp_path, pattern):
    with pytest.raises(ConfigError, match="--pred-name"):
        find(tmp_path, ["1"], FACTS, "test", None, pattern)
