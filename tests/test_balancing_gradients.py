"""Gradient-based balancing: every method against its definition, and the gradient that is made of the weights."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, root
from torch import nn
from torchjd.aggregation import IMTLG, AlignedMTL, CAGrad, PCGrad, UPGrad
from torchjd.aggregation import MGDA as TorchMGDA
from torchjd.autojac import mtl_backward
from torchjd.linalg import QuadprogProjector

from m2h_lightning.errors import ConfigError
from m2h_lightning.network import BackboneConfig, GGFMConfig, M2HNet, WMCAConfig
from m2h_lightning.objectives import BalancingConfig, Moment, StepLosses, build_balancer
from m2h_lightning.objectives.config import GRADIENT_BASED
from m2h_lightning.objectives.gradients import StepGradients, gramian, task_gradients
from m2h_lightning.objectives.gramian import GramianBalancer

NAMES = ["semseg", "depth", "normals", "edges"]


def balancer(method, terms=NAMES, **settings):
    return build_balancer(BalancingConfig(name=method, **settings), terms, [1.0] * len(terms))


def weights(method, rows, moment=Moment(), **settings):
    terms = NAMES[: len(rows)]
    rows = torch.from_numpy(np.asarray(rows, np.float64))
    return balancer(method, terms, **settings).weigh(rows @ rows.T, torch.ones(len(rows)).double(), terms, moment)


@st.composite
def gradients(draw, few=2, most=4):
    """T gradients in general position, of unequal length, that may conflict."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(few, most))
    rows = random.normal(size=(count, 12)) + draw(st.floats(-0.3, 1.5)) * random.normal(size=12)
    return rows * 10.0 ** random.uniform(-1, 1, (count, 1))


def exact_upgrad():
    return UPGrad(projector=QuadprogProjector(reg_eps=1e-8))


@given(gradients(), st.sampled_from(["pcgrad", "imtl", "aligned", "upgrad", "cagrad"]))
def test_torchjd_gives_the_same_direction(rows, method):
    rows = torch.from_numpy(rows)
    made = {
        "pcgrad": PCGrad,
        "imtl": IMTLG,
        "aligned": AlignedMTL,
        "upgrad": exact_upgrad,
        "cagrad": lambda: CAGrad(0.4),
    }
    moment = Moment(seed=5, step=3)
    ours = weights(method, rows, moment) @ rows
    order = sorted(range(len(rows)), key=lambda i: NAMES[i])
    with torch.random.fork_rng():
        torch.default_generator.set_state(moment.generator(2).get_state())
        theirs = made[method]()(rows[order])
    times = 1 if method == "pcgrad" else len(rows)
    assert torch.allclose(ours, times * theirs, rtol=1e-3, atol=1e-4 * float(theirs.norm()))


@given(gradients())
def test_mgda_is_the_shortest_convex_combination(rows):
    found = weights("mgda", rows).numpy() / len(rows)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    shortest = found @ rows
    # Optimality: no gradient has a smaller product with the combination than the combination itself.
    assert (rows @ shortest).min() >= shortest @ shortest * (1 - 1e-6) - 1e-9 * (rows**2).sum(1).max()
    theirs = TorchMGDA()(torch.from_numpy(rows)).norm()
    assert np.linalg.norm(shortest) <= float(theirs) * (1 + 1e-6)


def test_mgda_of_two_gradients_is_the_closed_form():
    one, two = np.array([2.0, 1.0]), np.array([-1.0, 1.0])
    share = (two - one) @ two / ((one - two) @ (one - two))
    assert weights("mgda", [one, two]) == pytest.approx([2 * share, 2 * (1 - share)])


@given(gradients())
def test_nash_bargaining(rows):
    found = weights("nash", rows).numpy()
    rows = rows / np.sqrt((rows**2).sum(1).mean())
    assert found.min() > 0
    assert found * (rows @ rows.T @ found) == pytest.approx(np.ones(len(rows)), rel=2e-2)  # the damping's share
    assert np.linalg.norm(found @ rows) == pytest.approx(len(rows) ** 0.5, rel=1e-2)


