"""The whole network: geometry, tasks, switches, gradients, cost. Each known flaw of published code is rejected here."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import m2h_lightning.network.m2h as m2h_module
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.network import BackboneConfig, GGFMConfig, M2HNet, Stage, WMCAConfig, format_summary, summarize
from m2h_lightning.network.reassemble import TokenReassembly
from m2h_lightning.network.summary import total

TASKS = {"semseg": 5, "depth": 1, "normals": 3, "edges": 1}
FULL = {"semseg": 41, "depth": 1, "normals": 3, "edges": 1}


def build(tasks=TASKS, name="test_vit", freeze=True, wmca=None, ggfm=None, **options):
    torch.manual_seed(0)
    return M2HNet(
        tasks,
        channels=options.pop("channels", 16),
        head_channels=options.pop("head_channels", 8),
        backbone=BackboneConfig(name=name, pretrained=False, freeze=freeze),
        wmca=WMCAConfig(**(wmca or {})),
        ggfm=GGFMConfig(**(ggfm or {})),
        **options,
    )


def image(height=64, width=80, batch=2, seed=0):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


# ── registration ─────────────────────────────────────────────────────────────────────────────────────────────────────

PATCH, OFFSET = 14, 100.0  # GELU and ReLU are the identity this far from zero


class PatchMean(nn.Module):
    """A backbone whose tokens are the mean of their patch: it hands the image's own coordinates through."""

    multiple, plain = PATCH, True

    def forward(self, padded):
        tokens = F.pad(F.avg_pool2d(padded, PATCH), (0, 0, 0, 0, 0, 21))  # 3 → 24 channels
        return [Stage(tokens, tokens.new_zeros(tokens.shape[0], 24)) for _ in range(4)]


def center(conv):
    """Make a convolution the identity on the channels it has in common."""
    nn.init.zeros_(conv.bias)
    nn.init.dirac_(conv.weight)


@torch.no_grad()
def coordinate_net():
    """The real plumbing around blocks that pass on: the output at pixel (row i, column j) should be (j, i)."""
    net = build({"xy": 2}, wmca={"enabled": False}, ggfm={"enabled": False}, channels=4)
    net.backbone = PatchMean()
    net.mstr = mstr = TokenReassembly([24] * 4, 4)
    for readout, project, unify in zip(mstr.readout, mstr.project, mstr.unify, strict=True):
        nn.init.eye_(readout.patch.weight)
        nn.init.zeros_(readout.patch.bias)
        nn.init.zeros_(readout.summary.weight)
        center(project)
        nn.init.zeros_(unify.weight)
        nn.init.zeros_(unify.bias)
    center(mstr.unify[0])
    # A token becomes 4×4 cells: the constant third channel carries each cell's offset from the token's centre.
    up = mstr.resize[0]
    nn.init.zeros_(up.weight)
    nn.init.zeros_(up.bias)
    steps = (torch.arange(4) - 1.5) * PATCH / 4 / OFFSET
    up.weight[0, 0], up.weight[1, 1], up.weight[2, 2] = 1.0, 1.0, 1.0
    up.weight[2, 0], up.weight[2, 1] = steps[None, :].expand(4, 4), steps[:, None].expand(4, 4)
    for block in net.msf["xy"].blocks:
        for unit in (block.rcu1, block.rcu2):
            for conv in (unit.conv1, unit.conv2):
                nn.init.zeros_(conv.weight)
                nn.init.zeros_(conv.bias)
        center(block.out)
    head = net.heads["xy"]
    head.reduce, head.context, head.refine = nn.Identity(), nn.Identity(), nn.Identity()
    head.classify = nn.Conv2d(4, 2, 1)
    center(head.classify)
    return net


