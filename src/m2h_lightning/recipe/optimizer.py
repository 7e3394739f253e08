"""The optimiser and its parameter groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from m2h_lightning.errors import ConfigError


@dataclass
class OptimizerConfig:
    """Optimiser.

    Args:
        name: AdamW (decoupled weight decay) or Adam (weight decay added to the gradient).
        lr: Learning rate; trainable backbone parameters have it times ``model.backbone.lr_factor``.
        weight_decay: Weight decay; norms, biases, position biases and embeddings have none.
        betas: Decay rates of the running averages.
    """

    name: Literal["adamw", "adam"] = "adamw"
    lr: float = 1e-4
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"model.optimizer.lr is {self.lr}; it must be above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"model.optimizer.weight_decay is {self.weight_decay}; it must not be negative")


def make_optimizer(
    config: OptimizerConfig, groups: Sequence[dict[str, Any]], balancing: Sequence[nn.Parameter], balancing_lr: float
) -> torch.optim.Optimizer:
    """Return the optimiser of a run.

    Args:
        config: Kind and rates.
        groups: Parameter groups of the network: ``name``, ``params``, ``lr_factor``, ``decay``.
        balancing: Learnable task weights; a group of their own, without weight decay, which would pull them to the
            weight that 0 stands for.
        balancing_lr: Their learning rate.
    """
    made = [
        {
            "params": group["params"],
            "name": group["name"],
            "lr": config.lr * group["lr_factor"],
            "weight_decay": config.weight_decay if group["decay"] else 0.0,
        }
        for group in groups
    ]
    if balancing:
        made.append({"params": list(balancing), "name": "balancing", "lr": balancing_lr, "weight_decay": 0.0})
    make = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return make(made, lr=config.lr, betas=(config.betas[0], config.betas[1]))