def test_nash_against_a_general_solver_and_a_closed_form():
    scale = np.array([1.0, 4.0, 0.25])
    assert weights("nash", np.diag(scale)) == pytest.approx(np.sqrt((scale**2).mean()) / scale, rel=1e-4)
    rows = np.random.default_rng(0).normal(size=(4, 6))
    rows /= np.sqrt((rows**2).sum(1).mean())
    solved = root(lambda logs: rows @ rows.T @ np.exp(logs) - np.exp(-logs), np.zeros(4), tol=1e-12)
    assert solved.success
    assert weights("nash", rows) == pytest.approx(np.exp(solved.x), rel=1e-3)


def test_cagrad_solves_its_own_problem():
    """The best worst improvement within a ball of radius c‖g₀‖ around the mean gradient, by a general solver."""
    rows = np.random.default_rng(1).normal(size=(3, 3))
    mean = rows.mean(0)
    ours = weights("cagrad", rows, cagrad_c=0.4).numpy() @ rows / 3
    ball = {"type": "ineq", "fun": lambda d: 0.4**2 * mean @ mean - (d - mean) @ (d - mean)}
    best = max((minimize(lambda d: -(rows @ d).min(), start, constraints=ball) for start in (mean, ours)),
               key=lambda found: -found.fun)  # fmt: skip
    assert (rows @ ours).min() == pytest.approx(-best.fun, rel=1e-3)


@given(gradients())
def test_what_each_method_promises(rows):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    along = unit @ (weights("imtl", rows).numpy() @ rows)
    assert along == pytest.approx(np.full(len(rows), along.mean()), rel=1e-5), "imtl: equal progress along each"
    assert (unit @ (weights("upgrad", rows).numpy() @ rows)).min() > -1e-4 * np.abs(rows).max(), "upgrad: no conflict"
    one, two = rows[:2]
    combined = weights("pcgrad", rows[:2]).numpy() @ rows[:2]
    if one @ two < 0:
        assert combined == pytest.approx(one - one @ two / (two @ two) * two + two - one @ two / (one @ one) * one)
    else:
        assert combined == pytest.approx(one + two)


@pytest.mark.parametrize("method", GRADIENT_BASED)
def test_gradients_that_are_at_right_angles_and_equally_long_are_added(method):
    assert weights(method, 3.0 * np.eye(4), cagrad_c=0.0) == pytest.approx([1] * 4, rel=1e-3)


@pytest.mark.parametrize("method", GRADIENT_BASED)
@given(gradients(few=3), st.randoms())
def test_neither_the_order_of_the_tasks_nor_a_common_scale_matters(method, rows, random):
    terms = NAMES[: len(rows)]
    order = random.sample(range(len(rows)), len(rows))
    # A scale apart from the powers of two would change the rounding that some solvers' tolerance lets through.
    shuffled = torch.from_numpy(rows[order]) * 2.0**10
    moment, losses = Moment(seed=1, step=random.randrange(9)), torch.rand(len(rows)).double() + 1
    found = balancer(method, [terms[i] for i in order]).weigh(
        shuffled @ shuffled.T, losses[order], [terms[i] for i in order], moment
    )
    rows = torch.from_numpy(rows)
    expected = balancer(method, terms).weigh(rows @ rows.T, losses, terms, moment)
    assert torch.allclose(found, expected[order], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", GRADIENT_BASED)
@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((3, 2)),
        [[1.0, 0.0], [0.0, 0.0], [0.5, 1.0]],
        [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]],
        [[1.0, 2.0], [-1.0, -2.0]],
        [[1e-18, 0.0], [0.0, 1e18]],
        [[1e-25, 1e-26], [1e-26, -1e-25]],
        [[3.0, 1.0]],
    ],
    ids=["zeros", "one zero", "equal", "opposite", "far apart", "tiny", "one"],
)
def test_gradients_that_say_nothing_give_finite_weights(method, rows, recwarn):
    found = weights(method, rows)
    assert found.shape == (len(rows),)
    assert found.isfinite().all()
    assert not [warning for warning in recwarn if "found no weights" in str(warning.message)]
    update = found.numpy() @ np.asarray(rows)
    assert np.isfinite(update).all()
    lengths = np.linalg.norm(rows, axis=1)
    assert np.linalg.norm(update) <= 200 * lengths.max()


