"""Window seams: borders against the real network, scores against loops, planted seams against their control."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from m2h_lightning.errors import DataError
from m2h_lightning.metrics import MetricsConfig, WindowGrid
from m2h_lightning.metrics.cross import build_cross
from m2h_lightning.metrics.seams import WindowSeams, regions
from m2h_lightning.network import BackboneConfig, GGFMConfig, M2HNet, WMCAConfig

TASKS = ["semseg", "depth", "normals", "edges"]


# ── where the network says its windows meet ──────────────────────────────────────────────────────────────────────────


class FirstChannel(nn.Module):
    """Heads that hand one channel through, so that the output shows the windows themselves."""

    def forward(self, maps):
        return {task: value[:, :1] for task, value in maps.items()}


def network(name="test_vit", wmca=None):
    torch.manual_seed(0)
    net = M2HNet(
        {"depth": 1, "edges": 1},
        channels=8,
        head_channels=4,
        backbone=BackboneConfig(name=name, pretrained=False),
        wmca=WMCAConfig(**{"heads": 2, **(wmca or {})}),
        ggfm=GGFMConfig(enabled=False),
    ).eval()
    net.heads = FirstChannel()  # type: ignore[assignment]
    return net


def changed_pixels(net, image, row, column):
    """Rows and columns of the output that depend on one cell of WMCA's input: first and last + 1 of each."""

    def disturb(module, inputs):
        maps = {task: value.clone() for task, value in inputs[0].items()}
        maps["edges"][:, 0, row, column] += 5.0  # one channel: the norm takes out what all have in common
        return (maps,)

    with torch.no_grad():
        before = net(image)["depth"]
        hook = net.wmca.register_forward_pre_hook(disturb)
        after = net(image)["depth"]
        hook.remove()
    found = (before != after)[0, 0]
    rows, columns = found.any(1).nonzero().flatten(), found.any(0).nonzero().flatten()
    return (rows[0].item(), rows[-1].item() + 1), (columns[0].item(), columns[-1].item() + 1)


def map_size(net, image):
    seen = []
    hook = net.wmca.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]["depth"].shape[-2:]))
    with torch.no_grad():
        net(image)
    hook.remove()
    return tuple(seen[0])


