"""MSTR, multi-scale token reassembly: four backbone stages become four maps of one width (shared by all tasks).

For plain transformers after DPT (Ranftl et al., arXiv 2103.13413): stage i lies at 4/d, 2/d, 1/d, 1/2d of the image,
for patches of d pixels. Pyramids already have four scales and keep them.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from m2h_lightning.network.backbone import Backbone, Stage
from m2h_lightning.network.layers import ChannelNorm


class Readout(nn.Module):
    """Project readout: GELU(W [patch ‖ summary]), 2D → D.

    The summary's half of W is applied once per image and added to every patch: the same product without the
    concatenated copy.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.patch = nn.Linear(channels, channels)
        self.summary = nn.Linear(channels, channels, bias=False)

    def forward(self, map: Tensor, summary: Tensor) -> Tensor:
        """Shapes: map B×D×h×w, summary B×D → B×D×h×w."""
        x = self.patch(map.permute(0, 2, 3, 1)) + self.summary(summary)[:, None, None]
        return F.gelu(x).permute(0, 3, 1, 2)


class TokenReassembly(nn.Module):
    """MSTR for plain transformers.

    Args:
        channels: D of each stage.
        out_channels: C of every map.
    """

    def __init__(self, channels: list[int], out_channels: int) -> None:
        super().__init__()
        widths = [max(1, d // k) for d, k in zip(channels, (8, 4, 2, 1), strict=True)]
        self.readout = nn.ModuleList(Readout(d) for d in channels)
        self.project = nn.ModuleList(nn.Conv2d(d, w, 1) for d, w in zip(channels, widths, strict=True))
        self.resize = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
            ]
        )
        self.unify = nn.ModuleList(nn.Conv2d(w, out_channels, 3, padding=1) for w in widths)

    def forward(self, stages: list[Stage]) -> list[Tensor]:
        """Shapes: 4 × (B×D×h×w, B×D) → [B×C×4h×4w, B×C×2h×2w, B×C×h×w, B×C×⌈h/2⌉×⌈w/2⌉]."""
        levels = []
        for stage, readout, project, resize, unify in zip(
            stages, self.readout, self.project, self.resize, self.unify, strict=True
        ):
            assert stage.summary is not None, "a plain transformer's stage has a summary token"
            levels.append(unify(resize(project(readout(stage.map, stage.summary)))))
        return levels


class PyramidReassembly(nn.Module):
    """MSTR for networks that are pyramids already: norm, 1×1 to C where that narrows, 3×3 to C, per stage.

    The norm is there because the stages of a frozen Swin or ConvNeXt differ in scale by orders of magnitude.
    """

    def __init__(self, channels: list[int], out_channels: int) -> None:
        super().__init__()
        widths = [min(d, out_channels) for d in channels]
        self.norm = nn.ModuleList(ChannelNorm(d) for d in channels)
        self.project = nn.ModuleList(nn.Conv2d(d, w, 1) for d, w in zip(channels, widths, strict=True))
        self.unify = nn.ModuleList(nn.Conv2d(w, out_channels, 3, padding=1) for w in widths)

    def forward(self, stages: list[Stage]) -> list[Tensor]:
        """Shapes: 4 × (B×D_i×H/s_i×W/s_i) → 4 × B×C×H/s_i×W/s_i."""
        return [
            unify(project(norm(stage.map)))
            for stage, norm, project, unify in zip(stages, self.norm, self.project, self.unify, strict=True)
        ]


def build_mstr(backbone: Backbone, channels: int) -> nn.Module:
    """The reassembly that fits the backbone."""
    kind = TokenReassembly if backbone.plain else PyramidReassembly
    return kind(backbone.channels, channels)
