"""Readers of the data sets' own files, one file per set; NumPy only, so that preparing and verifying start at once."""

from __future__ import annotations

from importlib import import_module

from m2h_lightning.data.sources.base import Item, Source
from m2h_lightning.errors import ConfigError, did_you_mean

_WHERE = {
    "nyud": "nyud:NYUDv2Source",
    "nyud13": "nyud:NYUDv2Source13",
    "hypersim": "hypersim:HypersimSource",
    "cityscapes": "cityscapes:CityscapesSource",
    "folder": "folder:FolderSource",
}
SETS = tuple(_WHERE)
"""Names of the sets, as ``m2h data prepare|verify`` take them."""

__all__ = ["SETS", "Item", "Source", "source_class"]


def source_class(name: str) -> type[Source]:
    """Return the reader of a data set by its name.

    Raises:
        ConfigError: There is no such set.
    """
    if name not in _WHERE:
        raise ConfigError(f"there is no data set '{name}'{did_you_mean(name, SETS)} (sets: {', '.join(SETS)})")
    module, attribute = _WHERE[name].split(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)
