"""Cityscapes."""

from __future__ import annotations

from typing import Any

from m2h_lightning.data.raw import DEPTH_UNITS, DepthTarget
from m2h_lightning.data.recorded import RecordedDataModule
from m2h_lightning.data.sources.cityscapes import DEPTH_RANGES, CityscapesSource
from m2h_lightning.errors import ConfigError


class Cityscapes(RecordedDataModule):
    """Cityscapes: 2,975 training and 500 test street scenes (the official validation cities), 19 classes.

    The labels of the official test cities are withheld, so everyone tests on the validation cities; by default a tenth
    of the training images is held out, by whole cities, to validate on. Depth comes from stereo disparity; there are no
    normals (``normals: derived`` makes pseudo ground truth of depth).

    Args:
        depth_target: What is predicted: "metric" metres up to 80, "disparity" pixels at full resolution, or "inverse"
            1/metres. The unit is in the metric's name: rmse_m, rmse_px, rmse_per_m.
        settings: Settings of ``RecordedDataModule``.
    """

    source_name = "cityscapes"
    name = CityscapesSource.name
    classes = CityscapesSource.classes
    depth_range = DEPTH_RANGES["metric"]
    tasks = ("semseg", "depth", "edges")

    def __init__(self, depth_target: DepthTarget = "metric", **settings: Any) -> None:
        super().__init__(**settings)
        self.options["depth_target"] = depth_target
        # The one fact that a choice decides, so that a unit is never carried over to another.
        self.depth_range = DEPTH_RANGES[depth_target]
        self.depth_unit = DEPTH_UNITS[depth_target]

    def check(self) -> None:
        """Open the data set.

        Raises:
            ConfigError: A depth target was chosen, and there is no depth.
        """
        super().check()
        if self.depth_unit != "m" and "depth" not in self.source.tasks:
            raise ConfigError(f"data.depth_target: there is no depth at {self.source.path} ({self.source.packaging})")
