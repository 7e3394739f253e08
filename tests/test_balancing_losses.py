"""Balancing by the losses' values: closed forms, torchjd's scalarisers, absent losses, state."""

import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchjd import scalarization

from m2h_lightning.objectives import BalancingConfig, Moment, build_balancer
from m2h_lightning.objectives.config import LOSS_BASED
from m2h_lightning.objectives.losses import EpochMeans

NAMES = ["semseg", "depth", "normals", "edges"]
LOGARITHMIC = ("gls", "log", "famo", "stch")
positive = st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4)


def make(name, terms=NAMES, weights=None, **settings):
    return build_balancer(BalancingConfig(name=name, **settings), terms, weights or [1.0] * len(terms))


def weigh(balancer, losses, present=None, epoch=0, step=0):
    losses = torch.as_tensor(losses, dtype=torch.float32)
    present = torch.ones(len(losses), dtype=torch.bool) if present is None else torch.as_tensor(present)
    return balancer(losses, present, Moment(epoch=epoch, step=step, seed=3)).detach()


def derivative(objective, losses):
    """The gradient of a function of the losses: what its weights have to be."""
    at = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    objective(at).backward()
    return at.grad.float()


# Closed forms


def test_static_weights_are_ones_where_there_is_a_label():
    assert weigh(make("static"), [1, 2, 3, 4], [True, False, True, True]).tolist() == [1, 0, 1, 1]


def test_dwa_is_the_table_of_the_paper():
    balancer = make("dwa", ["a", "b", "c"], dwa_temperature=2.0)
    epochs = [
        [(4, 1, 5), (2, 3, 5)],  # means 3, 2, 5
        [(1, 2, 10), (2, 2, 5)],  # means 1.5, 2, 7.5
        [(1, 1, 2), (2, 1, 3)],  # means 1.5, 1, 2.5
        [(1, 1, 1)],
    ]
    # Epoch 2: ratios ½, 1, 3/2: exp(¼) = 1.284025, exp(½) = 1.648721, exp(¾) = 2.117000, sum 5.049747, times 3.
    # Epoch 3: ratios 1, ½, ⅓: exp(½) = 1.648721, exp(¼) = 1.284025, exp(⅙) = 1.181360, sum 4.114107, times 3.
    table = [[1, 1, 1], [1, 1, 1], [0.762826, 0.979488, 1.257687], [1.202244, 0.936309, 0.861446]]
    for epoch, (steps, expected) in enumerate(zip(epochs, table, strict=True)):
        for losses in steps:
            assert weigh(balancer, losses, epoch=epoch).tolist() == pytest.approx(expected, abs=2e-6)


def test_dwa_agrees_with_torchjd_over_random_epochs():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = make("dwa", dwa_temperature=0.7), scalarization.DWA(temperature=0.7)
    for epoch in range(5):
        for _ in range(3):
            losses = torch.rand(4, generator=generator) + 0.1
            expected = derivative(theirs, losses.tolist())
            assert torch.allclose(weigh(ours, losses, epoch=epoch), expected, rtol=1e-5)
        theirs.step()


def test_dwa_leaves_out_what_has_no_ratio():
    balancer = make("dwa")
    # semseg falls by half; depth is never labelled in epoch 1; normals' mean is 0 in epoch 0; edges stay.
    for epoch, losses, present in (
        (0, [2, 1, 0, 3], [True] * 4),
        (0, [9, 1, 0, 3], [False, True, True, True]),  # an absent loss is no part of the mean
        (1, [1, 7, 2, 3], [True, False, True, True]),
    ):
        weigh(balancer, losses, present, epoch)
    first, second = math.exp(0.5 / 2), math.exp(1 / 2)
    expected = [2 * first / (first + second), 1, 1, 2 * second / (first + second)]
    assert weigh(balancer, [1, 1, 1, 1], epoch=2).tolist() == pytest.approx(expected)
    absent = weigh(balancer, [1, 1, 1, 1], [False, True, True, True], epoch=2).tolist()
    assert absent == pytest.approx([0, *expected[1:]]), "the weights are the epoch's, not the step's"