@pytest.mark.parametrize("shifted", [False, True], ids=["plain", "shifted"])
@pytest.mark.parametrize(
    ("name", "size", "window"),
    [
        ("test_vit", (64, 80), 7),  # cells of 4 pixels, ragged last windows
        ("test_vit", (70, 90), 5),  # padded to 80 × 96
        ("test_convnext", (70, 90), 6),  # a pyramid
        ("vit_small_patch14_dinov2", (60, 75), 7),  # cells of 3.5 pixels, padded to 70 × 84
    ],
)
def test_borders_are_where_the_output_changes(name, size, window, shifted):
    """The resize to pixels lets a window reach half a cell beyond its border, to a pixel: so the border is known."""
    net = network(name, {"window_size": window, "shift": True, "layers": 2})
    grid = net.window_grid(*size)
    image = torch.randn(1, 3, *size)
    height, width = map_size(net, image)
    silent = net.wmca.layers[0 if shifted else 1]  # leave one layer's windows to look at
    with torch.no_grad():
        for layer in (silent.proj, silent.mlp[2]):
            layer.weight.zero_()
            layer.bias.zero_()
    seen = (set(), set())
    for row, column in [(0, 0), (height // 2, width // 2), (min(height - 1, 11), min(width - 1, 12))]:
        for axis, (start, stop) in enumerate(changed_pixels(net, image, row, column)):
            borders, cell = (grid.rows, grid.columns)[axis], grid.cell[axis]
            position = (row, column)[axis]
            for edge, reach in ((start, cell / 2), (stop, -cell / 2)):
                if 0 < edge < size[axis]:
                    nearest = min(borders, key=lambda border: abs(border - (edge + reach)))
                    assert abs(edge + reach - nearest) <= 0.5
                    seen[axis].add(nearest)
            assert start <= (position + 1) * cell and stop >= min(position * cell, size[axis] - 1)
    assert all(len(found) >= 2 for found in seen)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
@pytest.mark.parametrize("size", [(64, 80), (49, 101)])
def test_cells_fill_the_padded_image(name, size):
    net = network(name, {"window_size": 1})
    height, width = map_size(net, torch.zeros(1, 3, *size))
    grid = net.window_grid(*size)
    padded = [side + -side % net.backbone.multiple for side in size]
    assert grid.cell == (padded[0] / height, padded[1] / width)
    assert grid.rows == tuple(grid.cell[0] * i for i in range(1, height) if grid.cell[0] * i < size[0])
    assert grid.columns == tuple(grid.cell[1] * i for i in range(1, width) if grid.cell[1] * i < size[1])


def test_grid_of_known_windows():
    net = network(wmca={"window_size": 7, "layers": 1})
    assert net.window_grid(64, 80) == WindowGrid((28.0, 56.0), (28.0, 56.0), (4.0, 4.0))
    net = network(wmca={"window_size": 7, "layers": 2, "shift": True})
    assert net.window_grid(64, 80).rows == (16.0, 28.0, 44.0, 56.0)  # cuts after 7, 14 and after 4, 11 cells
    assert net.window_grid(64, 80).columns == (16.0, 28.0, 44.0, 56.0, 72.0)
    assert network(wmca={"window_size": 40}).window_grid(64, 80) == WindowGrid((), (), (4.0, 4.0))
    assert network(wmca={"window_size": 7}).window_grid(60, 57).columns == (28.0, 56.0)
    assert network(wmca={"window_size": 7}).window_grid(60, 56).columns == (28.0,)  # 56 is where the padding starts


def test_no_grid_without_windows():
    net = M2HNet({"depth": 1}, channels=8, backbone=BackboneConfig("test_vit", False), wmca=WMCAConfig(enabled=False))
    assert net.window_grid(64, 80) is None


# ── which pixels are at a border ─────────────────────────────────────────────────────────────────────────────────────


def slow_regions(borders, cell, length, between):
    """'b' at a border, 'c' at a control line, '.' elsewhere; by the definition."""
    borders = [b for b in borders if 0 < b < length]
    ends = [0.0, *borders, length]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(ends) if borders and b - a >= 2 * cell]
    reach = max(cell, 1) / 2
    result = ""
    for i in range(length - 1 if between else length):
        place = i + 1 if between else i + 0.5
        if any(abs(place - b) <= reach for b in borders):
            result += "b"
        else:
            result += "c" if any(abs(place - m) <= reach for m in middles) else "."
    return result


def as_text(table):
    assert (table.sum(0) == 1).all()
    return "".join("bc."[k] for k in table.argmax(0).tolist()) if table.shape[1] else ""


def test_regions_of_regular_shifted_and_ragged_windows():
    assert as_text(regions((14.0, 28.0), 2.0, 32)) == "......cc.....bb.....cc.....bbcc."
    assert as_text(regions((6.0, 14.0), 2.0, 20, between=True)) == ".cccbbb.ccc.bbbccc."
    assert as_text(regions((7.0, 10.5, 17.5), 3.5, 25)) == "..cccbbbbbbbccccbbbcccc.."  # no control in a gap of 3.5
    assert as_text(regions((4.0,), 0.25, 8)) == ".ccbbcc."  # at least the pixel on each side
    assert as_text(regions((), 4.0, 6)) == "......"
    assert as_text(regions((1.0, 2.0), 1.0, 3)) == "bbb"  # windows of one cell: nothing is inside, and no control
    assert as_text(regions((2.0,), 2.0, 1)) == "."  # an image that ends before the border


@given(
    st.lists(st.integers(1, 59), max_size=6, unique=True),
    st.sampled_from([0.5, 1.0, 2.0, 3.5, 4.0]),
    st.integers(1, 60),
    st.booleans(),
)
def test_regions_against_loops(borders, cell, length, between):
    borders = tuple(b / 2 for b in sorted(borders))
    assert as_text(regions(borders, cell, length, between)) == slow_regions(borders, cell, length, between)


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def random_scene(seed, batch, height, width, gaps=True):
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(batch, *shape, height, width, generator=g)

    def unit():
        return F.normalize(torch.randn(batch, 3, height, width, generator=g), dim=1)

    labels = {
        "semseg": (3 * rand()).long(),
        "depth": 1 + rand(1),
        "normals": unit(),
        "edges": (rand(1) < 0.3).float(),
    }
    if gaps:
        for task, nothing in {"semseg": 255, "depth": 0, "normals": 0, "edges": 255}.items():
            hole = (rand() < 0.2)[:, None].expand(batch, 3, height, width)
            labels[task][hole[:, 0] if task == "semseg" else hole[:, : labels[task].shape[1]]] = nothing
    return {"semseg": (3 * rand()).long(), "depth": 1 + rand(1), "normals": unit(), "edges": rand(1)}, labels


def slow_error(task, a, b):
    if task == "semseg":
        return float(a[0] != b[0])
    if task == "normals":
        return math.degrees(math.acos(min(1, max(-1, a @ b))))
    return abs(a[0] - b[0]) / (b[0] if task == "depth" else 1)


def slow_step(task, a, b):
    return float(a[0] != b[0]) if task == "semseg" else math.dist(a, b)


def slow_seams(task, predictions, labels, grid):
    """Sums by loops: {region: [error, pixels, jump, label's jump, pairs]} over all images."""
    total = {region: np.zeros(5) for region in "bc."}
    for p, t in zip(predictions[task].double().numpy(), labels[task].double().numpy(), strict=True):
        p, t = (x[None] if x.ndim == 2 else x for x in (p, t))
        _, h, w = t.shape
        known = {"semseg": t[0] != 255, "depth": t[0] > 0, "edges": t[0] <= 1}.get(task)
        known = np.linalg.norm(t, axis=0) >= 0.5 if known is None else known
        rows = slow_regions(grid.rows, grid.cell[0], h, False), slow_regions(grid.rows, grid.cell[0], h, True)
        columns = slow_regions(grid.columns, grid.cell[1], w, False), slow_regions(grid.columns, grid.cell[1], w, True)

        for i in range(h):
            for j in range(w):
                if not known[i, j]:
                    continue
                kinds = {rows[0][i], columns[0][j]}
                region = "b" if "b" in kinds else "c" if "c" in kinds else "."
                total[region][:2] += slow_error(task, p[:, i, j], t[:, i, j]), 1
                for there, kind in (((i + 1, j), rows[1][i : i + 1]), ((i, j + 1), columns[1][j : j + 1])):
                    if there[0] < h and there[1] < w and known[there]:
                        size = (t[0, i, j] + t[0][there]) / 2 if task == "depth" else 1
                        steps = (slow_step(task, x[:, i, j], x[(slice(None), *there)]) / size for x in (p, t))
                        total[kind][2:] += *steps, 1
    return total


def slow_scores(task, total):
    def mean(part, column):
        return part[column] / part[4 if column >= 2 else 1] if part[4 if column >= 2 else 1] else math.nan

    def excess(at, against, column):
        a, b = mean(at, column), mean(against, column)
        if a == b == 0:
            return 0.0
        return a / b - 1 if b > 0 else math.nan

    inside = total["c"] + total["."]
    result = {"error_border": mean(total["b"], 0), "error_inside": mean(inside, 0)}
    for suffix, at, against in (("", total["b"], inside), ("_control", total["c"], total["."])):
        result[f"error{suffix}"] = excess(at, against, 0)
        result[f"jump{suffix}"] = excess(at, against, 2) - excess(at, against, 3)
    return {f"seams/{task}_{key}": value for key, value in result.items()}


def score(predictions, labels, grid, sizes=None, tasks=None):
    metric = WindowSeams(list(predictions) if tasks is None else tasks)
    metric.update(predictions, labels, sizes, grid)
    return {key: value.item() for key, value in metric.compute().items()}


@pytest.mark.parametrize("task", TASKS)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    rows=st.lists(st.integers(1, 30), max_size=3, unique=True),
    columns=st.lists(st.integers(1, 30), max_size=3, unique=True),
    cell=st.sampled_from([1.0, 1.75, 2.0]),
)
def test_scores_against_loops(task, seed, size, rows, columns, cell):
    grid = WindowGrid(tuple(r / 2 for r in sorted(rows)), tuple(c / 2 for c in sorted(columns)), (cell, 1.5 * cell))
    predictions, labels = random_scene(seed, 2, *size)
    predictions, labels = {task: predictions[task]}, {task: labels[task]}
    if not rows and not columns:
        assert score(predictions, labels, grid) == {}
        return
    expected = slow_scores(task, slow_seams(task, predictions, labels, grid))
    assert score(predictions, labels, grid) == pytest.approx(expected, rel=1e-4, abs=1e-4, nan_ok=True)


