"""The balancing methods by name. A new one is a class, its name in ``BalancingConfig`` and its line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from m2h_lightning.objectives.base import Balancer
from m2h_lightning.objectives.config import BalancingConfig
from m2h_lightning.objectives.gramian import MGDA, GradNorm, NashMTL, TorchJD, UPGrad
from m2h_lightning.objectives.learned import FAMO, Uncertainty
from m2h_lightning.objectives.losses import DWA, GLS, RLW, STCH, LogSum, Static


def build_balancer(config: BalancingConfig, terms: Sequence[str], weights: Sequence[float]) -> Balancer:
    """Return the method of a configuration.

    Args:
        config: Which, and its settings.
        terms: Names of the balanced losses.
        weights: Their static weights, which the losses already carry; "log" takes them as factors of the logarithms.

    Raises:
        ConfigError: The method needs a package that is not installed.
    """
    loss_based: dict[str, Callable[[], Balancer]] = {
        "static": lambda: Static(terms),
        "dwa": lambda: DWA(terms, config.dwa_temperature),
        "uncertainty": lambda: Uncertainty(terms, weights),
        "gls": lambda: GLS(terms),
        "rlw": lambda: RLW(terms),
        "log": lambda: LogSum(terms, weights),
        "famo": lambda: FAMO(terms, config.famo_lr, config.famo_decay),
        "stch": lambda: STCH(terms, config.stch_mu, config.stch_warmup),
    }
    if config.name in loss_based:
        return loss_based[config.name]()
    gradient_based: dict[str, Callable[[], Balancer]] = {
        "gradnorm": lambda: GradNorm(terms, config.gradnorm_alpha, config.gradnorm_lr),
        "pcgrad": lambda: TorchJD(terms, "pcgrad", "PCGradWeighting", mean=False),
        "cagrad": lambda: TorchJD(terms, "cagrad", "CAGradWeighting", mean=True, c=config.cagrad_c),
        "imtl": lambda: TorchJD(terms, "imtl", "IMTLGWeighting", mean=True),
        "mgda": lambda: MGDA(terms),
        "nash": lambda: NashMTL(terms),
        "aligned": lambda: TorchJD(terms, "aligned", "AlignedMTLWeighting", mean=True),
        "upgrad": lambda: UPGrad(terms),
    }
    return gradient_based[config.name]()
