"""Labels on a part of the training samples: who keeps which, and that training goes on without the others."""

import json

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cli_helpers import TINY, m2h, only_run, write
from m2h_lightning.data.augment import TrainTransform
from m2h_lightning.data.augment_config import AugmentConfig
from m2h_lightning.data.partial import LabelsConfig, PartialDataset
from m2h_lightning.data.raw import DepthCode
from m2h_lightning.data.rooms import RoomsDataset
from m2h_lightning.data.sample import collate, to_contract
from m2h_lightning.data.synthesis import store
from m2h_lightning.errors import ConfigError
from m2h_lightning.objectives import Moment
from m2h_lightning.report.collect import read_run
from samples import Planes, PlaneScenes, tiny_module

TASKS = ("semseg", "depth", "normals", "edges")
shares = st.floats(0.01, 1.0)
counts = st.integers(100, 400)
seeds = st.integers(0, 2**40)


# ── who keeps what ──────────────────────────────────────────────────────────────────────────────────────────────────


@given(share=shares, larger=shares, count=counts, seed=seeds)
def test_shares_are_exact_and_nested(share, larger, count, seed):
    share, larger = sorted((share, larger))
    few = LabelsConfig({"depth": share}, seed=seed).choose(TASKS, count)
    more = LabelsConfig({"depth": larger, "edges": share}, seed=seed).choose(TASKS[::-1], count)
    assert few["depth"].sum() == round(share * count)
    assert more["depth"].sum() == round(larger * count)
    assert (few["depth"] <= more["depth"]).all(), "a smaller share keeps a part of what a larger one does"
    assert all(few[task].all() for task in ("semseg", "normals", "edges"))


@given(ratios=st.dictionaries(st.sampled_from(TASKS), st.floats(0.2, 5.0)), count=counts, seed=seeds)
def test_one_label_each_in_the_asked_ratio(ratios, count, seed):
    kept = LabelsConfig(ratios, mode="one", seed=seed).choose(TASKS, count)
    assert list(kept) == list(TASKS)
    assert (sum(chosen.astype(int) for chosen in kept.values()) == 1).all()
    total = sum(ratios.get(task, 1.0) for task in TASKS)
    for task, chosen in kept.items():
        assert abs(chosen.sum() - ratios.get(task, 1.0) / total * count) < 1
    again = LabelsConfig(ratios, mode="one", seed=seed).choose(TASKS[::-1], count)
    assert all((again[task] == kept[task]).all() for task in TASKS)


def test_tasks_and_seeds_choose_on_their_own():
    half = dict.fromkeys(TASKS, 0.5)
    kept = LabelsConfig(half).choose(TASKS, 1000)
    chosen = [*kept.values(), *LabelsConfig(half, seed=1).choose(TASKS, 1000).values()]
    for i, one in enumerate(chosen):
        for other in chosen[:i]:
            # Two independent halves share a quarter: 250 ± 8 (hypergeometric); six standard deviations.
            assert abs((one & other).sum() - 250) < 48


def test_the_choice_never_changes():
    """Numbers written out: another version of NumPy, or another machine, must choose the same samples."""
    kept = LabelsConfig({"depth": 0.3, "edges": 0.2}, seed=5).choose(TASKS, 10)
    assert np.flatnonzero(kept["depth"]).tolist() == [0, 7, 9]
    assert np.flatnonzero(kept["edges"]).tolist() == [3, 7]
    one = LabelsConfig(mode="one").choose(TASKS, 8)
    chosen = {task: np.flatnonzero(of_task).tolist() for task, of_task in one.items()}
    assert chosen == {"semseg": [3, 6], "depth": [2, 7], "normals": [1, 4], "edges": [0, 5]}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shares": {"depth": 0.0}}, "data.labels.shares.depth is 0"),
        ({"shares": {"depth": 1.01}}, "at most 1"),
        ({"shares": {"depth": float("nan")}}, "data.labels.shares.depth is nan"),
        ({"shares": {"depth": 0.0}, "mode": "one"}, "ratio above 0"),
        ({"shares": {"depth": float("inf")}, "mode": "one"}, "ratio above 0"),
        ({"seed": -1}, "data.labels.seed is -1"),
        ({"shares": {"dept": 0.5}}, "'planes' has no labels for 'dept'; did you mean 'depth'"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ConfigError, match=words):
        Planes(labels=LabelsConfig(**settings))


@pytest.mark.parametrize("mode", ["independent", "one"])
def test_a_share_that_leaves_no_label_is_refused(mode):
    with pytest.raises(ConfigError, match=r"data.labels.shares.depth is 0.01: of 6 training samples none"):
        Planes(labels=LabelsConfig({"depth": 0.01}, mode)).training_set()


# ── samples and batches ─────────────────────────────────────────────────────────────────────────────────────────────


def test_only_training_samples_lose_labels():
    data = Planes(train=6, labels=LabelsConfig({"depth": 0.5, "semseg": 1 / 3}))
    whole, part = data.dataset("train"), data.training_set()
    for index in range(6):
        full, left = whole[index], part[index]
        lost = {task for task in TASKS if not part.kept[task][index]}
        assert set(full) - set(left) == lost <= {"depth", "semseg"}
        assert all(np.array_equal(full[key], left[key]) for key in left)
    assert part.numbers == {"semseg": 2, "depth": 3, "normals": 6, "edges": 6}
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert all(set(TASKS) <= set(batch) for batch in loader)


