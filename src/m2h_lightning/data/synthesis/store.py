"""The cache of the Rooms data set: rendered once, read by memory map. Loads no torch.

A cache is a folder named after its content, ``rooms-<split>-<height>x<width>-<hash of the specification>``, holding
one file per room (``room-00000.npy``, records of fixed size) and ``manifest.json``, written last. Every file gets its
name by an atomic rename after it is complete on disk: a killed run leaves no half-written shard, and the next run
renders what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from m2h_lightning.data.sources.edges import EDGE_RULE_TEXT
from m2h_lightning.data.store.shards import HEADROOM, checksum, free_bytes, locked, open_shard, write_atomically
from m2h_lightning.data.synthesis import generate
from m2h_lightning.data.synthesis.fill import fill
from m2h_lightning.data.synthesis.render import decode_octahedral
from m2h_lightning.data.synthesis.shards import RoomsSpec
from m2h_lightning.errors import ConfigError, DataError

MANIFEST = "manifest.json"


def missing_shards(folder: Path, spec: RoomsSpec) -> list[int]:
    """Rooms whose file is absent or of a wrong size."""
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    return [room for room in range(spec.rooms) if sizes.get(spec.shard(room)) != spec.shard_bytes]


def check_space(folder: Path, spec: RoomsSpec, rooms: int) -> None:
    """Refuse to start what will not fit on the disk.

    Raises:
        DataError: Too little free space.
    """
    need, free = rooms * spec.shard_bytes + HEADROOM, free_bytes(folder)
    if need > free:
        raise DataError(
            f"{folder}: {rooms} rooms need {need:,} bytes, {free:,} are free: free space, choose another folder, or "
            "ask for fewer rooms, fewer views or a smaller size"
        )


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def write_manifest(folder: Path, spec: RoomsSpec) -> None:
    """Describe a complete cache: specification, versions, and size and SHA-256 of every shard."""
    shards = {}
    for room in range(spec.rooms):
        path = folder / spec.shard(room)
        shards[path.name] = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    manifest = {
        "dataset": "rooms",
        "spec": spec.as_dict(),
        "samples": spec.count,
        "generator_version": generate.GENERATOR_VERSION,
        "edges": EDGE_RULE_TEXT["instance"],
        "versions": {name: _package(name) for name in ("numpy", "embreex", "m2h-lightning")},
        "shards": shards,
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


class RoomsStore:
    """Read access to a complete cache. Memory maps are opened on first use, so that it can be pickled.

    Args:
        path: The folder returned by :func:`ensure_rooms`.

    Raises:
        DataError: The folder is no cache, is incomplete, or of another generator version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            manifest = json.loads((self.path / MANIFEST).read_text())
            self.spec = RoomsSpec(**manifest["spec"])
            made_by = manifest["generator_version"]
        except FileNotFoundError as error:
            hint = "render it with 'm2h data synthesize rooms'"
            raise DataError(f"{self.path}: no {MANIFEST}: the cache is missing or incomplete: {hint}") from error
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            raise DataError(f"{self.path / MANIFEST}: not readable ({error}): delete it and render again") from error
        if made_by != generate.GENERATOR_VERSION:
            raise DataError(
                f"{self.path}: made by generator version {made_by}, this is {generate.GENERATOR_VERSION}: render again"
            )
        self._open: dict[int, np.ndarray] = {}
        self._checked = bytearray(self.spec.count)

    def __len__(self) -> int:
        return self.spec.count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def _record(self, index: int) -> np.void:
        room, view = divmod(index, self.spec.views_per_room)
        path = self.path / self.spec.shard(room)
        mend = "delete this file and its manifest.json and it will be rendered again"
        if room not in self._open:
            dtype = generate.sample_dtype(self.spec.height, self.spec.width)
            restore = mend.replace("this file and its", "the")
            self._open[room] = open_shard(path, dtype, self.spec.views_per_room, mend, restore)
        record = self._open[room][view]
        if not self._checked[index]:
            if checksum(record) != int(record["crc"]):
                raise DataError(f"{path}: sample {view} is corrupt (checksum differs): {mend}")
            self._checked[index] = 1
        return record

    def read(self, index: int, extras: bool = False, without: Collection[str] = ()) -> dict[str, Any]:
        """One sample as a RawSample.

        Args:
            index: 0 … len-1; samples of a room are neighbours.
            extras: Also return ``instance`` (H, W) uint16 from 1, and ``pose`` (4, 4) float64 camera-to-world
                (camera x right, y down, z forward; world z up, metres).
            without: Labels to leave out; they are not decoded.

        Raises:
            IndexError: No such sample.
            DataError: The shard is missing, truncated or corrupt.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        record = self._record(index)
        room, view = divmod(index, self.spec.views_per_room)
        plain = [key for key in ("image", "semseg", "depth", "edges", "K") if key not in without]
        sample: dict[str, Any] = {key: np.array(record[key]) for key in plain}
        if "normals" not in without:
            sample["normals"] = decode_octahedral(record["normals"])
        sample["id"] = f"rooms/{self.spec.split}/{room:05d}/{view:03d}"
        if extras:
            sample["instance"], sample["pose"] = np.array(record["instance"]), np.array(record["pose"])
        return sample


def ensure_rooms(root: Path | str, spec: RoomsSpec, workers: int | None = None, progress: bool = True) -> Path:
    """Make sure a cache is complete, rendering what is missing.

    Args:
        root: Folder under which caches lie; created when absent.
        spec: What to render.
        workers: Rendering processes; None for one per core, at most 8.
        progress: Show a progress bar on a terminal, or a line at start and end elsewhere.

    Returns:
        The cache's folder, for :class:`RoomsStore`.

    Raises:
        DataError: The folder cannot be used or the disk is too small.
        ConfigError: ``workers`` is below 1.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"rooms: workers is {workers}, expected at least 1")
    folder = Path(root).expanduser() / spec.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be created ({error.strerror}): choose another folder") from error
    if (folder / MANIFEST).exists() and not missing_shards(folder, spec):
        return folder
    with locked(folder):
        todo = missing_shards(folder, spec)
        if todo or not (folder / MANIFEST).exists():
            (folder / MANIFEST).unlink(missing_ok=True)
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
            check_space(folder, spec, len(todo))
            fill(folder, spec, todo, workers, progress)
            write_manifest(folder, spec)
    return folder
