"""What the writers of raw layouts take: one sample with all its labels, in the package's own conventions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from m2h_lightning.errors import DataError
from m2h_lightning.labels import IGNORE

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class LayoutSample:
    """A sample to be written as a data set's publishers would have written it.

    Args:
        image: uint8 H×W×3 RGB.
        semseg: uint8 H×W NYU40 train ids 0..39, 255 = unlabelled.
        depth: float H×W, planar z in metres, 0 = unknown.
        normals: float H×W×3 unit, camera frame OpenCV, facing the camera, 0 = unknown.
        instance: int H×W object numbers, 0 = none.
        edges: uint8 H×W {0, 1}, 255 = unlabelled.
        K: float64 3×3; the ray of pixel (u, v) is K⁻¹[u, v, 1] scaled to z = 1.
        id: Name of the frame as the layout spells it (each writer says how).
        scene: Scene of the frame as the layout spells it.
        split: "train", "val" or "test".
        pose: float64 4×4 camera-to-world, camera frame OpenCV, metres; None where it is not known.

    Raises:
        DataError: Shapes differ, or a label or the split is none.
    """

    image: np.ndarray
    semseg: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    instance: np.ndarray
    edges: np.ndarray
    K: np.ndarray
    id: str
    scene: str
    split: str
    pose: np.ndarray | None = None

    def __post_init__(self) -> None:
        height, width = self.semseg.shape
        for key, shape in (
            ("image", (height, width, 3)),
            ("depth", (height, width)),
            ("normals", (height, width, 3)),
            ("instance", (height, width)),
            ("edges", (height, width)),
            ("K", (3, 3)),
        ):
            if getattr(self, key).shape != shape:
                raise DataError(f"sample '{self.id}': {key} has shape {getattr(self, key).shape}, expected {shape}")
        if self.pose is not None and self.pose.shape != (4, 4):
            raise DataError(f"sample '{self.id}': pose has shape {self.pose.shape}, expected (4, 4)")
        if ((self.semseg >= 40) & (self.semseg != IGNORE)).any():
            raise DataError(f"sample '{self.id}': semseg holds {int(self.semseg.max())}; expected 0..39 or {IGNORE}")
        if self.split not in SPLITS:
            raise DataError(f"sample '{self.id}': split is {self.split!r}, expected one of {', '.join(SPLITS)}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.semseg.shape[0], self.semseg.shape[1]
