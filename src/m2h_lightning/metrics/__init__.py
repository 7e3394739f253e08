"""Metrics as ``torchmetrics.Metric`` classes: states are sums, so that processes and batches add up exactly."""

from m2h_lightning.metrics.boundary import BoundaryScore
from m2h_lightning.metrics.calibration import CalibrationError
from m2h_lightning.metrics.depth import DepthError
from m2h_lightning.metrics.edges import EdgeFScore
from m2h_lightning.metrics.normals import NormalError
from m2h_lightning.metrics.protocol import ProtocolMetric
from m2h_lightning.metrics.seams import WindowGrid
from m2h_lightning.metrics.semseg import BoundaryIoU, SegmentationScore, TrimapIoU
from m2h_lightning.metrics.settings import PROTOCOLS, SUFFIXES, MetricsConfig
from m2h_lightning.metrics.temporal import Frames, TemporalStability, temporal_scores

__all__ = [
    "PROTOCOLS",
    "SUFFIXES",
    "BoundaryIoU",
    "BoundaryScore",
    "CalibrationError",
    "DepthError",
    "EdgeFScore",
    "Frames",
    "MetricsConfig",
    "NormalError",
    "ProtocolMetric",
    "SegmentationScore",
    "TemporalStability",
    "TrimapIoU",
    "WindowGrid",
    "temporal_scores",
]
