"""m2h evaluate and predict --save through the real command line: what is saved is scored as the network was."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from cli_helpers import m2h, only_run, start, write
from m2h_lightning.cli import main
from m2h_lightning.commands.evaluate_options import read_options
from m2h_lightning.data.folder import Folder
from m2h_lightning.errors import ConfigError
from m2h_lightning.predictions.names import escape
from samples import Planes, PlaneScenes

TEST = [PlaneScenes(3, seed=2)[index] for index in range(3)]
IDS = [sample["id"] for sample in TEST]


class Ragged(Planes):
    """Scenes of two sizes, whose ids have slashes; labels are scored at their own size."""

    name = "ragged"

    def dataset(self, split: str) -> list:
        scenes = []
        for index in range(4):
            scene = PlaneScenes(4, 40 + 8 * (index % 2), 64, seed=3)[index]
            scenes.append(scene | {"id": f"scene {index // 2}/{index}"})
        return scenes


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run with its test scores, and its predictions in both formats; tests do not write in it."""
    root = tmp_path_factory.mktemp("trained")
    file = write(root / "tiny.yaml")
    place = ["--run.root", root / "runs"]
    assert m2h("fit", "--config", file, *place, "--run.id", "first", "--run.test", "true") == 0
    words = ["--config", file, *place, "--ckpt_path", root / "runs/tiny/first/checkpoints/last.ckpt"]
    for form in ("files", "seism"):
        assert m2h("predict", *words, "--save", root / form, "--save_format", form, "--run.id", form) == 0
    return root


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tiny.yaml")
    return tmp_path


@pytest.fixture
def pred(trained, tmp_path):
    """A copy of the predictions, to be spoilt."""
    shutil.copytree(trained / "files", tmp_path / "pred")
    return tmp_path / "pred"


def result_of(path):
    return json.loads(path.read_text())


