"""Write samples as the publishers of other data sets do: true raw layouts to try readers, stores and commands on.

A writer states each format once more, independently of its reader: what both agree on is the format.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from m2h_lightning.data.synthesis.layouts.sample import LayoutSample
from m2h_lightning.errors import ConfigError, DataError, did_you_mean

LAYOUTS = ("nyud", "hypersim", "cityscapes", "folder")
"""Names of the layouts: a module each, whose function ``write`` takes the folder, the samples and the options."""

__all__ = ["LAYOUTS", "LayoutSample", "check_target", "write_layout"]


def check_target(root: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        DataError: It is not empty, or not a folder.
    """
    if root.is_symlink() or (root.exists() and not root.is_dir()) or (root.is_dir() and any(root.iterdir())):
        raise DataError(f"{root}: exists and is not an empty folder; delete it or choose another place")


def write_layout(layout: str, root: Path | str, samples: Iterable[LayoutSample], **options: Any) -> int:
    """Write samples in a data set's own layout; the folder appears complete or not at all.

    Args:
        layout: "nyud", "hypersim", "cityscapes" or "folder".
        root: The folder to make.
        samples: What to write, with names as the layout spells them; read one by one.
        options: Of the layout; see ``write`` in its module.

    Returns:
        Number of samples written.

    Raises:
        ConfigError: No such layout, or an option is wrong.
        DataError: The folder is in use or cannot be written, or a sample does not fit the layout.
        MissingExtraError: h5py is needed and not installed.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"there is no layout '{layout}'{did_you_mean(layout, LAYOUTS)} ({', '.join(LAYOUTS)})")
    root = Path(root).expanduser()
    check_target(root)
    # Beside its place, so that the last step is a rename: nobody meets half a tree.
    draft = root.with_name(f".{root.name}.{os.getpid()}.tmp")
    try:
        try:
            draft.mkdir(parents=True)
        except OSError as error:
            raise DataError(f"{root}: cannot be created ({error.strerror}); choose another place") from error
        count = import_module(f"{__name__}.{layout}").write(draft, samples, **options)
        if not count:
            raise DataError(f"{root}: there are no samples to write")
        try:
            os.replace(draft, root)
        except OSError as error:
            raise DataError(f"{root}: cannot be created ({error.strerror}); choose another place") from error
        return count
    finally:
        shutil.rmtree(draft, ignore_errors=True)
