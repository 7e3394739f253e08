"""``score``: one number for all tasks, the geometric mean of their headlines, errors as 1/error."""

import numpy as np
import pytest
import torch

from m2h_lightning.data.sample import collate, to_contract
from m2h_lightning.data.transforms import EvalTransform
from m2h_lightning.metrics import MetricsConfig
from m2h_lightning.tasks import Evaluator, build_tasks
from samples import Planes, plane_sample


def evaluator(*tasks, stage="val", **settings):
    facts = Planes().facts
    return Evaluator(build_tasks(list(tasks), facts), MetricsConfig(workers=0, **settings), facts, stage, details=False)


@pytest.fixture
def batch():
    samples = [plane_sample(24, 32, seed=seed) for seed in range(2)]
    for sample in samples:
        sample["semseg"][:, :16], sample["semseg"][:, 16:] = 0, 2
    return to_contract(collate([EvalTransform()(sample, np.random.default_rng(0)) for sample in samples]))


def predictions(batch, off, wrong):
    """Depth that is ``off`` metres too far; classes of which the share ``wrong`` of each half is the other one."""
    classes = batch["semseg"].clone()
    rows = round(wrong * classes.shape[-2])
    classes[:, :rows] = 2 - classes[:, :rows]
    return {"depth": batch["depth"] + off, "semseg": classes}


def test_it_is_the_closed_form(batch):
    """RMSE 0.5, and an IoU of 3/5 for both classes: a quarter of each is taken for the other."""
    scores = evaluator("semseg", "depth")
    scores.update(predictions(batch, 0.5, 0.25), batch)
    assert float(scores.compute()["score"]) == pytest.approx((0.6 / 0.5) ** 0.5, rel=1e-5)
    for task, expected in (("semseg", 0.6), ("depth", 2.0)):
        single = evaluator(task)
        single.update(predictions(batch, 0.5, 0.25), batch)
        assert float(single.compute()["score"]) == pytest.approx(expected, rel=1e-5)


def test_it_follows_the_protocol_that_heads_the_tables(batch):
    """Images with errors of 0.1 and 0.7: the root of the mean square over all pixels, or the mean over the images."""
    off = torch.tensor([0.1, 0.7]).view(2, 1, 1, 1)
    for protocol, error in (("pooled", 0.5), ("per_image", 0.4)):
        scores = evaluator("depth", protocol=protocol)
        scores.update({"depth": batch["depth"] + off}, batch)
        assert float(scores.compute()["score"]) == pytest.approx(1 / error, rel=1e-5), protocol


def test_a_task_that_was_not_scored_leaves_none(batch):
    scores = evaluator("semseg", "depth")
    scores.update({"semseg": batch["semseg"]}, batch)
    assert scores.compute()["score"].isnan()


def test_a_relative_gain_counts_alike_in_every_task(batch):
    found = []
    for off, wrong in ((0.5, 0.25), (0.25, 0.25), (0.5, 0.0)):
        scores = evaluator("semseg", "depth", stage="test")
        scores.update(predictions(batch, off, wrong), batch)
        found.append(float(scores.compute()["score"]))
    assert found[1] / found[0] == pytest.approx(2**0.5, rel=1e-5)
    assert found[2] / found[0] == pytest.approx((1 / 0.6) ** 0.5, rel=1e-5)
