"""From raw maps to one update: task losses, consistency losses, and how they are balanced. Pure PyTorch."""

from m2h_lightning.objectives.base import Balancer, GradientBalancer, Moment
from m2h_lightning.objectives.build import build_balancer
from m2h_lightning.objectives.config import BalancingConfig, ConsistencyConfig
from m2h_lightning.objectives.objective import Objective, StepLosses

__all__ = [
    "Balancer",
    "BalancingConfig",
    "ConsistencyConfig",
    "GradientBalancer",
    "Moment",
    "Objective",
    "StepLosses",
    "build_balancer",
]
