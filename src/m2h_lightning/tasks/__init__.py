"""The tasks. A new one is one file here and one line in ``build_tasks``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from m2h_lightning.errors import ConfigError, did_you_mean
from m2h_lightning.tasks.base import Task, masked_mean
from m2h_lightning.tasks.depth import Depth
from m2h_lightning.tasks.edges import Edges
from m2h_lightning.tasks.evaluator import Evaluator, Headline
from m2h_lightning.tasks.normals import Normals
from m2h_lightning.tasks.semseg import Semseg

__all__ = [
    "DEFAULT_LOSS_WEIGHTS",
    "Depth",
    "Edges",
    "Evaluator",
    "Headline",
    "LossConfig",
    "Normals",
    "Semseg",
    "Task",
    "build_tasks",
    "masked_mean",
]

DEFAULT_LOSS_WEIGHTS = {task.name: task.default_weight for task in (Semseg, Depth, Normals, Edges)}
"""Static weights that bring the losses to similar size."""


@dataclass
class LossConfig:
    """Choices inside the task losses.

    Args:
        semseg_label_smoothing: Share of the target mass spread over all classes.
        depth_si_lambda: λ of the scale-invariant log loss; 0 is plain log RMSE, 1 is invariant to scale.
        depth_si_weight: Weight of the scale-invariant log loss; 0 leaves plain L1.
        depth_l1_weight: Weight of the L1 error in metres beside the scale-invariant loss.
        normals_kind: 1 − cos, or L1 between unit vectors.
        edges_positive_weight: Weight of edge pixels in the binary cross-entropy; others have 1 minus it.
    """

    semseg_label_smoothing: float = 0.0
    depth_si_lambda: float = 0.5
    depth_si_weight: float = 1.0
    depth_l1_weight: float = 0.5
    normals_kind: Literal["cosine", "l1"] = "cosine"
    edges_positive_weight: float = 0.95


def build_tasks(names: list[str] | None, facts: dict[str, Any], losses: LossConfig | None = None) -> dict[str, Task]:
    """Return the tasks of a run by name, in the data set's order whatever the order of ``names``.

    Args:
        names: Tasks to train; None takes all that the data set has labels for.
        facts: Facts of the data set: ``name``, ``tasks``, ``classes``, ``depth_range``.
        losses: Choices inside the losses.

    Raises:
        ConfigError: For an unknown task, one without labels in this data set, one named twice, or none at all.
    """
    losses = losses or LossConfig()
    known: dict[str, Callable[[], Task]] = {
        "semseg": lambda: Semseg(facts["classes"], losses.semseg_label_smoothing),
        "depth": lambda: Depth(
            min_depth=facts["depth_range"][0],
            max_depth=facts["depth_range"][1],
            si_lambda=losses.depth_si_lambda,
            l1_weight=losses.depth_l1_weight,
            si_weight=losses.depth_si_weight,
            unit=facts.get("depth_unit", "m"),  # checkpoints from before units know metres only
        ),
        "normals": lambda: Normals(losses.normals_kind),
        "edges": lambda: Edges(losses.edges_positive_weight),
    }
    names = list(facts["tasks"] if names is None else names)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"model.tasks: unknown task '{name}'{did_you_mean(name, known)} Known: {', '.join(known)}"
            )
        if name not in facts["tasks"]:
            raise ConfigError(
                f"model.tasks: data set '{facts['name']}' has no labels for '{name}'; "
                f"it has {', '.join(facts['tasks'])}"
            )
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"model.tasks is {names}; name at least one task, each once")
    return {name: make() for name, make in known.items() if name in names}
