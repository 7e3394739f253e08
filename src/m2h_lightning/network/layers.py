"""Small shared layers and the initialisation of the trainable part."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell.

    Chosen over batch norm because training runs with one or two images, and over group norm because its result at a
    cell does not depend on the size or the padding of the image. On channels-last maps it needs no copy.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Shapes: B×C×H×W → B×C×H×W."""
        x = input.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def init_convolutions(module: nn.Module) -> None:
    """Kaiming (fan-in) weights and zero biases for convolutions; for ``module.apply``."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_attention(module: nn.Module) -> None:
    """Truncated normal (σ = 0.02) weights and zero biases for linear layers; for ``module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
