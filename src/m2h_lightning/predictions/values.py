"""Read one prediction file and turn its numbers into those of the data set's labels; refuse what cannot be scored."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from m2h_lightning.data.sources.axes import apply_axes, parse_axes
from m2h_lightning.data.sources.reading import read_coded, read_map, read_mat, read_npy
from m2h_lightning.data.sources.values import whole_numbers
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.labels import class_palette

PALETTES = ("voc",)

AGAIN = "write this file again"


@dataclass
class Conventions:
    """What the numbers of foreign predictions mean.

    Args:
        depth_scale: Factor from stored depth to the unit of the data set; None takes floating point depth as it is and
            refuses integers.
        normal_axes: Which stored channel, with which sign, is x, y and z of the camera frame (x right, y down,
            z forward).
        semseg_offset: Added to stored class ids; −1 where classes count from 1.
        semseg_palette: "voc" for classes drawn in the VOC colours (index 0 is black); None for plain class ids.
    """

    depth_scale: float | None = None
    normal_axes: str = "x,y,z"
    semseg_offset: int = 0
    semseg_palette: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.depth_scale is not None and not 0 < self.depth_scale < np.inf:
            raise ConfigError(f"--pred-depth-scale is {self.depth_scale}; give a factor above 0, such as 0.001")
        try:
            parse_axes(self.normal_axes)
        except ConfigError as error:
            raise ConfigError(str(error).replace("data.normal_axes", "--pred-normal-axes")) from None
        if self.semseg_palette is not None and self.semseg_palette not in PALETTES:
            raise ConfigError(f"--pred-semseg-palette is '{self.semseg_palette}'; choose from {', '.join(PALETTES)}")


@dataclass
class PredictionReader:
    """Reads predictions at the size of their labels, and remembers what had to be done to them.

    Args:
        classes: Number of classes of the data set.
        conventions: What the numbers mean.
    """

    classes: int
    conventions: Conventions
    resized: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=dict)
    largest_edge: float = 0.0
    depth_ratios: list[float] = field(default_factory=list)

    def read(self, task: str, path: Path, size: tuple[int, int], label: np.ndarray, scored: np.ndarray) -> np.ndarray:
        """Read one prediction.

        Args:
            task: Name of the task.
            path: Its file.
            size: Height and width of the label.
            label: The label H×W (``normals``: H×W×3).
            scored: Boolean H×W, where the label is known.

        Returns:
            H×W (``normals``: H×W×3): int64 classes; float32 depth, unit normals, edge probabilities.

        Raises:
            DataError: The file is damaged, of another kind or shape, or holds numbers that cannot be scored.
        """
        array = getattr(self, f"_{task}")(_load(task, path), path)
        array = self._at_size(task, array, path, size)
        if array.dtype.kind == "f" and task != "normals":
            bad = ~np.isfinite(array) & scored
            if bad.any():
                raise DataError(f"{path}: {task} is NaN or infinite at {int(bad.sum())} scored pixels; {AGAIN}")
        return getattr(self, f"_check_{task}", lambda array, *_: array)(array, path, label, scored)

    # ── what the numbers mean ───────────────────────────────────────────────────────────────────────────────────────

    def _semseg(self, array: np.ndarray, path: Path) -> np.ndarray:
        if self.conventions.semseg_palette is not None:
            array = _from_colours(array, path)
        elif array.ndim == 3 and 1 not in (array.shape[0], array.shape[-1]):
            mend = "of scores save the argmax; for colours give --pred-semseg-palette"
            raise DataError(f"{path}: is {_shape(array)}, of several channels; class ids have one: {mend}")
        array = whole_numbers(_plane(array, path), path)
        return array.astype(np.int64) + self.conventions.semseg_offset

    def _depth(self, array: np.ndarray, path: Path) -> np.ndarray:
        array = _plane(array, path)
        scale = self.conventions.depth_scale
        if scale is None:
            if array.dtype.kind != "f":
                what = "a picture for viewing" if array.dtype.itemsize == 1 else "millimetres or another code"
                raise DataError(f"{path}: depth is {array.dtype}, {what}; say what one step is with --pred-depth-scale")
            return array.astype(np.float32)
        return (array.astype(np.float64) * scale).astype(np.float32)

    def _normals(self, array: np.ndarray, path: Path) -> np.ndarray:
        if array.ndim == 3 and array.shape[0] == 3 and array.shape[-1] != 3:
            array = array.transpose(1, 2, 0)
        if array.ndim != 3 or array.shape[-1] != 3:
            raise DataError(f"{path}: is {_shape(array)}; normals are H×W×3; {AGAIN}")
        if array.dtype == np.uint8:
            normals = array.astype(np.float32) * np.float32(2 / 255) - 1
        elif array.dtype.kind == "f":
            normals = array.astype(np.float32)
            sparse = normals[::4, ::4]  # enough to tell unit vectors from bytes, and sixteen times faster
            with np.errstate(invalid="ignore", over="ignore"):
                length = np.sqrt(np.einsum("hwc,hwc->hw", sparse, sparse))
            known = length[np.isfinite(length) & (length > 0)]
            if known.size and float(np.median(known)) > 1.8:
                typical = float(np.median(known))
                raise DataError(f"{path}: normals are about {typical:.4g} long; expected −1..1; {AGAIN}")
        else:
            raise DataError(f"{path}: normals are {array.dtype}; expected uint8 or floating point; {AGAIN}")
        axes = self.conventions.normal_axes
        return normals if axes == "x,y,z" else apply_axes(normals, axes)

    def _edges(self, array: np.ndarray, path: Path) -> np.ndarray:
        array = _plane(array, path)
        if array.dtype.kind == "b":
            edges = array.astype(np.float32)
        elif array.dtype in (np.uint8, np.uint16):
            edges = array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
        elif array.dtype.kind == "f":
            edges = array.astype(np.float32)
            finite = edges[np.isfinite(edges)]
            if finite.size and (finite.min() < 0 or finite.max() > 1 + 1e-6):
                raise DataError(
                    f"{path}: edges run from {finite.min():.4g} to {finite.max():.4g}; floating point probabilities "
                    "are 0..1 (logits need their sigmoid)"
                )
        else:
            raise DataError(f"{path}: edges are {array.dtype}; expected uint8 of 255 p, or probabilities; {AGAIN}")
        self.largest_edge = max(self.largest_edge, float(np.nanmax(edges, initial=0.0)))
        return edges

    # ── sizes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _at_size(self, task: str, array: np.ndarray, path: Path, size: tuple[int, int]) -> np.ndarray:
        """Resize a prediction of another size: classes to the nearest pixel, everything else bilinearly."""
        height, width = array.shape[:2]
        if (height, width) == size:
            return array
        if not height or not width or abs(height * size[1] - width * size[0]) * 2 > sum(size):
            raise DataError(
                f"{path}: is {height}×{width}, the label is {size[0]}×{size[1]}: another shape of picture; cut padding "
                "off, or predict for the whole label"
            )
        self.resized[task] = self.resized.get(task, 0) + 1
        self.sizes.setdefault(task, ((height, width), size))
        target = (size[1], size[0])
        if task == "semseg":
            # OpenCV resizes no int64; class ids of any label set fit into 16 bits.
            small = np.clip(array, -32768, 32767).astype(np.int16)
            return cv2.resize(small, target, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.int64)
        return cv2.resize(array, target, interpolation=cv2.INTER_LINEAR)

    # ── what can be scored ──────────────────────────────────────────────────────────────────────────────────────────

    def _check_semseg(self, array: np.ndarray, path: Path, label: np.ndarray, scored: np.ndarray) -> np.ndarray:
        wrong = (array < 0) | (array >= self.classes)
        bad = wrong & scored
        if bad.any():
            offset = self.conventions.semseg_offset
            value = int(array[bad][0])
            one_based = value == self.classes and not offset
            mend = "where classes count from 1 give --pred-semseg-offset -1" if one_based else AGAIN
            after = f" (offset {offset:+d} included)" if offset else ""
            count = int(bad.sum())
            raise DataError(
                f"{path}: class {value}{after} at {count} scored pixels; expected 0..{self.classes - 1}; {mend}"
            )
        return np.where(wrong, 0, array)

    def _check_depth(self, array: np.ndarray, path: Path, label: np.ndarray, scored: np.ndarray) -> np.ndarray:
        bad = (array <= 0) & scored
        if bad.any():
            raise DataError(
                f"{path}: depth is not above 0 at {int(bad.sum())} scored pixels (smallest {array[bad].min():.4g}); "
                "every scored pixel needs a depth"
            )
        if scored.any() and len(self.depth_ratios) < 100:
            sparse = scored[::4, ::4] if scored[::4, ::4].any() else scored
            step = 4 if sparse.shape != scored.shape else 1
            typical, truth = (float(np.median(values[::step, ::step][sparse])) for values in (array, label))
            self.depth_ratios.append(typical / truth)
        return np.where((array > 0) & (array < np.inf), array, np.float32(1))

    def _check_normals(self, array: np.ndarray, path: Path, label: np.ndarray, scored: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", over="ignore"):
            length = np.sqrt(np.einsum("hwc,hwc->hw", array, array))
        bad = ~np.isfinite(length)
        if (bad & scored).any():
            count = int((bad & scored).sum())
            raise DataError(f"{path}: normals are NaN or infinite at {count} scored pixels; {AGAIN}")
        # Of a vector this short nothing but the rounding has a direction: no normal, which is scored as 90° off.
        known = (length > 0.05) & ~bad
        normals = array * np.where(known, 1 / np.where(known, length, 1), 0)[..., None].astype(np.float32)
        normals[bad] = 0
        return normals

    def _check_edges(self, array: np.ndarray, path: Path, label: np.ndarray, scored: np.ndarray) -> np.ndarray:
        return np.clip(np.where(np.isfinite(array), array, np.float32(0)), 0, 1)

    def notes(self) -> list[str]:
        """Return what a reader of the scores should know: what was resized, and what looks like a wrong convention."""
        lines = []
        for task, count in self.resized.items():
            (h, w), (height, width) = self.sizes[task]
            how = "nearest pixel" if task == "semseg" else "bilinear"
            example = f"e.g. {h}×{w} to {height}×{width}"
            lines.append(f"{task}: {count} predictions resized to their labels' size ({how}; {example})")
        if self.depth_ratios:
            ratio = float(np.median(self.depth_ratios))
            if not 0.2 < ratio < 5:
                lines.append(
                    f"depth: the typical prediction is {ratio:.3g} times the label: another unit? (--pred-depth-scale)"
                )
        if 0 < self.largest_edge <= 1 / 255 + 1e-9:
            lines.append("edges: no number is above 1 of 255: these are probabilities near 0; write 0 and 255, not 1")
        return lines


def _shape(array: np.ndarray) -> str:
    return "×".join(map(str, array.shape)) or "a single number"


def _plane(array: np.ndarray, path: Path) -> np.ndarray:
    """Return H×W of H×W, H×W×1 or 1×H×W."""
    if array.ndim == 3 and array.shape[-1] == 1:
        return array[..., 0]
    if array.ndim == 3 and array.shape[0] == 1:
        return array[0]
    if array.ndim != 2:
        raise DataError(f"{path}: is {_shape(array)}; expected H×W; {AGAIN}")
    return array


def _from_colours(array: np.ndarray, path: Path) -> np.ndarray:
    """Return the indices of VOC colours."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise DataError(f"{path}: is {array.dtype} {_shape(array)}; coloured classes are RGB pictures")
    # For "any other number" of classes the palette holds the VOC colours from index 1 on; index 0 is black.
    colours = np.concatenate([np.zeros((1, 3), np.int64), class_palette(254)[:254].astype(np.int64)])
    order = np.argsort(keys := _colour_keys(colours))
    place = np.searchsorted(keys[order], wanted := _colour_keys(array.astype(np.int64)))
    index = order[np.minimum(place, len(order) - 1)]
    wrong = keys[index] != wanted
    if wrong.any():
        raise DataError(f"{path}: colour {array[wrong][0].tolist()} is none of the VOC palette; {AGAIN}")
    return index