GRID = WindowGrid((16.0, 32.0, 48.0), (16.0, 32.0, 48.0, 64.0), (4.0, 4.0))


def good_predictions(seed=0, height=64, width=80):
    """Smooth labels, and predictions with small errors that know of no window."""
    g = torch.Generator().manual_seed(seed)

    def smooth(*shape):
        return F.interpolate(torch.rand(1, *shape, 9, 11, generator=g), (height, width), mode="bicubic")

    labels = {
        "semseg": (3 * smooth(1)).clamp(0, 2).long()[:, 0],
        "depth": 2 + smooth(1),
        "normals": F.normalize(smooth(3) - torch.tensor([0.5, 0.5, 3.0]).reshape(3, 1, 1), dim=1),
        "edges": (smooth(1) > 0.7).float(),
    }
    flip = torch.rand(1, height, width, generator=g) < 0.1
    predictions = {
        "semseg": torch.where(flip, (labels["semseg"] + 1) % 3, labels["semseg"]),
        "depth": labels["depth"] + 0.01 * torch.randn(1, 1, height, width, generator=g),
        "normals": F.normalize(labels["normals"] + 0.01 * torch.randn(1, 3, height, width, generator=g), dim=1),
        "edges": (labels["edges"] - 0.1 * torch.rand(1, 1, height, width, generator=g)).abs(),
    }
    return predictions, labels


