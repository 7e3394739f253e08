"""Reading prediction files of any maker: conventions, sizes, and what cannot be scored."""

import numpy as np
import pytest
import torch

from m2h_lightning.data.sources.axes import ALL_AXES, apply_axes
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.labels import class_palette
from m2h_lightning.predictions.values import Conventions
from prediction_helpers import SIZE, angle, arrays, put, read, reader, zeros


def test_classes_from_one_and_in_colours(tmp_path):
    truth = arrays()["semseg"].astype(np.int64)
    np.testing.assert_array_equal(
        read("semseg", put(tmp_path / "a.png", (truth + 1).astype(np.uint8)), semseg_offset=-1), truth
    )
    np.testing.assert_array_equal(read("semseg", put(tmp_path / "b.npy", truth.astype(np.float64))), truth)
    np.testing.assert_array_equal(read("semseg", put(tmp_path / "c.npy", truth[None])), truth)
    # The VOC colours by their definition: three bits of the index at a time, from the highest bit of a channel down.
    colours = np.zeros((*SIZE, 3), np.uint8)
    for (row, column), value in np.ndenumerate(truth + 1):
        for level in range(8):
            for channel in range(3):
                colours[row, column, channel] |= (((int(value) >> (3 * level)) >> channel) & 1) << (7 - level)
    path = put(tmp_path / "d.png", colours[..., ::-1])
    np.testing.assert_array_equal(read("semseg", path, semseg_palette="voc", semseg_offset=-1), truth)
    assert len({tuple(c) for c in class_palette(254)[:254].tolist()} | {(0, 0, 0)}) == 255


def test_depth_codes(tmp_path):
    depth = arrays()["depth"]
    millimetres = np.rint(depth * 1000).astype(np.uint16)
    got = read("depth", put(tmp_path / "a.png", millimetres), depth_scale=0.001)
    np.testing.assert_allclose(got, millimetres / 1000, rtol=1e-6)
    for path in (
        put(tmp_path / "b.npy", depth.astype(np.float64)),
        put(tmp_path / "c.mat", {"depth": depth}),
        put(tmp_path / "d.npz", {"depth": depth, "edges": zeros()}),
        put(tmp_path / "e.npz", {"arr_0": depth}),
        put(tmp_path / "f.npy", depth[..., None]),
        put(tmp_path / "g.tif", depth),
    ):
        np.testing.assert_array_equal(read("depth", path), depth)


@pytest.mark.parametrize("axes", ALL_AXES)
def test_axes(tmp_path, axes):
    normals = arrays()["normals"]
    got = read("normals", put(tmp_path / "a.npy", normals), normal_axes=axes)
    np.testing.assert_allclose(got, apply_axes(normals, axes), atol=1e-6)
    coded = np.rint((normals + 1) * 127.5).astype(np.uint8)
    got = read("normals", put(tmp_path / "a.png", coded[..., ::-1]), normal_axes=axes)
    assert angle(got, apply_axes(normals, axes)).max() < 0.4


def test_normals_of_other_layouts(tmp_path):
    normals = arrays()["normals"]
    np.testing.assert_allclose(read("normals", put(tmp_path / "a.npy", normals.transpose(2, 0, 1))), normals, atol=1e-6)
    np.testing.assert_allclose(read("normals", put(tmp_path / "b.npy", 0.9 * normals)), normals, atol=1e-6)
    normals[0, 0] = 0  # no direction: zero, which is scored as 90°
    assert not read("normals", put(tmp_path / "c.npy", normals))[0, 0].any()
    grey = np.full((*SIZE, 3), 128, np.uint8)
    assert not read("normals", put(tmp_path / "d.png", grey)).any()


def test_edges_of_other_types(tmp_path):
    edges = arrays()["edges"]
    np.testing.assert_allclose(read("edges", put(tmp_path / "a.npy", edges)), edges, atol=1e-7)
    np.testing.assert_allclose(
        read("edges", put(tmp_path / "b.png", np.rint(edges * 65535).astype(np.uint16))), edges, atol=1e-5
    )
    np.testing.assert_array_equal(read("edges", put(tmp_path / "c.npy", edges > 0.5)), edges > 0.5)


def test_other_sizes_are_resized_and_told(tmp_path):
    big = (24, 32)
    values = arrays(size=SIZE)
    files = {
        "semseg": put(tmp_path / "s.png", values["semseg"]),
        "depth": put(tmp_path / "d.npy", values["depth"]),
        "normals": put(tmp_path / "n.npy", values["normals"]),
        "edges": put(tmp_path / "e.npy", values["edges"]),
    }
    own = reader()
    label = np.ones(big)
    got = {task: own.read(task, path, big, label, np.ones(big, bool)) for task, path in files.items()}
    np.testing.assert_array_equal(got["semseg"], values["semseg"].repeat(4, 0).repeat(4, 1))
    for task in ("depth", "edges"):
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(values[task])[None, None], size=big, mode="bilinear"
        )
        np.testing.assert_allclose(got[task], expected[0, 0].numpy(), rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(got["normals"], axis=-1), 1, atol=1e-5)
    assert own.resized == dict.fromkeys(files, 1)
    assert sum("6×8 to 24×32" in line for line in own.notes()) == 4


