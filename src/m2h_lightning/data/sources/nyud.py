"""NYUDv2 in the packagings people have: NYUDv2 (InvPT), NYUD_MT (MTI, ASTMT), nyuv2 (mtan) and the raw .mat file.

Layouts and conventions are those of the public loaders named in each packaging; no line of them is used here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from m2h_lightning.data.raw import RawSample
from m2h_lightning.data.sources.axes import parse_axes
from m2h_lightning.data.sources.base import DERIVED_NORMALS, Item, NormalsFrom, Source
from m2h_lightning.data.sources.edges import EDGE_RULE_TEXT, EdgeRule
from m2h_lightning.data.sources.nyud_facts import NYU13_CLASSES, camera, map_40_to_13
from m2h_lightning.data.sources.nyud_layouts import FolderLayout, Layout, is_folders, label_folders
from m2h_lightning.data.sources.nyud_mat import RAW_NAME, MatLayout
from m2h_lightning.data.sources.nyud_mtan import MtanLayout, is_mtan
from m2h_lightning.errors import ConfigError, DataError, did_you_mean
from m2h_lightning.geometry import plane_normals
from m2h_lightning.labels import NYU40_CLASSES

Crop = Literal["gupta", "none"]

DEFAULT_AXES = "x,-y,-z"
"""In the files y points up and z towards the camera."""


def _kind(path: Path) -> str | None:
    """Return which kind of packaging lies exactly here."""
    if path.is_file():
        return "mat" if path.suffix.lower() == ".mat" else None
    if is_folders(path):
        return "folders"
    if is_mtan(path):
        return "mtan"
    return "mat" if (path / RAW_NAME).is_file() else None


def _find(path: Path, crop: str, hint: str) -> Layout:
    """Return the packaging at ``path``.

    Raises:
        DataError: There is none here; a packaging one level up or down is named.
    """
    kind = _kind(path)
    if kind == "folders":
        return FolderLayout(path)
    if kind == "mtan":
        return MtanLayout(path)
    if kind == "mat":
        return MatLayout(path if path.is_file() else path / RAW_NAME, crop)
    below = sorted(child for child in path.iterdir() if child.is_dir() and _kind(child)) if path.is_dir() else []
    above = [parent for parent in list(path.absolute().parents)[:2] if _kind(parent)]
    for right in (*below, *above):
        raise DataError(f"{path}: is not the data set's own folder, which is {right}; give that path")
    if (path / "images").is_dir():
        raise DataError(f"{path}: has images/ but no labels; expected {hint}")
    if labels := label_folders(path):
        raise DataError(f"{path}: has {', '.join(labels)} but no images/; unpack the archive again")
    raise DataError(f"{path}: holds no known packaging of NYUDv2; expected {hint}")


class NYUDv2Source(Source):
    """NYUDv2 with 40 classes.

    Args:
        path: The packaging's folder, or the raw .mat file.
        edges: Rule by which edges are made; None takes provided ones where there are any, else "semantic".
        normals: "provided", "derived" or "none"; None takes provided ones where there are any. The raw file has none:
            there None derives them.
        normal_axes: Convention of the stored normals; None is "x,-y,-z".
        crop: What becomes of the raw file's 480×640: "gupta" cuts to 425×560 as the other packagings do. Packagings of
            image files keep the size they have.

    Raises:
        DataError: There is no known packaging at the path, or it has 13 classes.
        ConfigError: An option that the packaging does not have.
    """

    name = "nyud"
    folders = ("NYUDv2", "NYUD_MT", "nyud", "nyuv2")
    layout_hint = f"images/, segmentation/, depth/, normals/, edge/, gt_sets/ (NYUDv2 or NYUD_MT), or {RAW_NAME}"
    classes = NYU40_CLASSES
    depth_range = (0.1, 10.0)
    official = {"train": 795, "test": 654}

    def __init__(
        self,
        path: Path | str,
        edges: EdgeRule | None = None,
        normals: NormalsFrom | None = None,
        normal_axes: str | None = None,
        crop: Crop = "gupta",
    ) -> None:
        super().__init__(path, edges, normals, normal_axes)
        if crop not in get_args(Crop):
            raise ConfigError(f"crop is '{crop}'{did_you_mean(str(crop), get_args(Crop))}; expected gupta or none")
        self.stored_axes: str = normal_axes or DEFAULT_AXES
        parse_axes(self.stored_axes)
        self._layout = _find(self.path, crop, self.layout_hint)
        if self._layout.classes < len(self.classes):
            raise DataError(
                f"{self.path}: is {self._layout.text}: not the 40 classes; use the data set nyud13 (NYUDv2_13), or get "
                "another packaging"
            )
        self.packaging = self._layout.text
        self.splits = self._layout.splits
        self._normals_from = self._choose_normals()
        stored = self._layout.stored
        rules: list[EdgeRule] = ["provided"] if "edges" in stored else []
        if "semseg" in stored:
            rules += ["semantic", "instance"] if "instance" in stored else ["semantic"]
        self.edge_rules = tuple(rules)
        has = {
            "semseg": "semseg" in stored,
            "depth": "depth" in stored,
            "normals": self._normals_from != "none",
            "edges": self.edges is not None,
        }
        self.tasks = tuple(task for task, here in has.items() if here)
        self.provenance = self._describe()

    def _choose_normals(self) -> NormalsFrom:
        stored = self._layout.stored
        asked = self.normals
        if asked is None:
            raw = isinstance(self._layout, MatLayout)
            return "provided" if "normals" in stored else "derived" if raw else "none"
        if asked not in get_args(NormalsFrom):
            raise ConfigError(f"data.normals is '{asked}'{did_you_mean(str(asked), get_args(NormalsFrom))}")
        if asked == "provided" and "normals" not in stored:
            raise ConfigError(f"data.normals is 'provided'; {self.packaging} has none: use derived or none")
        if asked == "derived" and "depth" not in stored:
            raise ConfigError(f"data.normals is 'derived'; {self.packaging} has no depth to derive them from: use none")
        return asked

    def _describe(self) -> dict[str, str]:
        layout = self._layout
        out = {key: text for key, text in layout.provenance.items() if key in (*self.tasks, "split", "scene")}
        if self._normals_from == "derived":
            out["normals"] = DERIVED_NORMALS
        elif self._normals_from == "provided":
            out["normals"] += f", axes {self.stored_axes}"
            out["normals"] += " (the sign of x is not verified: see 'm2h data verify')" if not self.normal_axes else ""
        if self.edges is not None and self.edges != "provided":
            out["edges"] = EDGE_RULE_TEXT[self.edges]
        if layout.classes > len(self.classes):
            out["semseg"] += ", mapped to 13 classes (class13Mapping)"
        return out

    def items(self, split: str) -> list[Item]:
        """List the samples of an official split in the order of its list.

        Raises:
            DataError: The list contradicts the official split, or files are missing.
        """
        if split not in self.splits:
            raise ConfigError(f"{self.name} has no split '{split}' here (splits: {', '.join(self.splits)})")
        return self._layout.items(split)

    def size(self, item: Item) -> tuple[int, int]:
        """Return height and width of a sample without decoding it."""
        return self._layout.size(item)

    def load(self, item: Item) -> RawSample:
        """Read all that is stored of one sample.

        Normals stay uint8 where the files are uint8. Normals that face away from the camera are left as they are.

        Raises:
            DataError: A file is missing, corrupt or of the wrong kind, or normals are to be derived where the camera is
                not known.
        """
        out: dict[str, Any] = self._layout.read(item, self.stored_axes if self._normals_from == "provided" else None)
        K = camera(*out["image"].shape[:2])
        if K is None and self._normals_from == "derived":
            height, width = out["image"].shape[:2]
            raise DataError(
                f"{item.files['image']}: is {height}×{width}; the camera of NYUDv2 is known for 480×640, sizes of that "
                "shape, and the crop 425×560 only: normals cannot be derived"
            )
        K = np.full((3, 3), np.nan) if K is None else K  # any size is read; what needs the camera says so
        if self._layout.classes > len(self.classes) and "semseg" in out:
            out["semseg"] = map_40_to_13()[out["semseg"]]
        if self._normals_from == "derived":
            out["normals"] = plane_normals(out["depth"], K)
        return {**out, "K": K, "id": item.id}  # type: ignore[typeddict-item]


class NYUDv2Source13(NYUDv2Source):
    """NYUDv2 with 13 classes: mtan's packaging as it is, or the 40 classes of the others mapped to 13."""

    name = "nyud13"
    folders = ("nyuv2", "NYUDv2", "NYUD_MT", "nyud")
    layout_hint = "train/ and val/ with image/, label/, depth/, normal/ (mtan), or a packaging of 40 classes"
    classes = NYU13_CLASSES