def spoil(predictions, labels, lines_down, lines_across):
    """Plant what a seam does: beside each line classes are wrong, values off, and both sides disagree."""
    height, width = labels["semseg"].shape[-2:]
    sign = torch.zeros(height, width)
    for line in lines_down:
        sign[line - 2 : line], sign[line : line + 2] = 1, -1
    for line in lines_across:
        sign[:, line - 2 : line], sign[:, line : line + 2] = 1, -1
    tilt = torch.tensor([0.1, 0.0, 0.0]).reshape(3, 1, 1)
    return {
        "semseg": torch.where(sign > 0, (labels["semseg"] + 1) % 3, predictions["semseg"]),
        "depth": predictions["depth"] + 0.1 * sign,
        "normals": F.normalize(predictions["normals"] + sign * tilt, dim=1),
        "edges": (predictions["edges"] - 0.3 * sign).abs().clamp(max=1),
    }


@pytest.mark.parametrize("task", TASKS)
def test_planted_seam_is_found_and_one_elsewhere_is_not(task):
    predictions, labels = good_predictions()
    at_borders = spoil(predictions, labels, (16, 32, 48), (16, 32, 48, 64))
    elsewhere = spoil(predictions, labels, (8, 24, 40, 56), (8, 24, 40, 56, 72))
    for kind in ("error", "jump"):
        key, control = f"seams/{task}_{kind}", f"seams/{task}_{kind}_control"
        clean = score(predictions, labels, GRID)
        assert abs(clean[key]) < 0.25 and abs(clean[control]) < 0.25
        seam = score(at_borders, labels, GRID)
        assert seam[key] > 0.5 and seam[key] > seam[control] + 0.5
        assert abs(seam[control]) < 0.25  # the control does not see the seam
        other = score(elsewhere, labels, GRID)
        assert other[key] < 0.1 and other[control] > 0.5


