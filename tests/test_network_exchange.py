"""WMCA and GGFM: what every exchange block must do, and what the published code's blocks got wrong."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2h_lightning.errors import ConfigError
from m2h_lightning.network import WMCA, GGFMConfig, WMCAConfig, window_partition, window_reverse
from m2h_lightning.network.ggfm import GGFM
from m2h_lightning.network.windows import axis_segments
from m2h_lightning.network.wmca import ExchangeLayer

C = 8
TASKS = ["semseg", "depth", "normals"]


def feature_maps(height=16, width=19, batch=2, tasks=TASKS, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {t: torch.randn(batch, C, height, width, generator=generator, dtype=dtype) for t in tasks}


def wmca(tasks=TASKS, cls=WMCA, **options):
    torch.manual_seed(1)
    block = cls(tasks, C, WMCAConfig(**{"window_size": 7, "heads": 2, **options}))
    with torch.no_grad():  # far from the small initial values, so that every part matters
        for name, parameter in block.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.4)
    return block


class GGFMBlock(nn.Module):
    """GGFM with a fixed context, to obey the same contract as WMCA."""

    def __init__(self, tasks):
        super().__init__()
        torch.manual_seed(1)
        self.block = GGFM(tasks, C, 6, GGFMConfig(reduction=2))
        self.register_buffer("context", torch.randn(1, 6, 3, 4))

    def forward(self, maps):
        batch = next(iter(maps.values())).shape[0]
        context = self.context.expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        return self.block(maps, context)


BLOCKS = {
    "joint": lambda tasks: wmca(tasks),
    "cross": lambda tasks: wmca(tasks, form="cross"),
    "shifted": lambda tasks: wmca(tasks, shift=True),
    "plain": lambda tasks: wmca(tasks, position_bias=False, task_embedding=False),
    "cross-plain": lambda tasks: wmca(tasks, form="cross", position_bias=False, task_embedding=False, shift=True),
    "ggfm": GGFMBlock,
}


@pytest.mark.parametrize("build", BLOCKS.values(), ids=BLOCKS.keys())
class ExchangeContract:
    """What holds for every block between the tasks."""

    @pytest.mark.parametrize("size", [(16, 19), (7, 7), (5, 3), (1, 1), (14, 21), (8, 15)])
    def test_shape_and_channels_last(self, build, size):
        maps = feature_maps(*size)
        out = build(TASKS)({t: m.contiguous(memory_format=torch.channels_last) for t, m in maps.items()})
        assert list(out) == TASKS
        for task, value in out.items():
            assert value.shape == maps[task].shape
            assert value.stride(1) == 1  # channels-last

    def test_memory_order_does_not_matter(self, build):
        block, maps = build(TASKS), feature_maps()
        last = {t: m.contiguous(memory_format=torch.channels_last) for t, m in maps.items()}
        torch.testing.assert_close(block(maps), block(last))

    def test_tasks_permute(self, build):
        block, other, maps = build(TASKS), build(TASKS[::-1]), feature_maps()
        other.load_state_dict(block.state_dict())
        out = other({t: maps[t] for t in TASKS[::-1]})
        for task, value in block(maps).items():
            torch.testing.assert_close(out[task], value, rtol=1e-4, atol=1e-5)

    def test_images_of_a_batch_are_independent(self, build):
        block, maps = build(TASKS), feature_maps(batch=3)
        whole = block(maps)
        for i in range(3):
            single = block({t: m[i : i + 1] for t, m in maps.items()})
            for task in TASKS:
                torch.testing.assert_close(single[task], whole[task][i : i + 1], rtol=1e-4, atol=1e-5)

    def test_reentrant(self, build):
        """A call on another size in between changes nothing: no geometry is kept on the block."""
        block, maps = build(TASKS), feature_maps()
        before = block(maps)
        block(feature_maps(9, 30))
        torch.testing.assert_close(block(maps), before, rtol=0, atol=0)

    def test_every_parameter_gets_gradient(self, build):
        block = build(TASKS)
        sum((m * torch.randn_like(m)).sum() for m in block(feature_maps()).values()).backward()
        dead = [name for name, p in block.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert not dead

    def test_gradcheck(self, build):
        block = build(TASKS[:2]).double()
        maps = feature_maps(4, 3, batch=1, tasks=TASKS[:2], dtype=torch.float64)
        block.window_size = 3

        def outputs(*values):
            return tuple(block(dict(zip(maps, values, strict=True))).values())

        inputs = tuple(m.clone().requires_grad_() for m in maps.values())
        assert torch.autograd.gradcheck(outputs, inputs, fast_mode=True)

    def test_bfloat16_autocast(self, build):
        block, maps = build(TASKS), feature_maps()
        exact = block(maps)
        with torch.autocast("cpu", torch.bfloat16):
            out = block(maps)
        for task in TASKS:
            assert (out[task].float() - exact[task]).abs().mean() < 0.05 * exact[task].abs().mean()


class TestExchange(ExchangeContract):
    """Run the contract (a base without ``Test`` in its name is not collected on its own)."""


# ── padded cells are never keys ──────────────────────────────────────────────────────────────────────────────────────


def cuts(length, window, shift):
    """Borders of the windows on one axis, written independently of the package."""
    borders = sorted({0, length, *range(-shift, length, window)} - set(range(-window, 0)))
    return list(itertools.pairwise(b for b in borders if 0 <= b <= length))


def reference_layer(layer: ExchangeLayer, maps: dict[str, Tensor], cross: bool, shift: int) -> dict[str, Tensor]:
    """One exchange layer with loops and an explicit softmax over the valid cells of each window."""
    p, heads, names = layer.window_size, layer.heads, list(maps)
    batch, _, height, width = maps[names[0]].shape
    out = {t: torch.zeros_like(m) for t, m in maps.items()}
    for b, (top, bottom), (left, right) in itertools.product(
        range(batch), cuts(height, p, shift), cuts(width, p, shift)
    ):
        cells = [(t, y, x) for t in names for y in range(top, bottom) for x in range(left, right)]
        tokens = torch.stack([maps[t][b, :, y, x] for t, y, x in cells])
        y = layer.norm1(tokens)
        if layer.task_embedding:
            y = y + torch.stack([layer.task_embedding[t] for t, _, _ in cells])
        q, k, v = layer.qkv(y).chunk(3, -1)
        d, mixed = C // heads, []
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            logits = q[:, part] @ k[:, part].T / math.sqrt(d)
            for i, (ti, yi, xi) in enumerate(cells):
                for j, (tj, yj, xj) in enumerate(cells):
                    if layer.bias_table is not None:
                        logits[i, j] += layer.bias_table[(yi - yj + p - 1) * (2 * p - 1) + xi - xj + p - 1, h]
                    if cross and ti == tj:
                        logits[i, j] = -torch.inf
            mixed.append(logits.softmax(-1) @ v[:, part])
        tokens = tokens + layer.proj(torch.cat(mixed, -1))
        tokens = tokens + layer.mlp(layer.norm2(tokens))
        for (t, yy, xx), token in zip(cells, tokens, strict=True):
            out[t][b, :, yy, xx] = token
    return out


@torch.no_grad()
def check_against_reference(block: WMCA, maps: dict[str, Tensor]) -> None:
    expected = maps
    for i, layer in enumerate(block.layers):
        shift = block.window_size // 2 if block.layers[-1].shift and i % 2 else 0
        expected = reference_layer(layer, expected, layer.form == "cross", shift)
    out = block(maps)
    for task in maps:
        torch.testing.assert_close(out[task], expected[task], rtol=1e-4, atol=1e-4)


class PaddedWMCA(WMCA):
    """The published flaw: the map is padded to a multiple of the window, and the padding takes part as keys."""

    def forward(self, maps):
        height, width = next(iter(maps.values())).shape[-2:]
        pad = (0, -width % self.window_size, 0, -height % self.window_size)
        out = super().forward({t: F.pad(m, pad) for t, m in maps.items()})
        return {t: m[..., :height, :width] for t, m in out.items()}


@pytest.mark.parametrize("form", ["joint", "cross"])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_padded_cells_are_never_keys(form, shift, learned):
    options = {"window_size": 3, "form": form, "shift": shift, "position_bias": learned, "task_embedding": learned}
    maps = feature_maps(5, 4, batch=1)
    check_against_reference(wmca(**options), maps)
    with pytest.raises(AssertionError):
        check_against_reference(wmca(cls=PaddedWMCA, **options), maps)


# ── locality, and its end by shifting ────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def changed_cells(block, rows=slice(7, 14), columns=slice(7, 14)) -> Tensor:
    """Cells whose output changes when the cells of one window do. Shape: H×W, bool."""
    maps = feature_maps(21, 23, batch=1)
    other = {t: m.clone() for t, m in maps.items()}
    other["depth"][..., rows, columns] += 1.0
    before, after = block(maps), block(other)
    return torch.stack([(after[t] - before[t]).abs().amax((0, 1)) for t in maps]).amax(0) > 0


def check_local(block) -> None:
    changed = changed_cells(block)
    assert changed[7:14, 7:14].all(), "all tasks of the window must see the change"
    changed[7:14, 7:14] = False
    assert not changed.any(), "a change left its window"


class LeakyWMCA(WMCA):
    """A block that mixes neighbouring windows without being asked to."""

    def forward(self, maps):
        return {t: F.avg_pool2d(m, 3, 1, 1) for t, m in super().forward(maps).items()}


@pytest.mark.parametrize("form", ["joint", "cross"])
def test_local_without_shift(form):
    check_local(wmca(form=form))
    with pytest.raises(AssertionError):
        check_local(wmca(form=form, cls=LeakyWMCA))


@pytest.mark.parametrize("form", ["joint", "cross"])
def test_neighbours_change_with_shift(form):
    changed = changed_cells(wmca(form=form, shift=True))
    assert changed[4:7, 7:14].any(), "the window above must see the change"
    assert changed[14:17, 14:17].any(), "the window at lower right must see the change"
    assert not changed[:4].any(), "but nothing beyond one shifted window"
    with pytest.raises(AssertionError):
        check_local(wmca(form=form, shift=True))


def test_all_tasks_exchange():
    maps = feature_maps(7, 7, batch=1)
    for options in ({}, {"form": "cross"}):
        block = wmca(**options)
        leaves = {t: m.clone().requires_grad_() for t, m in maps.items()}
        for task in TASKS:
            gradients = torch.autograd.grad(block(leaves)[task].sum(), list(leaves.values()))
            assert all(g.abs().max() > 0 for g in gradients)


def test_cross_form_reads_the_other_tasks_only():
    """With one layer and no values from others, a task's own tokens reach its output by the identity path alone."""
    block = wmca(form="cross", layers=1)
    layer = block.layers[0]
    with torch.no_grad():
        layer.mlp[2].weight.zero_()
        layer.mlp[2].bias.zero_()
        layer.qkv.weight[:C].zero_()  # uniform attention: the query has no say
    maps = {t: m.requires_grad_() for t, m in feature_maps(7, 7, batch=1).items()}
    moved = block(maps)["depth"] - maps["depth"]
    own, other = torch.autograd.grad(moved.square().sum(), [maps["depth"], maps["normals"]])
    assert own.abs().max() < 1e-3 * other.abs().max()


