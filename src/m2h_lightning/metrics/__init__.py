"""Metrics as ``torchmetrics.Metric`` classes: states are sums, so that processes and batches add up exactly."""

from m2h_lightning.metrics.depth import DepthError
from m2h_lightning.metrics.edges import EdgeFScore
from m2h_lightning.metrics.normals import NormalError
from m2h_lightning.metrics.semseg import SegmentationScore

__all__ = ["DepthError", "EdgeFScore", "NormalError", "SegmentationScore"]
