"""Find the file of every sample and task in a folder of predictions, whoever made it. Opens no prediction."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2h_lightning.data.sources.values import few
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.predictions.formats import FORMAT_VERSION, PREDICTIONS_JSON, UNFINISHED
from m2h_lightning.predictions.names import escape, flatten

FOLDERS: dict[str, tuple[str, ...]] = {
    "semseg": ("semseg", "seg", "segmentation"),
    "depth": ("depth",),
    "normals": ("normals", "normal"),
    "edges": ("edges", "edge", "edge/img"),
}
"""Names under which people keep the predictions of a task, in the order in which they are looked for."""

SUFFIXES: dict[str, tuple[str, ...]] = {
    "semseg": (".png", ".npy", ".npz"),
    "depth": (".npy", ".npz", ".mat", ".tif", ".tiff", ".png"),
    "normals": (".npy", ".npz", ".png"),
    "edges": (".png", ".npy", ".npz"),
}
"""Files that are read per task; of several of one sample the first: beside a .npy of depth a .png is a picture."""

_LOSSY = (".jpg", ".jpeg")


@dataclass(frozen=True)
class FoundTask:
    """Where the predictions of one task are.

    Args:
        folder: The folder that holds them.
        files: File per sample id; ids without are missing.
        missing: Ids without file, in the order of the samples.
        extra: Files of the folder that belong to no sample.
        hint: Why files may be missing, for the message; often empty.
    """

    folder: Path
    files: dict[str, Path]
    missing: list[str]
    extra: list[str]
    hint: str = ""


@dataclass(frozen=True)
class Found:
    """What a folder of predictions holds.

    Args:
        root: The folder.
        tasks: Per task, in the data set's order.
        about: Content of its ``predictions.json``; None in folders of others.
    """

    root: Path
    tasks: dict[str, FoundTask]
    about: dict[str, Any] | None = None

    @property
    def unfinished(self) -> bool:
        """Whether something interrupted the run that wrote here: files may be missing, or of more than one run."""
        return (self.root / UNFINISHED).exists()

    def digest(self) -> str:
        """Return a short text that changes with the list of files and their sizes."""
        files = sorted({path for task in self.tasks.values() for path in task.files.values()})
        lines = [f"{path.relative_to(self.root).as_posix()} {path.stat().st_size}" for path in files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def read_about(root: Path) -> dict[str, Any] | None:
    """Read ``predictions.json`` of a folder that this package wrote; None where there is none.

    Raises:
        DataError: It cannot be understood.
    """
    path = root / PREDICTIONS_JSON
    if not path.is_file():
        return None
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        places = [entry["folder"] + entry["suffix"] for entry in about["tasks"].values()]
        texts = (about["data"]["name"], about["split"], *places)
        known = about["format_version"] == FORMAT_VERSION and all(isinstance(text, str) for text in texts)
        known &= isinstance(about["samples"], int)
        known &= all(isinstance(entry.get("classes", []), list) for entry in about["tasks"].values())
        # Files elsewhere, or normals in another frame, were not written by this package.
        known &= not any(place.startswith("/") or ".." in place.split("/") for place in places)
        known &= about["tasks"].get("normals", {}).get("axes", "x,y,z") == "x,y,z"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not readable ({type(error).__name__}: {error}); predict again, or delete it to have the folder "
            "read as one of others"
        ) from None
    if not known:
        raise DataError(f"{path}: of a format that this version does not know; update this package, or predict again")
    return about


def check_about(about: dict[str, Any], facts: dict[str, Any], split: str, root: Path) -> None:
    """Refuse predictions that this package wrote for other data.

    Raises:
        ConfigError: Data set, split, classes or unit of depth differ.
    """
    path = root / PREDICTIONS_JSON
    tasks = about["tasks"]
    for what, theirs, ours in (
        ("data set", about["data"]["name"], facts["name"]),
        ("split", about["split"], split),
        ("unit of depth", tasks.get("depth", {}).get("unit"), facts.get("depth_unit", "m")),
    ):
        if theirs is not None and theirs != ours:
            raise ConfigError(
                f"{path}: the {what} of the predictions is '{theirs}', of the labels '{ours}'; choose labels that fit"
            )
    for key in ("eval_size", "eval_labels") if facts.get("eval_size") or about["data"].get("eval_size") else ():
        theirs = about["data"].get(key)
        if theirs != facts.get(key):
            shown = json.dumps(theirs, separators=(",", ":"))
            raise ConfigError(
                f"{path}: the predictions were made with data.{key} {shown}, the labels are read with "
                f"{json.dumps(facts.get(key))}; add --data.{key} {shown}"
            )
    theirs = tasks.get("semseg", {}).get("classes")
    if theirs is not None and list(theirs) != list(facts["classes"]):
        raise ConfigError(
            f"{path}: the predictions are of {len(theirs)} classes, the data set '{facts['name']}' has "
            f"{len(facts['classes'])} or others; choose the data set they were made for"
        )


def _check_pattern(pattern: str) -> None:
    try:
        first, second = (pattern.format(id=key, name=key) for key in ("a", "b"))
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"--pred-name is '{pattern}' ({error}); use {{id}} and {{name}}, as in '{{name}}_pred'"
        ) from None
    if first == second:
        raise ConfigError(f"--pred-name is '{pattern}': all samples would share one file; use {{id}} or {{name}} in it")


def _listing(folder: Path) -> dict[str, dict[str, Path]]:
    """Return the files below a folder by their path without suffix, then by suffix; hidden files are left out."""
    found: dict[str, dict[str, Path]] = {}
    seen = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, followlinks=True):
        for name in list(folders):
            real = os.path.realpath(os.path.join(place, name))
            if name.startswith(".") or real in seen:  # a link may lead back to where we come from
                folders.remove(name)
            seen.add(real)
        for name in names:
            if name.startswith("."):
                continue
            path = Path(place, name)
            if path.exists() and not path.is_file():  # reading a pipe would wait for ever
                continue
            stem = path.relative_to(folder).as_posix().removesuffix(path.suffix)
            found.setdefault(stem, {})[path.suffix.lower()] = path
    return found


def _match(
    task: str, folder: Path, ids: list[str], pattern: str, suffixes: tuple[str, ...], nested: tuple[Path, ...]
) -> FoundTask:
    """Look for one task's files in one folder; what lies in ``nested`` folders is another task's or a copy."""
    files: dict[str, Path] = {}
    owner: dict[Path, str] = {}
    missing: list[str] = []
    listing = _listing(folder)
    lossy = 0
    for name in ids:
        last = name.rsplit("/", 1)[-1]
        stems = [pattern.format(id=key, name=last) for key in dict.fromkeys((escape(name), name, flatten(name)))]
        there = next((listing[stem] for stem in stems if any(s in listing.get(stem, {}) for s in suffixes)), {})
        path = next((there[suffix] for suffix in suffixes if suffix in there), None)
        if path is None:
            missing.append(name)
            lossy += any(suffix in listing.get(stem, {}) for stem in stems for suffix in _LOSSY)
            continue
        if path in owner:
            raise DataError(
                f"{path} would be the {task} of two samples, '{owner[path]}' and '{name}'; give the files names that "
                "tell them apart (--pred-name)"
            )
        owner[path] = name
        files[name] = path
    used = {path.with_suffix("") for path in owner}
    extra = [
        path.relative_to(folder).as_posix()
        for stem in sorted(listing)
        for path in listing[stem].values()
        if path.with_suffix("") not in used
        and path.suffix.lower() in suffixes
        and not any(place in path.parents for place in nested)
    ]
    hint = f"there are {lossy} as .jpg, which loses what is scored; save .png or .npy" if lossy else ""
    return FoundTask(folder, files, missing, extra, hint)


def _candidates(root: Path, task: str, about: dict[str, Any] | None, only: bool) -> list[tuple[Path, tuple[str, ...]]]:
    """Return the folders where a task may be, with the suffixes that count there."""
    if about is not None:
        entry = about["tasks"].get(task)
        return [] if entry is None else [(root / entry["folder"], (entry["suffix"],))]
    own = [(root / name, SUFFIXES[task]) for name in FOLDERS[task] if (root / name).is_dir()]
    # Directly in the folder: archives of all tasks, beside which a .png is a picture; or all there is, of one task.
    return [*own, (root, (".npz",)), *([(root, SUFFIXES[task])] if only else [])]


def find(root: Path, ids: list[str], facts: dict[str, Any], split: str, tasks: list[str] | None, pattern: str) -> Found:
    """Find the predictions of a split's samples.

    Args:
        root: The folder of predictions.
        ids: All sample ids of the split.
        facts: Facts of the data set, and ``eval_size`` and ``eval_labels`` of its labels.
        split: "test" or "val".
        tasks: Tasks to score; None takes those that are there.
        pattern: Name of a sample's file without suffix; ``{id}`` is its id, ``{name}`` the last part of it.

    Raises:
        ConfigError: A task that the data set has no labels for or that is not there, a wrong pattern, or predictions
            that were made for other data.
        DataError: There are no predictions, or two samples share a file.
    """
    _check_pattern(pattern)
    if not root.is_dir():
        raise ConfigError(
            f"--pred: there is no folder {root}" if not root.exists() else f"--pred: {root} is not a folder"
        )
    for task in tasks or []:
        if task not in facts["tasks"]:
            raise ConfigError(
                f"--tasks: '{facts['name']}' has no labels for '{task}'; it has {', '.join(facts['tasks'])}"
            )
    about = read_about(root)
    if about is not None:
        check_about(about, facts, split, root)
    found: dict[str, FoundTask] = {}
    for task in facts["tasks"]:
        if task not in FOLDERS or (tasks is not None and task not in tasks):
            continue
        best: FoundTask | None = None
        for folder, suffixes in _candidates(root, task, about, tasks is not None and len(tasks) == 1):
            nested = tuple(folder / name.partition("/")[2] for name in FOLDERS[task] if "/" in name)
            match = _match(task, folder, ids, pattern, suffixes, nested) if folder.is_dir() else None
            if match is None or (folder == root and suffixes == (".npz",) and not _archived(match, task)):
                continue
            if best is None or len(match.files) > len(best.files):
                best = match
        if best is not None and about is not None and len(best.files) > about["samples"]:
            raise DataError(
                f"{best.folder}: holds {len(best.files)} predictions of the split, the run of {PREDICTIONS_JSON} wrote "
                f"{about['samples']}: others are of an earlier run; predict again into a new folder"
            )
        if best is not None and (best.files or (tasks is not None)):
            found[task] = best
        elif tasks is not None:
            names = ", ".join(str(root / name) for name in FOLDERS[task])
            raise ConfigError(f"--tasks: {root} has no predictions of {task}; expected a folder {names}")
    if not any(task.files for task in found.values()):
        what = f"no prediction of any of the {len(ids)} {split} samples of '{facts['name']}'"
        raise DataError(f"{root}: {what}; {_why(root, ids)}")
    return Found(root, found, about)


def _archived(match: FoundTask, task: str) -> bool:
    """Tell whether the first archive of a folder holds a task; one that cannot be read is told when it is read."""
    path = next(iter(match.files.values()), None)
    if path is None:
        return False
    try:
        with np.load(path, allow_pickle=False) as content:
            return task in content.files
    except (OSError, ValueError, AttributeError):
        return True


def _why(root: Path, ids: list[str]) -> str:
    """Say what may be wrong with a folder in which nothing was found."""
    if (root / "predictions").is_dir():
        return f"did you mean {root / 'predictions'}?"
    there = [folder for name in (n for names in FOLDERS.values() for n in names) if (folder := root / name).is_dir()]
    names = [path.name for folder in there or [root] for path in sorted(folder.iterdir()) if path.is_file()]
    expected = f"expected names such as semseg/{escape(ids[0])}.png" if ids else "the split has no samples"
    return f"{expected}, found {few(names) or 'no files'}; --pred-name says how files are called"
