"""The two formats in which predictions are written, and what each number in them means.

``files`` is this package's own: nothing is lost but what the table below says. ``seism`` is what other evaluation code
of the field takes: boundaries where Boundary-Detection-Evaluation-Tools (``eval_edge_nyud.py`` looks for ``edge/*png``)
and SAK (``evaluation/save_img.py`` writes ``edge/img/``) expect them, the other tasks as SAK writes them, but for
classes, which SAK writes in colours and we as numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from m2h_lightning.data.raw import encode_normals
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.files import atomic
from m2h_lightning.predictions.names import escape

SaveFormat = Literal["files", "seism"]

PREDICTIONS_JSON = "predictions.json"
"""Beside the folders of the tasks; written last, so a folder that has it is complete."""

UNFINISHED = ".m2h-unfinished"
"""Lies in a folder while predictions are written into it; what is there is then of several runs, or incomplete."""

FORMAT_VERSION = 1


@dataclass(frozen=True)
class TaskFormat:
    """How one task is written.

    Args:
        folders: Folders below the folder of predictions; each gets every file.
        suffix: Ending of the files.
        meaning: What the numbers are, in words.
    """

    folders: tuple[str, ...]
    suffix: str
    meaning: str

    @property
    def folder(self) -> str:
        """The folder from which the task is read again."""
        return self.folders[0]


_SEMSEG = TaskFormat(("semseg",), ".png", "uint8 train ids, from 0")
_DEPTH = TaskFormat(("depth",), ".npy", "float32, planar depth in the unit of the data set")
_EDGES = "uint8 round(255 p), p the probability of an edge"
_FRAME = "camera frame x right, y down, z forward"

FORMATS: dict[SaveFormat, dict[str, TaskFormat]] = {
    "files": {
        "semseg": _SEMSEG,
        "depth": _DEPTH,
        "normals": TaskFormat(("normals",), ".npy", f"float16 H×W×3, {_FRAME}; off by less than 0.03°"),
        "edges": TaskFormat(("edges",), ".png", _EDGES),
    },
    "seism": {
        "semseg": _SEMSEG,
        "depth": _DEPTH,
        "normals": TaskFormat(("normals",), ".png", f"uint8 RGB round(255 (n + 1)/2), {_FRAME}; off by at most 0.39°"),
        "edges": TaskFormat(("edge", "edge/img"), ".png", _EDGES),
    },
}


def encode(task: str, values: np.ndarray, suffix: str) -> np.ndarray:
    """Return one prediction as it is stored.

    Args:
        task: Name of the task.
        values: H×W (``normals``: H×W×3) classes, depth, unit normals or probabilities.
        suffix: ".png" or ".npy".
    """
    if task == "normals":
        return encode_normals(values) if suffix == ".png" else values.astype(np.float16)
    if task == "edges":
        return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
    return values.astype(np.uint8 if task == "semseg" else np.float32)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy, or as .png (uint8, grey or RGB), under a temporary name first; make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path, durable=False) as temporary, open(temporary, "wb") as file:
        if path.suffix == ".npy":
            np.save(file, array, allow_pickle=False)
            return
        ok, data = cv2.imencode(".png", array if array.ndim == 2 else array[..., ::-1])
        if not ok:
            raise OSError(f"could not encode {path}")
        file.write(data.tobytes())


def write_prediction(folder: Path, form: SaveFormat, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Write all tasks of one sample.

    Args:
        folder: The folder of predictions.
        form: Format.
        name: The sample's id.
        arrays: Per task H×W (``normals`` H×W×3).

    Raises:
        DataError: A prediction is NaN or infinite, or a task has no place in the format.
    """
    for task, values in arrays.items():
        if task not in FORMATS[form]:
            has = ", ".join(FORMATS[form])
            raise DataError(f"--save_format {form} has no place for the task '{task}'; it has {has}")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise DataError(f"sample '{name}': the prediction of {task} is NaN or infinite; nothing of it is saved")
    for task, values in arrays.items():
        kind = FORMATS[form][task]
        stored = encode(task, values, kind.suffix)
        for place in kind.folders:
            path = folder / place / f"{escape(name)}{kind.suffix}"
            try:
                write_array(path, stored)
            except OSError as error:  # NumPy's own has no number when the disk is full
                raise DataError(
                    f"{path} cannot be written ({error.strerror or error}): free space, or predict into another folder"
                ) from error


def start(folder: Path) -> None:
    """Make a folder ready to be written: what was complete is so no more, until :func:`finish`.

    Raises:
        ConfigError: It cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / UNFINISHED).touch()
        (folder / PREDICTIONS_JSON).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"--save: cannot write in {folder} ({error.strerror}); give another folder") from error


def check_folder(folder: Path) -> None:
    """Refuse a folder in which something else would be overwritten, such as the labels of a data set.

    Raises:
        ConfigError: It is a file, or holds files that are no predictions of this package.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--save: {folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        ours = (folder / PREDICTIONS_JSON).is_file() or (folder / UNFINISHED).is_file()
        if not ours:
            raise ConfigError(f"--save: {folder} holds files that m2h predict did not write; give a new folder")


def finish(folder: Path, about: dict[str, Any]) -> None:
    """Write ``predictions.json``, which says that the folder is complete and what its numbers mean."""
    with atomic(folder / PREDICTIONS_JSON) as temporary:
        temporary.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / UNFINISHED).unlink(missing_ok=True)


def describe(form: SaveFormat, tasks: list[str], facts: dict[str, Any]) -> dict[str, Any]:
    """Return what ``predictions.json`` says of the conventions.

    Args:
        form: Format.
        tasks: Tasks that were written.
        facts: Facts of the data set.
    """
    about: dict[str, Any] = {}
    for task in tasks:
        kind = FORMATS[form][task]
        about[task] = {"folder": kind.folder, "suffix": kind.suffix, "meaning": kind.meaning}
    if "semseg" in about:
        about["semseg"]["classes"] = list(facts["classes"])
    if "depth" in about:
        about["depth"]["unit"] = facts.get("depth_unit", "m")
    if "normals" in about:
        about["normals"]["axes"] = "x,y,z"
    return {"format": form, "format_version": FORMAT_VERSION, "tasks": about}
