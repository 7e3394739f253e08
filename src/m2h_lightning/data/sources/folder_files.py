"""Which files the Folder set has: images, labels of the same names, splits and scenes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from m2h_lightning.data.sources.folder_yaml import SPLITS, YAML_NAME, Description
from m2h_lightning.data.sources.values import few
from m2h_lightning.errors import DataError, did_you_mean

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

KINDS: dict[str, tuple[str, ...]] = {
    "semseg": (".png", ".npy"),
    "depth": (".npy", ".png"),
    "normals": (".png", ".npy"),
    "edges": (".png", ".npy"),
    "intrinsics": (".json", ".txt"),
    "pose": (".txt", ".npy"),
}
"""Kinds of file in each folder beside ``images``."""

_BESIDE = (".txt", ".md", ".json", ".yaml", ".yml", ".csv", ".db", ".ini", "")
"""Files that may lie among the others without being data."""


def _scan(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Return the files below a folder by id: relative path without suffix."""
    found: dict[str, Path] = {}
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(where, name)
            if path.suffix.lower() not in suffixes:
                if path.suffix.lower() in _BESIDE:
                    continue
                raise DataError(f"{path}: {path.suffix} files are not read here; convert them to {suffixes[0]}")
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in found:
                raise DataError(f"{path}: has the same name as {found[key].name}; keep one of them")
            found[key] = path
    if not found:
        raise DataError(f"{folder}: holds no {' or '.join(suffixes)} files; fill it, or remove it")
    return found


def scan(root: Path) -> dict[str, dict[str, Path]]:
    """Return the files of each folder by id; folders that are not there are absent.

    Raises:
        DataError: No images, labels without image, files of another kind, or a folder whose name is almost right.
    """
    known = ("images", *KINDS, "splits")
    for entry in sorted(root.iterdir()):
        if entry.is_dir() and entry.name not in known and (hint := did_you_mean(entry.name, known)):
            raise DataError(f"{entry}: is no folder of the set{hint}")
    if not (root / "images").is_dir():
        raise DataError(f"{root}: has no images/; expected images/ beside {YAML_NAME}")
    out = {"images": _scan(root / "images", IMAGE_SUFFIXES)}
    for kind, suffixes in KINDS.items():
        if (root / kind).is_dir():
            out[kind] = _scan(root / kind, suffixes)
            orphans = set(out[kind]) - set(out["images"])
            if orphans:
                raise DataError(
                    f"{root / kind}: {len(orphans)} files have no image of the same path and name: "
                    f"{few(sorted(orphans))}; rename or remove them"
                )
    without = set(out["images"]) - set(out["intrinsics"]) if "intrinsics" in out else set()
    if without:
        raise DataError(f"{root / 'intrinsics'}: {len(without)} images have no intrinsics: {few(sorted(without))}")
    return out


def _listed(root: Path, name: str, images: dict[str, Path]) -> list[str]:
    """Return the ids that a list of names gives."""
    path = root / name
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected one id per line") from None
    ids = []
    for line in lines:
        text = line.strip().replace("\\", "/").removeprefix("images/")
        if text:
            stem, suffix = os.path.splitext(text)
            ids.append(stem if text not in images and suffix.lower() in IMAGE_SUFFIXES else text)
    unknown = set(ids) - set(images)
    if unknown:
        raise DataError(f"{path}: {len(unknown)} of {len(ids)} ids have no image: {few(sorted(unknown))}")
    if len(set(ids)) != len(ids) or not ids:
        raise DataError(f"{path}: {'lists ids twice' if ids else 'is empty'}; expected one id per line")
    return ids


def find_splits(root: Path, description: Description, images: dict[str, Path]) -> tuple[dict[str, list[str]], str]:
    """Return the ids of each split, and in words where the splits come from.

    The first of these that is there decides: ``splits`` in the description, lists in ``splits/``, folders
    ``images/train`` and so on; else everything is for training.

    Raises:
        DataError: A list or pattern that fits no image, or an image in two splits.
    """
    lists = {split: (f"splits/{split}.txt",) for split in SPLITS if (root / "splits" / f"{split}.txt").is_file()}
    tops = {key.split("/")[0] if "/" in key else "" for key in images}
    if (root / "splits").is_dir() and not lists and not description.splits:
        raise DataError(f"{root / 'splits'}: holds none of {', '.join(f'{split}.txt' for split in SPLITS)}")
    if description.splits or lists:
        words = f"by {YAML_NAME}" if description.splits else "by lists in splits/"
        out = {}
        for split, parts in (description.splits or lists).items():
            ids: list[str] = []
            for part in parts:
                new = _listed(root, part, images) if part.endswith(".txt") else _matching(root, split, part, images)
                ids += [key for key in new if key not in ids] if len(parts) > 1 else new
            out[split] = ids
    elif tops & set(SPLITS):
        other = tops - set(SPLITS)
        if other:
            raise DataError(
                f"{root / 'images'}: holds {' and '.join(sorted(tops & set(SPLITS)))} beside other images "
                f"({few(sorted(name or 'files' for name in other))}); tell their 'splits' in {YAML_NAME}"
            )
        words = "by folder below images/"
        out = {split: [key for key in images if key.startswith(f"{split}/")] for split in SPLITS if split in tops}
    else:
        out, words = {"train": list(images)}, "none given: all images are for training"
    told: dict[str, str] = {}
    for split, ids in out.items():
        twice = [key for key in ids if key in told]
        if twice:
            raise DataError(f"{root}: {len(twice)} images are in both {told[twice[0]]} and {split}: {few(twice)}")
        told.update(dict.fromkeys(ids, split))
    return {split: out[split] for split in SPLITS if split in out}, words


def _matching(root: Path, split: str, pattern: str, images: dict[str, Path]) -> list[str]:
    ids = [key for key in images if fnmatchcase(key, pattern)]
    if not ids:
        raise DataError(
            f"{root / YAML_NAME}: 'splits.{split}' is '{pattern}', which fits no image (ids: {few(list(images))})"
        )
    return ids


def scene_of(key: str, rule: str, where: Path) -> str:
    """Return the scene of an image.

    Args:
        key: Its id.
        rule: "parent", "each", or a regular expression whose first group (or whole match) is the scene.
        where: The description, for the message.

    Raises:
        DataError: The expression does not fit.
    """
    if rule == "each":
        return key
    if rule == "parent":
        parent = key.rpartition("/")[0]
        # Images that lie side by side, or only in a split's folder, tell nothing of scenes.
        return key if parent in ("", *SPLITS) else parent
    match = re.search(rule, key)
    if match is None:
        hint = did_you_mean(rule, ("parent", "each"))
        raise DataError(f"{where}: 'scene' is '{rule}', which does not fit the image '{key}'{hint}")
    return next((group for group in match.groups() if group is not None), match.group())
