"""Read a prepared store: compact arrays straight from the memory map. No torch."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2h_lightning.data.raw import DepthCode, DepthTarget, RawSample
from m2h_lightning.data.sources.base import Item, NormalsFrom, Source
from m2h_lightning.data.sources.edges import EdgeRule
from m2h_lightning.data.store.plan import FORMAT, SHARDS
from m2h_lightning.data.store.record import HAS, HAS_EDGES, Layout, decode_edges
from m2h_lightning.data.store.shards import open_shard
from m2h_lightning.errors import ConfigError, DataError, did_you_mean

MANIFEST = "manifest.json"
SAMPLES = "samples.csv"
PREPARED = "prepare.json"
"""What the store is prepared with; written first, as the manifest is written last."""

KIND = "m2h prepared store"

AGAIN = "run the same 'm2h data prepare' again, it writes only what is damaged"
CORRUPT = "delete this file and run the same 'm2h data prepare' again, it writes only this file"


def is_store(path: Path | str) -> bool:
    """Whether a folder is a prepared store; :class:`PreparedStore` tells when it is not finished."""
    path = Path(path).expanduser()
    return (path / PREPARED).is_file() and (path / SHARDS).is_dir()


@dataclass(frozen=True)
class StoredItem(Item):
    """A sample of a store.

    Args:
        shard: Position of its shard in the manifest.
        row: Its record there.
    """

    shard: int = 0
    row: int = 0


@dataclass(frozen=True)
class _Shard:
    """What the manifest says of a shard; ``first`` is the number of samples before it."""

    name: str
    split: str
    height: int
    width: int
    samples: int
    first: int


class PreparedStore(Source):
    """A data set as ``m2h data prepare`` wrote it.

    Its facts come from its manifest. Arrays are read-only views of the memory map, in the store's compact types; depth
    comes with its ``depth_code``. The first time a record is read its checksum is compared. Memory maps are opened on
    first use, so that the object can be pickled.

    Args:
        path: The store's folder.
        edges: Rule of the edges; None takes the first one.
        normals: What was prepared, or None; other normals need another store.
        normal_axes: What was prepared, or None.
        depth_target: What stored disparities are turned into; None is "metric".

    Raises:
        DataError: The folder is no store, is incomplete, or of another format.
        ConfigError: An option with which the store was not prepared.
    """

    name = "prepared"
    folders = ()
    layout_hint = f"{MANIFEST}, {SAMPLES} and {SHARDS}/, written by 'm2h data prepare'"

    def __init__(
        self,
        path: Path | str,
        edges: EdgeRule | None = None,
        normals: NormalsFrom | None = None,
        normal_axes: str | None = None,
        depth_target: DepthTarget | None = None,
    ) -> None:
        super().__init__(path, edges, normals, normal_axes)
        self.manifest, self._hash = _read_manifest(self.path)
        try:
            self._take_facts(depth_target or "metric")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{self.path / MANIFEST}: not readable ({type(error).__name__}: {error}): {AGAIN}"
            ) from error
        self._check_options(normals, normal_axes)
        self._open: dict[int, tuple[np.ndarray, dict[str, np.ndarray]]] = {}
        self._items: dict[str, list[StoredItem]] = {}
        self._codes: dict[tuple[float, ...], DepthCode] = {}
        self._checked = bytearray(sum(shard.samples for shard in self._shards))

    def _take_facts(self, depth_target: DepthTarget) -> None:
        facts = self.manifest
        # The names below belong to a class elsewhere, here to an object: a store can be of any set.
        vars(self).update(name=facts["set"], official=dict(facts["official"]))
        self.classes = tuple(facts["classes"])
        self.tasks = tuple(facts["tasks"])
        self.splits = tuple(facts["splits"])
        self.packaging = f"prepared store of {facts['packaging']}"
        self.edge_rules = tuple(facts["edges"]["rules"])
        self.provenance = dict(facts["provenance"])
        if self.edges is not None:
            self.provenance["edges"] = facts["edges"]["rules"][self.edges]
        self.stored_axes = facts["normals"]["axes"]
        targets = facts["depth"]["targets"]
        if depth_target not in targets:
            raise ConfigError(
                f"data.depth_target is '{depth_target}'; {self.packaging} has {', '.join(targets)}"
                f"{did_you_mean(str(depth_target), targets)}"
            )
        self.depth_target = depth_target
        low, high = targets[depth_target]["range"]
        self.depth_range = (float(low), float(high))
        if "depth" in self.tasks:
            self.provenance["depth"] = targets[depth_target]["provenance"]
        labels = tuple(key for key in HAS if key in self.tasks)
        self.poses = "pose" in facts
        self.layout = Layout(labels, facts["depth"]["stored"], self.edge_rules, len(self.classes), self.poses)
        self._shards: list[_Shard] = []
        first = 0
        for entry in facts["shards"]:
            fields = {key: entry[key] for key in ("name", "split", "height", "width", "samples")}
            shard = _Shard(**fields, first=first)
            self._shards.append(shard)
            first += shard.samples

    def _check_options(self, normals: str | None, normal_axes: str | None) -> None:
        prepared = self.manifest["normals"]
        for key, asked, have in (
            ("normals", normals, prepared["from"]),
            ("normal_axes", normal_axes, prepared["axes"]),
        ):
            if asked is not None and asked != have:
                flag = f"--{key.replace('_', '-')}"
                raise ConfigError(
                    f"data.{key} is '{asked}', but {self.path} was prepared with {have or 'none'}; "
                    f"leave data.{key} out, or prepare another store with {flag} {asked}"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_items": {}, "_codes": {}}

    @property
    def fingerprint(self) -> str:
        """Short text that changes with the stored data and with what is made of it at load."""
        text = repr((self._hash, self.edges, self.depth_target))
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def items(self, split: str) -> list[Item]:
        """List the samples of a split in the order of the set's own list.

        Raises:
            DataError: The split was not prepared, or the list is damaged.
        """
        if split not in self.splits:
            raise DataError(f"{self.path}: has no split '{split}' (prepared: {', '.join(self.splits)}); prepare it too")
        if not self._items:
            self._items = self._read_samples()
        return list(self._items[split])

    def _read_samples(self) -> dict[str, list[StoredItem]]:
        path = self.path / SAMPLES
        kinds = ("image", *self.tasks, *(["pose"] if self.poses else []))
        files = [dict.fromkeys(kinds, self.path / SHARDS / f"{shard.name}.npy") for shard in self._shards]
        places = {shard.name: number for number, shard in enumerate(self._shards)}
        out: dict[str, list[StoredItem]] = {split: [] for split in self.splits}
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != self.manifest["samples"]["sha256"]:
                raise DataError(f"{path}: corrupt or edited (checksum differs): {AGAIN}")
            rows = csv.reader(io.StringIO(content.decode(), newline=""))
            next(rows)
            for name, split, scene, shard, row in rows:
                place = places[shard]
                out[split].append(StoredItem(name, split, scene, files[place], place, int(row)))
        except (OSError, ValueError, KeyError, StopIteration) as error:
            raise DataError(f"{path}: not readable ({type(error).__name__}: {error}): {AGAIN}") from error
        return out

    def size(self, item: Item) -> tuple[int, int]:
        """Return height and width of a sample."""
        shard = self._shards[self._stored(item).shard]
        return shard.height, shard.width

    def _stored(self, item: Item) -> StoredItem:
        if isinstance(item, StoredItem):
            return item
        for stored in self.items(item.split):
            if stored.id == item.id:
                return stored  # type: ignore[return-value]
        raise DataError(f"{self.path}: has no sample '{item.id}' in split '{item.split}'")

    def _maps(self, number: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the bytes (N, record) of a shard, and each of its fields (N, …)."""
        if number not in self._open:
            shard = self._shards[number]
            path = self.path / SHARDS / f"{shard.name}.npy"
            dtype = self.layout.dtype(shard.height, shard.width)
            # As a plain array: every view of a memmap object costs microseconds.
            records = open_shard(path, dtype, shard.samples, CORRUPT, AGAIN).view(np.ndarray)
            assert dtype.names is not None
            flat = records.view(np.uint8).reshape(shard.samples, dtype.itemsize)
            self._open[number] = flat, {key: records[key] for key in dtype.names}
        return self._open[number]

    def load(self, item: Item) -> RawSample:
        """Return a sample with the edges of the rule in use; arrays are read-only views of the memory map.

        Raises:
            DataError: The shard is missing, truncated or corrupt.
        """
        place = self._stored(item)
        flat, fields = self._maps(place.shard)
        row = place.row
        index = self._shards[place.shard].first + row
        if not self._checked[index]:
            if zlib.crc32(flat[row, 4:].data) != int(fields["crc"][row]):
                path = self.path / SHARDS / f"{self._shards[place.shard].name}.npy"
                raise DataError(f"{path}: sample '{item.id}' (row {row}) is corrupt (checksum differs): {CORRUPT}")
            self._checked[index] = 1
        has = int(fields["has"][row])
        out: RawSample = {"image": fields["image"][row], "K": fields["K"][row], "id": item.id}
        if self.poses and np.isfinite(fields["pose"][row]).all():
            out["pose"] = fields["pose"][row]
        if has & HAS["semseg"]:
            out["semseg"] = fields["semseg"][row]
        if has & HAS["depth"]:
            out["depth"] = fields["depth"][row]
            out["depth_code"] = self._code(fields, row)
        if has & HAS["normals"]:
            out["normals"] = fields["normals"][row]
        if self.edges is not None:
            rule = self.edge_rules.index(self.edges)
            if has >> (HAS_EDGES + rule) & 1:
                out["edges"] = decode_edges(fields["edges"][row], rule)
        return out

    def _code(self, fields: dict[str, np.ndarray], row: int) -> DepthCode:
        numbers = tuple(float(fields[key][row]) for key in ("depth_scale", "depth_baseline_fx", "depth_cap"))
        if numbers not in self._codes:
            scale, baseline_fx, cap = numbers
            self._codes[numbers] = DepthCode(scale, baseline_fx, self.depth_target, cap)
        return self._codes[numbers]

    def read(self, item: Item) -> RawSample:
        """The same as :meth:`load`: edges are made already."""
        return self.load(item)