def test_a_zero_gradient_does_not_move_the_others():
    rows = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 0.5, 0.3]])
    for method in GRADIENT_BASED:
        if method != "gradnorm":
            terms = ["semseg", "normals"]
            two = torch.from_numpy(rows[[0, 2]])
            alone = balancer(method, terms).weigh(two @ two.T, torch.ones(2).double(), terms, Moment())
            assert weights(method, rows)[[0, 2]] == pytest.approx(alone), method
            assert weights(method, rows)[1] == 1, method


def test_pcgrad_draws_from_seed_and_step_alone():
    rows = np.random.default_rng(0).normal(size=(4, 3))
    before = torch.random.get_rng_state()
    found = [weights("pcgrad", rows, Moment(seed=1, step=step)) for step in (0, 0, 1, 2, 3)]
    assert torch.equal(before, torch.random.get_rng_state()), "the random numbers of the run are not touched"
    torch.manual_seed(99)
    assert torch.equal(weights("pcgrad", rows, Moment(seed=1, step=0)), found[0])
    torch.random.set_rng_state(before)
    assert torch.equal(found[0], found[1])
    assert any(not torch.allclose(found[0], other) for other in found[2:])


class Broken(GramianBalancer):
    def solve(self, gramian, moment):
        raise ValueError("out of luck")


def test_a_solver_that_fails_says_so():
    with pytest.warns(UserWarning, match=r"Broken found no weights at step 7, all are 1 there: out of luck"):
        found = Broken(["a", "b"]).weigh(torch.eye(2).double(), torch.ones(2).double(), ["a", "b"], Moment(step=7))
    assert found.tolist() == [1, 1]


@pytest.mark.parametrize("method", ["pcgrad", "cagrad", "imtl", "aligned", "upgrad"])
def test_a_missing_package_is_named(monkeypatch, method):
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(ConfigError, match=rf"'{method}' needs .* pip install 'm2h-lightning\[balancing\]'$"):
        balancer(method)


def test_gradnorm_against_numbers_computed_by_hand():
    method = balancer("gradnorm", ["a", "b"], gradnorm_alpha=1.0, gradnorm_lr=0.1)
    products = torch.tensor([[9.0, 0.0], [0.0, 1.0]]).double()
    losses = [torch.tensor(pair).double() for pair in ([2.0, 4.0], [1.0, 4.0], [1.0, 1.0])]
    # Lengths 3 and 1 are 1.5 and 0.5 of their mean; both ratios are 1, n̄ is 1: one lies above it, one below.
    assert method.weigh(products, losses[0], ["a", "b"], Moment()).tolist() == [1, 1]
    # w = (1 − 0.1·1.5, 1 + 0.1·0.5) = (0.85, 1.05), scaled to the sum 2.
    second = [0.85 * 2 / 1.9, 1.05 * 2 / 1.9]
    found = method.weigh(products, losses[1], ["a", "b"], Moment())
    assert found.tolist() == pytest.approx(second)
    # Ratios 0.5 and 1, over their mean: targets 2/3 n̄ and 4/3 n̄, n̄ = (1.5·0.8947 + 0.5·1.1053)/2 = 0.9474.
    mean = (1.5 * second[0] + 0.5 * second[1]) / 2
    assert 1.5 * second[0] > 2 / 3 * mean
    assert 0.5 * second[1] < 4 / 3 * mean
    moved = [second[0] - 0.1 * 1.5, second[1] + 0.1 * 0.5]
    third = method.weigh(products, losses[2], ["a", "b"], Moment())
    assert third.tolist() == pytest.approx([2 * w / sum(moved) for w in moved])


def test_gradnorm_evens_out_the_lengths_and_its_state_goes_on():
    lengths = torch.tensor([5.0, 1.0, 0.2]).double()
    terms = NAMES[:3]
    method, other = (balancer("gradnorm", terms, gradnorm_lr=0.01) for _ in range(2))
    for _ in range(600):
        found = method.weigh(torch.diag(lengths**2), torch.ones(3).double(), terms, Moment())
    weighted = found * lengths
    assert found.sum() == pytest.approx(3)
    assert weighted / weighted.mean() == pytest.approx(np.ones(3), abs=0.2)
    # One that is absent keeps its weight and takes no part in the others'.
    pair = method.weigh(torch.diag(lengths[:2] ** 2), torch.ones(2).double(), terms[:2], Moment())
    assert pair.tolist() == pytest.approx(method.weights[:2].tolist(), abs=0.05)
    other.load_state(method.state())
    both = [m.weigh(torch.diag(lengths**2), torch.full((3,), 0.5).double(), terms, Moment()) for m in (method, other)]
    assert torch.equal(*both)
    assert both[0][2] == pytest.approx(float(found[2]), abs=0.05)


