"""How training goes over time: optimiser, learning-rate schedule, stages, where weights start from."""

from m2h_lightning.recipe.ema import WeightEMA, check_ema, take_training_weights
from m2h_lightning.recipe.optimizer import OptimizerConfig, check_groups, make_optimizer
from m2h_lightning.recipe.schedule import ScheduleConfig
from m2h_lightning.recipe.stages import StageConfig, Timeline
from m2h_lightning.recipe.summary import training_lines
from m2h_lightning.recipe.warm_start import read_source, warm_started, warn_of_other_meaning

__all__ = [
    "OptimizerConfig",
    "ScheduleConfig",
    "StageConfig",
    "Timeline",
    "WeightEMA",
    "check_ema",
    "check_groups",
    "make_optimizer",
    "read_source",
    "take_training_weights",
    "training_lines",
    "warm_started",
    "warn_of_other_meaning",
]
