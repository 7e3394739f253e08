"""One sample of the store as a record of fixed size: its type, and how a raw sample is put into it. No torch.

Nothing is resized. Depth in metres is rounded to 0.2 mm (sets that end within 13.1 m) or to half floats (all others),
float normals to bytes (at most 0.39°); everything else is stored as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from m2h_lightning.data.raw import RawSample, check_raw, encode_normals
from m2h_lightning.data.sources.edges import EdgeRule, apply_edge_rule
from m2h_lightning.data.store.shards import checksum
from m2h_lightning.errors import DataError
from m2h_lightning.labels import IGNORE

DepthStored = Literal["steps", "half", "coded"]

STEP = 0.0002
"""Metres per unit of a depth in "steps": sensors that count millimetres or 1/5000 m are stored exactly."""

STEPS_END = 13.1
"""Metres; sets whose depth ends here or before are stored in steps (65535 of them are 13.107 m)."""

HALF_END = 65504.0
"""Metres; the largest half float."""

DEPTH_TEXT: dict[DepthStored, str] = {
    "steps": "uint16, steps of 0.2 mm; 0 is unknown",
    "half": "float16 metres; 0 is unknown",
    "coded": "uint16 as in the set's own files; depth_baseline_fx and the target chosen at load make depth of it",
}
NORMALS_TEXT = "uint8 x for 2x/255 - 1, camera frame OpenCV (x right, y down, z forward); shorter than 1/2 is unknown"
EDGES_TEXT = "two bits per rule, the first rule lowest: is an edge, is ignored"
POSE_TEXT = "float64 camera-to-world, camera frame OpenCV (x right, y down, z forward), metres; NaN is unknown"
HAS_TEXT = "labels that a sample has: semseg 1, depth 2, normals 4, then 8, 16, 32 for the edges of each rule"

HAS = {"semseg": 1, "depth": 2, "normals": 4}
HAS_EDGES = 3
"""Bit of ``has`` for the first edge rule."""


def depth_stored(depth_range: tuple[float, float], coded: bool) -> DepthStored:
    """Return how a set's depth is stored; it depends on the set alone, never on a sample.

    Args:
        depth_range: Of the set, metres.
        coded: The reader gives stored numbers with a :class:`DepthCode`.
    """
    return "coded" if coded else "steps" if depth_range[1] <= STEPS_END else "half"


@dataclass(frozen=True)
class Layout:
    """What the records of a store hold.

    Args:
        labels: Labels of the set, of "semseg", "depth", "normals" (edges follow from their rules).
        depth: How depth is stored.
        edge_rules: All rules by which edges can be made.
        classes: Number of semantic classes.
        pose: Whether there are poses; stores of before there were any have none.
    """

    labels: tuple[str, ...]
    depth: DepthStored
    edge_rules: tuple[EdgeRule, ...]
    classes: int
    pose: bool = False

    def dtype(self, height: int, width: int) -> np.dtype:
        """Return the type of a record; the checksum comes first, and every number lies on its natural boundary."""
        size = (height, width)
        fields: list[tuple] = [("crc", "<u4"), ("has", "<u4"), ("K", "<f8", (3, 3))]
        fields += [("pose", "<f8", (4, 4))] if self.pose else []
        if "depth" in self.labels:
            fields += [("depth_scale", "<f8"), ("depth_baseline_fx", "<f8"), ("depth_cap", "<f8")]
            fields += [("depth", "<f2" if self.depth == "half" else "<u2", size)]
        fields += [("image", "u1", (*size, 3))]
        fields += [("normals", "u1", (*size, 3))] if "normals" in self.labels else []
        fields += [("semseg", "u1", size)] if "semseg" in self.labels else []
        fields += [("edges", "u1", size)] if self.edge_rules else []
        pad = -np.dtype(fields).itemsize % 8
        return np.dtype(fields + ([("pad", "u1", (pad,))] if pad else []))

    def empty(self, height: int, width: int) -> np.void:
        """Return a record to fill."""
        return np.zeros(1, self.dtype(height, width))[0]

    def encode(self, raw: RawSample, record: np.void) -> int:
        """Put a sample into a record.

        Args:
            raw: As :meth:`Source.load` returns it.
            record: Of :meth:`dtype`; overwritten whole.

        Returns:
            Number of pixels whose depth lies beyond what half floats can hold; they become unknown.

        Raises:
            DataError: The sample breaks the contract, or a value cannot be stored.
        """
        size = record["image"].shape[:2]
        name = f"sample '{raw['id']}'"
        if raw["image"].shape[:2] != size:
            found = "×".join(map(str, raw["image"].shape[:2]))
            raise DataError(f"{name}: the image is {found}, its header says {size[0]}×{size[1]}; get its file again")
        check_raw(raw, self.classes)
        for key in HAS:
            if key in raw and key not in self.labels:
                raise DataError(f"{name}: has {key}, which this packaging of the set is said to lack; report this")
        beyond = 0
        has = sum(bit for key, bit in HAS.items() if key in raw)
        for field in record.dtype.names or ():
            record[field] = 0
        record["K"], record["image"] = raw["K"], raw["image"]
        if self.pose:
            record["pose"] = raw.get("pose", np.nan)
        if "semseg" in raw:
            record["semseg"] = raw["semseg"]
        if "normals" in raw:
            normals = raw["normals"]
            record["normals"] = normals if normals.dtype == np.uint8 else encode_normals(normals)
        if "depth" in raw:
            beyond = self._encode_depth(raw, record, name)
        for place, rule in enumerate(self.edge_rules):
            edges = apply_edge_rule(raw, rule).get("edges")
            if edges is None:
                continue
            if not ((edges <= 1) | (edges == IGNORE)).all():
                raise DataError(f"{name}: edges ({rule}) hold other values than 0, 1 and {IGNORE}")
            has |= 1 << (HAS_EDGES + place)
            record["edges"] |= ((edges == 1) << np.uint8(2 * place)) | ((edges == IGNORE) << np.uint8(2 * place + 1))
        record["has"] = has
        record["crc"] = checksum(record)
        return beyond

    def _encode_depth(self, raw: RawSample, record: np.void, name: str) -> int:
        depth, code = raw["depth"], raw.get("depth_code")
        if self.depth == "coded":
            if code is None or depth.dtype != np.uint16:
                raise DataError(f"{name}: depth is {depth.dtype}, expected uint16 with its code; report this")
            record["depth"] = depth
            record["depth_scale"], record["depth_baseline_fx"], record["depth_cap"] = (
                code.scale,
                code.baseline_fx,
                code.cap,
            )
            return 0
        if code is not None:
            depth = code.decode(depth)
        if not np.isfinite(depth).all() or depth.min() < 0:
            raise DataError(f"{name}: depth holds negative, infinite or NaN numbers; 0 says unknown")
        if self.depth == "half":
            record["depth_scale"] = 1.0
            beyond = depth > HALF_END
            half = np.where(beyond, 0.0, depth).astype(np.float16)
            # What is known stays known: the smallest depth is not rounded to "unknown".
            record["depth"] = np.where((depth > 0) & ~beyond, np.maximum(half, np.float16(2.0**-24)), half)
            return int(beyond.sum())
        record["depth_scale"] = STEP
        steps = np.rint(depth.astype(np.float64) / STEP)
        if steps.max() > 65535:
            row, column = np.unravel_index(int(depth.argmax()), depth.shape)
            raise DataError(
                f"{name}: depth is {depth.max():.3f} m at row {row}, column {column}; a set whose depth_range ends "
                f"within {STEPS_END} m is stored up to 13.107 m: get the file again, leave the sample out "
                "(--skip-corrupt), or raise the set's depth_range"
            )
        record["depth"] = np.where(depth > 0, np.maximum(steps, 1), 0)
        return 0


def decode_edges(coded: np.ndarray, place: int) -> np.ndarray:
    """Return the edges of one rule, uint8 of the same shape: {0, 1}, 255 = ignore.

    Args:
        coded: The stored bytes.
        place: Position of the rule.
    """
    # Arithmetic on bytes: four times faster than a table of 256 entries.
    edges = coded >> np.uint8(2 * place)
    ignored = edges >> np.uint8(1)
    edges &= np.uint8(1)
    ignored &= np.uint8(1)
    np.negative(ignored, out=ignored)  # 1 becomes 255
    edges |= ignored
    return edges
