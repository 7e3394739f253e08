"""The learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from m2h_lightning.errors import ConfigError


@dataclass
class ScheduleConfig:
    """Learning-rate schedule, per optimiser step: linear warm-up, then the named decay. Each stage has its own.

    Args:
        name: "poly" (1 − t)^power, "cosine", or "constant".
        warmup: Share of all steps over which the rate rises linearly from 0.
        power: Exponent of "poly"; 0.9 in the InvPT protocol.
        final_factor: The rate at the end, as a share of the peak.
    """

    name: Literal["poly", "cosine", "constant"] = "poly"
    warmup: float = 0.02
    power: float = 0.9
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"model.schedule.warmup is {self.warmup}; give the share of steps, 0 to below 1")
        if not 0 <= self.final_factor <= 1:
            raise ConfigError(f"model.schedule.final_factor is {self.final_factor}; give a number between 0 and 1")

    def factor(self, step: int, total: int) -> float:
        """Return the factor on the peak learning rate at ``step`` of ``total``."""
        warmup = round(self.warmup * total)
        if step < warmup:
            return (step + 1) / warmup
        t = min(1.0, (step - warmup) / max(1, total - warmup))
        decay = {"poly": (1 - t) ** self.power, "cosine": 0.5 * (1 + math.cos(math.pi * t)), "constant": 1.0}[self.name]
        return self.final_factor + (1 - self.final_factor) * decay
