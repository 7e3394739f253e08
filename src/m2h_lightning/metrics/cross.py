"""Metrics that look at several tasks, or at the network's structure, at once."""

from __future__ import annotations

from torchmetrics import Metric

from m2h_lightning.metrics.consistency import DepthNormalConsistency, EdgeSegmentationAgreement
from m2h_lightning.metrics.seams import WindowSeams
from m2h_lightning.metrics.settings import MetricsConfig


def build_cross(tasks: list[str], config: MetricsConfig, depth_unit: str = "m") -> dict[str, Metric]:
    """Return the cross-task metrics that these tasks allow.

    Each takes ``update(predictions, batch, sizes, grid)`` and computes to a dict whose keys carry their group:
    ``consistency/depth_normals_deg``, ``seams/depth_error``.

    Args:
        tasks: Names of the tasks.
        config: How to score.
        depth_unit: Unit of depth; normals follow from metres only, not from disparity ("px") or inverse depth ("1/m").
    """
    metrics: dict[str, Metric] = {}
    if {"depth", "normals"} <= set(tasks) and depth_unit == "m":
        metrics["depth_normals"] = DepthNormalConsistency(per_batch=config.per_batch)
    if {"edges", "semseg"} <= set(tasks):
        metrics["edges_semseg"] = EdgeSegmentationAgreement(per_batch=config.per_batch)
    if any(task in WindowSeams.TASKS for task in tasks):
        metrics["seams"] = WindowSeams(tasks)
    return metrics
