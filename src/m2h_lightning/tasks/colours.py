"""Colour maps for pictures of tasks."""

from __future__ import annotations

import cv2
import numpy as np


def turbo(share: np.ndarray) -> np.ndarray:
    """Colour values in [0, 1] (clipped) with the Turbo map.

    Args:
        share: H×W.

    Returns:
        uint8 RGB H×W×3.
    """
    level = (np.clip(np.nan_to_num(share), 0, 1) * 255).astype(np.uint8)
    return cv2.applyColorMap(level, cv2.COLORMAP_TURBO)[..., ::-1].copy()