def open_store(path: Path, name: str, **options: Any) -> PreparedStore:
    """Return the prepared store of one data set.

    Args:
        path: The store's folder.
        name: Of the set, one of ``sources.SETS``.
        options: Of :class:`PreparedStore`.

    Raises:
        DataError: It is a store of another set, or damaged.
        ConfigError: An option with which it was not prepared.
    """
    store = PreparedStore(path, **options)
    if store.name != name:
        raise DataError(f"{path}: is a prepared store of '{store.name}', not of '{name}'")
    return store


def _read_manifest(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the manifest and the hash of its file."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
        manifest = json.loads(content)
        kind, made = manifest["kind"], manifest["format"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{folder}: no {MANIFEST}: no prepared store, or not finished: {AGAIN}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not readable ({type(error).__name__}: {error}): {AGAIN}") from error
    if kind != KIND:
        raise DataError(
            f"{path}: is not the manifest of a prepared store; give the folder that 'm2h data prepare' wrote"
        )
    if made != FORMAT:
        raise DataError(f"{folder}: has format {made}, this version reads {FORMAT}: prepare it again into a new folder")
    return manifest, hashlib.sha256(content).hexdigest()


def damaged_shards(store: PreparedStore) -> list[Path]:
    """Return the shards whose content is not what the manifest says, by reading all of them; missing ones too."""
    out = []
    for entry in store.manifest["shards"]:
        path = store.path / SHARDS / f"{entry['name']}.npy"
        digest = hashlib.sha256()
        if path.is_file():
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        if digest.hexdigest() != entry["sha256"]:
            out.append(path)
    return out
