"""Which sample goes into which shard: a function of source and options alone, so that any run can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2h_lightning.data.sources.base import Item, Source
from m2h_lightning.data.store.record import Layout
from m2h_lightning.data.store.shards import npy_bytes
from m2h_lightning.errors import DataError

FORMAT = 1
"""Raised by every change after which stored bytes mean something else, or the same sources give other bytes."""

SHARDS = "shards"
"""Folder of the shards within the store."""


@dataclass(frozen=True)
class Shard:
    """Samples of one split and one size.

    Args:
        split: Of all its samples.
        height: Pixels.
        width: Pixels.
        items: In the source's order.
        key: Hash of what makes the shard's bytes: format, options, samples, and names and sizes of their files.
    """

    split: str
    height: int
    width: int
    items: tuple[Item, ...]
    key: str

    @property
    def name(self) -> str:
        """File name without its ending."""
        return f"{self.split}-{self.height}x{self.width}-{self.key}"

    def bytes(self, layout: Layout, samples: int | None = None) -> int:
        """Return the size of the file, with all samples or only ``samples`` of them."""
        return npy_bytes(layout.dtype(self.height, self.width), len(self.items) if samples is None else samples)


def relative(path: Path, root: Path) -> str:
    """Return how a source's file is called in the store: never by an absolute path."""
    return path.name if path == root else Path(os.path.relpath(path, root)).as_posix()


@dataclass(frozen=True)
class SplitPlan:
    """A split, divided.

    Args:
        order: Ids in the order of the set's own list.
        shards: In the order of their first samples.
    """

    order: tuple[str, ...]
    shards: tuple[Shard, ...]


def plan(
    source: Source, splits: Sequence[str], layout: Layout, options: dict[str, Any], samples: int
) -> dict[str, SplitPlan]:
    """Divide a source into shards.

    A shard ends when it is full, and at the end of a scene when it is at least half full: when scenes are added later,
    most shards stay what they are.

    Args:
        source: What is to be prepared.
        splits: Which splits.
        layout: What records hold.
        options: The source's options; other ones make other shards.
        samples: Most samples in a shard.

    Returns:
        The plan of each split.

    Raises:
        DataError: A list or files named in it are missing, two samples have the same id, or no sample can be opened.
    """
    # Not the packaging's text: it may count scenes, and would change every shard when one arrives.
    # Provenance says how each label is made; for sets that describe themselves, the description is part of it.
    how = {key: text for key, text in source.provenance.items() if key not in ("split", "scene")}
    facts = [FORMAT, source.name, layout.labels, layout.depth, layout.edge_rules, source.classes, how, options]
    facts += ["pose"] if layout.pose else []
    out = {}
    for split in splits:
        items = source.items(split)
        shards = tuple(_shards(source, split, items, facts, samples))
        out[split] = SplitPlan(tuple(item.id for item in items), shards)
    return out


def _shards(source: Source, split: str, items: list[Item], facts: list[Any], most: int) -> Iterator[Shard]:
    twice = _first_double([item.id for item in items])
    if twice is not None:
        raise DataError(
            f"{source.path}: split '{split}' lists sample '{twice}' twice; remove one of them from its list"
        )
    groups: dict[tuple[int, int], list[list[Item]]] = {}
    last: dict[tuple[int, int], str] = {}
    for item, size in zip(items, _sizes(source, items), strict=True):
        chunks = groups.setdefault(size, [[]])
        held = len(chunks[-1])
        if held == most or (2 * held >= most and last[size] != item.scene):
            chunks.append([])
        chunks[-1].append(item)
        last[size] = item.scene
    for (height, width), chunks in groups.items():
        for chunk in chunks:
            yield Shard(split, height, width, tuple(chunk), _key(source, [*facts, split, height, width], chunk))


def _first_double(ids: list[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in ids if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _sizes(source: Source, items: list[Item]) -> list[tuple[int, int]]:
    """Return the size of each sample.

    A sample that cannot be opened gets the size of its neighbour: writing its shard will tell what is wrong with it,
    and once it is mended the other shards stay what they are.
    """
    sizes: list[tuple[int, int] | None] = []
    error: DataError | None = None
    for item in items:
        try:
            sizes.append(source.size(item))
        except DataError as caught:
            error = error or caught
            sizes.append(None)
    known = next((size for size in sizes if size), None)
    if known is None and error is not None:
        raise error
    out: list[tuple[int, int]] = []
    for size in sizes:
        out.append(size or (out[-1] if out else known))  # type: ignore[arg-type]
    return out


def _key(source: Source, facts: list[Any], items: list[Item]) -> str:
    listed = []
    for item in items:
        files = []
        for kind, path in sorted(item.files.items()):
            try:
                size = path.stat().st_size
            except OSError:
                size = -1  # an error when it is read
            files.append([kind, relative(path, source.path), size])
        listed.append([item.id, item.scene, files])
    text = json.dumps([facts, listed], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
