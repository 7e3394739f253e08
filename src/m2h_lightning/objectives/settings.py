"""Whether settings of the objective fit the trained tasks and the length of the run; needs no data."""

from __future__ import annotations

from collections.abc import Sequence

from m2h_lightning.errors import ConfigError, did_you_mean
from m2h_lightning.objectives.config import BalancingConfig, ConsistencyConfig

CONSISTENCY_TASKS = {
    "consistency/depth_normals": ("depth", "normals"),
    "consistency/edges_semseg": ("edges", "semseg"),
    "consistency/smoothness": ("depth",),
}
"""Consistency losses and the tasks each of them needs."""


def start_epochs(config: ConsistencyConfig) -> dict[str, int]:
    """Return ``start_epoch`` of the consistency losses that are switched on, by the name of their section."""
    sections = (term.removeprefix("consistency/") for term in CONSISTENCY_TASKS)
    found = {name: getattr(config, name) for name in sections}
    return {name: section.start_epoch for name, section in found.items() if section.weight > 0}


def check_balancing(config: BalancingConfig, tasks: Sequence[str]) -> None:
    """Refuse settings that name a task which is not trained.

    Raises:
        ConfigError: Which, and which are trained.
    """
    for name in config.sampling or {}:
        if name not in tasks:
            raise ConfigError(
                f"model.balancing.sampling: '{name}' is not trained{did_you_mean(name, tasks)} "
                f"(model.tasks: {', '.join(tasks)})"
            )


def check_consistency(config: ConsistencyConfig, tasks: Sequence[str]) -> dict[str, float]:
    """Return the weights of the consistency losses that are switched on.

    Raises:
        ConfigError: One of them needs a task that is not trained.
    """
    weights = {}
    for term, needed in CONSISTENCY_TASKS.items():
        section = term.removeprefix("consistency/")
        weight = getattr(config, section).weight
        if weight == 0:
            continue
        missing = [name for name in needed if name not in tasks]
        if missing:
            raise ConfigError(
                f"model.consistency.{section}.weight is {weight}, but {' and '.join(missing)} is not trained "
                f"(model.tasks: {', '.join(tasks)}); train it too or set the weight to 0"
            )
        weights[term] = float(weight)
    return weights