def check_identity_path(block) -> None:
    """With the branches' last layers at zero the block returns its input, bit by bit."""
    with torch.no_grad():
        for layer in block.layers:
            for linear in (layer.proj, layer.mlp[2]):
                linear.weight.zero_()
                linear.bias.zero_()
    maps = feature_maps()
    torch.testing.assert_close(block(maps), maps, rtol=0, atol=0)


class PostNormLayer(ExchangeLayer):
    """The published order: what leaves the layer has been normalised, nothing of the raw input is left."""

    def forward(self, x, bias):
        return self.norm2(super().forward(x, bias))


def test_identity_path():
    check_identity_path(wmca())
    flawed = wmca()
    for layer in flawed.layers:
        layer.__class__ = PostNormLayer
    with pytest.raises(AssertionError):
        check_identity_path(flawed)


# ── cutting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("window", [1, 3, 5, 7, 9, 11, 14])
@pytest.mark.parametrize("size", [(16, 19), (6, 40), (28, 28)])
def test_cut_and_join(window, size):
    maps = list(feature_maps(*size).values())
    for shift in {0, window // 2}:
        joined = torch.zeros(len(maps), *maps[0].permute(0, 2, 3, 1).shape)
        seen = torch.zeros(size, dtype=torch.int)
        for rows in axis_segments(size[0], window, shift):
            for columns in axis_segments(size[1], window, shift):
                windows = window_partition(maps, rows, columns)
                assert windows.shape[2] == rows.size * columns.size <= window**2
                area = (
                    slice(rows.start, rows.start + rows.number * rows.size),
                    slice(columns.start, columns.start + columns.number * columns.size),
                )
                joined[:, :, area[0], area[1]] = window_reverse(windows, rows, columns)
                seen[area] += 1
        assert (seen == 1).all()
        torch.testing.assert_close(joined, torch.stack(maps).permute(0, 1, 3, 4, 2), rtol=0, atol=0)


@pytest.mark.parametrize("length", range(1, 30))
@pytest.mark.parametrize("window", [1, 2, 7])
def test_segments_agree_with_plain_borders(length, window):
    for shift in {0, window // 2}:
        borders = [
            (s.start + i * s.size, s.start + (i + 1) * s.size)
            for s in axis_segments(length, window, shift)
            for i in range(s.number)
        ]
        first = window - shift if shift else window
        assert borders == cuts(length, window, window - first)


@pytest.mark.parametrize("window", [3, 5, 7, 9, 11, 14])
def test_chunks_do_not_change_the_result(window):
    maps = feature_maps(20, 33)
    whole = wmca(window_size=window, chunk=0)(maps)
    for chunk in (1, 4):
        out = wmca(window_size=window, chunk=chunk)(maps)
        for task in TASKS:
            torch.testing.assert_close(out[task], whole[task], rtol=1e-4, atol=1e-5)


def test_window_larger_than_the_map_says_so():
    with pytest.warns(UserWarning, match=r"wmca\.window_size 14 exceeds the 5×6 map"):
        out = wmca(window_size=14)(feature_maps(5, 6))
    assert out["depth"].shape[-2:] == (5, 6)


def test_gradient_checkpointing_gives_the_same_gradients():
    maps, gradients = feature_maps(), []
    for flag in (False, True):
        block = wmca()
        block.gradient_checkpointing = flag
        sum(m.square().sum() for m in block(maps).values()).backward()
        gradients.append([p.grad for p in block.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("options", "tasks", "message"),
    [
        ({"form": "cross"}, ["depth"], "at least 2 tasks"),
        ({"window_size": 0}, TASKS, r"model\.wmca\.window_size"),
        ({"layers": 0}, TASKS, r"model\.wmca\.layers"),
        ({"heads": 3}, TASKS, "does not divide"),
        ({"form": "both"}, TASKS, "use joint or cross"),
        ({"mlp_ratio": 0.0}, TASKS, "mlp_ratio"),
        ({"chunk": -1}, TASKS, "chunk"),
    ],
)
def test_bad_values_are_one_line(options, tasks, message):
    with pytest.raises(ConfigError, match=message) as caught:
        WMCA(tasks, C, WMCAConfig(**{"heads": 2, **options}))
    assert "\n" not in str(caught.value)


def test_ggfm_formula():
    block = GGFM(["depth"], C, 6, GGFMConfig(reduction=2))
    maps, context = feature_maps(8, 6, tasks=["depth"]), torch.randn(2, 6, 4, 3)
    gate = block["depth"]
    g = torch.sigmoid(gate.excite(F.gelu(gate.squeeze(maps["depth"].mean((2, 3))))))
    up = F.interpolate(context, size=(8, 6), mode="bilinear", align_corners=False)
    expected = g[:, :, None, None] * maps["depth"] + gate.context(up)  # P after Up: they commute
    torch.testing.assert_close(block(maps, context)["depth"], expected)
    with pytest.raises(ConfigError, match="reduction"):
        GGFM(["depth"], C, 6, GGFMConfig(reduction=0))
