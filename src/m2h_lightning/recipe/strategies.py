"""Which of Lightning's strategies leave whole weights and gradients on every process."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy


def in_parts(strategy: Any) -> bool:
    """Return whether a strategy keeps only a part of the weights or gradients on each process."""
    # DeepSpeed's is a DDPStrategy in name, hence no question whether it is one.
    return isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy)
