"""The M2H network in pure PyTorch: one file per box of the paper's figure, usable and testable without Lightning."""

from m2h_lightning.network.backbone import Backbone, Stage
from m2h_lightning.network.config import PRESETS, BackboneConfig, GGFMConfig, WMCAConfig
from m2h_lightning.network.m2h import M2HNet
from m2h_lightning.network.summary import BoxCost, format_summary, summarize
from m2h_lightning.network.windows import window_partition, window_reverse
from m2h_lightning.network.wmca import WMCA

__all__ = [
    "PRESETS",
    "WMCA",
    "Backbone",
    "BackboneConfig",
    "BoxCost",
    "GGFMConfig",
    "M2HNet",
    "Stage",
    "WMCAConfig",
    "format_summary",
    "summarize",
    "window_partition",
    "window_reverse",
]
