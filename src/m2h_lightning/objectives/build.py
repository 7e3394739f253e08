"""The balancing methods by name. A new one is a class, its name in ``BalancingConfig`` and its line here."""

from __future__ import annotations

from collections.abc import Sequence

from m2h_lightning.objectives.base import Balancer
from m2h_lightning.objectives.config import BalancingConfig
from m2h_lightning.objectives.losses import Static


def build_balancer(config: BalancingConfig, terms: Sequence[str], weights: Sequence[float]) -> Balancer:
    """Return the method of a configuration.

    Args:
        config: Which, and its settings.
        terms: Names of the balanced losses.
        weights: Their static weights, which the losses already carry; "log" takes them as factors of the logarithms.

    Raises:
        ConfigError: The method needs a package that is not installed.
    """
    if config.name == "static":
        return Static(terms)
    raise NotImplementedError(config.name)
