"""One file of the rooms cache: what a cache holds, and how the samples of a room are written. Loads no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2h_lightning.data.store.shards import checksum, npy_bytes, npy_header, write_atomically
from m2h_lightning.data.synthesis import generate
from m2h_lightning.errors import ConfigError, did_you_mean

MODES = ("views", "sequence")


@dataclass(frozen=True)
class RoomsSpec:
    """What a cache holds.

    Args:
        split: "train", "val" or "test". Room 7 of one split is another room than room 7 of the other.
        rooms: Number of rooms.
        views_per_room: Samples per room.
        height: Pixels.
        width: Pixels.
        seed: Seed of the data set.
        mode: "views" for independent cameras, "sequence" for one smooth walk of ``views_per_room`` frames a room.
        intrinsics: fx, fy, cx, cy in pixels, the same for all samples; None draws a camera for each (or each walk).

    Raises:
        ConfigError: A value is out of its range.
    """

    split: str = "train"
    rooms: int = 64
    views_per_room: int = 8
    height: int = 240
    width: int = 320
    seed: int = 0
    mode: str = "views"
    intrinsics: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        for key, value, choices in (("split", self.split, tuple(generate.SPLIT_CODES)), ("mode", self.mode, MODES)):
            if value not in choices:
                hint = did_you_mean(str(value), choices)
                raise ConfigError(f"rooms: {key} is {value!r}, expected one of {', '.join(choices)}{hint}")
        for key, low, high in (
            ("rooms", 1, 100_000),
            ("views_per_room", 1, 1000),
            ("height", 16, 2160),
            ("width", 16, 3840),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"rooms: {key} is {value!r}, expected a whole number from {low} to {high}")
        if self.intrinsics is not None:
            try:
                fx, fy, cx, cy = (float(value) for value in self.intrinsics)
            except (TypeError, ValueError):
                raise ConfigError(f"rooms: intrinsics is {self.intrinsics!r}, expected fx, fy, cx, cy") from None
            # Outside of these the furniture is no longer drawn as intended: a fish eye, or a telescope past the room.
            if not (0.25 * self.width <= fx <= 4 * self.width and 0.25 <= fy / fx <= 4):
                raise ConfigError(f"rooms: focal lengths {fx:g}, {fy:g} do not suit a width of {self.width} pixels")
            if not (0 <= cx <= self.width and 0 <= cy <= self.height):
                raise ConfigError(f"rooms: the principal point {cx:g}, {cy:g} lies outside the image")
            object.__setattr__(self, "intrinsics", (fx, fy, cx, cy))  # JSON gives a list

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them; without ``intrinsics`` where none are given, as before there were any."""
        fields = asdict(self)
        if self.intrinsics is None:
            del fields["intrinsics"]
        return fields

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.rooms * self.views_per_room

    @property
    def folder(self) -> str:
        """Name of the cache's folder: changes with every field and with the generator's version."""
        text = json.dumps([self.as_dict(), generate.GENERATOR_VERSION], sort_keys=True)
        return f"rooms-{self.split}-{self.height}x{self.width}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def shard_bytes(self) -> int:
        """Exact size of one room's file."""
        return npy_bytes(generate.sample_dtype(self.height, self.width), self.views_per_room)

    def shard(self, room: int) -> str:
        """Name of one room's file."""
        return f"room-{room:05d}.npy"


def header(spec: RoomsSpec) -> bytes:
    """The .npy header of a shard."""
    return npy_header(generate.sample_dtype(spec.height, spec.width), spec.views_per_room)


def write_shard(folder: Path, spec: RoomsSpec, room: int) -> None:
    """Render one room and put its shard in place.

    Raises:
        DataError: The file cannot be written.
    """
    K = None
    if spec.intrinsics is not None:
        fx, fy, cx, cy = spec.intrinsics
        K = np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    records = generate.render_room(
        spec.seed, spec.split, room, spec.views_per_room, spec.height, spec.width, mode=spec.mode, K=K
    )
    for record in records:
        record["crc"] = checksum(record)
    write_atomically(folder / spec.shard(room), header(spec), records.tobytes())
