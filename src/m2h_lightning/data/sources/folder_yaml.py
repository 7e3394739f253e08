"""Read and check ``dataset.yaml`` of the Folder set; its keys are described in ``folder.py``. NumPy only."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from m2h_lightning.data.sources.axes import parse_axes
from m2h_lightning.data.sources.edges import EdgeRule
from m2h_lightning.errors import ConfigError, DataError, did_you_mean
from m2h_lightning.labels import IGNORE

YAML_NAME = "dataset.yaml"
SPLITS = ("train", "val", "test")
_CODINGS = ("uint8", "float")


@dataclass(frozen=True)
class Description:
    """What a ``dataset.yaml`` says, checked; see ``folder.py`` for the meaning of each key."""

    name: str
    classes: tuple[str, ...] = ()
    ignore: tuple[int, ...] = (IGNORE,)
    label_offset: int = 0
    depth_range: tuple[float, float] = (0.1, 10.0)
    depth_scale: float | None = None
    depth_invalid: tuple[float, ...] = ()
    depth_max: float | None = None
    normal_axes: str = "x,y,z"
    normal_coding: str | None = None
    edge_rule: EdgeRule | None = None
    edge_positive: tuple[float, ...] | None = None
    edge_ignore: tuple[float, ...] = ()
    K: np.ndarray | None = None
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    scene: str = "parent"


class _Section:
    """Values of one mapping of the file; every error names the file and the whole key."""

    def __init__(self, path: Path, values: Any, prefix: str, keys: tuple[str, ...]) -> None:
        self.path, self.prefix = path, prefix
        if values is None:
            values = {}
        if not isinstance(values, dict):
            where = f"'{prefix.rstrip('.')}' is" if prefix else "holds"
            raise DataError(f"{path}: {where} {_short(values)}; expected keys with values ({', '.join(keys)})")
        for key in values:
            if key not in keys:
                hint = did_you_mean(str(key), keys)
                raise DataError(f"{path}: there is no key '{prefix}{key}'{hint} (keys: {', '.join(keys)})")
        self.values: dict[str, Any] = values

    def wrong(self, key: str, expected: str) -> DataError:
        return DataError(f"{self.path}: '{self.prefix}{key}' is {_short(self.values.get(key))}; expected {expected}")

    def section(self, key: str, *keys: str) -> _Section:
        return _Section(self.path, self.values.get(key), f"{self.prefix}{key}.", keys)

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, "a text")
        return value.strip()

    def choice(self, key: str, choices: tuple[str, ...]) -> Any:
        value = self.values.get(key)
        if value is not None and value not in choices:
            raise self.wrong(key, f"one of {', '.join(choices)}{did_you_mean(str(value), choices)}")
        return value

    def numbers(self, key: str, default: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if self.values.get(key) is None:
            return default
        value = self.values[key]
        found = [_number(part) for part in (value if isinstance(value, list) else [value])]
        if any(number is None for number in found):
            raise self.wrong(key, "a number or a list of numbers")
        return tuple(number for number in found if number is not None)

    def integers(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        found = self.numbers(key, default) or ()
        if any(number != int(number) for number in found):
            raise self.wrong(key, "whole numbers")
        return tuple(int(number) for number in found)

    def positive(self, key: str) -> float | None:
        if self.values.get(key) is None:
            return None
        number = _number(self.values[key])
        if number is None or number <= 0:
            raise self.wrong(key, "a number above 0")
        return number


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}…"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)  # YAML reads 1e-3 as a text
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def read_description(path: Path) -> Description:
    """Read a ``dataset.yaml``.

    Raises:
        DataError: Not YAML, an unknown key, or a value that makes no sense; the line names the file and the key.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    keys = ("name", "classes", "ignore", "label_offset", "depth", "depth_range", "normals", "edges", "K", "splits")
    top = _Section(path, values, "", (*keys, "scene"))
    depth = top.section("depth", "scale", "invalid", "max")
    normals = top.section("normals", "axes", "coding")
    edges = top.section("edges", "rule", "positive", "ignore")
    offset = top.integers("label_offset", (0,))
    if len(offset) != 1:
        raise top.wrong("label_offset", "one whole number")
    return Description(
        name=top.text("name", path.absolute().parent.name or "folder"),
        classes=_classes(top),
        ignore=top.integers("ignore", (IGNORE,)),
        label_offset=offset[0],
        depth_range=_depth_range(top),
        depth_scale=depth.positive("scale"),
        depth_invalid=depth.numbers("invalid", ()) or (),
        depth_max=depth.positive("max"),
        normal_axes=_axes(normals),
        normal_coding=normals.choice("coding", _CODINGS),
        edge_rule=edges.choice("rule", tuple(rule for rule in get_args(EdgeRule) if rule != "instance")),
        edge_positive=edges.numbers("positive", None),
        edge_ignore=edges.numbers("ignore", ()) or (),
        K=None if top.values.get("K") is None else matrix(top.values["K"], f"{path}: 'K'"),
        splits=_splits(top),
        scene=_scene(top),
    )


