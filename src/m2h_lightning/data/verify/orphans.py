"""Files that lie among those of the set but that no sample uses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from m2h_lightning.data.sources.base import Item
from m2h_lightning.data.verify.problems import Finding, some


def _kind(name: str) -> str:
    """The name with every number as one mark: files of one kind differ in numbers."""
    return re.sub(r"\d+", "#", name)


def _ending(names: Iterable[str]) -> str:
    """Return what all names end with, from a dot or underscore on.

    One folder may hold several kinds of file ("…_labelIds.png" beside "…_color.png"); only those of a kind in use can
    be orphans.
    """
    kinds = sorted({_kind(name) for name in names})
    ends = (kinds[0][start:] for start in range(len(kinds[0])) if kinds[0][start] in "._")
    return next((end for end in ends if all(kind.endswith(end) for kind in kinds)), "")


def find_orphans(items: list[Item]) -> dict[str, list[Path]]:
    """Return the files of each modality's folders that no sample names.

    Args:
        items: Of all splits that are there.
    """
    used: set[Path] = {path for item in items for path in item.files.values()}
    orphans = {}
    for modality in dict.fromkeys(key for item in items for key in item.files):
        paths = {item.files[modality] for item in items if modality in item.files}
        if len(paths) == 1 and len(items) > 1:
            continue  # one file holds all samples: what lies beside it is something else
        ending = _ending(path.name for path in paths)
        lost = []
        for folder in sorted({path.parent for path in paths}):
            if not folder.is_dir():
                continue
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries if entry.is_file() and not entry.name.startswith("."))
            lost += [folder / name for name in names if _kind(name).endswith(ending) and folder / name not in used]
        if lost:
            orphans[modality] = lost
    return orphans


def judge_orphans(orphans: dict[str, list[Path]]) -> list[Finding]:
    """Warn of each modality's orphans; a file that several modalities might claim is told once."""
    found, told = [], set()
    for modality, paths in orphans.items():
        new = [path for path in paths if path not in told]
        told.update(new)
        if new:
            found.append(
                Finding(
                    "warning",
                    "orphans",
                    f"{len(new)} file(s) among those of {modality} that no sample uses: {some(p.name for p in new)}",
                    "are they missing from a list?",
                    str(new[0].parent),
                )
            )
    return found
