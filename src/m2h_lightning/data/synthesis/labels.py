"""NYU40 class ids by name for the furniture builders."""

from __future__ import annotations

from m2h_lightning.labels import NYU40_CLASSES

CLASS = {name: index for index, name in enumerate(NYU40_CLASSES)}