def _classes(top: _Section) -> tuple[str, ...]:
    value = top.values.get("classes")
    if value is None:
        return ()
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= IGNORE - 1:
        return tuple(f"class {index}" for index in range(value))
    if not isinstance(value, list) or not 1 <= len(value) <= IGNORE - 1:
        raise top.wrong("classes", "a list of 1 to 254 names, or their number")
    for name in value:
        if not isinstance(name, str) or not name.strip():
            # "no", "on", "yes" and numbers are no texts in YAML.
            raise DataError(f"{top.path}: 'classes' holds {_short(name)}; expected names: put it in quotes")
        if value.count(name) > 1:
            raise DataError(f"{top.path}: 'classes' holds '{name}' twice; names must differ")
    return tuple(name.strip() for name in value)


def _depth_range(top: _Section) -> tuple[float, float]:
    found = top.numbers("depth_range", (0.1, 10.0)) or ()
    if len(found) != 2 or not 0 < found[0] < found[1]:
        raise top.wrong("depth_range", "[nearest, farthest] in metres, such as [0.1, 10]")
    return found[0], found[1]


def _axes(section: _Section) -> str:
    text = section.text("axes", "x,y,z")
    try:
        parse_axes(text)
    except ConfigError:
        raise section.wrong("axes", "three of x, y, z with signs, such as x,-y,-z") from None
    return text


def _splits(top: _Section) -> dict[str, tuple[str, ...]]:
    section = top.section("splits", *SPLITS)
    out = {}
    for key, value in section.values.items():
        parts = value if isinstance(value, list) else [value]
        if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
            raise section.wrong(key, "a list of ids (a .txt file) or patterns of ids such as scan1/*")
        out[key] = tuple(parts)
    return out


def _scene(top: _Section) -> str:
    text = top.text("scene", "parent")
    try:
        re.compile(text)
    except re.error as error:
        raise top.wrong("scene", f"parent, each, or a regular expression ({error})") from None
    return text


def matrix(value: Any, where: str) -> np.ndarray:
    """Return intrinsics as float64 3×3.

    Args:
        value: A 3×3 list, or fx, fy, cx, cy by name, in pixels; the centre of the first pixel is (0, 0).
        where: File and key, for the message.

    Raises:
        DataError: Not such a matrix.
    """
    expected = "expected 3×3 numbers, or fx, fy, cx, cy, in pixels"
    if isinstance(value, dict):
        found = {key: _number(value.get(key)) for key in ("fx", "fy", "cx", "cy")}
        if set(value) != set(found) or any(number is None for number in found.values()):
            raise DataError(f"{where} is {_short(value)}; {expected}")
        value = [[found["fx"], 0, found["cx"]], [0, found["fy"], found["cy"]], [0, 0, 1]]
    rows = value if isinstance(value, list) else []
    flat = [_number(part) for row in rows for part in (row if isinstance(row, list) else [None])]
    if [len(row) for row in rows if isinstance(row, list)] != [3, 3, 3] or None in flat:
        raise DataError(f"{where} is {_short(value)}; {expected}")
    K = np.array(flat, np.float64).reshape(3, 3)
    if K[0, 0] <= 0 or K[1, 1] <= 0 or abs(np.linalg.det(K)) < 1e-9:
        raise DataError(f"{where} is {_short(value)}, which is no camera; {expected}")
    return K