class Toy(nn.Module):
    """A shared layer and a head per term."""

    def __init__(self, terms=NAMES):
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
        self.heads = nn.ModuleDict({name: nn.Linear(5, 1) for name in sorted(terms)})
        self.terms = list(terms)

    def losses(self, x, features=None):
        features = self.shared(x) if features is None else features
        return {name: (self.heads[name](features) - i).square().mean() for i, name in enumerate(self.terms)}

    def step(self, x, absent=(), extra=False, factors=None):
        losses = self.losses(x)
        balanced = [name for name in self.terms if name != "consistency"]
        present = {name: name not in absent for name in losses}
        static = {name: (factors or {}).get(name, 1.0) for name in losses}
        weights = {n: torch.tensor(static[n]) * present[n] for n in losses}
        total = sum(weights[n] * loss for n, loss in losses.items())
        means = {name: loss.detach() for name, loss in losses.items()}
        return StepLosses(losses, means, present, static, weights, balanced, total)


def gradient(toy, steps, method, factor=1.0, scale=1.0, terms=NAMES):
    toy.zero_grad()
    rest = "consistency" in toy.terms
    collected = StepGradients(terms, list(toy.shared.parameters()), list(toy.heads.parameters()), rest)
    for step in steps:
        collected.add(step, torch.tensor(factor))
    for parameter in collected.own:  # as the scaler does it between the two
        parameter.grad /= scale
    found = collected.finish(balancer(method, terms), Moment(), scale)
    return {name: p.grad.clone() for name, p in toy.named_parameters()}, found


def images(seed=0, count=8):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("method", "theirs"), [("upgrad", exact_upgrad()), ("imtl", IMTLG()), ("aligned", AlignedMTL())]
)
def test_the_gradient_is_that_of_torchjd(method, theirs):
    toy, x = Toy(), images()
    ours, _ = gradient(toy, [toy.step(x)], method)
    toy.zero_grad()
    features = toy.shared(x)
    mtl_backward(list(toy.losses(x, features).values()), features=features, retain_graph=True)
    for parameter in toy.shared.parameters():
        parameter.jac = None if not hasattr(parameter, "jac") else parameter.jac
    rows = torch.stack([torch.cat([p.jac[i].flatten() for p in toy.shared.parameters()]) for i in range(4)])
    update = 4 * theirs(rows.double())
    assert torch.allclose(torch.cat([ours[f"shared.0.{k}"].flatten() for k in ("weight", "bias")]).double(), update,
                          rtol=1e-3, atol=1e-5)  # fmt: skip
    for name, parameter in toy.heads.named_parameters():
        assert torch.allclose(ours[f"heads.{name}"], parameter.grad, rtol=1e-5), "a head's own gradient, unweighted"


def test_what_is_not_balanced_is_added_with_its_own_weight():
    terms = [*NAMES, "consistency"]
    toy, x = Toy(terms), images()
    found, _ = gradient(toy, [toy.step(x, factors={"consistency": 0.3})], "mgda")
    bare = Toy(terms)
    balanced, _ = gradient(bare, [bare.step(x, absent=["consistency"])], "mgda")
    alone = torch.autograd.grad(0.3 * toy.losses(x)["consistency"], list(toy.shared.parameters()))
    for (name, _), extra in zip(toy.shared.named_parameters(), alone, strict=True):
        assert torch.allclose(found[f"shared.{name}"], balanced[f"shared.{name}"] + extra, atol=1e-6)
    assert all(balanced[f"heads.consistency.{key}"].eq(0).all() for key in ("weight", "bias"))


