"""Training with labels on a part of the samples: who keeps the label of which task (keys ``data.labels.*``)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from torch.utils.data import Dataset

from m2h_lightning.data.raw import RawSample
from m2h_lightning.errors import ConfigError, did_you_mean

Mode = Literal["independent", "one"]


@dataclass
class LabelsConfig:
    """Labels on a part of the training samples; validation and test keep all of theirs.

    Who keeps a label depends on ``seed``, the task and the sample's place in the data set alone: it is the same in
    every epoch, run and process, for any ``seed_everything``, and whichever tasks are trained.

    Args:
        shares: Share of the training samples that keep the label of a task, such as {depth: 0.5}; missing tasks keep
            all. A smaller share keeps a part of what a larger one does. With mode "one": how often each task is chosen,
            relative to the others; missing tasks count 1.
        mode: "independent" chooses for every task on its own; "one" leaves every sample the label of one task alone.
        seed: Seed of the choice.
    """

    shares: dict[str, float] | None = None
    mode: Mode = "independent"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        for task, share in (self.shares or {}).items():
            if self.mode == "one":
                if not 0 < share < math.inf:
                    raise ConfigError(
                        f"data.labels.shares.{task} is {share}; with mode 'one' give a ratio above 0, such as 2"
                    )
            elif not 0 < share <= 1:
                raise ConfigError(
                    f"data.labels.shares.{task} is {share}; give a share above 0, at most 1 (to train without the task "
                    "name the others in model.tasks)"
                )
        if self.seed < 0:
            raise ConfigError(f"data.labels.seed is {self.seed}; it must be at least 0")

    @property
    def partial(self) -> bool:
        """Whether any label is left out."""
        return self.mode == "one" or any(share < 1 for share in (self.shares or {}).values())

    def check(self, tasks: Sequence[str], name: str) -> None:
        """Refuse shares of tasks that a data set has no labels for.

        Args:
            tasks: Those it has labels for.
            name: Name of the data set.

        Raises:
            ConfigError: Which task, and which there are.
        """
        for task in self.shares or {}:
            if task not in tasks:
                raise ConfigError(
                    f"data.labels.shares: data set '{name}' has no labels for '{task}'{did_you_mean(task, tasks)} "
                    f"(it has {', '.join(tasks)})"
                )

    def choose(self, tasks: Sequence[str], count: int) -> dict[str, np.ndarray]:
        """Return who keeps which label.

        Args:
            tasks: Tasks that the data set has labels for.
            count: Number of training samples.

        Returns:
            A Boolean per sample, by task. With mode "independent" round(share · count) are true; with mode "one"
            exactly one task has true for a sample, and numbers differ from ratio · count by less than 1.

        Raises:
            ConfigError: A share is so small that no sample would keep the label.
        """
        if self.mode == "one":
            return self._choose_one(tasks, count)
        kept = {}
        for task in tasks:
            number = round((self.shares or {}).get(task, 1.0) * count)
            kept[task] = np.zeros(count, bool)
            kept[task][self._order(task, count)[:number]] = True
        self._check_numbers(kept)
        return kept

    def _choose_one(self, tasks: Sequence[str], count: int) -> dict[str, np.ndarray]:
        names = sorted(tasks)  # the order in which a data set names its tasks must not matter
        ratios = np.array([(self.shares or {}).get(task, 1.0) for task in names])
        exact = ratios / ratios.sum() * count
        numbers = np.floor(exact).astype(int)
        # The largest remainders get what rounding down left over.
        numbers[np.argsort(numbers - exact, kind="stable")[: count - numbers.sum()]] += 1
        parts = np.split(self._order("one", count), np.cumsum(numbers)[:-1])
        kept = {task: np.zeros(count, bool) for task in tasks}
        for task, part in zip(names, parts, strict=True):
            kept[task][part] = True
        self._check_numbers(kept)
        return kept

    def _order(self, purpose: str, count: int) -> np.ndarray:
        """Return the samples in random order; raw bits, since NumPy promises that only these never change."""
        bits = np.random.PCG64(np.random.SeedSequence((self.seed, zlib.crc32(purpose.encode()))))
        return np.argsort(bits.random_raw(count), kind="stable")

    def _check_numbers(self, kept: Mapping[str, np.ndarray]) -> None:
        for task, chosen in kept.items():
            if len(chosen) and not chosen.any():
                share = (self.shares or {}).get(task, 1.0)
                raise ConfigError(
                    f"data.labels.shares.{task} is {share:g}: of {len(chosen)} training samples none keeps the label; "
                    "give a larger share"
                )


@runtime_checkable
class ReadsInPart(Protocol):
    """A data set that can leave labels undecoded."""

    def read_part(self, index: int, without: Collection[str] = ()) -> RawSample:
        """Return a sample without the labels of some tasks."""


class PartialDataset(Dataset[RawSample]):
    """A stored data set of which samples have lost labels.

    Args:
        dataset: The samples with all labels.
        kept: Whether a sample keeps the label, by task; see :meth:`LabelsConfig.choose`.
    """

    def __init__(self, dataset: Dataset, kept: Mapping[str, np.ndarray]) -> None:
        self.dataset = dataset
        self.kept = dict(kept)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> RawSample:
        lost = {task for task, chosen in self.kept.items() if not chosen[index]}
        if isinstance(self.dataset, ReadsInPart):
            return self.dataset.read_part(index, lost)
        if "depth" in lost:
            lost.add("depth_code")
        sample: RawSample = self.dataset[index]
        return {key: value for key, value in sample.items() if key not in lost}  # type: ignore[return-value]

    @property
    def numbers(self) -> dict[str, int]:
        """Number of samples that keep the label, by task."""
        return {task: int(chosen.sum()) for task, chosen in self.kept.items()}


def describe(config: LabelsConfig, dataset: PartialDataset | None) -> dict[str, Any]:
    """Return what ``result.json`` says of the labels that were trained with.

    Args:
        config: Shares, mode and seed.
        dataset: The training samples, where they were opened.
    """
    words: dict[str, Any] = {"mode": config.mode, "shares": dict(config.shares or {}), "seed": config.seed}
    if dataset is not None:
        words |= {"samples": len(dataset), "kept": dataset.numbers}
    return words
