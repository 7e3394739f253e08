"""The stored sample: what a data set reads from disk, in NumPy and compact types. Loads no torch.

``data/sample.py`` says what becomes of it on the way to the network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypedDict

import numpy as np

from m2h_lightning.errors import DataError
from m2h_lightning.labels import IGNORE

LABELS = ("semseg", "depth", "normals", "edges")
"""Dense labels of the contract, in the order of every table."""

INVALID: dict[str, float] = {"image": 0.0, "semseg": IGNORE, "depth": 0.0, "normals": 0.0, "edges": IGNORE}
"""The value by which each map says "nothing known here"; padding and missing labels of a mixed batch use it."""

CODED_INVALID_NORMAL = 128
"""A uint8 normal of three times this number is shorter than ½ and therefore unknown."""

DepthTarget = Literal["metric", "disparity", "inverse"]
"""What a depth label means: metres, pixels of disparity at full resolution, or 1/metres."""

DEPTH_UNITS: dict[str, str] = {"metric": "m", "disparity": "px", "inverse": "1/m"}


@dataclass(frozen=True)
class DepthCode:
    """How stored integers or half floats become depth.

    Args:
        scale: Metres per stored unit; used when ``baseline_fx`` is 0.
        baseline_fx: Stereo baseline times focal length at full resolution, metre·pixels. When it is not 0, stored
            numbers p are Cityscapes disparities: p = 0 is invalid, disparity d = (p − 1)/256 pixels, p = 1 is infinity
            itself.
        target: What the disparity is turned into.
        cap: Largest depth that counts, metres; farther is unknown. 0 is no cap.
    """

    scale: float = 1.0
    baseline_fx: float = 0.0
    target: DepthTarget = "metric"
    cap: float = 0.0

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Return float32 depth of the same shape, 0 where unknown."""
        if not self.baseline_fx:
            depth = stored.astype(np.float32)
            if self.scale != 1.0:
                depth *= np.float32(self.scale)
        else:
            disparity = (stored.astype(np.float32) - 1.0) / 256.0
            far = np.float32(self.baseline_fx / self.cap) if self.cap else np.float32(0.0)
            known = (stored > 1) & (disparity >= far)
            if self.target == "metric":
                depth = np.where(known, self.baseline_fx / np.where(known, disparity, 1.0), 0.0)
            else:
                depth = np.where(known, disparity / (1.0 if self.target == "disparity" else self.baseline_fx), 0.0)
            return depth.astype(np.float32)
        if self.cap:
            depth[depth > self.cap] = 0.0
        return depth

    def divided(self, factor: float) -> DepthCode:
        """Return the code under which metres are ``factor`` times fewer; disparity in pixels stays as it is."""
        return replace(self, scale=self.scale / factor, baseline_fx=self.baseline_fx / factor, cap=self.cap / factor)


class RawSample(TypedDict, total=False):
    """A sample as stored. A label the data set lacks is an absent key.

    ``image`` uint8 H×W×3 RGB · ``semseg`` uint8 H×W train ids, 255 = ignore · ``depth`` H×W planar z, 0 = invalid:
    float32 metres (or the unit of the set's ``depth_target``), or stored numbers that ``depth_code`` decodes ·
    ``normals`` H×W×3, camera frame, facing the camera: float32 unit with 0 = invalid, or uint8 x for 2x/255 − 1 where
    shorter than ½ is invalid · ``edges`` uint8 H×W {0, 1}, 255 = ignore · ``K`` float64 3×3, all NaN when the camera
    is not known; a general matrix for a tilted image plane: the ray of pixel (u, v) is K⁻¹[u, v, 1] scaled to z = 1 ·
    ``id`` unique within the data set · ``instance`` int32 H×W object numbers, 0 = none; only to derive edges from ·
    ``pose`` float64 4×4, camera-to-world: a rigid motion from the camera frame (x right, y down, z forward) to that of
    the scene, metres; absent where it is not known.
    """

    image: np.ndarray
    semseg: np.ndarray
    depth: np.ndarray
    depth_code: DepthCode
    normals: np.ndarray
    edges: np.ndarray
    K: np.ndarray
    id: str
    instance: np.ndarray
    pose: np.ndarray


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """Store unit normals in three bytes: x becomes round((x + 1)/2 · 255); at most 0.39° are lost.

    Args:
        normals: Float (..., 3); shorter than ½ or not finite is invalid.

    Returns:
        uint8 (..., 3); invalid normals become (128, 128, 128).
    """
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    known = length >= 0.5  # false for NaN too
    unit = np.where(known, normals / np.where(known, length, 1.0), 0.0)
    return np.where(known, np.rint((unit + 1.0) * 127.5), CODED_INVALID_NORMAL).astype(np.uint8)


def decode_normals(coded: np.ndarray) -> np.ndarray:
    """Return float32 unit normals (..., 3) of uint8 ones, 0 where invalid."""
    normals = coded.astype(np.float32) * np.float32(2 / 255) - 1
    length = np.sqrt((normals * normals).sum(-1, keepdims=True))
    return np.where(length >= 0.5, normals / np.maximum(length, 0.5), 0.0).astype(np.float32)


def decode(raw: RawSample) -> RawSample:
    """Return the sample with float32 depth and float32 unit normals; a sample that has them is returned as it is."""
    out: RawSample = {**raw}
    code = out.pop("depth_code", None)
    if code is not None and "depth" in out:
        out["depth"] = code.decode(out["depth"])
    if "normals" in out and out["normals"].dtype == np.uint8:
        out["normals"] = decode_normals(out["normals"])
    return out


def check_raw(raw: RawSample, classes: int) -> None:
    """Refuse a stored sample that breaks the contract; cheap enough for every sample.

    Args:
        raw: The stored sample.
        classes: Number of semantic classes of the data set.

    Raises:
        DataError: Naming the sample, the map and what is wrong.
    """
    height, width = raw["image"].shape[:2]
    shapes = {"image": (height, width, 3), "normals": (height, width, 3)}
    for key in ("image", *LABELS):
        if key in raw and raw[key].shape != shapes.get(key, (height, width)):  # type: ignore[literal-required]
            raise DataError(
                f"sample '{raw['id']}': {key} has shape {raw[key].shape}, "  # type: ignore[literal-required]
                f"expected {shapes.get(key, (height, width))}"
            )
    if "pose" in raw and raw["pose"].shape != (4, 4):
        raise DataError(f"sample '{raw['id']}': pose has shape {raw['pose'].shape}, expected (4, 4)")
    if "semseg" in raw:
        if raw["semseg"].dtype != np.uint8:
            raise DataError(f"sample '{raw['id']}': semseg is {raw['semseg'].dtype}, expected uint8")
        # There should be no label between the classes and "ignore": two comparisons of bytes are the cheapest look.
        wrong = raw["semseg"][(raw["semseg"] >= classes) & (raw["semseg"] != IGNORE)]
        if wrong.size:
            raise DataError(
                f"sample '{raw['id']}': semseg holds label {wrong.max()}; expected 0..{classes - 1} or {IGNORE}"
            )
