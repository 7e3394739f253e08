"""Collation, sampling and resuming: batches hold what is known and come in an order that can be continued."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from m2h_lightning.data.augment import TrainTransform
from m2h_lightning.data.augment_config import AugmentConfig
from m2h_lightning.data.loader import EpochSampler, make_loader
from m2h_lightning.data.raw import check_raw
from m2h_lightning.data.sample import collate
from m2h_lightning.data.transforms import EvalTransform
from m2h_lightning.errors import DataError
from samples import plane_sample


class Planes(Dataset):
    """Planes with different labels: every second one has no normals."""

    def __init__(self, count=7):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        sample = plane_sample(20, 24, seed=index)
        if index % 2:
            del sample["normals"]
        return sample


def to_samples(*raws):
    return [EvalTransform()(raw, np.random.default_rng(0)) for raw in raws]


def test_mixed_batch_fills_missing_labels_with_unknown():
    batch = collate(to_samples(Planes()[0], Planes()[1]))
    assert (batch["normals"][1] == 0).all()
    assert (batch["normals"][0].norm(dim=0) > 0.99).all()
    assert batch["id"] == ["plane-0", "plane-1"]


def test_a_pose_is_carried_exactly_where_it_is_known():
    pose = np.eye(4)
    pose[:3, 3] = 1 / 3, 1e6 + 1e-6, -2
    known, unknown = to_samples({**plane_sample(20, 24), "pose": pose}, plane_sample(20, 24))
    batch = collate([unknown, known, unknown])
    assert batch["pose"].dtype == torch.float64
    assert batch["pose"].shape == (3, 4, 4)
    assert np.array_equal(batch["pose"][1].numpy(), pose)
    assert batch["pose"][[0, 2]].isnan().all()
    assert "pose" not in collate([unknown, unknown])
    small = EvalTransform((10, 12))({**plane_sample(20, 24), "pose": pose}, np.random.default_rng(0))
    assert np.array_equal(small["pose"].numpy(), pose)


def test_training_samples_have_no_pose():
    raw = {**plane_sample(20, 24), "pose": np.eye(4)}
    transform = TrainTransform((16, 16), AugmentConfig())
    assert all("pose" not in transform(raw, np.random.default_rng(seed)) for seed in range(8))
    assert "pose" in raw


def test_a_label_nobody_has_is_absent():
    assert "normals" not in collate(to_samples(Planes()[1], Planes()[3]))


def test_different_sizes_are_padded_with_unknown():
    batch = collate(to_samples(plane_sample(20, 30), plane_sample(26, 24)))
    assert batch["image"].shape == (2, 3, 26, 30)
    assert (batch["semseg"][0, 20:] == 255).all()
    assert (batch["depth"][1, :, :, 24:] == 0).all()
    assert (batch["edges"][1, :, :, 24:] == 255).all()


def test_empty_batch_is_refused():
    with pytest.raises(DataError, match="empty"):
        collate([])


def loader(train=True, count=7, workers=0, batch_size=2, seed=3):
    transform = TrainTransform((16, 16), AugmentConfig()) if train else EvalTransform()
    return make_loader(
        Planes(count), transform, train=train, batch_size=batch_size, workers=workers, seed=seed, classes=5
    )


def epoch(of, number=0):
    of.sampler.set_epoch(number)
    return [(batch["id"], batch["image"]) for batch in of]


def same(a, b):
    return len(a) == len(b) and all(x[0] == y[0] and torch.equal(x[1], y[1]) for x, y in zip(a, b, strict=True))


def test_epochs_differ_and_repeat():
    assert same(epoch(loader(), 1), epoch(loader(), 1))
    assert not same(epoch(loader(), 1), epoch(loader(), 2))
    assert not same(epoch(loader(), 1), epoch(loader(seed=4), 1))


def test_workers_do_not_change_samples():
    assert same(epoch(loader(workers=2), 1), epoch(loader(workers=0), 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_loading_process_stays_one_line(workers):
    class Broken(Planes):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"depth": np.full((20, 24), np.nan, np.float32)}

    bad = make_loader(Broken(4), EvalTransform(), train=False, batch_size=2, workers=workers, seed=0, classes=5)
    with pytest.raises(DataError) as caught:
        list(bad)
    assert str(caught.value).splitlines() == ["sample 'plane-0': depth holds NaN or infinity; mark unknown pixels as 0"]


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    epoch(loader())
    assert torch.equal(state, torch.get_rng_state())


def test_continues_inside_an_epoch():
    whole = epoch(loader(), 2)
    first = loader()
    first.sampler.set_epoch(2)
    stream = iter(first)
    next(stream)
    state = first.state_dict()
    second = loader()
    second.load_state_dict(state)
    assert same(epoch(second, 2), whole[1:])
    assert same(epoch(second, 2), whole), "only the first epoch after resuming is short"


def test_state_after_the_last_batch_starts_anew():
    one = loader()
    epoch(one)
    assert one.state_dict() == {"served": 0}


def test_evaluation_counts_each_sample_once_over_processes():
    seen = []
    for rank in range(4):
        sampler = EpochSampler(7, shuffle=False, seed=0)
        sampler.rank, sampler.num_replicas = rank, 4
        seen += [index for _, index in sampler]
    assert sorted(seen) == list(range(7))


@pytest.mark.parametrize(("count", "batch", "what"), [(0, 1, "empty"), (3, 4, "batch_size")])
def test_too_few_samples(count, batch, what):
    with pytest.raises(DataError, match=what):
        loader(count=count, batch_size=batch)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("semseg", np.full((20, 24), 7, np.uint8), "label 7"),
        ("semseg", np.full((20, 24), -1, np.int64), "int64, expected uint8"),
        ("depth", np.ones((20, 23), np.float32), "depth has shape"),
        ("normals", np.ones((20, 24), np.float32), "normals has shape"),
        ("image", np.ones((20, 24, 4), np.uint8), "image has shape"),
        ("pose", np.eye(3), "pose has shape"),
    ],
)
def test_samples_that_break_the_contract_are_named(key, value, words):
    raw = plane_sample(20, 24)
    raw["semseg"][0, 0] = 255
    check_raw(raw, classes=5)
    raw[key] = value
    with pytest.raises(DataError, match=f"plane-0.*{words}"):
        check_raw(raw, classes=5)


def test_a_loading_process_keeps_the_memory_it_frees():
    """Measured by what it is for: arrays of a sample's size cost no page faults once memory is kept."""
    code = (
        "import resource, numpy as np\n"
        "from m2h_lightning.data.memory import keep_freed_memory\n"
        "worked = keep_freed_memory()\n"
        "def once(): return [np.ones(600_000, np.uint8) for _ in range(6)]\n"
        "once(); once(); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): once()\n"
        "print(worked, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    if out[0] == "True":
        assert int(out[1]) < 20 * 6 * 600_000 / 4096 / 4, "most pages are used again"
    else:
        assert not sys.platform.startswith("linux") or out[0] == "False"