def test_epochs_that_were_left_out_have_no_mean():
    means = EpochMeans(1)
    for epoch in (0, 3):
        means.to_epoch(epoch, torch.device("cpu"))
        means.add(torch.tensor([5.0]), torch.tensor([True]))
    assert means.history.isnan().all()
    means.to_epoch(4, torch.device("cpu"))
    assert means.history[1].tolist() == [5]
    means.to_epoch(0, torch.device("cpu"))
    assert means.history.isnan().all() and means.sums.tolist() == [0], "a fit of its own starts anew"


def test_a_loss_that_is_not_finite_does_not_get_into_the_means():
    balancer = make("dwa", ["a", "b"])
    weigh(balancer, [math.nan, 2])
    assert balancer.state()["sums"].tolist() == [0, 2] and balancer.state()["steps"].tolist() == [0, 1]


@given(positive)
def test_gls_is_the_derivative_of_the_geometric_mean(losses):
    expected = derivative(scalarization.GeometricMean(), losses)
    assert torch.allclose(weigh(make("gls"), losses), expected, rtol=1e-4)


@given(positive, st.lists(st.floats(0.1, 50), min_size=4, max_size=4))
def test_log_takes_the_static_weights_as_factors_of_the_logarithms(raw, static):
    # Losses L(x) = raw · x at x = 1: the gradient of Σ w log L is Σ w, each of its parts w ∇L / L = w.
    x = torch.ones(4, requires_grad=True)
    scaled = torch.tensor(static) * torch.tensor(raw) * x
    (weigh(make("log", weights=static), scaled.detach()) * scaled).sum().backward()
    assert x.grad.tolist() == pytest.approx(static, rel=1e-4)


@given(positive, positive, st.sampled_from([0.05, 0.1, 1.0]))
def test_stch_is_the_derivative_of_the_soft_maximum(scale, losses, mu):
    balancer = make("stch", stch_mu=mu, stch_warmup=1)
    # In the warm-up the sum of the logarithms; its mean is the scale.
    for factor in (0.5, 1.5):
        first = [factor * value for value in scale]
        assert torch.allclose(weigh(balancer, first), 1 / torch.tensor(first), rtol=1e-5)
    theirs = scalarization.STCH(mu, weights=torch.ones(4, dtype=torch.float64))
    expected = derivative(lambda x: 4 * theirs((x / torch.tensor(scale, dtype=torch.float64)).log()), losses)
    assert torch.allclose(weigh(balancer, losses, epoch=1), expected, rtol=1e-3, atol=1e-6 * float(expected.max()))


def test_the_scale_of_stch():
    three = make("stch", ["a", "b"], stch_warmup=3)
    for epoch, losses in enumerate([(9, 9), (9, 9), (2, 8)]):
        weigh(three, losses, epoch=epoch)
    # Both stand at half of what they were in the last epoch of the warm-up: equal shares, 2 · ½ / ℓ.
    assert weigh(three, [1, 4], epoch=3).tolist() == pytest.approx([1, 0.25])
    assert weigh(three, [1, 4], epoch=4).tolist() == pytest.approx([1, 0.25]), "the scale stays"
    none = make("stch", ["a", "b"], stch_mu=1.0, stch_warmup=0)
    assert weigh(none, [1, 3]).tolist() == pytest.approx([2 * 0.25 / 1, 2 * 0.75 / 3])
    late = make("stch", ["a", "b", "late"], stch_mu=1.0)
    weigh(late, [1, 1, 5], [True, True, False])
    assert weigh(late, [1, 3, 4], epoch=1).tolist() == pytest.approx([0.5, 0.5, 0.25]), "no scale yet: its logarithm"
    assert weigh(late, [1, 1, 4], epoch=2).tolist() == pytest.approx([1, 1, 0.25]), "scale 4, at 1 like the others"


def test_rlw_draws_once_per_step_and_weighs_one_on_average():
    balancer = make("rlw")
    drawn = torch.stack([weigh(balancer, [1, 2, 3, 4], step=step) for step in range(3000)])
    assert torch.equal(drawn[7], weigh(make("rlw"), [9, 9, 9, 9], step=7, epoch=5)), "accumulated batches, processes"
    assert torch.allclose(drawn.sum(1), torch.tensor(4.0), rtol=1e-5)
    assert drawn.mean(0).tolist() == pytest.approx([1] * 4, abs=0.06)
    # log w_a − log w_b is a difference of two normal numbers.
    gap = (drawn[:, 0] / drawn[:, 1]).log()
    assert float(gap.mean()) == pytest.approx(0, abs=0.1) and float(gap.std()) == pytest.approx(math.sqrt(2), rel=0.05)
    three = weigh(balancer, [1, 2, 3, 4], [True, True, False, True], step=7)
    assert float(three.sum()) == pytest.approx(3)
    assert torch.allclose(three[:2] / three[1], drawn[7][:2] / drawn[7][1]), "an absent loss moves no other's number"


