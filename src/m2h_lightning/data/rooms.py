"""Rooms: the procedural indoor data set the package makes itself (see docs/rooms.md)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

from torch.utils.data import Dataset

from m2h_lightning.data.base import BaseDataModule
from m2h_lightning.data.raw import RawSample
from m2h_lightning.data.sources.edges import EDGE_RULE_TEXT
from m2h_lightning.data.synthesis.store import RoomsSpec, RoomsStore, ensure_rooms
from m2h_lightning.labels import IGNORE, NYU40_CLASSES


class RoomsDataset(Dataset[RawSample]):
    """Samples of one split of Rooms; renders the cache on first use.

    Every pixel has a surface, so no label is ever invalid. May be sent to spawned loader workers: memory maps are
    opened by the process that reads.

    Args:
        root: Folder under which the caches lie.
        split: "train", "val" or "test"; the splits share no room.
        rooms: Number of rooms.
        views_per_room: Samples per room.
        height: Pixels.
        width: Pixels.
        seed: Seed of the data set.
        mode: "views" for independent cameras, "sequence" for one walk per room.
        render_workers: Rendering processes; None for one per core, at most 8.

    Raises:
        ConfigError: A value is out of range.
        DataError: The cache cannot be written or read.
    """

    name: ClassVar[str] = "rooms"
    classes: ClassVar[tuple[str, ...]] = tuple(NYU40_CLASSES)
    ignore_index: ClassVar[int] = IGNORE
    depth_range: ClassVar[tuple[float, float]] = (0.1, 10.0)
    tasks: ClassVar[tuple[str, ...]] = ("semseg", "depth", "normals", "edges")
    edge_rule: ClassVar[str] = EDGE_RULE_TEXT["instance"]

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        rooms: int = 64,
        views_per_room: int = 8,
        height: int = 240,
        width: int = 320,
        seed: int = 0,
        mode: str = "views",
        render_workers: int | None = None,
    ) -> None:
        self.spec = RoomsSpec(split, rooms, views_per_room, height, width, seed, mode)
        self.store = RoomsStore(ensure_rooms(root, self.spec, workers=render_workers))

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> RawSample:
        return self.read_part(index)

    def read_part(self, index: int, without: Collection[str] = ()) -> RawSample:
        """Return a sample; labels of the tasks ``without`` are left out, and not decoded."""
        return RawSample(**self.store.read(index, without=without))  # type: ignore[typeddict-item]


class Rooms(BaseDataModule):
    """Procedural rooms, rendered on first use into ``<root>/rooms``; needs no download.

    Validation and test rooms are never seen in training.

    Args:
        rooms: Number of rooms for training, validation and test.
        views: Camera views per room.
        size: Height and width of the rendered images in pixels.
        render_seed: Seed of rooms and cameras.
        render_workers: Rendering processes; null takes one per core, at most 8.
        crop: Height and width of training crops in pixels.
        settings: Settings of ``BaseDataModule``.
    """

    name = RoomsDataset.name
    classes = RoomsDataset.classes
    depth_range = RoomsDataset.depth_range
    tasks = RoomsDataset.tasks
    edge_rule = RoomsDataset.edge_rule

    def __init__(
        self,
        rooms: tuple[int, int, int] = (400, 50, 50),
        views: int = 8,
        size: tuple[int, int] = (240, 320),
        render_seed: int = 0,
        render_workers: int | None = None,
        crop: tuple[int, int] = (224, 224),
        **settings: Any,
    ) -> None:
        super().__init__(crop=crop, **settings)
        self.render_workers = render_workers
        self.specs = {
            split: RoomsSpec(split, count, views, *size, render_seed)
            for split, count in zip(("train", "val", "test"), rooms, strict=True)
        }

    def prepare_data(self) -> None:
        """Render what is missing; in a distributed run one process of each machine does."""
        for spec in self.specs.values():
            ensure_rooms(self.root / self.name, spec, workers=self.render_workers)

    def dataset(self, split: str) -> RoomsDataset:
        """Return the stored samples of ``split``, rendered first where missing."""
        return RoomsDataset(self.root / self.name, **self.specs[split].as_dict(), render_workers=self.render_workers)

    @property
    def test_fingerprint(self) -> str:
        """Name of the test cache."""
        return self.specs["test"].folder

    @property
    def fingerprint(self) -> str:
        """Names of the three caches; each ends in a hash of what it holds and of the generator's version."""
        return ", ".join(spec.folder for spec in self.specs.values())
