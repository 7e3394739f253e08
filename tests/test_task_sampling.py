"""Drawing tasks, and what the objective makes of the weights."""

import pytest
import torch

from m2h_lightning.objectives import BalancingConfig, Moment, build_balancer
from m2h_lightning.objectives.config import ConsistencyConfig
from m2h_lightning.objectives.objective import Objective

NAMES = ["semseg", "depth", "normals", "edges"]


class Given:
    """A task whose loss is its raw map's mean."""

    def loss(self, raw, target, agree=None):
        return raw.mean()

    def valid_pixels(self, target):
        return target == 1


class OneConsistency(Objective):
    def consistency_losses(self, raw, batch, terms):
        return {name: (raw["depth"].mean() * raw["normals"].mean(), torch.tensor(True)) for name in ("consistency/x",)}


def objective(balancing, tasks=NAMES, over_consistency=False):
    made = (OneConsistency if over_consistency else Objective)(
        {name: Given() for name in tasks}, dict.fromkeys(tasks, 2.0), balancing, ConsistencyConfig()
    )
    if over_consistency:
        made.consistency_weights = {"consistency/x": 0.5}
        made.balanced = [*tasks, "consistency/x"]
        made.balancer = build_balancer(balancing, made.balanced, [2.0] * len(tasks) + [0.5])
    return made


def raw_maps(tasks=NAMES):
    raw = {name: torch.full((1, 1, 2, 2), i + 1.0, requires_grad=True) for i, name in enumerate(sorted(tasks))}
    return raw, {name: torch.ones(1, 1, 2, 2) for name in tasks}


def test_tasks_are_drawn_with_their_probabilities():
    sampling = {"semseg": 0.5, "depth": 0.1, "normals": 0.3}
    made = objective(BalancingConfig(sampling=sampling))
    names = [*NAMES, "consistency/x"]
    cpu = torch.device("cpu")
    drawn = torch.stack([made._drawn(names, Moment(step=step, seed=1), cpu) for step in range(4000)]).float()
    assert drawn.mean(0).tolist() == pytest.approx([0.5, 0.1, 0.3, 1.0, 1.0], abs=0.03)
    covariance = torch.corrcoef(drawn[:, :3].T)
    assert (covariance - torch.eye(3)).abs().max() < 0.06, "each on its own"
    same = made._drawn(names, Moment(step=9, seed=1, epoch=4), cpu)
    assert torch.equal(same, drawn[9].bool()), "one draw per optimiser step, whatever the batch or process"
    turned = objective(BalancingConfig(sampling=sampling), NAMES[::-1])
    again = torch.stack([turned._drawn(names, Moment(step=step, seed=1), cpu) for step in range(100)])
    assert torch.equal(again, drawn[:100].bool()), "whatever the order"


def test_one_task_at_least_is_drawn():
    made = objective(BalancingConfig(sampling=dict(zip(NAMES, [0.02, 0.02, 0.02, 0.06], strict=True))))
    cpu = torch.device("cpu")
    drawn = torch.stack([made._drawn(NAMES, Moment(step=step), cpu) for step in range(2000)])
    assert drawn.any(1).all()
    assert drawn[:, 3].float().mean() > 2 * drawn[:, 0].float().mean(), "the likelier one also comes closest more often"


def test_what_is_not_drawn_has_no_weight_and_a_gradient_of_zero():
    raw, batch = raw_maps()
    made = objective(BalancingConfig(name="dwa", sampling=dict.fromkeys(NAMES, 0.4)))
    moments = [Moment(step=step) for step in range(20)]
    moment = next(m for m in moments if made._drawn(NAMES, m, torch.device("cpu")).sum() == 2)
    step = made(raw, batch, moment)
    step.total.backward()
    for name in NAMES:
        drawn = bool(step.present[name])
        assert float(step.weights[name]) == (2.0 if drawn else 0.0), "no division by the probability"
        assert raw[name].grad.sum() == (2.0 if drawn else 0.0)
    assert made.balancer.state()["steps"].sum() == 2


@pytest.mark.parametrize("name", ["gls", "log", "famo", "stch"])
def test_a_ramp_acts_on_methods_that_are_blind_to_scale(name):
    parts = []
    for strength in (1.0, 0.25):
        raw, batch = raw_maps()
        made = objective(BalancingConfig(name=name, over="all"), over_consistency=True)
        step = made(raw, batch, Moment(), {"consistency/x": strength})
        parts.append((float(step.weights["consistency/x"]), float(step.weights["depth"])))
    assert parts[1] == pytest.approx((parts[0][0] / 4, parts[0][1]))


def test_the_second_look_sees_what_the_first_saw():
    made = objective(BalancingConfig(name="famo", over="all"), over_consistency=True)
    seen = []
    made.balancer.after_step = lambda losses, present: seen.append((losses, present))
    raw, batch = raw_maps()
    del batch["edges"]
    made(raw, batch, Moment(), {"consistency/x": 0.5})
    means = made.look_again(raw, batch, {"consistency/x": 0.5})
    (losses, present) = seen[0]
    assert losses[present].tolist() == [8, 2, 6, 1.5], "times the static weights, whatever the strength"
    assert torch.equal(made.balancer.before[present], losses[present])
    assert present.tolist() == [True, True, True, False, True] and present.equal(made.balancer.taking)
    assert list(means) == [*NAMES, "consistency/x"] and not losses.requires_grad
