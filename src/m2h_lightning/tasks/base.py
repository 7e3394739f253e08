"""What a task is: everything that makes depth depth, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from m2h_lightning.metrics import MetricsConfig

Agree = Callable[[Tensor], Tensor]
"""Returns the mean of a number over all processes that train together."""


class Task(ABC):
    """One dense prediction task.

    Subclasses set ``name`` (the key in samples and predictions), ``headline`` (its main metric's key),
    ``higher_is_better`` and ``default_weight`` (of its loss), and implement the abstract methods. They hold no
    learnable parameters.
    """

    name: ClassVar[str]
    headline: str
    higher_is_better: ClassVar[bool]
    default_weight: ClassVar[float] = 1.0

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of the raw map that the network must produce."""

    @abstractmethod
    def activate(self, raw: Tensor) -> Tensor:
        """Turn the raw map B×channels×H×W, after its final resize, into the prediction."""

    @abstractmethod
    def loss(self, raw: Tensor, target: Tensor, agree: Agree | None = None) -> Tensor:
        """Return the loss as a float32 scalar; exactly zero, with a graph, when no pixel is valid.

        Args:
            raw: Raw map B×channels×H×W.
            target: Label in the layout of the sample contract.
            agree: See :func:`masked_mean`; every process calls it equally often, whatever its labels.
        """

    @abstractmethod
    def metrics(self, config: MetricsConfig, dataset: str, stage: str, details: bool) -> dict[str, Metric]:
        """Return this task's metrics by a name of their own; each takes ``update(prediction, target, sizes)``.

        Args:
            config: How to score.
            dataset: Name of the data set.
            stage: "val" or "test".
            details: Whether detailed scores (per class, per range, …) are wanted.
        """

    def headline_in(self, config: MetricsConfig, stage: str) -> str:
        """Return the pooled name of the metric by which the task is judged in a stage."""
        return self.headline

    def has_protocols(self, metric: str) -> bool:
        """Tell whether a metric is defined under other protocols than the pooled one too."""
        return True

    @abstractmethod
    def picture(self, prediction: Tensor, target: Tensor | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Colour one prediction, and its target on the same scale.

        Args:
            prediction: Activated prediction without batch dimension.
            target: Label without batch dimension; None when there is none.

        Returns:
            Two uint8 RGB images H×W×3; the second is None without target.
        """

    @abstractmethod
    def valid_pixels(self, target: Tensor) -> Tensor:
        """Return the boolean mask of pixels that take part in the loss."""


def masked_mean(values: Tensor, valid: Tensor, agree: Agree | None = None) -> Tensor:
    """Return the mean of ``values`` over ``valid`` pixels; zero with a graph when there are none.

    Args:
        values: Per-pixel values, any shape.
        valid: Boolean mask of the same shape.
        agree: Returns the mean of a number over the processes of a distributed run. With it this sum is divided by the
            *mean* number of valid pixels, so that averaging over processes gives the mean over the pixels of all.
    """
    count = valid.sum().to(values.dtype)
    if agree is not None:
        count = agree(count)
    # where() rather than a product: a NaN or infinity on an invalid pixel must not reach the sum or its gradient.
    return torch.where(valid, values, 0.0).sum() / torch.where(count > 0, count, 1.0)
