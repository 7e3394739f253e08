"""Open what is to be verified: a data set as published, or a prepared store of it."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from typing import Any

from m2h_lightning.data.sources import SETS, Source, source_class
from m2h_lightning.errors import ConfigError, DataError

_SHARED = ("self", "path", "edges", "normals", "normal_axes", "partial", "depth_target")
"""Parameters of readers that need no option of their own: all sets share them, or they change nothing here."""


def add_own_options(parser: argparse.ArgumentParser, source: type[Source]) -> None:
    """Add an option for each parameter that only this set's reader has.

    Args:
        parser: To be extended.
        source: The reader.
    """
    own = parser.add_argument_group(f"options of {source.name}")
    for name, parameter in _own(source).items():
        flag = name.replace("_", "-")
        if parameter.default is False:
            own.add_argument(f"--{flag}", action="store_true", help="default: no")
        elif parameter.default is True:
            own.add_argument(f"--no-{flag}", dest=name, action="store_false", help="default: yes")
        else:
            own.add_argument(f"--{flag}", metavar="VALUE", help=f"default: {parameter.default or 'none'}")


def own_options(args: argparse.Namespace, source: type[Source]) -> dict[str, Any]:
    """Return the parsed options of :func:`add_own_options` that differ from their defaults."""
    chosen = {name: (getattr(args, name), parameter.default) for name, parameter in _own(source).items()}
    return {name: value for name, (value, default) in chosen.items() if value is not None and value != default}


def _own(source: type[Source]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(source).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in _SHARED}


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
    from m2h_lightning.data.store import PreparedStore, is_store

    cls = source_class(name)
    given = {key: value for key, value in options.items() if value is not None}
    if is_store(path):
        for key in given:
            if key != "edges":
                option = f"--{key.replace('_', '-')}"
                raise ConfigError(f"{option}: {path} is a prepared store, where this is settled; prepare it anew")
        store = PreparedStore(path, **given)
        # A folder of one's own has a name of its own.
        if store.name != name and (name != "folder" or store.name in SETS):
            raise DataError(f"{path}: is a prepared store of '{store.name}', not of '{name}'")
        return store
    if partial and "partial" in inspect.signature(cls).parameters:
        given["partial"] = True
    return cls(path, **given)


def axes_in_use(source: Source) -> str:
    """Return the convention with which the set's own normals were loaded; of a store, when it was prepared."""
    from m2h_lightning.data.store import PreparedStore

    if isinstance(source, PreparedStore):
        # Stores keep the words of the reader, which name the axes where nobody chose any.
        said = re.search(r"axes (-?[xyz],-?[xyz],-?[xyz])", source.provenance.get("normals", ""))
        return str(source.manifest["normals"]["axes"] or (said[1] if said else "x,y,z"))
    return str(getattr(source, "_axes", None) or source.normal_axes or "x,y,z")


def axes_option(source: Source) -> str:
    """Return how the axes of normals are set for this source."""
    from m2h_lightning.data.store import PreparedStore

    return "m2h data prepare --normal-axes" if isinstance(source, PreparedStore) else "data.normal_axes"