def test_uncertainty_finds_the_logarithm_of_the_losses():
    balancer = make("uncertainty")
    losses, present = torch.tensor([0.1, 1.0, 4.0, 30.0]), torch.tensor([True, True, True, False])
    optimizer = torch.optim.SGD(balancer.parameters(), lr=0.5)
    assert weigh(balancer, losses, present).tolist() == [0.5, 0.5, 0.5, 0]
    for _ in range(200):
        optimizer.zero_grad()
        weights = balancer(losses, present, Moment())
        ((weights * losses).sum() + balancer.regulariser(present)).backward()
        optimizer.step()
    found = balancer.log_variances.detach()
    assert torch.allclose(found[:3], losses[:3].log(), atol=1e-4)
    assert found[3] == 0, "an absent loss leaves its variance alone"
    assert torch.allclose(weigh(balancer, losses, present), torch.where(present, 0.5 / losses, 0.0), rtol=1e-3)


def test_uncertainty_agrees_with_torchjd_and_skips_static_zeros():
    ours, theirs = make("uncertainty", weights=[1, 1, 0, 1]), scalarization.UW(3)
    with torch.no_grad():
        ours.log_variances.copy_(torch.tensor([0.3, -1.0, 0.7, 2.0]))
        next(theirs.parameters()).copy_(torch.tensor([0.3, -1.0, 2.0]))
    losses, present = torch.tensor([2.0, 3.0, 0.0, 0.5]), torch.ones(4, dtype=torch.bool)
    total = (ours(losses, present, Moment()) * losses).sum() + ours.regulariser(present)
    assert float(total.detach()) == pytest.approx(float(theirs(losses[[0, 1, 3]]).detach()), rel=1e-5)
    total.backward()
    assert ours.log_variances.grad[2] == 0, "else it would fall without end"


