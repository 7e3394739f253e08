"""Where and how a run is scored: at the labels' own size, with details in tests, under named protocols."""

import json

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from cli_helpers import m2h, only_run, write
from m2h_lightning.data.sample import collate, to_contract
from m2h_lightning.data.transforms import EvalTransform
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.metrics import MetricsConfig
from m2h_lightning.network.padding import at_label_size
from samples import Planes, PlaneScenes, plane_sample, tiny_module


def quiet(tmp_path, **settings):
    return L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path, **settings,
    )  # fmt: skip


def batch_of(*sizes, transform=None):
    transform = transform or EvalTransform()
    rng = np.random.default_rng(0)
    samples = [transform(plane_sample(h, w, seed=index), rng) for index, (h, w) in enumerate(sizes)]
    return to_contract(collate(samples))


def test_labels_keep_their_size_when_images_are_resized():
    batch = batch_of((48, 64), (40, 80), transform=EvalTransform((32, 32)))
    assert batch["image"].shape == (2, 3, 32, 32)
    assert batch["depth"].shape == (2, 1, 48, 80)
    assert batch["label_size"].tolist() == [[48, 64], [40, 80]]
    assert batch["image_size"].tolist() == [[32, 32], [32, 32]]
    assert (batch["depth"][0, 0, :, 64:] == 0).all() and (batch["semseg"][1, 40:] == 255).all()
    assert batch["K"][0, 0, 0] == pytest.approx(0.9 * 64 * 32 / 64), "K is the image's"


def test_labels_follow_the_image_when_asked():
    batch = batch_of((48, 64), (40, 80), transform=EvalTransform((32, 32), labels="input"))
    assert batch["depth"].shape == (2, 1, 32, 32)
    assert batch["label_size"].tolist() == [[32, 32], [32, 32]]


def test_maps_of_resized_images_are_brought_to_each_labels_own_size():
    """A map that is a ramp over its image is the same ramp over the label, whatever the padding around both."""
    batch = batch_of((48, 64), (40, 80), transform=EvalTransform((32, 32)))
    ramp = (torch.arange(32) + 0.5) / 32
    raw = ramp.expand(2, 1, 32, 32)
    got = at_label_size({"depth": raw}, batch["image_size"], batch["label_size"])["depth"]
    assert got.shape == (2, 1, 48, 80)
    for index, (h, w) in enumerate(((48, 64), (40, 80))):
        inner = slice(2, w - 2)  # bilinear resizing repeats the outermost values
        expected = (torch.arange(w) + 0.5) / w
        assert torch.allclose(got[index, 0, :h, inner], expected[inner].expand(h, -1), atol=1e-6)
        assert (got[index, 0, h:] == 0).all() and (got[index, 0, :, w:] == 0).all()


def test_images_of_their_labels_size_are_left_alone():
    batch = batch_of((48, 64), (40, 80))
    raw = {"depth": torch.rand(2, 1, 48, 80)}
    assert at_label_size(raw, batch["image_size"], batch["label_size"]) is raw


@pytest.mark.parametrize(("labels", "shape"), [("own", (48, 64)), ("input", (32, 48))])
def test_predictions_and_scores_are_at_the_labels_size(tmp_path, labels, shape):
    data = Planes(eval_size=(32, 48), eval_labels=labels)
    module, run = tiny_module(), quiet(tmp_path)
    assert {maps["depth"].shape[-2:] for maps in run.predict(module, data)} == {shape}
    scores = run.test(module, data, verbose=False)[0]
    # Every pixel of a plane scene has a class: their number tells at which size they were scored.
    with torch.inference_mode():
        for batch in data.test_dataloader():
            module._evaluate("test", data.on_after_batch_transfer(batch, 0))
    assert int(module.evaluator("test").metrics["semseg"]["score"].sums.sum()) == 3 * shape[0] * shape[1]
    assert scores["test/images"] == 3


