"""GGFM, global gated feature merging: G_t = σ(W₂ δ(W₁ GAP(F_t))) ⊙ F_t + Up(P_t(U)), U the last backbone stage."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2h_lightning.errors import ConfigError
from m2h_lightning.network.config import GGFMConfig


class GlobalGate(nn.Module):
    """GGFM of one task. δ is GELU: a gate of few units in which every ReLU is shut would never open.

    Args:
        channels: C of the task's map.
        context_channels: D of the backbone's last stage.
        reduction: W₁ maps C to C/reduction.
    """

    def __init__(self, channels: int, context_channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)
        self.context = nn.Conv2d(context_channels, channels, 1)
        nn.init.kaiming_normal_(self.squeeze.weight, nonlinearity="relu")
        nn.init.zeros_(self.squeeze.bias)
        # A linear layer before an addition: unit gain, or the context would drown the task's own map.
        nn.init.kaiming_normal_(self.context.weight, nonlinearity="linear")
        assert self.context.bias is not None
        nn.init.zeros_(self.context.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Shapes: x B×C×h×w, context B×D×h'×w' → B×C×h×w."""
        gate = torch.sigmoid(self.excite(F.gelu(self.squeeze(x.mean((2, 3))))))
        # P before Up: they commute, and P is 16 times cheaper there.
        up = F.interpolate(self.context(context), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return torch.addcmul(up, gate[:, :, None, None], x)


class GGFM(nn.ModuleDict):
    """One :class:`GlobalGate` per task, in parallel with WMCA on the same maps.

    Raises:
        ConfigError: ``reduction`` is below 1.
    """

    def __init__(self, tasks: Iterable[str], channels: int, context_channels: int, config: GGFMConfig) -> None:
        if config.reduction < 1:
            raise ConfigError(f"model.ggfm.reduction: must be at least 1, got {config.reduction}")
        super().__init__({task: GlobalGate(channels, context_channels, config.reduction) for task in tasks})

    def forward(self, maps: dict[str, Tensor], context: Tensor) -> dict[str, Tensor]:
        """Shapes: {task: B×C×h×w}, context B×D×h'×w' → {task: B×C×h×w}."""
        return {task: gate(maps[task], context) for task, gate in self.items()}
