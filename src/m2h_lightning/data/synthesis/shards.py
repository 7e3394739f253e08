"""One file of the rooms cache: what a cache holds, and how the samples of a room are written. Loads no torch."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from m2h_lightning.data.synthesis import generate
from m2h_lightning.errors import ConfigError, DataError, did_you_mean
from m2h_lightning.files import atomic

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

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.rooms * self.views_per_room

    @property
    def folder(self) -> str:
        """Name of the cache's folder: changes with every field and with the generator's version."""
        text = json.dumps([asdict(self), generate.GENERATOR_VERSION], sort_keys=True)
        return f"rooms-{self.split}-{self.height}x{self.width}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def shard_bytes(self) -> int:
        """Exact size of one room's file."""
        return len(header(self)) + self.views_per_room * generate.sample_dtype(self.height, self.width).itemsize

    def shard(self, room: int) -> str:
        """Name of one room's file."""
        return f"room-{room:05d}.npy"


def header(spec: RoomsSpec) -> bytes:
    """The .npy header of a shard."""
    buffer = io.BytesIO()
    dtype = generate.sample_dtype(spec.height, spec.width)
    description = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (spec.views_per_room,),
    }
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def checksum(record: np.void) -> int:
    """Return the checksum of a sample."""
    return zlib.crc32(record.tobytes()[4:])  # all but the checksum itself


def write_atomically(path: Path, *parts: bytes) -> None:
    """Write a file that is complete under its name or not there at all.

    Raises:
        DataError: It cannot be written.
    """
    try:
        with atomic(path) as temporary, open(temporary, "wb") as file:
            file.writelines(parts)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}): free space or choose another folder") from error


def write_shard(folder: Path, spec: RoomsSpec, room: int) -> None:
    """Render one room and put its shard in place.

    Raises:
        DataError: The file cannot be written.
    """
    records = generate.render_room(
        spec.seed, spec.split, room, spec.views_per_room, spec.height, spec.width, mode=spec.mode
    )
    for record in records:
        record["crc"] = checksum(record)
    write_atomically(folder / spec.shard(room), header(spec), records.tobytes())