def test_an_absent_loss_does_not_move_the_others():
    toy, x = Toy(), images()
    absent, found = gradient(toy, [toy.step(x, absent=["depth"])], "cagrad")
    assert set(found) == set(NAMES) - {"depth"}
    others = [name for name in NAMES if name != "depth"]
    rows = task_gradients([toy.losses(x)[name] for name in others], list(toy.shared.parameters())).double()
    update = weights_of("cagrad", rows, others) @ rows
    assert torch.allclose(torch.cat([absent["shared.0.weight"].flatten(), absent["shared.0.bias"]]).double(), update,
                          rtol=1e-4, atol=1e-6)  # fmt: skip
    assert absent["heads.depth.weight"].eq(0).all()


def weights_of(method, rows, terms):
    return balancer(method, terms).weigh(gramian(rows), torch.ones(len(terms)).double(), terms, Moment())


def test_batches_are_averaged_before_they_are_weighed():
    """A loss that only one of two batches has takes part with half its gradient."""
    toy, x = Toy(), images()
    whole, first = gradient(toy, [toy.step(x)], "nash")
    halves, second = gradient(toy, [toy.step(x[:4]), toy.step(x[4:])], "nash", factor=0.5)
    assert first == pytest.approx(second, rel=1e-3)
    assert all(torch.allclose(whole[key], halves[key], rtol=1e-3, atol=1e-5) for key in whole)
    _, found = gradient(toy, [toy.step(x[:4], absent=["depth"]), toy.step(x[4:])], "nash", factor=0.5)
    assert set(found) == set(NAMES)


@pytest.mark.parametrize("scale", [2.0**16])
def test_a_scale_is_taken_off(scale):
    toy, x = Toy(), images()
    plain, _ = gradient(toy, [toy.step(x)], "upgrad")
    scaled, _ = gradient(toy, [toy.step(x)], "upgrad", factor=scale, scale=scale)
    assert all(torch.allclose(plain[key], scaled[key], rtol=1e-5) for key in plain)


def test_a_gradient_that_is_not_finite_is_not_weighed():
    toy, x = Toy(), images()
    step = toy.step(x, factors={"depth": float("inf")})
    found, weighed = gradient(toy, [step], "gradnorm")
    assert weighed is None
    assert not found["shared.0.weight"].isfinite().all()
    assert found["heads.edges.weight"].isfinite().all()


def test_gradients_of_tasks_keep_the_graph_and_are_zero_where_nothing_arrives():
    toy, x = Toy(), images()
    losses = list(toy.losses(x).values())
    parameters = list(toy.parameters())
    rows = [task_gradients(losses, parameters) for _ in range(2)][1]
    for loss, row in zip(losses, rows, strict=True):
        toy.zero_grad()
        loss.backward(retain_graph=True)
        assert torch.equal(row, torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()
                                           for p in parameters]))  # fmt: skip
    assert rows.dtype == torch.float32
    assert torch.allclose(gramian(rows), rows.double() @ rows.double().T)


@pytest.mark.parametrize(("wmca", "ggfm"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("freeze", [True, "last_1", False])
def test_shared_parameters_are_those_that_several_tasks_reach(wmca, ggfm, freeze):
    torch.manual_seed(0)
    net = M2HNet(
        {"one": 1, "two": 2, "three": 3},
        channels=8,
        head_channels=8,
        backbone=BackboneConfig(name="test_vit", pretrained=False, freeze=freeze),
        wmca=WMCAConfig(enabled=wmca, heads=2, window_size=3),
        ggfm=GGFMConfig(enabled=ggfm),
    )
    trainable = {name: p for name, p in net.named_parameters() if p.requires_grad}
    counts = dict.fromkeys(trainable, 0)
    for raw in net(torch.randn(1, 3, 32, 48)).values():
        found = torch.autograd.grad(raw.square().sum(), list(trainable.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(trainable, found, strict=True):
            counts[name] += gradient is not None
    shared = {id(p) for p in net.shared_parameters()}
    assert {name for name, p in trainable.items() if id(p) in shared} == {n for n, count in counts.items() if count > 1}
    assert min(counts.values()) > 0
    assert len(shared) == len(net.shared_parameters())
    single = M2HNet({"one": 1}, channels=8, head_channels=8, backbone=BackboneConfig(name="test_vit", pretrained=False),
                    wmca=WMCAConfig(enabled=wmca, heads=2, window_size=3), ggfm=GGFMConfig(enabled=ggfm))  # fmt: skip
    assert single.shared_parameters() == []