def test_objects_at_the_borders_are_no_seam():
    """What the label itself does at borders is taken off the jump, and a perfect prediction has neither."""
    _, labels = good_predictions()
    labels = spoil(labels, labels, (16, 32, 48), (16, 32, 48, 64))
    labels["edges"] = labels["edges"].round()
    result = score(labels, labels, GRID)
    for task in TASKS:
        for kind in ("error_border", "error_inside", "error", "error_control", "jump", "jump_control"):
            assert result[f"seams/{task}_{kind}"] == pytest.approx(0, abs=1e-6)
    # The same jumps where the label has none are a seam.
    flat = {"depth": torch.full_like(labels["depth"], 2.0)}
    flat["depth"] += 0.01 * torch.rand(flat["depth"].shape, generator=torch.Generator().manual_seed(0))
    assert score({"depth": labels["depth"]}, flat, GRID)["seams/depth_jump"] > 0.5


def test_ratio_of_an_error_at_borders_only_is_not_a_number():
    _, labels = good_predictions()
    guess = {"depth": labels["depth"].clone()}
    guess["depth"][..., 15, :] += 1
    result = score(guess, {"depth": labels["depth"]}, GRID)
    assert result["seams/depth_error_border"] > 0 and result["seams/depth_error_inside"] == 0
    assert math.isnan(result["seams/depth_error"])
    assert result["seams/depth_error_control"] == 0


def test_larger_labels_take_a_larger_grid():
    predictions, labels = random_scene(0, 2, 32, 48)
    grid = WindowGrid((8.0, 20.0), (16.0, 28.0), (4.0, 4.0))
    small = score(predictions, labels, grid)

    def twice(maps):
        return {k: v.repeat_interleave(3, -2).repeat_interleave(2, -1) for k, v in maps.items()}

    large = score(twice(predictions), twice(labels), grid.scaled(3, 2))
    for task in TASKS:
        for kind in ("error_border", "error_inside", "error", "error_control"):
            key = f"seams/{task}_{kind}"
            assert large[key] == pytest.approx(small[key], rel=1e-5, abs=1e-6)


def test_no_grid_no_keys():
    predictions, labels = random_scene(0, 1, 8, 8)
    assert score(predictions, labels, None) == {}
    assert score(predictions, labels, WindowGrid((), (), (4.0, 4.0))) == {}


def test_missing_labels_are_not_numbers():
    predictions, labels = random_scene(0, 2, 16, 16)
    grid = WindowGrid((8.0,), (8.0,), (2.0, 2.0))
    labels["depth"][:] = 0
    del labels["edges"]
    result = score(predictions, labels, grid)
    assert all(math.isnan(value) for key, value in result.items() if "depth" in key or "edges" in key)
    assert not any(math.isnan(value) for key, value in result.items() if "semseg" in key or "normals" in key)


