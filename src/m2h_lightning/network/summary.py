"""Parameters and multiply–adds per box of the figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from m2h_lightning.network.m2h import M2HNet

BOXES = {
    "backbone": "backbone",
    "mstr": "MSTR",
    "msf": "MSF",
    "wmca": "WMCA",
    "ggfm": "GGFM",
    "fusion": "fusion",
    "heads": "heads",
}
RULE = "GMAC: multiply–adds of convolution, matrix product and attention / 10⁹, batch 1"


class BoxCost(NamedTuple):
    """Cost of one box.

    Attributes:
        box: Name in the paper's figure.
        parameters: All parameters. trainable: Those that train.
        gmacs: Multiply–adds of one image, in 10⁹.
    """

    box: str
    parameters: int
    trainable: int
    gmacs: float


def summarize(net: M2HNet, size: tuple[int, int] = (448, 448)) -> list[BoxCost]:
    """Count parameters and multiply–adds of each box, in the order of the figure. Boxes switched off are left out.

    Nothing is computed: the network runs on meta tensors, where attention is made of matrix products and is counted
    with them (2·N²·C per sequence of N tokens).

    Args:
        net: Any M2H network.
        size: Image height and width.
    """
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    on_meta = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    counter = FlopCounterMode(display=False)
    training = net.training
    net.eval()
    try:
        with torch.no_grad(), counter:
            functional_call(net, on_meta, (torch.empty(1, 3, *size, device="meta"),))
    finally:
        net.train(training)
    flops = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    rows = []
    for key, box in BOXES.items():
        module = getattr(net, key)
        if module is not None:
            parameters = list(module.parameters())
            trainable = sum(p.numel() for p in parameters if p.requires_grad)
            macs = flops.get(f"{type(net).__name__}.{key}", 0) / 2
            rows.append(BoxCost(box, sum(p.numel() for p in parameters), trainable, macs / 1e9))
    return rows


def total(rows: Sequence[BoxCost]) -> BoxCost:
    """The sum of all boxes."""
    return BoxCost("total", sum(r.parameters for r in rows), sum(r.trainable for r in rows), sum(r.gmacs for r in rows))


def format_summary(rows: Sequence[BoxCost], size: tuple[int, int] = (448, 448)) -> str:
    """The table for people: parameters in millions, GMACs, each box's share, and how it was counted."""
    whole = total(rows)
    lines = [f"{'box':<10}{'params M':>10}{'trainable M':>13}{'GMAC':>9}{'share':>8}"]
    for row in [*rows, whole]:
        share = row.gmacs / whole.gmacs if whole.gmacs else 0.0
        lines.append(
            f"{row.box:<10}{row.parameters / 1e6:>10.2f}{row.trainable / 1e6:>13.2f}{row.gmacs:>9.2f}{share:>8.1%}"
        )
    lines.append(f"{RULE}, {size[0]}×{size[1]}")
    return "\n".join(lines)