def _colour_keys(rgb: np.ndarray) -> np.ndarray:
    return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]


def _load(task: str, path: Path) -> np.ndarray:
    """Read the array of a file, whatever its type."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        array = read_npy(path)
    elif suffix == ".npz":
        array = _read_npz(task, path)
    elif suffix == ".mat":
        array = read_mat(path, task)
    elif task == "normals":
        array = read_coded(path)
    elif task == "semseg":
        array = _read_picture(path)
    else:
        array = read_map(path)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif" or not array.size:
        raise DataError(f"{path}: holds no numbers ({getattr(array, 'dtype', type(array))}); {AGAIN}")
    return array


def _read_picture(path: Path) -> np.ndarray:
    """Read a picture as it is: a single channel, or the three of colours."""
    try:
        return read_map(path)
    except DataError as error:
        if "channels" not in str(error):
            raise
    return read_coded(path)


def _read_npz(task: str, path: Path) -> np.ndarray:
    """Read one task's array of an archive: the one of its name, or the only one."""
    try:
        with np.load(path, allow_pickle=False) as content:
            if not isinstance(content, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: is no archive of arrays; {AGAIN}")
            names = list(content.files)
            if task not in names and len(names) != 1:
                raise DataError(f"{path}: holds no '{task}' but {', '.join(names) or 'nothing'}; {AGAIN}")
            array: Any = content[task if task in names else names[0]]
            return array
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {AGAIN}") from None
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{path}: corrupt or cut off ({str(error).splitlines()[0]}); {AGAIN}") from None