@pytest.mark.parametrize(
    ("size", "fits"),
    [
        ((212, 280), True),
        ((448, 576), False),
        ((480, 640), False),
        ((240, 320), False),
        ((850, 1120), True),
        ((560, 425), False),
    ],
)
def test_only_the_same_shape_of_picture_is_resized(tmp_path, size, fits):
    """425×560 is cut from 480×640 and padded to 448×576: resizing those would shift every pixel."""
    path = put(tmp_path / "d.npy", np.ones(size, np.float32))
    if fits:
        assert read("depth", path, (425, 560)).shape == (425, 560)
    else:
        with pytest.raises(DataError, match="another shape of picture"):
            read("depth", path, (425, 560))


def test_what_is_not_scored_need_not_be_right(tmp_path):
    scored = np.ones(SIZE, bool)
    scored[0, 0] = False
    wrong = {"semseg": 255, "depth": np.nan, "normals": np.nan, "edges": np.nan}
    for task, value in wrong.items():
        values = arrays()[task]
        values[0, 0] = value
        got = read(task, put(tmp_path / f"{task}.npy", values), scored=scored)
        assert np.isfinite(got).all()
        assert task != "semseg" or got.max() < 3
        with pytest.raises(DataError, match=f"{task}.npy"):
            read(task, tmp_path / f"{task}.npy")


def noise():
    return np.random.default_rng(0).integers(0, 255, (60, 80))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


