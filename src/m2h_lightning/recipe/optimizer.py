"""The optimiser and its parameter groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from m2h_lightning.errors import CheckpointError, ConfigError


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


def check_groups(stored: Sequence[dict[str, Any]], groups: Sequence[dict[str, Any]]) -> None:
    """Refuse an optimiser's state that belongs to another choice of trained parameters.

    Args:
        stored: ``param_groups`` of the checkpoint's optimiser.
        groups: Parameter groups of the network, as for :func:`make_optimizer`.

    Raises:
        CheckpointError: Groups or their sizes differ.
    """
    sizes = [
        ", ".join(f"{group['name']} {len(group['params'])}" for group in some if group.get("name") != "balancing")
        for some in (stored, groups)
    ]
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            f"the checkpoint's optimiser has tensors of {sizes[0]}, this run trains {sizes[1]}: model.stages or "
            "model.backbone (freeze, unfreeze, layer_decay, lora_*) differ; leave them as they were, or start a new "
            "run from its weights with model.init_weights"
        )
