"""How training goes over time: optimiser, learning-rate schedule, stages, where weights start from."""

from m2h_lightning.recipe.optimizer import OptimizerConfig, make_optimizer
from m2h_lightning.recipe.schedule import ScheduleConfig
from m2h_lightning.recipe.stages import StageConfig, Timeline

__all__ = ["OptimizerConfig", "ScheduleConfig", "StageConfig", "Timeline", "make_optimizer"]