@torch.no_grad()
def check_registration(net, height, width):
    """No pixel is displaced by more than half a pixel (outside the cells whose neighbours lie beyond the image)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    xy = torch.stack([x, y]).float()
    picture = torch.cat([xy + OFFSET, torch.full((1, height, width), OFFSET)])[None]
    out = net(picture)["xy"][0]
    assert out.shape == xy.shape
    bottom, right = height // PATCH * PATCH - 4, width // PATCH * PATCH - 4
    error = (out - OFFSET - xy)[:, 4:bottom, 4:right].abs().max()
    assert error <= 0.5, f"displaced by {error:.2f} px"


SIZES = [(427, 561), (480, 640), (448, 448), (100, 57)]


@pytest.mark.parametrize("size", SIZES)
def test_registration(size):
    check_registration(coordinate_net(), *size)


@pytest.mark.parametrize("size", SIZES[:2])
@pytest.mark.parametrize("flaw", ["resized to the unpadded size", "corners aligned", "cropped at the wrong side"])
def test_registration_check_rejects(monkeypatch, size, flaw):
    def flawed(maps, padded, target):
        if flaw == "resized to the unpadded size":  # the published flaw
            return F.interpolate(maps, target, mode="bilinear")
        if flaw == "corners aligned":
            return F.interpolate(maps, padded, mode="bilinear", align_corners=True)[..., : target[0], : target[1]]
        return F.interpolate(maps, padded, mode="bilinear")[..., -target[0] :, -target[1] :]

    monkeypatch.setattr(m2h_module, "resize_and_crop", flawed)
    with pytest.raises(AssertionError, match="displaced"):
        check_registration(coordinate_net(), *size)


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (50, 95), (64, 80), (33, 160)])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_any_size(size, name):
    size = size if name == "test_vit" else (size[0] + 16, size[1] + 16)  # its coarsest cell is 32 pixels
    out = build(name=name)(image(*size, batch=1))
    assert {t: tuple(m.shape) for t, m in out.items()} == {t: (1, c, *size) for t, c in TASKS.items()}
    assert all(m.isfinite().all() for m in out.values())


@pytest.mark.parametrize(("name", "size"), [("test_vit", (15, 64)), ("test_resnet", (64, 31))])
def test_too_small(name, size):
    with pytest.raises(DataError, match="is smaller than one"):
        build(name=name)(image(*size))


def test_padding_is_differentiable_and_no_inference_tensor_leaves():
    net, x = build(freeze=False), image(50, 61).requires_grad_()
    out = net(x)
    sum(m.sum() for m in out.values()).backward()
    assert x.grad is not None
    assert (x.grad.abs().amax((0, 1)) > 0).all()
    assert not any(m.is_inference() for m in build(freeze=True)(image()).values())


# ── tasks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_tasks_permute(first, second):
    second.load_state_dict(first.state_dict())
    first.eval(), second.eval()
    one, two = first(image()), second(image())
    assert list(two) == list(second.tasks)
    for task in one:
        torch.testing.assert_close(one[task], two[task], rtol=1e-3, atol=1e-5)


def excite(net):
    """Small initial values hide differences between tasks: enlarge what tells tasks apart."""
    with torch.no_grad():
        for layer in net.wmca.layers:
            for parameter in [*layer.task_embedding.values(), layer.qkv.weight, layer.proj.weight]:
                parameter.mul_(20)
    return net


def test_tasks_permute():
    order = dict(reversed(TASKS.items()))
    check_tasks_permute(excite(build(TASKS)), build(order))

    flawed = build(order)
    for layer in flawed.wmca.layers:  # positional tasks: whoever comes first gets the first one's embedding
        layer.tasks = list(TASKS)
    with pytest.raises(AssertionError):
        check_tasks_permute(excite(build(TASKS)), flawed)


@pytest.mark.parametrize("tasks", [{"depth": 1}, {"edges": 1, "semseg": 7}, {f"task{i}": i + 1 for i in range(6)}])
def test_any_tasks(tasks):
    out = build(tasks)(image())
    assert {t: m.shape[1] for t, m in out.items()} == tasks


@pytest.mark.parametrize(
    ("tasks", "message"), [({}, "at least one task"), ({"a.b": 1}, "cannot name"), ({"keys": 1}, "cannot name"),
                           ({"depth": 0}, "at least 1 output channel")]
)  # fmt: skip
def test_bad_tasks(tasks, message):
    with pytest.raises(ConfigError, match=message):
        build(tasks)


def test_images_of_a_batch_are_independent():
    net = build(freeze=False)  # in training mode too: no batch statistics
    whole = net(image(batch=3))
    for i in range(3):
        single = net(image(batch=3)[i : i + 1])
        for task in TASKS:
            torch.testing.assert_close(single[task], whole[task][i : i + 1], rtol=1e-3, atol=1e-5)


# ── switches and gradients ───────────────────────────────────────────────────────────────────────────────────────────


def check_gradients(net):
    net.train()
    with torch.no_grad():  # timm starts the last norm of a residual branch at zero: no gradient before the first step
        for parameter in net.backbone.parameters():
            if not parameter.any():
                parameter.normal_()
    sum((m * torch.randn_like(m)).sum() for m in net(image()).values()).backward()
    trainable = {n: p for n, p in net.named_parameters() if p.requires_grad}
    dead = [n for n, p in trainable.items() if p.grad is None or not p.grad.abs().max() > 0]
    assert trainable
    assert not dead, f"{len(dead)} parameters without gradient: {dead[:5]}"


SWITCHES = [
    *({"wmca": {"enabled": w, "shift": True}, "ggfm": {"enabled": g}} for w, g in itertools.product([0, 1], [0, 1])),
    *(
        {"wmca": {"form": f, "shift": s, "position_bias": b, "task_embedding": e, "layers": n}}
        for f, s, b, e, n in itertools.product(["joint", "cross"], [0, 1], [0, 1], [0, 1], [1, 2])
    ),
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_every_trainable_parameter_gets_gradient(switches):
    check_gradients(build(freeze=False, **switches))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "test_vit2"])
@pytest.mark.parametrize("freeze", [False, "last_1"])
def test_every_trainable_parameter_gets_gradient_from_backbones(name, freeze):
    check_gradients(build(name=name, freeze=freeze))


def test_gradient_check_rejects_unused_levels():
    """The successor's flaw: three of four backbone levels get no gradient at all."""
    net = build(freeze=False)
    msf = net.msf.forward
    net.msf.forward = lambda levels: msf([levels[0], *(level.detach() for level in levels[1:])])
    with pytest.raises(AssertionError, match="without gradient"):
        check_gradients(net)