BAD_FILES = {
    "missing": ("depth", lambda d: d / "none.npy", "missing"),
    "a cut .npy": ("depth", lambda d: cut(put(d / "a.npy", arrays()["depth"])), "corrupt or cut off"),
    "a cut .png": ("edges", lambda d: cut(put(d / "a.png", noise())), "corrupt or cut off"),
    "a cut .npz": ("depth", lambda d: cut(put(d / "a.npz", {"depth": arrays()["depth"]})), "corrupt"),
    "a cut .mat": ("depth", lambda d: cut(put(d / "a.mat", {"depth": arrays()["depth"]})), "corrupt"),
    "an empty file": ("edges", lambda d: cut(cut(cut(cut(put(d / "a.npy", np.zeros(1)))))), "corrupt"),
    "text": ("semseg", lambda d: (d / "a.png").write_text("hello") and d / "a.png", "not a readable image"),
    "objects": ("depth", lambda d: put(d / "a.npy", np.array([{}], object)), "corrupt"),
    "words": ("depth", lambda d: put(d / "a.npy", np.array(["x"])), "holds no numbers"),
    "complex numbers": ("depth", lambda d: put(d / "a.npy", np.ones(SIZE, complex)), "holds no numbers"),
    "no pixel": ("depth", lambda d: put(d / "a.npy", np.ones((0, 8))), "holds no numbers"),
    "one number": ("depth", lambda d: put(d / "a.npy", np.ones(())), "expected H×W"),
    "a row": ("edges", lambda d: put(d / "a.npy", np.ones(8)), "is 8; expected H×W"),
    "a batch": ("depth", lambda d: put(d / "a.npy", np.ones((2, *SIZE))), "expected H×W"),
    "an archive of others": ("depth", lambda d: put(d / "a.npz", {"a": zeros(), "b": zeros()}), "but a, b"),
    "an empty archive": ("depth", lambda d: put(d / "a.npz", {}), "holds no 'depth' but nothing"),
    "a .mat of others": ("depth", lambda d: put(d / "a.mat", {"D": zeros()}), "holds no 'depth' but D"),
    "class scores": ("semseg", lambda d: put(d / "a.npy", np.zeros((*SIZE, 40))), "6×8×40, of several channels"),
    "scores first": ("semseg", lambda d: put(d / "a.npy", np.zeros((40, *SIZE))), "several channels"),
    "colours": ("semseg", lambda d: put(d / "a.png", np.zeros((*SIZE, 3), np.uint8)), "--pred-semseg-palette"),
    "half classes": ("semseg", lambda d: put(d / "a.npy", np.full(SIZE, 0.5)), "no whole numbers"),
    "NaN classes": ("semseg", lambda d: put(d / "a.npy", np.full(SIZE, np.nan)), "no whole numbers"),
    "a class too many": ("semseg", lambda d: put(d / "a.png", np.full(SIZE, 3, np.uint8)), "--pred-semseg-offset -1"),
    "a far class": ("semseg", lambda d: put(d / "a.png", np.full(SIZE, 40, np.uint8)), "class 40 at 48"),
    "a negative class": ("semseg", lambda d: put(d / "a.npy", np.full(SIZE, -1)), "class -1"),
    "integers as depth": ("depth", lambda d: put(d / "a.png", np.ones(SIZE, np.uint16)), "--pred-depth-scale"),
    "a picture of depth": ("depth", lambda d: put(d / "a.png", np.ones(SIZE, np.uint8)), "picture for viewing"),
    "coloured depth": ("depth", lambda d: put(d / "a.png", np.ones((*SIZE, 3), np.uint8)), "3 channels"),
    "depth of zero": ("depth", lambda d: put(d / "a.npy", np.zeros(SIZE)), "not above 0 at 48 scored pixels"),
    "negative depth": ("depth", lambda d: put(d / "a.npy", np.full(SIZE, -2.0)), "smallest -2"),
    "NaN depth": ("depth", lambda d: put(d / "a.npy", np.full(SIZE, np.nan)), "NaN or infinite at 48"),
    "infinite depth": ("depth", lambda d: put(d / "a.npy", np.full(SIZE, np.inf)), "NaN or infinite at 48"),
    "grey normals": ("normals", lambda d: put(d / "a.png", zeros()), "1 channel"),
    "two channels": ("normals", lambda d: put(d / "a.npy", np.zeros((*SIZE, 2))), "normals are H×W×3"),
    "flat normals": ("normals", lambda d: put(d / "a.npy", np.zeros(SIZE)), "normals are H×W×3"),
    "long normals": ("normals", lambda d: put(d / "a.npy", 255 * arrays()["normals"]), "255 long"),
    "integer normals": ("normals", lambda d: put(d / "a.npy", np.zeros((*SIZE, 3), np.int64)), "normals are int64"),
    "NaN normals": ("normals", lambda d: put(d / "a.npy", np.full((*SIZE, 3), np.nan)), "NaN or infinite at 48"),
    "logits as edges": ("edges", lambda d: put(d / "a.npy", np.full(SIZE, -3.0)), "sigmoid"),
    "edges of 0..255 as floats": ("edges", lambda d: put(d / "a.npy", np.full(SIZE, 200.0)), "to 200"),
    "NaN edges": ("edges", lambda d: put(d / "a.npy", np.full(SIZE, np.nan)), "NaN or infinite at 48"),
    "integer edges": ("edges", lambda d: put(d / "a.npy", np.zeros(SIZE, np.int32)), "edges are int32"),
    "coloured edges": ("edges", lambda d: put(d / "a.png", np.zeros((*SIZE, 3), np.uint8)), "3 channels"),
    "another shape": ("edges", lambda d: put(d / "a.png", np.zeros((8, 6), np.uint8)), "8×6, the label is 6×8"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_one_line_that_names_the_file(tmp_path, case):
    task, make, message = BAD_FILES[case]
    path = make(tmp_path)
    with pytest.raises(DataError) as caught:
        read(task, path)
    line = str(caught.value)
    assert line.startswith(str(path)), line
    assert message in line
    assert "\n" not in line


def test_a_palette_that_is_another(tmp_path):
    path = put(tmp_path / "a.png", np.full((*SIZE, 3), 77, np.uint8))
    with pytest.raises(DataError, match=r"colour \[77, 77, 77\]"):
        read("semseg", path, semseg_palette="voc")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth_scale": 0.0}, "--pred-depth-scale is 0"),
        ({"depth_scale": float("nan")}, "--pred-depth-scale is nan"),
        ({"normal_axes": "x,y"}, "--pred-normal-axes is 'x,y'"),
        ({"normal_axes": "x,x,z"}, "--pred-normal-axes"),
        ({"semseg_palette": "ade"}, "--pred-semseg-palette is 'ade'"),
    ],
)
def test_conventions_check_themselves(values, message):
    with pytest.raises(ConfigError, match=message):
        Conventions(**values)


def test_wrong_units_are_noticed(tmp_path):
    own = reader()
    label = arrays()["depth"]
    scored = np.ones(SIZE, bool)
    own.read("depth", put(tmp_path / "a.npy", label), SIZE, label, scored)
    assert own.notes() == []
    own = reader()
    own.read("depth", put(tmp_path / "a.npy", 1000 * label), SIZE, label, scored)
    own.read("edges", put(tmp_path / "e.png", np.eye(6, 8, dtype=np.uint8)), SIZE, label, scored)
    assert ["1e+03 times the label" in own.notes()[0], "write 0 and 255" in own.notes()[1]] == [True, True]
