"""What all data modules share: settings, loaders and facts. A data set adds its facts and its stored samples."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
from torch.utils.data import DataLoader, Dataset

from m2h_lightning.data.augment_config import AugmentConfig
from m2h_lightning.data.loader import make_loader
from m2h_lightning.data.partial import LabelsConfig, PartialDataset, describe
from m2h_lightning.data.sample import to_contract
from m2h_lightning.data.transforms import EvalTransform
from m2h_lightning.errors import ConfigError
from m2h_lightning.labels import IGNORE


def check_facts(network: dict[str, Any], data: dict[str, Any]) -> None:
    """Refuse a data set whose facts are not those a network was built for.

    Args:
        network: Facts the network was built with.
        data: Facts of the data set it is to run on.

    Raises:
        ConfigError: Classes or depth range differ.
    """
    for key, default in (("depth_unit", "m"), ("classes", None), ("depth_range", None)):
        if network.get(key, default) != data.get(key, default):
            if key == "depth_unit":
                was, now = network.get(key, default), data.get(key, default)
                raise ConfigError(
                    f"the network was built for depth in {was}, the data set gives it in {now}; set data.depth_target "
                    "to what it was trained on, or train anew"
                )
            raise ConfigError(
                f"the network was built for {key} of '{network.get('name')}', the data set is '{data.get('name')}' "
                "with others; use the data set it was trained on, or train anew"
            )


class BaseDataModule(L.LightningDataModule):
    """Batches of one data set.

    Facts of the data set (``name``, ``classes``, ``depth_range``, ``tasks``, ``edge_rule``) are class attributes, never
    arguments: a configuration cannot carry the facts of one data set over to another.

    Args:
        root: Folder under which data sets lie; null takes the environment variable M2H_DATA, else ./data.
        crop: Height and width of training crops in pixels.
        eval_size: Height and width the network sees in validation, test and prediction; null keeps the stored size.
        eval_labels: Where predictions are scored if ``eval_size`` is set: "own" resizes them to the labels' own size,
            "input" resizes the labels to ``eval_size``, as some papers do.
        batch_size: Training samples per process and step.
        eval_batch_size: Samples per process and step in validation, test and prediction; null takes ``batch_size``.
        workers: Loading processes per training process; 0 loads in the training process.
        augment: Augmentation of training samples.
        labels: Labels on a part of the training samples; by default all have all.
        seed: Seed of sample order and augmentation; null takes ``seed_everything``.
    """

    name: str
    classes: tuple[str, ...] = ()
    depth_range: tuple[float, float]
    tasks: ClassVar[tuple[str, ...]]
    edge_rule: ClassVar[str | None] = None
    depth_unit: str = "m"

    def __init__(
        self,
        root: str | None = None,
        crop: tuple[int, int] = (448, 448),
        eval_size: tuple[int, int] | None = None,
        eval_labels: Literal["own", "input"] = "own",
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        workers: int = 4,
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008 - jsonargparse reads nested keys from the default
        labels: LabelsConfig = LabelsConfig(),  # noqa: B008
        seed: int | None = None,
    ) -> None:
        super().__init__()
        needed = {"crop": crop, "batch_size": batch_size, "workers": workers, "augment": augment, "labels": labels}
        for key, given in needed.items():
            if given is None:
                raise ConfigError(f"data.{key} is null; leave the key out to have its default")
        for key, size in (("crop", crop), ("eval_size", eval_size)):
            if size is not None and not (min(size) >= 16 and max(size) <= 16384):
                limits = "at least 16 and at most 16384 pixels"
                raise ConfigError(f"data.{key} is {list(size)}; height and width must be {limits}")
        for key, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("workers", workers, 0),
        ):
            if value is not None and value < least:
                raise ConfigError(f"data.{key} is {value}; it must be at least {least}")
        self.root = Path(root or os.environ.get("M2H_DATA") or "data").expanduser()
        self.crop = tuple(crop)
        self.eval_size = tuple(eval_size) if eval_size else None
        self.eval_labels = eval_labels
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.workers = workers
        self.augment = augment
        self.labels = labels
        self.seed = seed
        self._partial: PartialDataset | None = None
        labels.check(self.tasks, self.name)

    @abstractmethod
    def dataset(self, split: str) -> Dataset:
        """Return the stored samples of ``split`` ("train", "val" or "test"): a ``RawSample`` per index.

        Raises:
            DataError: When files are missing or wrong; one line that says which and how to mend it.
        """

    @property
    def facts(self) -> dict[str, Any]:
        """Facts of the data set as plain values; they travel with the checkpoint."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "ignore_index": IGNORE,
            "depth_range": list(self.depth_range),
            "depth_unit": self.depth_unit,
            "tasks": list(self.tasks),
            "edge_rule": self.edge_rule,
        }

    def check(self) -> None:
        """Refuse to start when the data are not there; called before a network is built.

        Raises:
            DataError: Which folder is missing, what should lie in it, and which command makes it.
            ConfigError: ``data.labels`` names a task that the data have no labels for.
        """
        self.labels.check(self.facts["tasks"], self.name)

    @property
    def description(self) -> dict[str, Any]:
        """What ``result.json`` says of the data: enough to know which numbers may stand beside these."""
        words: dict[str, Any] = {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "test_fingerprint": self.test_fingerprint,
            "edge_rule": self.edge_rule,
            "depth_unit": self.depth_unit,
            "eval_size": self.eval_size,
            "eval_labels": self.eval_labels,
        }
        if self.labels.partial:
            words["training_labels"] = describe(self.labels, self._partial)
        return words

    @property
    def fingerprint(self) -> str:
        """What identifies the stored data in ``result.json``; data sets give the hash of their manifest."""
        return self.name

    @property
    def test_fingerprint(self) -> str:
        """What identifies the test samples alone: runs may be compared where it is the same."""
        return self.fingerprint

    def _seed(self) -> int:
        """Return the seed: our own, or the one that ``seed_everything`` has set for the run."""
        if self.seed is not None:
            return self.seed
        return int(os.environ.get("PL_GLOBAL_SEED", 0))

    def _eval_loader(self, split: str) -> DataLoader:
        return make_loader(
            self.dataset(split),
            EvalTransform(self.eval_size, self.eval_labels),  # type: ignore[arg-type]
            train=False,
            batch_size=self.eval_batch_size,
            workers=self.workers,
            seed=self._seed(),
            classes=len(self.classes),
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn a compact batch into the contract's types, on the device."""
        return to_contract(batch)

    def training_set(self) -> Dataset:
        """Return the stored training samples with the labels that ``data.labels`` leaves them.

        Raises:
            DataError: As :meth:`dataset`.
            ConfigError: A share is so small that no sample would keep the label.
        """
        dataset = self.dataset("train")
        if not self.labels.partial:
            return dataset
        tasks = self.facts["tasks"]
        self._partial = PartialDataset(dataset, self.labels.choose(tasks, len(dataset)))  # type: ignore[arg-type]
        return self._partial

    def train_dataloader(self) -> DataLoader:
        """Return shuffled, augmented training batches."""
        # Here, in the parent: it takes half a second, and wandb's watch on imports fails in a forked worker.
        from m2h_lightning.data.augment import TrainTransform

        return make_loader(
            self.training_set(),
            TrainTransform(self.crop, self.augment),  # type: ignore[arg-type]
            train=True,
            batch_size=self.batch_size,
            workers=self.workers,
            seed=self._seed(),
            classes=len(self.classes),
        )

    def val_dataloader(self) -> DataLoader:
        """Return validation batches: each sample once, over all processes."""
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        """Return test batches: each sample once, over all processes."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Return the test samples for prediction."""
        return self._eval_loader("test")