def test_single_task_and_baseline_have_no_idle_parts():
    net = build({"depth": 1}, wmca={"enabled": False}, ggfm={"enabled": False}, freeze=False)
    assert net.wmca is None
    assert net.ggfm is None
    assert net.fusion is None
    check_gradients(net)
    check_gradients(build({"depth": 1}, freeze=False))
    assert build(ggfm={"enabled": False}).fusion["depth"].in_channels == 16
    assert build().fusion["depth"].in_channels == 32


def test_exchange_blocks_are_parallel_and_for_all_tasks():
    """WMCA and GGFM read the same maps, and a 1×1 convolution joins what they give."""
    net, seen = build(), {}
    net.msf.register_forward_hook(lambda m, i, out: seen.update(msf=out))
    net.wmca.register_forward_hook(lambda m, i, out: seen.update(wmca_in=i[0], wmca=out))
    net.ggfm.register_forward_hook(lambda m, i, out: seen.update(ggfm_in=i[0], ggfm=out))
    net.heads.register_forward_hook(lambda m, i, out: seen.update(heads_in=i[0]))
    net(image())
    assert list(seen["wmca"]) == list(seen["ggfm"]) == list(TASKS)
    for task in TASKS:
        assert seen["wmca_in"][task] is seen["msf"][task]
        assert seen["ggfm_in"][task] is seen["msf"][task]
        joined = net.fusion[task](torch.cat([seen["wmca"][task], seen["ggfm"][task]], 1))
        torch.testing.assert_close(seen["heads_in"][task], joined)


def check_head_resolution(net, size=(64, 80)):
    """No convolution behind the backbone runs above half the image."""
    largest = []

    def note(module, inputs, output):
        largest.append((output.shape[-2], output.shape[-1]))

    for box in (net.mstr, net.msf, net.ggfm, net.fusion, net.heads):
        for module in box.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.register_forward_hook(note)
    net(image(*size))
    assert largest
    assert all(h <= size[0] / 2 and w <= size[1] / 2 for h, w in largest), f"a map of {max(largest)} cells"


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet"])
def test_nothing_runs_above_half_the_image(name):
    check_head_resolution(build(name=name))


def test_head_resolution_check_rejects_upsampling_first():
    net = build()
    net.heads["depth"].classify = nn.Sequential(nn.Upsample(scale_factor=4), net.heads["depth"].classify)
    with pytest.raises(AssertionError, match="a map of"):
        check_head_resolution(net)


# ── precision, memory, compilation ───────────────────────────────────────────────────────────────────────────────────


def test_bfloat16_autocast():
    net = build().eval()
    exact = net(image())
    with torch.autocast("cpu", torch.bfloat16):
        out = net(image())
    for task in TASKS:
        assert (out[task].float() - exact[task]).abs().mean() < 0.1 * exact[task].abs().mean()


@pytest.mark.parametrize("freeze", [True, False, "last_2"])
def test_gradient_checkpointing_gives_the_same_gradients(freeze):
    gradients = []
    for flag in (False, True):
        net = build(freeze=freeze, gradient_checkpointing=flag)
        sum(m.square().sum() for m in net(image()).values()).backward()
        gradients.append({n: p.grad for n, p in net.named_parameters() if p.requires_grad})
    torch.testing.assert_close(*gradients)


def test_compiles_without_graph_break():
    torch._dynamo.reset()
    net = build({"semseg": 4, "depth": 1}, wmca={"window_size": 8, "layers": 1}).eval()
    keys = list(net.state_dict())
    expected = {size: net(image(*size)) for size in ((64, 80), (50, 60))}
    net.compile(backend="eager", fullgraph=True)
    for size, out in expected.items():
        compiled = net(image(*size))
        for task in out:
            torch.testing.assert_close(compiled[task], out[task], rtol=1e-4, atol=1e-5)
    assert list(net.state_dict()) == keys


