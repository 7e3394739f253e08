"""What the data modules of real data sets share: where the files are found, and who is held out."""

from __future__ import annotations

import hashlib
import inspect
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import Dataset

from m2h_lightning.data.base import BaseDataModule
from m2h_lightning.data.raw import RawSample
from m2h_lightning.data.sources import Item, Source, source_class
from m2h_lightning.data.sources.base import NormalsFrom
from m2h_lightning.data.sources.edges import EDGE_RULE_TEXT, EdgeRule
from m2h_lightning.data.store import PreparedStore, is_store, open_store
from m2h_lightning.errors import ConfigError, DataError

STORE_OPTIONS = ("edges", "normals", "normal_axes", "depth_target")
"""Options that a prepared store answers itself; all others were settled when it was prepared."""

KEYS = {"crop": "stored_crop"}
"""Keys that are called otherwise in a configuration than in the reader."""


class SourceDataset(Dataset[RawSample]):
    """The samples of a list of items, read as they are asked for.

    Args:
        source: Reads them.
        items: Which, and in which order.
    """

    def __init__(self, source: Source, items: list[Item]) -> None:
        self.source = source
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> RawSample:
        return self.source.read(self.items[index])


def hold_out(items: list[Item], share: float) -> tuple[list[Item], list[Item]]:
    """Divide items into what stays and what is held out, by whole scenes.

    The choice depends on the names of the scenes alone: it is the same on every machine, for every seed.

    Args:
        items: Training samples.
        share: Share of them to hold out, at least approximately; scenes are not divided.

    Returns:
        Items that stay, and items held out.

    Raises:
        DataError: There are too few scenes to divide.
    """
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.scene] = sizes.get(item.scene, 0) + 1
    held: set[str] = set()
    count = 0
    for scene in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if count >= share * len(items):
            break
        held.add(scene)
        count += sizes[scene]
    if len(held) == len(sizes):
        raise DataError(
            f"data.holdout is {share}, but the training samples are of {len(sizes)} scene(s) that cannot be divided; "
            "set data.holdout to 0 to validate on the test split"
        )
    return [i for i in items if i.scene not in held], [i for i in items if i.scene in held]