def flat(tree, prefix=""):
    """Yield "task/metric" and its value."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def scores_of(path, stage="test"):
    return dict(flat(result_of(path)["metrics"][stage]))


def put(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        assert cv2.imwrite(str(path), array)


def perfect(folder, samples=TEST):
    """Write the labels themselves as predictions of others."""
    for sample in samples:
        name = escape(sample["id"])
        put(folder / "semseg" / f"{name}.png", sample["semseg"])
        put(folder / "depth" / f"{name}.npy", sample["depth"])
        put(folder / "normals" / f"{name}.npy", sample["normals"])
        put(folder / "edge" / f"{name}.png", 255 * sample["edges"])
    return folder


# ── what is saved is scored as the network was ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["files", "seism", "npz"])
def test_the_scores_are_those_of_the_test(form, trained, folder):
    """All of the test's scores but those that need class scores or the network's windows."""
    expected = scores_of(trained / "runs/tiny/first/result.json")
    pred = trained / form
    if form == "npz":
        checkpoint = trained / "runs/tiny/first/checkpoints/last.ckpt"
        assert m2h("predict", "--config", "tiny.yaml", "--ckpt_path", checkpoint) == 0
        pred = only_run(folder) / "predictions"
    assert m2h("evaluate", "--pred", pred, "--config", "tiny.yaml", "--out", "result.json") == 0
    got = scores_of(folder / "result.json")
    lost = {key for key in expected if key not in got}
    assert all("loss" in key or "ece" in key or key.startswith("seams/") for key in lost), lost
    degrees = {"files": 0.03, "seism": 0.4, "npz": 1e-5}[form]
    for key, value in got.items():
        if (
            key.startswith("semseg/")
            or "odsf" in key
            or "oisf" in key
            or key in ("images", "edges/ap", "edges/ap_fast")
        ):
            assert value == pytest.approx(expected[key], abs=1e-6), key
        elif key.startswith("depth/"):
            assert value == pytest.approx(expected[key], rel=1e-5), key
        elif key.endswith(("_deg", "_deg_per_image")):
            assert value == pytest.approx(expected[key], abs=degrees), key
        elif key in ("edges/f_pixel", "edges/f_pixel_per_image"):  # thresholds lie between the steps of eight bits
            assert value == pytest.approx(expected[key], abs=0.02), key
    assert {"semseg/miou", "semseg/miou_per_image", "depth/rmse_m", "normals/mean_deg", "edges/odsf"} <= set(got)


def test_the_result_is_that_of_a_run(trained, folder):
    assert (
        m2h("evaluate", "--pred", trained / "files", "--config", "tiny.yaml", "--out", "r.json", "--name", "A b") == 0
    )
    mine, run = result_of(folder / "r.json"), result_of(trained / "runs/tiny/first/result.json")
    for key in ("status", "tasks", "evaluation", "headlines", "data"):
        assert mine[key] == run[key], key
    assert set(mine) - set(run) == {"name", "predictions"}
    assert mine["command"] == "evaluate"
    assert mine["network"] is None
    assert mine["experiment"] == "A-b"
    about = mine["predictions"]
    assert about["tasks"]["depth"] == {"folder": "depth", "files": 3, "missing": 0, "extra": 0, "resized": 0}
    assert not about["partial"]
    assert about["notes"] == []
    assert m2h("table", folder / "r.json", trained / "runs/tiny/first") == 0


def test_predictions_json_says_what_the_numbers_are(trained):
    about = result_of(trained / "files" / "predictions.json")
    assert about["samples"] == 3
    assert about["data"]["name"] == "planes"
    assert about["tasks"]["semseg"]["classes"] == ["dark", "none", "bright"]
    assert about["tasks"]["depth"]["unit"] == "m"
    assert about["tasks"]["normals"]["axes"] == "x,y,z"
    assert about["checkpoint"].endswith("last.ckpt")
    assert sorted(p.stem for p in (trained / "files/semseg").iterdir()) == sorted(IDS)


def test_saving_again_replaces_and_nothing_of_others_is_touched(trained, folder, pred, capsys):
    words = ["predict", "--config", "tiny.yaml", "--ckpt_path", trained / "runs/tiny/first/checkpoints/last.ckpt"]
    before = (pred / "depth" / f"{IDS[0]}.npy").read_bytes()
    put(pred / "depth" / f"{IDS[0]}.npy", np.zeros((48, 64), np.float32))
    assert m2h(*words, "--save", pred) == 0
    assert (pred / "depth" / f"{IDS[0]}.npy").read_bytes() == before
    assert not (pred / ".m2h-unfinished").exists()
    put(folder / "labels/depth/1.npy", np.ones(3))
    for place, text in ((folder / "labels", "did not write"), (folder / "tiny.yaml", "is a file")):
        assert text in error_of(capsys, *words, "--save", place)
    assert "save_format" in error_of(capsys, *words, "--save_format", "seism")
    assert "save" in error_of(capsys, "fit", "--config", "tiny.yaml", "--save", "x")
    assert len(list((folder / "runs/tiny").iterdir())) == 1


def test_ragged_sizes_and_ids_with_slashes(folder, trained):
    words = ["--config", "tiny.yaml", "--data", "test_evaluate.Ragged", "--data.eval_size", "[32, 48]"]
    words += ["--data.batch_size", "4"]
    checkpoint = ["--ckpt_path", "runs/tiny/a/checkpoints/last.ckpt"]
    assert m2h("fit", *words, "--run.id", "a", "--run.test", "true") == 0
    assert m2h("predict", *words, *checkpoint, "--save", "out", "--run.id", "b") == 0
    assert np.load("out/depth/scene%200/1.npy").shape == (48, 64)
    assert np.load("out/depth/scene%201/2.npy").shape == (40, 64)
    assert m2h("evaluate", "--pred", "out", *words) == 0
    got, expected = (scores_of(folder / place) for place in ("out/result.json", "runs/tiny/a/result.json"))
    for key in ("semseg/miou", "depth/rmse_m", "depth/rmse_m_per_image", "edges/odsf"):
        assert got[key] == pytest.approx(expected[key], rel=1e-5), key


def test_two_processes_write_one_folder(trained, folder, tmp_path):
    checkpoint = trained / "runs/tiny/first/checkpoints/last.ckpt"
    words = ["predict", "--config", "tiny.yaml", "--ckpt_path", checkpoint, "--save", "two", "--trainer.devices", "2"]
    words += ["--trainer.strategy", "ddp", "--data.batch_size", "1"]
    process = start(folder, tmp_path, *words)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    assert result_of(folder / "two/predictions.json")["samples"] == 3
    for task in ("depth", "semseg", "edges"):
        for path in sorted((trained / "files" / task).iterdir()):
            a, b = path, folder / "two" / task / path.name
            values = [np.load(p) if task == "depth" else cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in (a, b)]
            np.testing.assert_allclose(values[0].astype(float), values[1].astype(float), rtol=1e-4, atol=1)


# ── predictions of others ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_labels_themselves_are_perfect(folder, capsys):
    perfect(folder / "best")
    # Of so small a picture the usual tolerance is half a pixel, less than what thinning may move a line.
    assert m2h("evaluate", "--pred", "best", "--data", "samples.Planes", "--metrics.max_dist", "0.02") == 0
    scores = scores_of(folder / "best/result.json")
    assert scores["semseg/miou"] == 1
    assert scores["depth/rmse_m"] == 0
    assert scores["normals/mean_deg"] == pytest.approx(0, abs=1e-3)
    assert scores["edges/f_pixel"] == 1
    assert scores["edges/odsf"] > 0.9
    out = capsys.readouterr().out
    assert "best on 'planes' (test), 3 images" in out


def test_conventions_of_others(folder, capsys):
    """Millimetres, classes from one, other axes, half size: told on the command line, they score as the labels do."""
    for sample in TEST:
        name = f"{sample['id']}_out"
        put(folder / "odd/segmentation" / f"{name}.png", sample["semseg"] + 1)
        put(folder / "odd/depth" / f"{name}.png", np.rint(sample["depth"] * 1000).astype(np.uint16))
        coded = np.rint((sample["normals"] * [1, -1, -1] + 1) * 127.5).astype(np.uint8)
        put(folder / "odd/normal" / f"{name}.png", coded[..., ::-1])
        put(folder / "odd/edge" / f"{name}.png", cv2.resize(255 * sample["edges"], (32, 24)))
    words = ["evaluate", "--pred", "odd", "--data", "samples.Planes", "--pred-name", "{id}_out"]
    told = ["--pred-depth-scale", "0.001", "--pred-normal-axes", "x,-y,-z", "--pred-semseg-offset", "-1"]
    assert m2h(*words, *told) == 0
    result = result_of(folder / "odd/result.json")
    scores = scores_of(folder / "odd/result.json")
    assert scores["semseg/miou"] == 1
    assert 0 < scores["depth/rmse_m"] < 0.001
    assert 0 < scores["normals/mean_deg"] < 0.4
    assert result["predictions"]["conventions"] == {
        "depth_scale": 0.001, "normal_axes": "x,-y,-z", "semseg_offset": -1
    }  # fmt: skip
    assert (
        "edges: 3 predictions resized to their labels' size (bilinear; e.g. 24×32 to 48×64)" in capsys.readouterr().out
    )
    told[told.index("x,-y,-z")] = "x,y,z"
    assert m2h(*words, *told) == 0
    assert "other axes? (--pred-normal-axes)" in capsys.readouterr().out


def test_only_some_tasks(folder, pred):
    (pred / "result.json").unlink(missing_ok=True)
    assert m2h("evaluate", "--pred", pred, "--config", "tiny.yaml", "--tasks", "depth", "semseg") == 0
    assert result_of(pred / "result.json")["tasks"] == ["semseg", "depth"]
    shutil.copytree(pred / "depth", folder / "alone")
    assert m2h("evaluate", "--pred", "alone", "--config", "tiny.yaml", "--tasks", "depth") == 0
    both, alone = (scores_of(place / "result.json") for place in (pred, folder / "alone"))
    assert alone["depth/rmse_m"] == both["depth/rmse_m"]
    assert not any(key.startswith("semseg") for key in alone)


def test_partial_scores_what_is_there(folder, capsys):
    """Missing files leave the scores of the others as they are; batches with and without them give the same."""
    perfect(folder / "part")
    for sample in TEST:  # not perfect, and different in each image
        put(folder / "part/depth" / f"{sample['id']}.npy", sample["depth"] * (1.1 + 0.1 * int(sample["id"][-1])))
    (folder / "part/depth" / f"{IDS[1]}.npy").unlink()
    put(folder / "part/depth/stranger.npy", np.ones(3))
    words = ["evaluate", "--pred", "part", "--data", "samples.Planes"]
    line = error_of(capsys, *words)
    assert f"missing are 1 of 3 predictions of depth ({IDS[1]}); --partial" in line
    assert m2h(*words, "--partial", "--out", "a.json") == 0
    assert m2h(*words, "--partial", "--out", "b.json", "--data.batch_size", "1") == 0
    out = capsys.readouterr().out
    assert f"depth: partial, 1 files missing ({IDS[1]})" in out
    assert "depth: 1 files belong to no sample of the split (stranger.npy)" in out
    a = result_of(folder / "a.json")
    assert a["predictions"]["partial"]
    assert "partial" in a["data"]["test"]
    scores, singly = (scores_of(folder / name) for name in ("a.json", "b.json"))
    assert singly == pytest.approx(scores, rel=1e-6)
    errors = [np.sqrt(np.mean((f * s["depth"]) ** 2)) for f, s in ((0.1, TEST[0]), (0.3, TEST[2]))]
    assert scores["depth/rmse_m_per_image"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert scores["depth/rmse_m"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-4)
    assert scores["semseg/miou"] == 1
    shutil.rmtree(folder / "part/semseg")
    for sample in TEST[1:]:
        for path in (folder / "part").rglob(f"{sample['id']}.*"):
            path.unlink()
    assert m2h(*words, "--partial", "--out", "c.json") == 0
    one = scores_of(folder / "c.json")
    assert one["images"] == 1
    assert one["depth/rmse_m"] == pytest.approx(errors[0], rel=1e-4)


def test_validation_samples_are_called_so(folder, capsys):
    perfect(folder / "val", [PlaneScenes(3, seed=1)[index] for index in range(3)])
    words = ["evaluate", "--pred", "val", "--data", "samples.Planes"]
    assert m2h(*words, "--split", "val") == 0
    assert set(result_of(folder / "val/result.json")["metrics"]) == {"val"}
    assert "no prediction of any of the 3 test samples" in error_of(capsys, *words)


def test_scoring_follows_the_experiment_and_the_command_line(folder):
    write(folder / "capped.yaml", (folder / "tiny.yaml").read_text().replace("head_channels: 8", "metrics: {cap: 4}"))
    perfect(folder / "best")
    words = ["evaluate", "--pred", "best", "--config", "capped.yaml"]
    for extra, cap in (([], 4), (["--metrics.cap", "6"], 6), (["--model.metrics.cap=5"], 5)):
        assert m2h(*words, *extra) == 0
        assert result_of(folder / "best/result.json")["evaluation"]["cap"] == cap
    assert m2h(*words, "--metrics.protocol", "per_image", "--metrics.odsf_test", "none") == 0
    result = result_of(folder / "best/result.json")
    assert result["evaluation"]["protocol"] == "per_image"
    assert result["headlines"]["edges"]["pooled"] == "f_pixel"


def test_stability_from_frame_to_frame(folder):
    """The labels themselves flicker as little as labels do; one of two frames too deep shows."""
    words = ["--layout", "folder", "--walk", "--rooms", "1", "--views", "3", "--height", "48", "--width", "64"]
    assert m2h("data", "synthesize", "rooms", "--out", folder / "walk", *words, "--workers", "1") == 0
    samples = list(Folder(path=str(folder / "walk")).dataset("test"))
    assert len(samples) == 3
    data = ["--data", "Folder", "--data.path", folder / "walk", "--data.workers", "0", "--metrics.odsf_test", "none"]
    for sample in samples:
        put(folder / "pred/depth" / f"{escape(sample['id'])}.npy", sample["depth"])
        put(
            folder / "pred/semseg" / f"{escape(sample['id'])}.png",
            np.where(sample["semseg"] == 255, 0, sample["semseg"]),
        )
    assert m2h("evaluate", "--pred", "pred", *data, "--temporal", "on") == 0
    still = scores_of(folder / "pred/result.json")
    assert still["temporal/pairs"] == 2
    assert still["temporal/depth_absrel"] == pytest.approx(still["temporal/target_depth_absrel"], rel=1e-6)
    put(folder / "pred/depth" / f"{escape(samples[1]['id'])}.npy", 1.2 * samples[1]["depth"])
    assert m2h("evaluate", "--pred", "pred", *data) == 0
    moving = scores_of(folder / "pred/result.json")
    assert moving["temporal/depth_absrel"] > still["temporal/depth_absrel"] + 0.1
    assert m2h("evaluate", "--pred", "pred", *data, "--temporal", "off") == 0
    assert not any(key.startswith("temporal") for key in scores_of(folder / "pred/result.json"))


# ── wrong input: one line, exit code 2 ──────────────────────────────────────────────────────────────────────────────


def error_of(capsys, *words):
    """Run the command; return its one line on stderr."""
    capsys.readouterr()
    assert m2h(*words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("m2h: error: ")]
    assert len(lines) == 1, lines
    return lines[0]


WORDS = {
    "no predictions named": ([], "--pred"),
    "no folder": (["--pred", "nowhere"], "nowhere does not exist"),
    "a file": (["--pred", "tiny.yaml"], "tiny.yaml is a file"),
    "no value": (["--pred"], "--pred needs a value"),
    "a misspelt option": (["--pred", "pred", "--pred-depth-scal", "1"], "did you mean 'pred-depth-scale'?"),
    "an abbreviation": (["--pred", "pred", "--par"], "no option --par"),
    "a key of the network": (["--pred", "pred", "--model.channels", "8"], "builds no network"),
    "a key of the trainer": (["--pred", "pred", "--trainer.devices", "2"], "builds no network"),
    "a checkpoint": (["--pred", "pred", "--ckpt_path", "x"], "builds no network"),
    "a word too many": (["--pred", "pred", "extra"], "extra"),
    "a wrong split": (["--pred", "pred", "--split", "train"], "train"),
    "a wrong choice": (["--pred", "pred", "--temporal", "yes"], "yes"),
    "a wrong scale": (["--pred", "pred", "--pred-depth-scale", "mm"], "mm"),
    "a negative scale": (["--pred", "pred", "--pred-depth-scale", "-1"], "--pred-depth-scale is -1"),
    "wrong axes": (["--pred", "pred", "--pred-normal-axes", "-x,y"], "--pred-normal-axes is '-x,y'"),
    "a wrong offset": (["--pred", "pred", "--pred-semseg-offset", "one"], "one"),
    "a wrong palette": (["--pred", "pred", "--pred-semseg-palette", "ade"], "--pred-semseg-palette is 'ade'"),
    "a wrong pattern": (["--pred", "pred", "--pred-name", "x"], "--pred-name is 'x'"),
    "an unknown task": (["--pred", "pred", "--tasks", "flow"], "no labels for 'flow'"),
    "a task twice": (["--pred", "pred", "--tasks", "depth", "depth"], "each once"),
    "no task": (["--pred", "pred", "--tasks"], "--tasks"),
    "a folder to write": (["--pred", "pred", "--out", "pred"], "is a folder"),
    "no folder to write in": (["--pred", "pred", "--out", "a/b.json"], "no folder a"),
    "another's file": (["--pred", "pred", "--out", "tiny.yaml"], "is no result of m2h evaluate"),
    "an empty name": (["--pred", "pred", "--name", " "], "--name is empty"),
    "a wrong metric": (["--pred", "pred", "--metrics.capp", "3"], "did you mean 'model.metrics.cap'?"),
    "a wrong protocol": (["--pred", "pred", "--metrics.protocol", "mean"], "model.metrics.protocol is 'mean'"),
    "a cap below zero": (["--pred", "pred", "--metrics.cap", "-3"], "metrics.cap is -3"),
    "a misspelt data key": (["--pred", "pred", "--data.batch_sise", "3"], "did you mean 'data.batch_size'?"),
    "no sequence": (["--pred", "pred", "--temporal", "on"], "--temporal on"),
    "conventions of our own": (["--pred", "pred", "--pred-depth-scale", "0.001"], "leave out --pred-depth-scale"),
}


@pytest.mark.parametrize("case", WORDS)
def test_wrong_words(case, pred, folder, capsys):
    words, message = WORDS[case]
    assert message in error_of(capsys, "evaluate", *words, "--config", "tiny.yaml")
    assert not (pred / "result.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "data"),
        (["--config", "none.yaml"], "no file none.yaml"),
        (["--data", "Plane"], "no class 'Plane'"),
        (["--data", "NYUDv2", "--data.path", "nowhere"], "nowhere"),
        (["--data", "NYUDv2", "--data.root", "nowhere"], "nyud"),
        (["--data", "Rooms", "--data.size", "[48,64]", "--data.rooms", "[1,1,1]"], "the predictions is 'planes'"),
    ],
)
def test_wrong_data(words, message, pred, capsys):
    assert message in error_of(capsys, "evaluate", "--pred", pred, *words)


def spoil_cut(pred):
    path = pred / "semseg" / f"{IDS[1]}.png"
    path.write_bytes(path.read_bytes()[:60])


SPOILT = {
    "cut off": (spoil_cut, f"semseg/{IDS[1]}.png"),
    "missing": (
        lambda p: (p / "depth" / f"{IDS[2]}.npy").unlink(),
        f"missing are 1 of 3 predictions of depth ({IDS[2]})",
    ),
    "a class too many": (lambda p: put(p / "semseg" / f"{IDS[0]}.png", np.full((48, 64), 3, np.uint8)), "class 3"),
    "NaN": (lambda p: put(p / "depth" / f"{IDS[0]}.npy", np.full((48, 64), np.nan)), "NaN or infinite at 3072"),
    "channels": (lambda p: put(p / "normals" / f"{IDS[0]}.npy", np.ones((48, 64, 2))), "H×W×3"),
    "another shape": (lambda p: put(p / "edges" / f"{IDS[0]}.png", np.zeros((64, 48), np.uint8)), "64×48"),
    "no task left": (
        lambda p: [shutil.rmtree(p / t) for t in ("semseg", "depth", "normals", "edges")],
        "no prediction",
    ),
    "a broken predictions.json": (lambda p: (p / "predictions.json").write_text("{"), "predictions.json: not readable"),
    "interrupted": (lambda p: (p / ".m2h-unfinished").touch(), "was interrupted"),
    "a run's result": (lambda p: (p / "result.json").write_text('{"command": "fit"}'), "is no result of m2h evaluate"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_predictions(case, pred, capsys):
    spoil, message = SPOILT[case]
    spoil(pred)
    line = error_of(capsys, "evaluate", "--pred", pred, "--config", "tiny.yaml")
    assert message in line, line
    assert str(pred) in line


def test_the_run_folder_instead_of_its_predictions(folder, capsys):
    perfect(folder / "run/predictions")
    line = error_of(capsys, "evaluate", "--pred", "run", "--data", "samples.Planes")
    assert f"did you mean {Path('run/predictions')}?" in line


def test_values_may_start_with_a_dash(folder):
    (folder / "p").mkdir()
    options = read_options(
        ["--pred", "p", "--pred_normal_axes", "-x,y,-z", "--pred-semseg-offset", "-1", "--data", "Rooms"]
    )
    assert options.conventions.normal_axes == "-x,y,-z"
    assert options.conventions.semseg_offset == -1
    assert options.words == ["--data", "Rooms"]
    with pytest.raises(ConfigError, match="no option --models"):
        read_options(["--pred", "p", "--models", "x"])


def test_help_needs_nothing(capsys):
    assert main(["evaluate", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--pred-normal-axes" in out


# ── what is not one complete set of predictions for these labels ────────────────────────────────────────────────────


def refused(capsys, *words):
    assert m2h("evaluate", *words) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("m2h: error: ") and error.count("\n") == 0, error
    return error


def test_files_of_an_earlier_run_are_not_taken_for_the_last_ones(trained, pred, capsys):
    checkpoint = trained / "runs/tiny/first/checkpoints/last.ckpt"
    words = ["--config", "tiny.yaml", "--ckpt_path", checkpoint, "--save", pred]
    assert m2h("predict", *words, "--trainer.limit_predict_batches", 1) == 0
    assert result_of(pred / "predictions.json")["samples"] == 2
    error = refused(capsys, "--pred", pred, "--config", "tiny.yaml", "--partial")
    assert "3 predictions of the split" in error and "wrote 2" in error and "earlier run" in error
    assert m2h("predict", *words) == 0
    assert m2h("evaluate", "--pred", pred, "--config", "tiny.yaml") == 0


def test_what_an_interrupted_run_left_is_partial(pred, capsys):
    (pred / "predictions.json").unlink()
    (pred / ".m2h-unfinished").touch()
    assert "interrupted" in refused(capsys, "--pred", pred, "--config", "tiny.yaml")
    assert m2h("evaluate", "--pred", pred, "--config", "tiny.yaml", "--partial") == 0
    assert "interrupted here" in capsys.readouterr().out
    assert "partial" in result_of(pred / "result.json")["data"]["test"]


def test_predictions_are_scored_at_the_size_they_were_made_for(trained, folder, capsys):
    checkpoint = trained / "runs/tiny/first/checkpoints/last.ckpt"
    size = ["--data.eval_size", "[32,48]"]
    assert m2h("predict", "--config", "tiny.yaml", "--ckpt_path", checkpoint, *size, "--save", "small") == 0
    assert "add --data.eval_size [32,48]" in refused(capsys, "--pred", "small", "--config", "tiny.yaml")
    inputs = [*size, "--data.eval_labels", "input"]
    error = refused(capsys, "--pred", "small", "--config", "tiny.yaml", *inputs)
    assert 'add --data.eval_labels "own"' in error
    assert m2h("evaluate", "--pred", "small", "--config", "tiny.yaml", *size) == 0
    assert result_of(folder / "small/result.json")["data"]["eval_size"] == [32, 48]


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["tasks"]["semseg"].update(classes=5),
        lambda about: about["tasks"]["normals"].update(axes="x,-y,-z"),
        lambda about: about["tasks"]["depth"].update(folder="../elsewhere"),
        lambda about: about.pop("samples"),
    ],
)
def test_a_changed_predictions_json_is_told(change, pred, capsys):
    about = result_of(pred / "predictions.json")
    change(about)
    (pred / "predictions.json").write_text(json.dumps(about))
    assert "predictions.json: " in refused(capsys, "--pred", pred, "--config", "tiny.yaml")


def test_predictions_of_other_files_of_the_set_are_noted(pred, capsys):
    about = result_of(pred / "predictions.json")
    about["data"]["test_fingerprint"] = "planes of last year"
    (pred / "predictions.json").write_text(json.dumps(about))
    assert m2h("evaluate", "--pred", pred, "--config", "tiny.yaml") == 0
    assert "note: the predictions were made from planes of last year" in capsys.readouterr().out


def test_an_array_whose_header_asks_for_all_memory_is_damaged(pred, capsys):
    path = next((pred / "depth").glob("*.npy"))
    header = np.lib.format.header_data_from_array_1_0(np.zeros((1, 1), np.float32)) | {"shape": (10**6, 10**6)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    error = refused(capsys, "--pred", pred, "--config", "tiny.yaml")
    assert str(path) in error and "corrupt or cut off" in error


def test_a_full_disk_is_one_line(trained, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("12288 requested and 6112 written")

    monkeypatch.setattr(np, "save", full)
    checkpoint = trained / "runs/tiny/first/checkpoints/last.ckpt"
    assert m2h("predict", "--config", "tiny.yaml", "--ckpt_path", checkpoint, "--save", "there") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "cannot be written (12288 requested and 6112 written): free space" in error