def test_padding_does_not_count_nor_shift_the_control():
    """The last control line depends on where the image ends, not on where the batch does."""
    predictions, labels = random_scene(1, 2, 20, 24, gaps=False)
    grid = WindowGrid((8.0, 16.0, 24.0), (8.0, 16.0, 24.0), (2.0, 2.0))
    alone = [
        score({k: v[i : i + 1] for k, v in predictions.items()}, {k: v[i : i + 1] for k, v in labels.items()}, grid)
        for i in range(2)
    ]
    both = WindowSeams(TASKS)
    nothing = {"semseg": 255, "depth": 0.0, "normals": 0.0, "edges": 255.0}
    wide = {k: F.pad(v, (0, 9, 0, 12), value=nothing[k]) for k, v in labels.items()}
    guess = {
        k: F.pad(v, (0, 9, 0, 12), value=torch.nan if v.is_floating_point() else 7) for k, v in predictions.items()
    }
    for i in range(2):
        both.reset()
        one = ({k: v[i : i + 1] for k, v in maps.items()} for maps in (guess, wide))
        both.update(*one, [(20, 24)], grid)
        assert {k: v.item() for k, v in both.compute().items()} == pytest.approx(alone[i], rel=1e-6)


def test_batches_and_processes_add_up():
    predictions, labels = random_scene(2, 4, 20, 24)
    grid = WindowGrid((7.0, 14.0), (7.0, 14.0, 21.0), (1.75, 1.75))
    whole = score(predictions, labels, grid)

    def part(rows):
        return {k: v[rows] for k, v in predictions.items()}, {k: v[rows] for k, v in labels.items()}, None, grid

    first, second = WindowSeams(TASKS), WindowSeams(TASKS)
    first.update(*part(slice(0, 1)))
    first.update(*part(slice(1, 3)))
    second.update(*part(slice(3, 4)))
    first.merge_state(second)
    assert {k: v.item() for k, v in first.compute().items()} == pytest.approx(whole, rel=1e-12)


def test_logits_stand_for_classes():
    predictions, labels = random_scene(3, 2, 20, 24)
    logits = F.one_hot(predictions["semseg"], 3).permute(0, 3, 1, 2).float()
    assert score({"semseg": logits}, labels, GRID) == score({"semseg": predictions["semseg"]}, labels, GRID)


@pytest.mark.parametrize("task", ["depth", "normals", "edges"])
def test_broken_predictions(task):
    predictions, labels = random_scene(4, 1, 20, 24, gaps=False)
    predictions = {task: predictions[task]}
    predictions[task][0, 0, 3, 5] = torch.nan
    with pytest.raises(DataError, match=f"prediction of {task} is NaN or infinite at 1 scored"):
        score(predictions, labels, GRID)
    labels[task][0, :, 3, 5] = 255 if task == "edges" else 0
    assert not any(math.isnan(value) for value in score(predictions, labels, GRID).values())


def test_other_shape_is_refused():
    predictions, labels = random_scene(4, 1, 20, 24)
    with pytest.raises(DataError, match="prediction of depth has shape"):
        score({"depth": predictions["depth"][..., 1:]}, labels, GRID)


def test_inputs_are_left_alone():
    predictions, labels = random_scene(5, 2, 20, 24)
    before = {**{f"p{k}": v.clone() for k, v in predictions.items()}, **{k: v.clone() for k, v in labels.items()}}
    score(predictions, labels, GRID)
    after = {**{f"p{k}": v for k, v in predictions.items()}, **labels}
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("tasks", "unit", "expected"),
    [
        (["semseg", "depth", "normals", "edges"], "m", {"depth_normals", "edges_semseg", "seams"}),
        (["semseg", "depth", "normals", "edges"], "px", {"edges_semseg", "seams"}),
        (["depth", "normals"], "m", {"depth_normals", "seams"}),
        (["semseg"], "m", {"seams"}),
        (["toy"], "m", set()),
    ],
)
def test_build_cross(tasks, unit, expected):
    metrics = build_cross(tasks, MetricsConfig(protocol="per_batch"), unit)
    assert set(metrics) == expected
    assert all(m.per_batch for name, m in metrics.items() if name != "seams")
