"""How long a run is: ``trainer.max_epochs`` follows ``model.stages``; nothing may be set for epochs that never come."""

from __future__ import annotations

from typing import Any

from m2h_lightning.commands.arguments import Arguments
from m2h_lightning.network.config import BackboneConfig
from m2h_lightning.objectives.config import ConsistencyConfig
from m2h_lightning.objectives.settings import start_epochs
from m2h_lightning.recipe import ScheduleConfig, StageConfig, Timeline


def settle_length(options: Any, given: dict[str, Any], arguments: Arguments) -> None:
    """Set ``trainer.max_epochs`` to the epochs of the stages, and check both against what the model is to do when.

    Args:
        options: The parsed keys of ``fit``; changed in place.
        given: The keys that the user wrote, flat.
        arguments: The command line, which knows where keys stand.

    Raises:
        ConfigError: A stage is wrong, the trainer's limits contradict the stages, or a consistency loss or an
            unfreezing begins after the last epoch.
    """
    model = options.model.as_dict()
    stages = [StageConfig(**stage) for stage in model["stages"] or []]
    backbone = BackboneConfig(**model["backbone"])
    consistency = ConsistencyConfig(**model["consistency"])
    timeline = Timeline(stages, ScheduleConfig(), 1.0, backbone.freeze, backbone.unfreeze)
    asked = options.trainer.max_epochs if not stages or "trainer.max_epochs" in given else None
    timeline.check_length(asked, options.trainer.max_steps, start_epochs(consistency), arguments.place)
    if stages:
        options.trainer.max_epochs = timeline.epochs
