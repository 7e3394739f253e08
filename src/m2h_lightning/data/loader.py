"""A sampler and a loader that make a sample a function of (seed, epoch, index): any run can be continued exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from m2h_lightning.data.memory import start_worker
from m2h_lightning.data.raw import RawSample, check_raw
from m2h_lightning.data.sample import Sample, collate
from m2h_lightning.data.transforms import Transform
from m2h_lightning.errors import DataError, M2HError


class TransformedDataset(Dataset):
    """A stored data set with its transform.

    Items are asked for as ``(epoch, index)``, so that augmentation is drawn from (seed, epoch, index) alone: neither
    the number of workers, nor the batch's place in the epoch, nor an interruption changes a sample.

    Args:
        dataset: Returns a ``RawSample`` per index.
        transform: Turns it into a ``Sample``.
        seed: Seed of the augmentation.
        classes: Number of semantic classes that labels may use.
    """

    def __init__(self, dataset: Dataset, transform: Transform, seed: int, classes: int) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.classes = classes

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        raw: RawSample = self.dataset[index]
        check_raw(raw, self.classes)
        return self.transform(raw, np.random.default_rng((self.seed, epoch, index)))


class EpochSampler(DistributedSampler):
    """Yields ``(epoch, index)`` for this process.

    It is a ``DistributedSampler`` so that Lightning leaves it in place and calls ``set_epoch``. In training every
    process gets equally many samples (the shuffled list wraps around). In evaluation no sample is repeated: processes
    may get unequal numbers, and a metric counts each image once.

    Args:
        length: Number of samples of the data set.
        shuffle: True for training.
        seed: Seed of the order.
    """

    def __init__(self, length: int, shuffle: bool, seed: int) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        super().__init__(
            range(length),  # type: ignore[arg-type]
            num_replicas=torch.distributed.get_world_size() if distributed else 1,
            rank=torch.distributed.get_rank() if distributed else 0,
            shuffle=shuffle,
            seed=seed,
        )
        self.length = length
        self.skip = 0
        if not shuffle:
            self.num_samples = len(range(self.rank, length, self.num_replicas))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        once = range(self.rank, self.length, self.num_replicas)
        indices = list(super().__iter__() if self.shuffle else once)
        skip, self.skip = self.skip, 0
        return iter([(self.epoch, index) for index in indices[skip:]])

    def __len__(self) -> int:
        return self.num_samples


def _without_traceback(error: M2HError) -> M2HError:
    """Return the error as it was raised: a loading process sends its traceback along, inside the message."""
    text = str(error)
    if "Original Traceback" not in text:
        return error
    return DataError(text.strip().splitlines()[-1].partition(": ")[2])


class ResumableDataLoader(DataLoader):
    """A data loader that continues inside an epoch: its state is the number of batches it has served.

    Lightning saves and restores the state with the checkpoint (``state_dict`` / ``load_state_dict``).
    """

    def __init__(self, dataset: TransformedDataset, sampler: EpochSampler, **kwargs: Any) -> None:
        # A generator of its own: DataLoader draws a worker seed at each start, which would move the global one.
        kwargs.setdefault("generator", torch.Generator().manual_seed(dataset.seed))
        kwargs.setdefault("collate_fn", collate)
        super().__init__(dataset, sampler=sampler, **kwargs)
        self._served = 0
        self._resume_at = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._served, self._resume_at = self._resume_at, 0
        self.sampler.skip = self._served * (self.batch_size or 1)  # type: ignore[attr-defined]
        try:
            for batch in super().__iter__():
                self._served += 1
                yield batch
        except M2HError as error:
            raise _without_traceback(error) from None

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches served in the running epoch (0 after its last one)."""
        return {"served": self._served if self._served < len(self) else 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after ``state["served"]`` batches at the next start of an iteration."""
        self._resume_at = int(state["served"])


def make_loader(
    dataset: Dataset, transform: Transform, *, train: bool, batch_size: int, workers: int, seed: int, classes: int
) -> ResumableDataLoader:
    """Return the loader of one split.

    Args:
        dataset: Returns a ``RawSample`` per index.
        transform: Turns it into a ``Sample``.
        train: Shuffle, and drop an incomplete last batch.
        batch_size: Samples per process and step.
        workers: Loading processes; 0 loads in the training process.
        seed: Seed of order and augmentation.
        classes: Number of semantic classes.

    Raises:
        DataError: When the set has no sample, or fewer than one training batch.
    """
    transformed = TransformedDataset(dataset, transform, seed, classes)
    if len(transformed) == 0:
        raise DataError("the data set is empty: no sample in this split")
    sampler = EpochSampler(len(transformed), shuffle=train, seed=seed)
    if train and len(sampler) < batch_size:
        raise DataError(
            f"data.batch_size is {batch_size}, but this process has only {len(sampler)} training samples; lower it"
        )
    return ResumableDataLoader(
        # By keyword: for prediction Lightning makes the loader again with a sampler of its own.
        dataset=transformed,
        sampler=sampler,
        batch_size=batch_size,
        drop_last=train,
        num_workers=workers,
        worker_init_fn=start_worker,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
