"""A data set of your own: images, labels of the same names, and a ``dataset.yaml`` that says what they mean.

::

    images/     .png .jpg .jpeg .webp .bmp .tif; folders may be nested: the id is the path without suffix
    semseg/     .png or .npy: label numbers, one channel
    depth/      .npy, or .png of 16 bits: planar depth (the z coordinate)
    normals/    .png of three 8-bit channels x for 2x/255 − 1, or .npy of unit vectors
    edges/      .png or .npy: 0 and 255, or 0 and 1
    intrinsics/ .json or .txt per image, instead of K below
    pose/       .txt of 4×4 numbers or .npy: camera-to-world, camera x right, y down, z forward, metres
    splits/     train.txt, val.txt, test.txt: ids, one per line

Only ``images`` must be there; an image may lack any label, but no label its image. Keys of ``dataset.yaml``, none but
``classes`` (where there is ``semseg``) needed::

    name: workshop               # shown in logs and results; else the folder's name
    classes: [floor, wall, tool] # or their number; a label is the position in this list
    label_offset: -1             # added to stored labels: 1, 2, 3 become 0, 1, 2
    ignore: [0, 255]             # stored labels of unlabelled pixels; 255 when not given
    depth:
      scale: 0.001               # metres per stored unit; needed for integers
      invalid: [0, 65535]        # stored values that mean unknown; 0, negative and NaN always do
      max: 20                    # metres; farther is unknown
    depth_range: [0.1, 10]       # metres: nearest and farthest that networks predict and metrics count
    normals:
      axes: x,-y,-z              # stored channels as x right, y down, z forward; x,y,z when not given
      coding: uint8              # or float; refuses files of the other kind
    edges:
      rule: provided             # or semantic: from labels; provided when there is edges/
      positive: [1]              # stored values of edges, with all others none
      ignore: [255]              # stored values of unknown pixels
    K: {fx: 500, fy: 500, cx: 319.5, cy: 239.5}   # or 3×3 numbers; pixels, the first pixel's centre is (0, 0)
    splits: {train: "scan[1-8]/*", val: val.txt}  # patterns of ids or lists, for train, val, test
    scene: parent                # folder; or each (image its own); or a regular expression on ids: (scan[0-9]+)

Without ``splits`` the lists in ``splits/`` count, then folders ``images/train`` and so on; else everything is for
training and validation holds out whole scenes. A file of ``intrinsics`` holds K as above (.json), or nine or four
numbers (.txt). Without any K the camera is unknown: normals cannot be derived. Poses (as of ScanNet; infinite numbers
mean unknown) let predictions of consecutive frames be compared: images of one scene, in the order of their names.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, get_args

import numpy as np

from m2h_lightning.data.raw import RawSample
from m2h_lightning.data.sources.axes import parse_axes
from m2h_lightning.data.sources.base import DERIVED_NORMALS, Item, NormalsFrom, Source
from m2h_lightning.data.sources.edges import EDGE_RULE_TEXT, EdgeRule
from m2h_lightning.data.sources.folder_files import find_splits, scan, scene_of
from m2h_lightning.data.sources.folder_yaml import YAML_NAME, matrix, read_description
from m2h_lightning.data.sources.poses import read_pose
from m2h_lightning.data.sources.reading import as_map, image_size, read_image, read_json
from m2h_lightning.data.sources.values import (
    binary_edges,
    camera_normals,
    metres,
    read_normals,
    read_values,
    whole_numbers,
)
from m2h_lightning.errors import ConfigError, DataError, did_you_mean
from m2h_lightning.geometry import plane_normals
from m2h_lightning.labels import IGNORE

_TOO_FAR = 10.0
"""Times the farthest depth: a picture whose median is beyond is in another unit."""


class FolderSource(Source):
    """Images and labels of your own; the module describes the folders and ``dataset.yaml``.

    Args:
        path: Folder that holds ``dataset.yaml``.
        edges: "provided" or "semantic"; None takes the rule of ``dataset.yaml``.
        normals: "provided", "derived" (needs depth and K) or "none"; None takes provided ones where there are any.
        normal_axes: Convention of the stored normals; None takes ``normals.axes`` of ``dataset.yaml``.

    Raises:
        DataError: A file or key is missing or wrong.
        ConfigError: An option that these files cannot answer.
    """

    name = "folder"
    folders = ("folder",)
    layout_hint = f"images/, any of semseg/, depth/, normals/, edges/, and {YAML_NAME}"

    def __init__(
        self,
        path: Path | str,
        edges: EdgeRule | None = None,
        normals: NormalsFrom | None = None,
        normal_axes: str | None = None,
    ) -> None:
        super().__init__(path, edges, normals, normal_axes)
        self._yaml = self.path / YAML_NAME
        if not self._yaml.is_file():
            raise DataError(_no_yaml(self.path, self.layout_hint))
        self._about = about = read_description(self._yaml)
        self.classes, self.depth_range = about.classes, about.depth_range
        self._files = scan(self.path)
        if "semseg" in self._files and not self.classes:
            raise DataError(f"{self._yaml}: has no 'classes'; name them, for semseg/ holds labels")
        if about.K is not None and "intrinsics" in self._files:
            raise DataError(f"{self._yaml}: gives 'K', and there is intrinsics/ too; keep one of them")
        images = self._files["images"]
        self._splits, words = find_splits(self.path, about, images)
        self.splits = tuple(self._splits)
        self._scenes = {key: scene_of(key, about.scene, self._yaml) for key in images}
        height, width = image_size(next(iter(images.values())))
        self.poses = "pose" in self._files
        labels = [f"{len(files)} {kind}" for kind, files in self._files.items() if kind != "images"]
        # ``name`` stays that of the kind of set, which stores and commands go by; the folder's own stands here.
        self.packaging = f"folder '{about.name}': {len(images)} images, the first {height}×{width}"
        self.packaging += f", with {', '.join(labels)}" if labels else ", without labels"
        self.stored_axes: str = normal_axes or about.normal_axes
        parse_axes(self.stored_axes)
        self._normals_from = self._choose_normals()
        rules: list[EdgeRule] = ["provided"] if "edges" in self._files else []
        rules += ["semantic"] if "semseg" in self._files else []
        if about.edge_rule and about.edge_rule not in rules:
            raise DataError(
                f"{self._yaml}: 'edges.rule' is '{about.edge_rule}'; these files have {rules or 'no edges'}"
            )
        self.edge_rules = tuple(sorted(rules, key=lambda rule: rule != about.edge_rule))
        has = {
            "semseg": "semseg" in self._files,
            "depth": "depth" in self._files,
            "normals": self._normals_from != "none",
            "edges": self.edges is not None,
        }
        self.tasks = tuple(task for task, here in has.items() if here)
        self.provenance = {task: text for task, text in self._describe().items() if task in self.tasks}
        self.provenance["split"] = words
        # Classes, K and the rest belong to the fingerprint too.
        self.provenance["description"] = f"{YAML_NAME} {hashlib.sha256(self._yaml.read_bytes()).hexdigest()[:12]}"

    def _choose_normals(self) -> NormalsFrom:
        asked, here = self.normals, self._files
        if asked is None:
            return "provided" if "normals" in here else "none"
        if asked not in get_args(NormalsFrom):
            raise ConfigError(f"data.normals is '{asked}'{did_you_mean(str(asked), get_args(NormalsFrom))}")
        if asked == "provided" and "normals" not in here:
            raise ConfigError(f"data.normals is 'provided'; {self.path} has no normals/: use derived or none")
        if asked == "derived" and ("depth" not in here or (self._about.K is None and "intrinsics" not in here)):
            lacking = "K (give it in dataset.yaml)" if "depth" in here else "depth/"
            raise ConfigError(f"data.normals is 'derived'; {self.path} has no {lacking}: use provided or none")
        return asked

    def _describe(self) -> dict[str, str]:
        about, edges = self._about, self.edges
        scale = "" if about.depth_scale is None else f", stored units of {about.depth_scale:g} m"
        derived = self._normals_from == "derived"
        return {
            "semseg": f"labels of the folder, offset {about.label_offset}, ignored {list(about.ignore)}",
            "depth": f"depth of the folder{scale}, invalid {list(about.depth_invalid)}, max {about.depth_max}",
            "normals": DERIVED_NORMALS if derived else f"of the folder, axes {self.stored_axes}",
            "edges": EDGE_RULE_TEXT[edges] if edges else "",
        }

    def items(self, split: str) -> list[Item]:
        """List the samples of a split: in the order of its list, or by name.

        Raises:
            ConfigError: There is no such split.
        """
        if split not in self._splits:
            raise ConfigError(f"{self.name} has no split '{split}' here (splits: {', '.join(self.splits)})")
        kinds = {"images": "image", "intrinsics": "camera"}
        return [
            Item(
                key,
                split,
                self._scenes[key],
                {kinds.get(kind, kind): files[key] for kind, files in self._files.items() if key in files},
            )
            for key in self._splits[split]
        ]

    def load(self, item: Item) -> RawSample:
        """Read all that is stored of one sample; labels that it lacks are absent.

        Raises:
            DataError: A file is corrupt, of the wrong kind, or does not fit its image.
        """
        files = item.files
        image = read_image(files["image"])
        shape: tuple[int, int] = image.shape[:2]
        out: dict[str, Any] = {"id": item.id, "image": image, "K": self._camera(item)}
        if path := files.get("semseg"):
            out["semseg"] = self._semseg(path, shape)
        if path := files.get("depth"):
            out["depth"] = self._depth(path, shape)
        if self._normals_from == "provided" and (path := files.get("normals")):
            out["normals"] = self._normals(path, shape)
        if self._normals_from == "derived" and "depth" in out:
            out["normals"] = plane_normals(out["depth"], out["K"])
        if path := files.get("edges"):
            out["edges"] = self._edge_map(path, shape)
        if (path := files.get("pose")) and (pose := read_pose(path)) is not None:
            out["pose"] = pose
        return out  # type: ignore[return-value]

    def _camera(self, item: Item) -> np.ndarray:
        path = item.files.get("camera")
        if path is None:
            return np.full((3, 3), np.nan) if self._about.K is None else self._about.K.copy()
        if path.suffix.lower() == ".json":
            value = read_json(path)
            return matrix(value["K"] if isinstance(value, dict) and set(value) == {"K"} else value, f"{path}:")
        parts = path.read_text(errors="replace").replace(",", " ").split()
        if len(parts) == 4:
            return matrix(dict(zip(("fx", "fy", "cx", "cy"), parts, strict=True)), f"{path}:")
        return matrix([parts[row : row + 3] for row in range(0, len(parts), 3)], f"{path}:")

    def _semseg(self, path: Path, shape: tuple[int, int]) -> np.ndarray:
        stored = read_values(path)
        stored = whole_numbers(as_map(stored, path, stored.dtype.type, shape), path).astype(np.int64)
        unknown = np.isin(stored, self._about.ignore)
        labels = stored + self._about.label_offset
        wrong = ~unknown & ((labels < 0) | (labels >= len(self.classes)))
        if wrong.any():
            offset = self._about.label_offset
            raise DataError(
                f"{path}: holds label {stored[wrong][0]}; expected {-offset}..{len(self.classes) - 1 - offset} or "
                f"{list(self._about.ignore)} (ignored): mend 'classes', 'label_offset' or 'ignore' in {YAML_NAME}"
            )
        return np.where(unknown, IGNORE, labels).astype(np.uint8)

    def _depth(self, path: Path, shape: tuple[int, int]) -> np.ndarray:
        stored, scale = read_values(path), self._about.depth_scale
        if stored.dtype.itemsize == 1:
            raise DataError(
                f"{path}: depth is {stored.dtype}, a picture for viewing; expected 16-bit .png or float .npy"
            )
        if stored.dtype.kind in "iu":
            if scale is None:
                raise DataError(f"{path}: depth is {stored.dtype}; give 'depth.scale' in {YAML_NAME}, metres per unit")
            stored = stored.astype(np.float64)
        if stored.dtype.kind == "f":
            unknown = np.isin(stored, np.array(self._about.depth_invalid, stored.dtype))
            stored = np.where(unknown, 0, stored) * (1.0 if scale is None else scale)
        far = _TOO_FAR * self.depth_range[1]
        depth = metres(stored, path, shape, far, f"mend 'depth.scale' or 'depth_range' in {YAML_NAME}")
        if self._about.depth_max is not None:
            depth[depth > self._about.depth_max] = 0
        return depth

    def _normals(self, path: Path, shape: tuple[int, int]) -> np.ndarray:
        stored, coding = read_normals(path), self._about.normal_coding
        if coding is not None and (stored.dtype == np.uint8) != (coding == "uint8"):
            raise DataError(f"{path}: normals are {stored.dtype}; 'normals.coding' in {YAML_NAME} is {coding}")
        return camera_normals(stored, path, shape, self.stored_axes)

    def _edge_map(self, path: Path, shape: tuple[int, int]) -> np.ndarray:
        stored = read_values(path)
        stored = as_map(stored, path, stored.dtype.type, shape)
        unknown = np.isin(stored, self._about.edge_ignore)
        if self._about.edge_positive is None:
            edges = binary_edges(np.where(unknown, 0, stored), path, shape)
        else:
            edges = np.isin(stored, self._about.edge_positive).astype(np.uint8)
        return np.where(unknown, IGNORE, edges).astype(np.uint8)


def _no_yaml(path: Path, hint: str) -> str:
    near = [path.parent, *(sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else [])]
    right = next((folder for folder in near if (folder / YAML_NAME).is_file()), None)
    if right is not None:
        return f"{path}: has no {YAML_NAME}, but {right} has; give that path"
    return f"{path}: has no {YAML_NAME}; expected {hint}; the least it says is: classes: [floor, wall]"