def test_epochs_and_order_do_not_change_who_is_labelled():
    data = Planes(train=6, batch_size=1, labels=LabelsConfig({"depth": 0.5}))
    loader = data.train_dataloader()
    labelled = []
    for epoch in (0, 1, 5):
        loader.sampler.set_epoch(epoch)
        labelled.append({batch["id"][0] for batch in loader if "depth" in batch})
    assert len(labelled[0]) == 3
    assert labelled[0] == labelled[1] == labelled[2]


def test_rooms_do_not_decode_what_is_left_out(tmp_path, monkeypatch):
    rooms = RoomsDataset(tmp_path, rooms=1, views_per_room=2, height=48, width=64, render_workers=1)
    part = PartialDataset(rooms, LabelsConfig({"normals": 0.5, "depth": 0.5}).choose(rooms.tasks, len(rooms)))
    decoded = []
    decode = store.decode_octahedral
    monkeypatch.setattr(store, "decode_octahedral", lambda coded: decoded.append(1) or decode(coded))
    samples = [part[index] for index in range(2)]
    assert len(decoded) == 1
    for index, sample in enumerate(samples):
        full = rooms[index]
        assert set(full) - set(sample) == {task for task in ("normals", "depth") if not part.kept[task][index]}
        assert all(np.array_equal(full[key], sample[key]) for key in sample)


@pytest.mark.parametrize("lost", [{"semseg"}, {"depth"}, {"semseg", "depth", "normals", "edges"}])
def test_every_augmentation_works_without_labels(raw_sample, lost):
    code = DepthCode(scale=0.001)
    raw = raw_sample | {"depth": np.rint(raw_sample["depth"] / code.scale).astype(np.uint16), "depth_code": code}
    kept = {task: np.array([task not in lost]) for task in TASKS}
    augment = AugmentConfig(rotate=10.0, cat_max_ratio=0.5, flip=0.5, legacy_scale_depth=True)
    transform = TrainTransform((32, 40), augment)
    for seed in range(5):
        left = PartialDataset([raw], kept)[0]
        assert ("depth_code" in left) == ("depth" in left)
        sample = to_contract(collate([transform(left, np.random.default_rng(seed))]))
        assert {task for task in TASKS if task in sample} == set(TASKS) - lost
        assert torch.isfinite(sample["K"]).all()
        assert sample["image"].shape == (1, 3, 32, 40)


# ── training ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_without_a_label_trains_the_other_tasks_as_if_alone():
    scenes = PlaneScenes(2, 32, 32)
    transform = TrainTransform((32, 32), AugmentConfig())
    kept = {task: np.array([True, True]) for task in TASKS} | {"depth": np.array([False, False])}
    part = PartialDataset(scenes, kept)
    batch = to_contract(collate([transform(part[i], np.random.default_rng(i)) for i in range(2)]))
    assert "depth" not in batch
    torch.manual_seed(0)
    module = tiny_module().eval()
    step = module.objective(module.net(batch["image"]), batch, Moment())
    assert not step.present["depth"] and step.losses["depth"] == 0 and step.weights["depth"] == 0
    others = sum(step.weights[name] * step.losses[name] for name in TASKS if name != "depth")
    assert step.total.item() == pytest.approx(others.item(), rel=1e-6)
    step.total.backward()
    heads = {name: [p.grad.abs().sum() for p in module.net.heads[name].parameters()] for name in TASKS}
    assert sum(heads["depth"]) == 0
    assert all(sum(heads[name]) > 0 for name in TASKS if name != "depth")


def test_a_batch_without_any_label_moves_nothing(tmp_path):
    """Of six samples one keeps a label: most batches of a single-task run have none."""
    data = Planes(train=6, batch_size=1, labels=LabelsConfig({"depth": 1 / 6}))
    module = tiny_module(tasks=["depth"])
    seen = []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            moved = sum(float(p.grad.abs().sum()) for p in pl_module.parameters() if p.grad is not None)
            seen.append(moved > 0)

    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "limit_val_batches": 0}
    run = L.Trainer(accelerator="cpu", devices=1, max_epochs=1, callbacks=[Watch()], **options)
    run.fit(module, data)
    assert sorted(seen) == [False] * 5 + [True]
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_a_run_says_what_it_was_trained_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = "{train: 5, labels: {mode: one, shares: {depth: 2.0}}}"
    write(tmp_path / "tiny.yaml", TINY.replace("{train: 4}", labels))
    assert m2h("fit", "--config", "tiny.yaml", "--run.test", "true") == 0
    folder = only_run(tmp_path)
    kept = {"semseg": 1, "depth": 2, "normals": 1, "edges": 1}
    expected = {"mode": "one", "shares": {"depth": 2.0}, "seed": 0, "samples": 5, "kept": kept}
    result = json.loads((folder / "result.json").read_text())
    assert result["data"]["training_labels"] == expected
    assert set(result["metrics"]["test"]) >= set(TASKS), "test samples keep all labels"
    assert read_run(folder).network["training labels"] == "one (seed 0), depth 2"
