"""Open what is to be verified: a data set as published, or a prepared store of it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from m2h_lightning.data.sources import Source, source_class
from m2h_lightning.errors import ConfigError


def open_source(name: str, path: Path, partial: bool = False, **options: Any) -> Source:
    """Return the reader of a data set's folder.

    Args:
        name: Of the set, one of ``sources.SETS``.
        path: Its folder, or the folder of a prepared store.
        partial: The copy is incomplete; readers that would refuse it are told.
        options: Of the reader; those that are None are left to it.

    Raises:
        DataError: There is nothing of that kind at the path.
        ConfigError: An option that was settled when the store was made.
    """
    from m2h_lightning.data.store import is_store, open_store

    cls = source_class(name)
    given = {key: value for key, value in options.items() if value is not None}
    if is_store(path):
        for key in given:
            if key != "edges":
                option = f"--{key.replace('_', '-')}"
                raise ConfigError(f"{option}: {path} is a prepared store, where this is settled; prepare it anew")
        return open_store(path, name, **given)
    if partial and "partial" in inspect.signature(cls).parameters:
        given["partial"] = True
    return cls(path, **given)


def axes_option(source: Source) -> str:
    """Return how the axes of normals are set for this source."""
    from m2h_lightning.data.store import PreparedStore

    return "m2h data prepare --normal-axes" if isinstance(source, PreparedStore) else "data.normal_axes"