class Bowl(torch.nn.Module):
    """Losses Σ (A_t x − b_t)² of one x: they conflict, and differ in size."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.a = torch.randn(4, 3, 5, generator=generator) * torch.tensor([1, 5, 0.2, 2])[:, None, None]
        self.b = torch.randn(4, 3, generator=generator)
        self.x = torch.nn.Parameter(torch.ones(5))

    def forward(self):
        return (self.a @ self.x - self.b).square().mean(1)


def test_famo_agrees_with_torchjd_step_by_step():
    ours, theirs = Bowl(), Bowl()
    balancer, reference = make("famo", famo_lr=0.1, famo_decay=0.01), scalarization.FAMO(4, lr=0.1, weight_decay=0.01)
    optimizers = [torch.optim.SGD(bowl.parameters(), lr=0.05) for bowl in (ours, theirs)]
    present = torch.ones(4, dtype=torch.bool)
    for step in range(25):
        losses = ours()
        weights = balancer(losses.detach(), present, Moment(step=step))
        expected = derivative(reference, losses.tolist())
        assert torch.allclose(weights, expected, rtol=1e-4)
        assert float(weights.sum()) == pytest.approx(1, rel=1e-5)
        for optimizer, total in zip(optimizers, ((weights * losses).sum(), reference(theirs())), strict=True):
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        balancer.after_step(ours().detach(), present)
        reference.update(theirs().detach())
    assert torch.allclose(balancer.logits, next(reference.parameters()), atol=1e-4)
    assert balancer.logits.abs().max() > 0.2, "else nothing was compared"


def test_famo_lets_what_is_absent_rest():
    balancer, alone = make("famo"), make("famo", NAMES[:2])
    some = torch.tensor([True, True, False, False])
    for step in range(3):
        losses = torch.tensor([1.0, 2.0, 5.0, 7.0]) / (step + 1)
        weights = weigh(balancer, losses, some)
        assert torch.allclose(weights[:2], weigh(alone, losses[:2]))
        after = losses * torch.tensor([0.5, 0.9, 3.0, 0.1])
        balancer.after_step(after, some)
        alone.after_step(after[:2], some[:2])
    assert torch.allclose(balancer.logits[:2], alone.logits) and balancer.logits[0] < balancer.logits[1]
    assert all(balancer.state()[key][2:].tolist() == [0, 0] for key in ("logits", "first", "second", "steps"))


# What holds for all of them


def run(name, order=(0, 1, 2, 3), steps=range(12), state=None, absent=1.0):
    """Weights of a little training of twelve steps, four an epoch, some without labels; then the state."""
    balancer = make(name, [NAMES[i] for i in order], [[1.0, 2.0, 3.0, 4.0][i] for i in order])
    optimizer = torch.optim.SGD(balancer.parameters(), lr=0.1) if list(balancer.parameters()) else None
    if state is not None:
        balancer.load_state(state["state"])
        balancer.load_state_dict(state["parameters"])
    generator, found = torch.Generator().manual_seed(0), []
    for step in range(12):
        losses, after, draw = (torch.rand(4, generator=generator) + 0.05 for _ in range(3))
        present = (draw > 0.25) | (torch.arange(4) == step % 4)
        if step not in steps:
            continue
        losses, after = (torch.where(present, x, absent)[list(order)] for x in (losses, after))
        present = present[list(order)]
        weights = balancer(losses, present, Moment(epoch=step // 4, step=step, seed=5))
        found.append(weights.detach()[torch.tensor(order).argsort()])
        if optimizer is not None:
            optimizer.zero_grad()
            ((weights * losses).sum() + balancer.regulariser(present)).backward()
            optimizer.step()
        if balancer.repeats_forward:
            balancer.after_step(after, present)
        assert (weights[~present] == 0).all() and (weights[present] > 0).all() and weights.isfinite().all()
    return torch.stack(found), {"state": balancer.state(), "parameters": balancer.state_dict()}


@pytest.mark.parametrize("name", LOSS_BASED)
def test_the_order_of_the_tasks_changes_nothing(name):
    assert torch.allclose(run(name)[0], run(name, order=(2, 0, 3, 1))[0], rtol=1e-5)


@pytest.mark.parametrize("name", LOSS_BASED)
def test_an_absent_loss_moves_no_weight(name):
    weights, state = run(name)
    others, other_state = run(name, absent=77.0)
    assert torch.equal(weights, others)
    assert str(state) == str(other_state)


@pytest.mark.parametrize("name", LOSS_BASED)
@pytest.mark.parametrize("cut", [4, 7, 10])
def test_the_state_continues_inside_an_epoch_and_between_two(name, cut):
    whole, _ = run(name)
    first, state = run(name, steps=range(cut))
    stored = io.BytesIO()
    torch.save(state, stored)
    stored.seek(0)
    second, _ = run(name, steps=range(cut, 12), state=torch.load(stored, weights_only=True))
    assert torch.equal(torch.cat([first, second]), whole)


@pytest.mark.parametrize("name", LOSS_BASED)
@pytest.mark.parametrize("losses", [[0.0, 1, 2, 3], [0.0] * 4, [1e-30, 1, 2, 3], [1e20, 1e-20, 1, 1], [-1e-8, 1, 1, 1]])
def test_weights_are_finite_whatever_the_losses(name, losses):
    balancer = make(name)
    for epoch in range(4):
        weights = weigh(balancer, losses, epoch=epoch)
        balancer.after_step(torch.tensor(losses), torch.ones(4, dtype=torch.bool))
        assert weights.isfinite().all() and (weights >= 0).all()
        if name in LOGARITHMIC and losses[0] <= 0:
            assert weights[0] == 0, "a loss of 0 has no logarithm and nothing to gain"
        if name in ("gls", "log") and losses == [0.0, 1, 2, 3]:
            assert torch.allclose(weights[1:], weigh(make(name, NAMES[1:]), losses[1:]))
    nothing = weigh(make(name), losses, [False] * 4)
    assert nothing.tolist() == [0] * 4


@pytest.mark.parametrize("name", LOSS_BASED)
def test_a_single_task(name):
    balancer = make(name, ["depth"])
    expected = {"uncertainty": 0.5, "log": 1 / 3, "stch": 1 / 3}.get(name, 1.0)
    for epoch in range(4):
        assert weigh(balancer, [3.0], epoch=epoch).tolist() == pytest.approx([expected])
