"""What the processes of a distributed run must agree on."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean of a detached tensor over all processes; every process has to call it, in the same order."""
    processes = world_size()
    if processes == 1:
        return values.detach()
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / processes
