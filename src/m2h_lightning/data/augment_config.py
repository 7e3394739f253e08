"""The keys ``data.augment.*``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from m2h_lightning.errors import ConfigError


@dataclass
class AugmentConfig:
    """Augmentation of training samples.

    Args:
        scale: Range of the random scale; 1 keeps the stored size. K is scaled with the image.
        flip: Probability of a left-right flip.
        rotate: Largest roll of the camera in degrees; normals turn with it. Needs a known K.
        cat_max_ratio: Draw a crop again while one class has a larger share of it (0.75 in the InvPT protocol); 1 takes
            the first.
        legacy_scale_depth: Divide depth by the scale and leave normals and focal length alone, as the InvPT family
            does; for like-for-like comparison only: depth and normals then contradict each other.
        brightness: Largest relative change of brightness; 0 switches it off.
        contrast: Largest relative change of contrast; 0 switches it off.
        saturation: Largest relative change of saturation; 0 switches it off.
        hue: Largest shift of hue, as a share of the colour circle; 0 switches it off.
        photometric: More steps on the image alone, by their name in albumentations: [{name: GaussianBlur, p: 0.1}].
    """

    scale: list[float] = field(default_factory=lambda: [0.75, 1.5])
    flip: float = 0.5
    rotate: float = 0.0
    cat_max_ratio: float = 1.0
    legacy_scale_depth: bool = False
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    photometric: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if len(self.scale) != 2 or not 0.1 <= self.scale[0] <= self.scale[1] <= 10:
            raise ConfigError(f"data.augment.scale is {self.scale}; give [low, high] with 0.1 <= low <= high <= 10")
        for key in ("flip", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"data.augment.{key} is {getattr(self, key)}; give a number between 0 and 1")
        if not 0 <= self.hue <= 0.5:
            raise ConfigError(f"data.augment.hue is {self.hue}; give a number between 0 and 0.5")
        if not 0 <= self.rotate <= 180:
            raise ConfigError(f"data.augment.rotate is {self.rotate}; give degrees between 0 and 180")
        if not 0 < self.cat_max_ratio <= 1:
            raise ConfigError(f"data.augment.cat_max_ratio is {self.cat_max_ratio}; give a share above 0, at most 1")
