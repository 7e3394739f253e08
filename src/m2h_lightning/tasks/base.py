"""What a task is: everything that makes depth depth, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from m2h_lightning.errors import ConfigError

PROTOCOLS = ("pooled",)
"""Evaluation protocols that exist: ``pooled`` sums over all pixels of the set before dividing (InvPT family)."""


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
    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """Return the loss as a float32 scalar; exactly zero, with a graph, when no pixel is valid.

        Args:
            raw: Raw map B×channels×H×W.
            target: Label in the layout of the sample contract.
        """

    @abstractmethod
    def score(self) -> Any:
        """Return the metric of the pooled protocol; its ``update`` takes (prediction, target)."""

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

    def metrics(self, protocol: str = "pooled") -> MetricCollection:
        """Return this task's metrics under a named protocol.

        Args:
            protocol: One of ``PROTOCOLS``.

        Raises:
            ConfigError: For an unknown protocol.
        """
        if protocol not in PROTOCOLS:
            raise ConfigError(f"unknown metric protocol '{protocol}'; choose from {', '.join(PROTOCOLS)}")
        return MetricCollection({"score": self.score()})


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of ``values`` over ``valid`` pixels; zero with a graph when there are none.

    Args:
        values: Per-pixel values, any shape.
        valid: Boolean mask of the same shape.
    """
    # where() rather than a product: a NaN or infinity on an invalid pixel must not reach the sum or its gradient.
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp(min=1)