@pytest.mark.parametrize("options", [{"window_size": 5, "shift": True}, {"window_size": 7, "form": "cross"}])
def test_exchange_compiles_without_graph_break(options):
    torch._dynamo.reset()
    block = build({"semseg": 4, "depth": 1}, wmca={"layers": 2, **options}).wmca
    maps = {task: torch.randn(1, 16, 14, 12) for task in block.tasks}
    expected = block(maps)
    block.compile(backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(block(maps), expected, rtol=1e-4, atol=1e-5)


def test_channels_last_throughout():
    net, orders = build(), []

    def note(module, inputs, output):
        orders.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for module in [*net.msf.modules(), *net.heads.modules(), *net.fusion.modules()]:
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.register_forward_hook(note)
    net(image())
    assert orders
    assert all(orders)


@pytest.mark.parametrize("window", [3, 5, 7, 9, 11, 14])
def test_window_sizes(window):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = build(wmca={"window_size": window})(image(64, 80))
    assert all(m.isfinite().all() for m in out.values())


def test_state_dict_round_trip(tmp_path):
    net, other = build().eval(), build(freeze=False).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    torch.testing.assert_close(net(image()), other(image()))


def test_parameter_groups():
    net = build(freeze="last_2")
    groups = {g["name"]: g for g in net.parameter_groups()}
    assert set(groups) == {"backbone", "backbone_no_decay", "network", "network_no_decay"}
    assert groups["backbone"]["lr_factor"] == 0.1
    assert groups["network"]["lr_factor"] == 1.0
    grouped = [p for g in groups.values() for p in g["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in net.parameters() if p.requires_grad}
    assert len(grouped) == len({id(p) for p in grouped})
    free = {id(p) for g in groups.values() if not g["decay"] for p in g["params"]}
    layer = net.wmca.layers[0]
    for parameter in (layer.bias_table, layer.norm1.weight, layer.qkv.bias, layer.task_embedding["depth"]):
        assert id(parameter) in free
    assert id(layer.qkv.weight) not in free
    assert [id(p) for p in net.backbone_parameters()] == [id(p) for p in net.backbone.parameters() if p.requires_grad]
    assert {g["name"] for g in build(freeze=True).parameter_groups()} == {"network", "network_no_decay"}


def test_bad_preset():
    with pytest.raises(ConfigError, match="did you mean 'm2h-small'"):
        M2HNet(TASKS, preset="m2h-smal")
    with pytest.raises(ConfigError, match=r"model\.channels"):
        build(channels=0)


# ── cost ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("preset", "gmacs", "millions"), [("m2h", (380, 440), (70, 75)), ("m2h-small", (80, 110), (30, 34))]
)
def test_cost_of_the_presets(preset, gmacs, millions):
    """Bounds at 448×448, four tasks, 41 classes: a quarter of the published full model, half of the published small."""
    rows = summarize(M2HNet(FULL, preset, backbone=BackboneConfig(pretrained=False)))
    whole = total(rows)
    assert gmacs[0] < whole.gmacs <= gmacs[1]
    assert millions[0] < whole.parameters / 1e6 < millions[1]
    assert [row.box for row in rows] == ["backbone", "MSTR", "MSF", "WMCA", "GGFM", "fusion", "heads"]
    assert rows[0].gmacs == pytest.approx(31.7, abs=0.1)
    assert rows[0].trainable == 0
    table = format_summary(rows)
    assert "448×448" in table
    assert "attention" in table
    assert f"{whole.gmacs:.2f}" in table


def test_attention_is_counted():
    """WMCA's count agrees with the formula: 12·C² per token and layer (mlp ratio 4) and 2·N²·C per sequence."""
    net = build(wmca={"window_size": 4, "layers": 3, "task_embedding": False})
    rows = {row.box: row for row in summarize(net, (64, 64))}
    tokens, sequence = 4 * 16 * 16, 4 * 16
    expected = 3 * (tokens * 12 * 16**2 + (tokens / sequence) * 2 * sequence**2 * 16)
    assert rows["WMCA"].gmacs * 1e9 == pytest.approx(expected, rel=1e-6)


def test_summary_computes_nothing_and_changes_nothing():
    net = build({"depth": 1}, ggfm={"enabled": False}).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    boxes = [row.box for row in summarize(net, (64, 64))]
    assert boxes == ["backbone", "MSTR", "MSF", "WMCA", "fusion", "heads"]
    assert net.training
    assert not net.backbone.model.training
    torch.testing.assert_close(net.state_dict(), before)
