"""A second forward pass in training mode that leaves no trace in the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def untouched_statistics(net: nn.Module) -> Iterator[None]:
    """Keep the running statistics of all batch norms as they are, while they normalise as in training.

    Their momentum is 0 inside, and their count of batches is put back after.
    """
    # By attribute, not by class: timm's norms and SyncBatchNorm have forwards of their own, but all keep this count.
    norms: list[Any] = [m for m in net.modules() if isinstance(getattr(m, "num_batches_tracked", None), Tensor)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
