"""Cityscapes as published: pictures, fine labels, stereo disparity and cameras (Cordts et al., CVPR 2016). No torch.

Everybody's "Cityscapes depth" is another quantity, so this reader names its own: ``depth_target``. Labels of the
official test set are withheld (its files hold dummies), so that everybody tests on the official val set; here it is
called "test" and there is no "val": that is to be carved from train.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np

from m2h_lightning.data.raw import DEPTH_UNITS, DepthCode, DepthTarget, RawSample
from m2h_lightning.data.sources.base import Item, NormalsFrom, Source
from m2h_lightning.data.sources.edges import EDGE_RULE_TEXT, EdgeRule
from m2h_lightning.data.sources.reading import AGAIN, as_map, read_image, read_json, read_map
from m2h_lightning.errors import ConfigError, DataError, did_you_mean
from m2h_lightning.geometry import plane_normals, resize_intrinsics
from m2h_lightning.labels import CITYSCAPES_CLASSES, CITYSCAPES_LABEL_IDS, CITYSCAPES_TRAIN_IDS, IGNORE

CAP = 80.0
"""Metres; farther depth is unknown, for every target, as in the protocols of the literature."""

FULL_SIZE = (1024, 2048)
"""Height and width that camera files and disparities refer to."""

_FOLDERS = {"train": "train", "test": "val"}
# Key of the file → first folder, end of the name, archive in which it is published.
_KINDS: dict[str, tuple[str, str, str]] = {
    "image": ("leftImg8bit", "_leftImg8bit.png", "leftImg8bit_trainvaltest.zip"),
    "semseg": ("gtFine", "_gtFine_labelIds.png", "gtFine_trainvaltest.zip"),
    "instance": ("gtFine", "_gtFine_instanceIds.png", "gtFine_trainvaltest.zip"),
    "depth": ("disparity", "_disparity.png", "disparity_trainvaltest.zip"),
    "camera": ("camera", "_camera.json", "camera_trainvaltest.zip"),
}
_TRAIN_IDS_END = "_gtFine_labelTrainIds.png"
_FORBIDDEN = 254

# A 16-bit disparity is below 256 px. With the cameras' baseline·fx of 473 to 502 m·px that is 1.85 m at least, so 1 m
# lies safely below; and the cap of 80 m is 5.9 px at least, so 5 px does. Each range bounds the same pixels.
DEPTH_RANGES: dict[DepthTarget, tuple[float, float]] = {
    "metric": (1.0, CAP),
    "disparity": (5.0, 256.0),
    "inverse": (1 / CAP, 1.0),
}
"""Bounds of each target in its own unit."""


def train_ids(labels: np.ndarray, path: Path, already: bool) -> np.ndarray:
    """Return train ids, uint8 H×W, 255 where not evaluated.

    Args:
        labels: What the file holds, uint8 H×W.
        path: Which file that is, for the message.
        already: The file holds train ids, not label ids.

    Raises:
        DataError: A value that such a file never holds: they are other labels than their name says.
    """
    bound = len(CITYSCAPES_CLASSES) if already else CITYSCAPES_LABEL_IDS
    table = np.full(256, _FORBIDDEN, np.uint8)
    table[:bound] = np.arange(bound) if already else CITYSCAPES_TRAIN_IDS[:bound]
    if already:
        table[IGNORE] = IGNORE
    coded = table[labels]
    wrong = labels[coded == _FORBIDDEN]
    if wrong.size:
        raise DataError(
            f"{path}: holds label {wrong[0]}, expected 0..{bound - 1}{' or 255' if already else ' (label ids)'}; "
            f"were its labels converted or coloured? {AGAIN}"
        )
    return coded


def read_camera(path: Path) -> tuple[np.ndarray, float]:
    """Return the intrinsics at full resolution, float64 3×3, and baseline · fx in metre·pixels.

    Raises:
        DataError: Missing, a key is missing, or numbers that no camera of this set has.
    """
    content = read_json(path)

    def number(group: str, key: str) -> float:
        value: Any = content.get(group) if isinstance(content, dict) else None
        value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
            raise DataError(f"{path}: {group}.{key} is {value!r}, expected a number; {AGAIN}")
        if value <= 0:
            raise DataError(f"{path}: {group}.{key} is {value}, expected more than 0; {AGAIN}")
        return float(value)

    fx, fy, u0, v0 = (number("intrinsic", key) for key in ("fx", "fy", "u0", "v0"))
    height, width = FULL_SIZE
    if not (width / 4 < u0 < width * 3 / 4 and height / 4 < v0 < height * 3 / 4):
        raise DataError(
            f"{path}: the principal point ({u0:g}, {v0:g}) is not near the middle of {width}×{height} pixels; camera "
            "files stay at full resolution also where pictures were made smaller: put the original back"
        )
    K = np.array([[fx, 0.0, u0], [0.0, fy, v0], [0.0, 0.0, 1.0]])
    return K, number("extrinsic", "baseline") * fx


def read_disparity(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Return stored disparities p, uint16 H×W: p = 0 is unknown, (p − 1)/256 are pixels of the full-size picture.

    A copy made smaller keeps these numbers only if its maker left them alone; the values themselves cannot tell.

    Raises:
        DataError: Missing, corrupt, of another size than the picture, or not of 16 bits.
    """
    stored = read_map(path)
    if stored.dtype in (np.uint8, np.int8):
        raise DataError(f"{path}: has 8 bits; disparities have 16: it was re-saved with 8 bits, take the original")
    if stored.dtype.kind not in "iu" or stored.min(initial=0) < 0 or stored.max(initial=0) > 65535:
        raise DataError(f"{path}: does not hold 16-bit numbers but {stored.dtype}; take the original")
    return as_map(stored, path, np.uint16, shape)


