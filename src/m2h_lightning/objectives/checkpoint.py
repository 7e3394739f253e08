"""The state of the balancing method in a checkpoint: who may go on from it, and who takes the network alone."""

from __future__ import annotations

from typing import Any

from m2h_lightning.errors import CheckpointError
from m2h_lightning.objectives.objective import Objective

BALANCING_KEY = "balancing"
PARAMETERS = "objective.balancer."
"""Prefix of the method's parameters in the module's ``state_dict``."""


def store_balancing(objective: Objective, checkpoint: dict[str, Any]) -> None:
    """Add to a checkpoint what the balancing method needs to go on: its name, its losses, its state."""
    state = objective.balancer.state()
    checkpoint[BALANCING_KEY] = {"name": objective.balancing.name, "terms": objective.balancer.terms, "state": state}


def _stored(objective: Objective, checkpoint: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return what a checkpoint stores of its method, and whether that is the objective's."""
    # Checkpoints from before there was a choice were trained with the static weights.
    old = {"name": "static", "terms": list(objective.tasks), "state": {}}
    stored = checkpoint.get(BALANCING_KEY, old)
    ours = (objective.balancing.name, objective.balancer.terms)
    return stored, (stored["name"], list(stored["terms"])) == ours


def check_same_method(objective: Objective, checkpoint: dict[str, Any]) -> None:
    """Refuse to train on from a checkpoint of another balancing method.

    Raises:
        CheckpointError: It was trained with another method, or over other losses.
    """
    stored, same = _stored(objective, checkpoint)
    if not same:
        raise CheckpointError(
            f"the checkpoint was trained with model.balancing.name {stored['name']} over {', '.join(stored['terms'])}, "
            f"this run has {objective.balancing.name} over {', '.join(objective.balancer.terms)}: a run cannot change "
            "that on its way; to start a new run from its weights, give it as model.init_weights"
        )


def load_balancing(objective: Objective, checkpoint: dict[str, Any], training: bool) -> None:
    """Take the method's state from a checkpoint, or fit the checkpoint to a method that it is not of.

    Args:
        objective: The objective whose method is to go on.
        checkpoint: Checkpoint of a module; where it only is evaluated, parameters of another method are replaced
            by those of this objective, so that it loads.
        training: Whether training goes on from it; see :func:`check_same_method`.
    """
    stored, same = _stored(objective, checkpoint)
    if training:
        objective.balancer.load_state(stored["state"])
    elif not same:
        weights = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith(PARAMETERS)}
        own = {PARAMETERS + key: value for key, value in objective.balancer.state_dict().items()}
        checkpoint["state_dict"] = weights | own
