"""Heads: context and two refinement steps at the fused resolution (4H/d), then the classifier. Maps leave raw, small.

Everything convolutional happens here, before the one resize to pixels (:func:`.padding.resize_and_crop`): at the size
of the image the same head would cost an order of magnitude more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from m2h_lightning.network.layers import ChannelNorm, init_convolutions

RATES = (1, 3, 6)


class Context(nn.Module):
    """Atrous pyramid (after DeepLab's ASPP) at half the fused resolution, added to its input.

    Branches: dilated 3×3 of several rates and the image's mean, joined by a 1×1. A wide view needs no fine grid.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = max(1, channels // 2)
        self.branches = nn.ModuleList(nn.Conv2d(channels, width, 3, padding=r, dilation=r) for r in RATES)
        self.mean = nn.Conv2d(channels, width, 1)
        self.join = nn.Conv2d(width * len(RATES), channels, 1)
        self.join_mean = nn.Conv2d(width, channels, 1, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: B×C×h×w → B×C×h×w."""
        # ceil_mode: an odd map's last row and column are seen too.
        small = F.avg_pool2d(x, 2, ceil_mode=True)
        wide = self.join(F.relu(torch.cat([branch(small) for branch in self.branches], 1)))
        # The mean's share of the joining 1×1 is one vector per image: added, never spread into a map.
        # GELU for it: one vector in which every ReLU is shut would stay shut.
        wide = wide + self.join_mean(F.gelu(self.mean(small.mean((2, 3), keepdim=True))))
        wide = F.relu(self.norm(wide))
        return x + F.interpolate(wide, size=x.shape[-2:], mode="bilinear", align_corners=False)


class Refine(nn.Module):
    """x + act(norm(conv3(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: B×C×h×w → B×C×h×w."""
        return x + F.relu(self.norm(self.conv(x)))


class Head(nn.Module):
    """Head of one task: 1×1 to its own width, context, two refinements, 1×1 to the task's channels.

    Args:
        channels: C of the fused map.
        hidden: Width inside the head.
        out_channels: The task's channels.
    """

    def __init__(self, channels: int, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), ChannelNorm(hidden), nn.ReLU())
        self.context = Context(hidden)
        self.refine = nn.Sequential(Refine(hidden), Refine(hidden))
        self.classify = nn.Conv2d(hidden, out_channels, 1)
        self.apply(init_convolutions)
        nn.init.normal_(self.classify.weight, std=0.01)  # start near a flat answer: no task's first loss is an outlier

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: B×C×h×w → B×channels×h×w, raw."""
        return self.classify(self.refine(self.context(self.reduce(x))))


class Heads(nn.ModuleDict):
    """One :class:`Head` per task."""

    def __init__(self, tasks: dict[str, int], channels: int, hidden: int, gradient_checkpointing: bool = False) -> None:
        super().__init__({task: Head(channels, hidden, out) for task, out in tasks.items()})
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Shapes: {task: B×C×h×w} → {task: B×channels×h×w}, raw."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return {task: checkpoint(head, maps[task], use_reentrant=False) for task, head in self.items()}
        return {task: head(maps[task]) for task, head in self.items()}