class CityscapesSource(Source):
    """Cityscapes' own files: ``leftImg8bit``, ``gtFine``, ``disparity`` and ``camera`` in one folder.

    Args:
        path: Folder with these folders.
        edges: "semantic", or "instance" where ``instanceIds`` are here.
        normals: "none" (the default: the set has none) or "derived", pseudo ground truth from metric depth.
        normal_axes: Not an option of this set: it stores no normals.
        depth_target: What the stored disparity is turned into: "metric" metres, "disparity" pixels at full resolution,
            or "inverse" 1/metres. Always unknown beyond 80 m.

    Raises:
        DataError: The pictures are missing.
        ConfigError: An option that cannot be had here.
    """

    name = "cityscapes"
    folders = ("cityscapes", "Cityscapes", "CityScapes")
    layout_hint = "leftImg8bit/{train,val}/<city>/ with gtFine, disparity and camera beside leftImg8bit"
    classes = CITYSCAPES_CLASSES
    official: ClassVar[dict[str, int]] = {"train": 2975, "test": 500}

    def __init__(
        self,
        path: Path | str,
        edges: EdgeRule | None = None,
        normals: NormalsFrom | None = None,
        normal_axes: str | None = None,
        depth_target: DepthTarget = "metric",
    ) -> None:
        super().__init__(path, edges, normals, normal_axes)
        if depth_target not in get_args(DepthTarget):
            raise ConfigError(
                f"data.depth_target is '{depth_target}'; expected one of {', '.join(get_args(DepthTarget))}"
                f"{did_you_mean(str(depth_target), get_args(DepthTarget))}"
            )
        if normal_axes is not None:
            raise ConfigError("data.normal_axes: Cityscapes stores no normals; leave this key out")
        self.depth_target = depth_target
        self.depth_range = DEPTH_RANGES[depth_target]
        images = self.path / "leftImg8bit"
        self.splits = tuple(split for split, folder in _FOLDERS.items() if (images / folder).is_dir())
        if not self.splits:
            raise DataError(f"{self.path}: no leftImg8bit/train or leftImg8bit/val here; expected {self.layout_hint}")
        self._settle()

    def _settle(self) -> None:
        """Find out what was downloaded and what follows from it."""
        here = {key for key, (folder, _, _) in _KINDS.items() if self._any(folder, "*")}
        self._already = False
        if "semseg" in here and not self._any("gtFine", f"*{_KINDS['semseg'][1]}"):
            self._already = self._any("gtFine", f"*{_TRAIN_IDS_END}")
            if not self._already:
                raise DataError(
                    f"{self.path / 'gtFine'}: no *{_KINDS['semseg'][1]} here; get {_KINDS['semseg'][2]} again"
                )
        if "instance" in here and not self._any("gtFine", f"*{_KINDS['instance'][1]}"):
            here.discard("instance")
        depth = {"depth", "camera"} <= here
        if not depth and "semseg" not in here:
            raise DataError(f"{self.path}: pictures without labels; get {_KINDS['semseg'][2]} and unpack it here")
        derived = self.normals == "derived"
        if self.normals not in (None, "none", "derived") or (derived and not depth):
            raise ConfigError(
                f"data.normals is '{self.normals}'; {self.path} has {'derived, ' if depth else ''}none"
                + ("" if depth else " (derived normals need the disparity and camera folders)")
            )
        self._here = [key for key in _KINDS if key == "image" or (key in here and (key != "depth" or depth))]
        self.edge_rules = (
            () if "semseg" not in here else ("semantic", "instance") if "instance" in here else ("semantic",)
        )
        has = {"semseg": "semseg" in here, "depth": depth, "normals": derived, "edges": bool(self.edge_rules)}
        self.tasks = tuple(task for task, there in has.items() if there)
        self.packaging = "Cityscapes as published"
        if self._already:
            self.packaging += f", labels from *{_TRAIN_IDS_END}"
        absent = {
            folder: archive for key, (folder, _, archive) in _KINDS.items() if key not in here and key != "instance"
        }
        for folder, archive in absent.items():
            self.packaging += f", without {folder} ({archive} is not here)"
        self.provenance = {
            "semseg": f"provided gtFine, 19 train ids{' (converted by somebody already)' if self._already else ''}",
            "depth": f"provided stereo disparity (semi-global matching: pseudo ground truth) as {self.depth_target} in "
            f"{DEPTH_UNITS[self.depth_target]}, unknown beyond {CAP:g} m; baseline and numbers at full resolution",
            "normals": "derived pseudo ground truth: plane fits to metric depth of the stereo disparity",
            **({"edges": EDGE_RULE_TEXT[self.edges]} if self.edges else {}),
        }
        self.provenance = {key: text for key, text in self.provenance.items() if key in self.tasks}

    def _any(self, folder: str, pattern: str) -> bool:
        """Whether a file of this kind is here in any split that is read (never the dummies of the official test)."""
        return any(
            next((self.path / folder / _FOLDERS[split]).glob(f"*/{pattern}"), None) is not None for split in self.splits
        )

    def items(self, split: str) -> list[Item]:
        """List the pictures of a split by city and name; "test" is the official val. See :meth:`Source.items`."""
        if split not in self.splits:
            raise ConfigError(
                f"cityscapes has no split '{split}' here (splits: {', '.join(self.splits)}; the official val is "
                "'test', because labels of the official test set are withheld)"
            )
        found = {key: self._stems(key, split) for key in self._here}
        images = found["image"]
        if not images:
            folder = self.path / "leftImg8bit" / _FOLDERS[split]
            raise DataError(f"{folder}: no <city>/*{_KINDS['image'][1]} here; get {_KINDS['image'][2]} again")
        for key, files in found.items():
            lacking = sorted(set(images) - set(files))
            self._complain(lacking, split, f"have no {_KINDS[key][0]} ({self._end(key)})", _KINDS[key][2])
        if "semseg" in found:
            lacking = sorted(set(found["semseg"]) - set(images))
            self._complain(lacking, split, "have labels but no picture", _KINDS["image"][2])
        return [
            Item(stem, split, images[stem].parent.name, {key: files[stem] for key, files in found.items()})
            for stem in sorted(images)
        ]

    def _complain(self, names: list[str], split: str, what: str, archive: str) -> None:
        if names:
            raise DataError(
                f"{self.path}: {len(names)} of split '{split}' (official {_FOLDERS[split]}) {what}: "
                f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}; unpack {archive} again, or remove the rest "
                "of these samples"
            )

    def _end(self, key: str) -> str:
        return _TRAIN_IDS_END if key == "semseg" and self._already else _KINDS[key][1]

    def _stems(self, key: str, split: str) -> dict[str, Path]:
        """Files of a kind by the name that all files of a sample share, such as aachen_000000_000019."""
        end = self._end(key)
        folder = self.path / _KINDS[key][0] / _FOLDERS[split]
        return {path.name[: -len(end)]: path for path in folder.glob(f"*/*{end}")}

    def load(self, item: Item) -> RawSample:
        """Read a sample; depth as stored disparity with its code. See :meth:`Source.load`."""
        files = item.files
        image = read_image(files["image"])
        height, width = shape = image.shape[:2]

        raw: RawSample = {"image": image, "K": np.full((3, 3), np.nan), "id": item.id}
        if "semseg" in files:
            labels = read_map(files["semseg"])
            if labels.dtype != np.uint8:
                raise DataError(f"{files['semseg']}: holds {labels.dtype}, label maps have 8 bits; {AGAIN}")
            labels = as_map(labels, files["semseg"], np.uint8, shape)
            raw["semseg"] = train_ids(labels, files["semseg"], self._already)
        if "instance" in files:
            numbers = as_map(read_map(files["instance"]), files["instance"], np.int32, shape)
            raw["instance"] = np.where(numbers < 1000, 0, numbers)  # below 1000 are label ids of what has no instances
        if "camera" in files:
            full, baseline_fx = read_camera(files["camera"])
            raw["K"] = resize_intrinsics(full, height / FULL_SIZE[0], width / FULL_SIZE[1])
        if "depth" in files:
            raw["depth"] = read_disparity(files["depth"], shape)
            raw["depth_code"] = DepthCode(baseline_fx=baseline_fx, target=self.depth_target, cap=CAP)
            if self.normals == "derived":
                metres = DepthCode(baseline_fx=baseline_fx, cap=CAP).decode(raw["depth"])
                raw["normals"] = plane_normals(metres, raw["K"])
        return raw