class RecordedDataModule(BaseDataModule):
    """Batches of a data set that lies on the disk: as its publishers made it, or prepared by ``m2h data prepare``.

    Without ``path`` the folders ``<root>/<name>-prepared`` and then those of the usual names are looked for.

    Args:
        path: The data set's folder (or prepared store); null looks under ``root``.
        edges: Rule by which edge labels are made: provided, semantic or instance; null takes the set's usual one.
        normals: provided, derived (from depth and K) or none; null takes provided ones where there are any.
        normal_axes: Which stored channel is x, y, z of the camera frame, such as "x,-y,-z"; null takes the set's usual
            one. ``m2h data verify`` finds the right one.
        holdout: Share of the training samples, by whole scenes, to validate on where the set has no validation split of
            its own. 0 validates on the test split, which then is no test any more.
        settings: Settings of ``BaseDataModule``.
    """

    source_name: ClassVar[str]

    def __init__(
        self,
        path: str | None = None,
        edges: EdgeRule | None = None,
        normals: NormalsFrom | None = None,
        normal_axes: str | None = None,
        holdout: float = 0.1,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if holdout is None or not 0 <= holdout < 1:
            raise ConfigError(f"data.holdout is {holdout}; give a share from 0 to below 1")
        self.path = None if path is None else Path(path).expanduser()
        self.holdout = holdout
        self.options: dict[str, Any] = {"edges": edges, "normals": normals, "normal_axes": normal_axes}
        self._warned = False

    def _find(self) -> Path | None:
        """Return the folder of the data set; None when there is none."""
        folders = source_class(self.source_name).folders
        candidates = [self.root / name for name in (f"{self.source_name}-prepared", *folders)]
        return self.path or next((folder for folder in candidates if folder.exists()), None)

    @cached_property
    def source(self) -> Source:
        """The reader of the files.

        Raises:
            DataError: They are not there, or are something else; one line that says how to mend it.
            ConfigError: An option that these files cannot answer.
        """
        reader = source_class(self.source_name)
        folder = self._find()
        if folder is None:
            raise DataError(
                f"data set '{self.source_name}' is not under {self.root}: expected {self.source_name}-prepared (from "
                f"'m2h data prepare {self.source_name} --src … --out {self.root / self.source_name}-prepared') or "
                f"{' or '.join(reader.folders)} ({reader.layout_hint}); name another place with --data.path, "
                "--data.root or M2H_DATA"
            )
        if is_store(folder):
            asked = {key: value for key, value in self.options.items() if key in STORE_OPTIONS}
            store = open_store(folder, self.source_name, **asked)
            self._refuse_settled(store)
            return store
        source = reader(folder, **self.options)
        rank_zero_info(
            f"reading {folder} as published; 'm2h data prepare {self.source_name} --src {folder} --out "
            f"{self.root / self.source_name}-prepared' makes loading several times faster"
        )
        return source

    def _refuse_settled(self, store: PreparedStore) -> None:
        """Refuse keys that a prepared store cannot follow any more.

        Raises:
            ConfigError: One differs from what was prepared.
        """
        known = inspect.signature(source_class(self.source_name)).parameters
        for key, value in self.options.items():
            prepared = store.manifest["options"].get(key, known[key].default)
            if key not in STORE_OPTIONS and value != known[key].default and str(value) != str(prepared):
                raise ConfigError(
                    f"data.{KEYS.get(key, key)} is {value!r}, but {store.path} was prepared with {prepared!r}; leave "
                    "the key out, or prepare another store with that option"
                )

    def check(self) -> None:
        """Open the data set: what is missing is told before a network is built."""
        rank_zero_info(f"data: {self.source.packaging} at {self.source.path}")
        super().check()
        if not self.source.edges and self.options["edges"]:
            raise ConfigError(f"data.edges is '{self.options['edges']}', but {self.source.packaging} has no edges")

    @property
    def facts(self) -> dict[str, Any]:
        """Facts as plain values: the class's, and where the files are there, which labels they have."""
        facts = super().facts
        if self._find() is None:  # counting parameters needs no data
            return {**facts, "edge_rule": EDGE_RULE_TEXT.get(self.options["edges"] or "")}
        rule = self.source.edges
        return {**facts, "tasks": list(self.source.tasks), "edge_rule": EDGE_RULE_TEXT[rule] if rule else None}

    @property
    def description(self) -> dict[str, Any]:
        """What ``result.json`` says of the data."""
        own_validation = "val" in self.source.splits
        return {
            **super().description,
            "edge_rule": self.facts["edge_rule"],
            "packaging": self.source.packaging,
            "labels": dict(self.source.provenance),
            "test": "test split" if "test" in self.source.splits else "validation samples",
            "validation": "official"
            if own_validation
            else f"hold-out {self.holdout}"
            if self.holdout
            else "test split",
        }

    @property
    def fingerprint(self) -> str:
        """Changes with the files' packaging, lists and options, and with the hold-out."""
        return f"{self.source.fingerprint}, holdout {self.holdout:g}"

    @property
    def test_fingerprint(self) -> str:
        """As :attr:`fingerprint`, without the hold-out where the test split is the set's own."""
        return self.source.fingerprint if "test" in self.source.splits else self.fingerprint

    def items(self, split: str) -> list[Item]:
        """Return the samples of "train", "val" or "test", in a fixed order.

        Raises:
            DataError: Files are missing, or there is nothing to validate on.
        """
        has = self.source.splits
        divided = "val" not in has and self.holdout > 0 and "train" in has
        if split == "train":
            return hold_out(self.source.items("train"), self.holdout)[0] if divided else self.source.items("train")
        if split in has:
            return self.source.items(split)
        if split == "test":
            if "test" in source_class(self.source_name).official:
                raise DataError(
                    f"{self.source.path}: the test split of '{self.source_name}' is not here (there is "
                    f"{', '.join(has)}); get or prepare it too, or run validate"
                )
            self._warn("the data set has no test split: testing on the validation samples")
            return self.items("val")
        if divided:
            return hold_out(self.source.items("train"), self.holdout)[1]
        if "test" in has:
            self._warn("data.holdout is 0: validating on the test split, so what is chosen by it is not tested")
            return self.source.items("test")
        raise DataError(f"{self.source.path}: has no validation samples; give data.holdout a share above 0")

    def _warn(self, text: str) -> None:
        if not self._warned:
            rank_zero_warn(text, category=UserWarning)
        self._warned = True

    def dataset(self, split: str) -> SourceDataset:
        """Return the stored samples of ``split``."""
        return SourceDataset(self.source, self.items(split))
