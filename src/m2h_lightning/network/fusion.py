"""MSF, multi-scale fusion (one per task), and the 1×1 fusion of the two exchange blocks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from m2h_lightning.network.layers import init_convolutions


class ResidualUnit(nn.Module):
    """RCU: x + conv3(act(conv3(act(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.apply(init_convolutions)
        with torch.no_grad():
            self.conv2.weight.mul_(0.25)  # eight units in a row without a norm: keep their sum's scale near the input's

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: B×C×h×w → B×C×h×w."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class FusionBlock(nn.Module):
    """x = RCU₂(trunk + RCU₁(skip)), 1×1 convolution, then bilinear up to the next skip's size.

    The 1×1 comes before the resize: the two commute, and it costs a quarter there.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rcu1 = ResidualUnit(channels)
        self.rcu2 = ResidualUnit(channels)
        self.out = nn.Conv2d(channels, channels, 1)
        init_convolutions(self.out)

    def forward(self, trunk: Tensor | None, skip: Tensor, size: tuple[int, int] | None) -> Tensor:
        """Shapes: trunk (None in the coarsest block) and skip B×C×h×w, size (h', w') or None → B×C×h'×w' or B×C×h×w."""
        x = self.rcu1(skip)
        if trunk is not None:
            x = x + trunk
        x = self.out(self.rcu2(x))
        return x if size is None else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class MultiScaleFusion(nn.Module):
    """MSF of one task: four fusion blocks from coarse to fine; the last does not go past the finest level (4H/d)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FusionBlock(channels) for _ in range(4))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Shapes: 4 × B×C×h_i×w_i, fine to coarse → B×C×h_0×w_0."""
        x = None
        for i in reversed(range(len(levels))):
            # To the next skip's own size, not ×2: at odd grids they differ.
            size = (levels[i - 1].shape[-2], levels[i - 1].shape[-1]) if i else None
            x = self.blocks[i](x, levels[i], size)
        assert x is not None
        return x


class MSF(nn.ModuleDict):
    """One :class:`MultiScaleFusion` per task. A plain loop: grouping the tasks' convolutions measured slower."""

    def __init__(self, tasks: Iterable[str], channels: int, gradient_checkpointing: bool = False) -> None:
        super().__init__({task: MultiScaleFusion(channels) for task in tasks})
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, levels: list[Tensor]) -> dict[str, Tensor]:
        """Shapes: 4 × B×C×h_i×w_i → {task: B×C×h_0×w_0}."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return {task: checkpoint(branch, levels, use_reentrant=False) for task, branch in self.items()}
        return {task: branch(levels) for task, branch in self.items()}


class ParallelFusion(nn.ModuleDict):
    """F'_t = Conv1×1([L_t ‖ G_t]), of whichever exchange blocks are in use.

    Args:
        tasks: Task names.
        channels: C.
        inputs: How many exchange blocks are in use, 1 or 2.
    """

    def __init__(self, tasks: Iterable[str], channels: int, inputs: int) -> None:
        super().__init__({task: nn.Conv2d(inputs * channels, channels, 1) for task in tasks})
        self.apply(init_convolutions)

    def forward(self, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Shapes: [{task: B×C×h×w}] of each block → {task: B×C×h×w}."""
        return {
            task: conv(torch.cat([part[task] for part in parts], 1) if len(parts) > 1 else parts[0][task])
            for task, conv in self.items()
        }