class Sizes(Dataset):
    """Plane scenes, one of which is smaller than the others."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return PlaneScenes(3, 48 if index else 32, 64 if index else 48, seed=5)[index]


class MixedPlanes(Planes):
    def dataset(self, split):
        return Sizes()


def test_padding_changes_no_score(tmp_path):
    """Three images of two sizes, one by one and in one padded batch: every score is the same."""
    L.seed_everything(0)
    module = tiny_module(metrics=MetricsConfig(trimap=2, workers=0))
    # The network sees the padded image too, which would change its predictions: replaced by a function of the pixel.
    module.net.forward = lambda image: {
        name: torch.cat([image.mean(1, keepdim=True) * (index + 1) for index in range(task.channels)], 1).contiguous()
        for name, task in module.tasks.items()
    }
    one, three = (quiet(tmp_path).test(module, MixedPlanes(eval_batch_size=size), verbose=False)[0] for size in (1, 3))
    skipped = ("loss", "seams")  # a loss is a mean over batches; a batch of images of one scale has one window grid
    compared = [key for key in one if not any(word in key for word in skipped)]
    assert {key.split("/")[1] for key in compared} >= {"semseg", "depth", "normals", "edges", "consistency"}
    for key in compared:
        assert one[key] == pytest.approx(three[key], rel=1e-6, abs=1e-9), key


def test_details_belong_to_tests_unless_asked(tmp_path):
    def keys(**metrics):
        module = tiny_module(metrics=MetricsConfig(workers=0, **metrics))
        return set(quiet(tmp_path).test(module, Planes(), verbose=False)[0]), module

    tested, module = keys()
    assert {"test/semseg/iou/dark", "test/semseg/ece", "test/edges/odsf", "test/edges/odsf_fast"} <= tested
    assert "test/seams/depth_error" in tested
    assert not {key for key in keys(details="never")[0] if key.startswith(("test/semseg/iou/", "test/seams/"))}
    assert "test/edges/odsf" not in keys(odsf_test="fast")[0]
    assert not {key for key in keys(odsf_test="none")[0] if "odsf" in key}
    fitted = quiet(tmp_path, max_epochs=1, num_sanity_val_steps=0)
    fitted.fit(module, Planes())
    assert "val/edges/odsf_fast" in fitted.callback_metrics
    assert not {key for key in fitted.callback_metrics if key.startswith(("val/semseg/iou/", "val/seams/"))}
    validated = quiet(tmp_path).validate(module, Planes(), verbose=False)[0]
    assert "val/semseg/iou/dark" in validated, "a validate command is a test of the validation split"


def test_the_result_says_how_it_was_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = write(tmp_path / "tiny.yaml")
    words = ["--model.metrics.protocol", "per_image", "--model.metrics.cap", "5", "--run.test", "true"]
    assert m2h("fit", "--config", config, *words) == 0
    out = capsys.readouterr().out
    result = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert result["evaluation"] == {
        "protocol": "per_image", "crop": "none", "cap": 5.0, "trimap": None, "odsf_val": "fast", "odsf_test": "exact",
        "max_dist": 0.0075,
    }  # fmt: skip
    assert result["headlines"]["semseg"] == {"pooled": "miou", "per_image": "miou_per_image", "higher_is_better": True}
    assert result["headlines"]["edges"] == {"pooled": "odsf", "higher_is_better": True}
    assert result["tasks"] == ["semseg", "depth", "normals", "edges"]
    assert result["network"]["backbone"]["name"] == "test_convnext"
    assert result["data"]["eval_labels"] == "own" and result["data"]["eval_size"] is None
    scores = result["metrics"]["test"]
    for task, line in result["headlines"].items():
        assert line["pooled"] in scores[task]
        assert line.get("per_image", line["pooled"]) in scores[task]
    for word in ("pooled", "per image", "odsf", "rmse_m", "fast mode"):
        assert word in out, word


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"protocol": "median"}, "metrics.protocol is 'median'"),
        ({"cap": -1.0}, "metrics.cap is -1.0"),
        ({"cap": float("nan")}, "metrics.cap is nan"),
        ({"trimap": 0}, "metrics.trimap is 0"),
        ({"max_dist": 7.5}, "share of the diagonal"),
        ({"workers": -1}, "metrics.workers is -1"),
        ({"odsf_val": "quick"}, "metrics.odsf_val is 'quick'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        MetricsConfig(**settings)


def test_the_tolerance_is_the_data_sets():
    assert MetricsConfig().tolerance("nyud13") == 0.011
    assert MetricsConfig().tolerance("cityscapes") == 0.0075
    assert MetricsConfig(max_dist=0.02).tolerance("nyud") == 0.02


def test_a_prediction_that_is_not_finite_is_told_with_its_samples(tmp_path):
    module = tiny_module()
    module.net.forward = lambda image: {
        name: image.new_full((len(image), task.channels, *image.shape[-2:]), float("nan"))
        for name, task in module.tasks.items()
    }
    with pytest.raises(DataError, match=r"NaN or infinite .*samples scene-2-0"):
        quiet(tmp_path).test(module, Planes(), verbose=False)


def test_memory_does_not_grow_with_the_set():
    """What the metrics keep after forty batches is what they keep after two."""
    from distributed_scores import predictions
    from m2h_lightning.tasks import Evaluator, build_tasks

    facts = Planes().facts
    evaluator = Evaluator(build_tasks(None, facts), MetricsConfig(workers=0, trimap=2), facts, "test", details=True)
    scenes, rng = PlaneScenes(1, 32, 48), np.random.default_rng(0)
    batch = to_contract(collate([EvalTransform()(scenes[0], rng)]))

    def held():
        metrics = [m for m in evaluator.modules() if hasattr(m, "_defaults")]
        return sum(getattr(m, name).numel() for m in metrics for name in m._defaults)

    counts = []
    for batches in (2, 38):
        for _ in range(batches):
            evaluator.update(predictions(batch), batch)
        counts.append(held())
    assert counts[0] == counts[1] > 0
    assert evaluator.compute()["images"] == 40
