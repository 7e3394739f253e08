"""What can be chosen about the objective: how tasks are balanced, and which consistency losses are added.

The ``Args:`` lines become the ``--help`` text of the command line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from m2h_lightning.errors import ConfigError

LOSS_BASED = ("static", "dwa", "uncertainty", "gls", "rlw", "log", "famo", "stch")
GRADIENT_BASED = ("gradnorm", "pcgrad", "cagrad", "imtl", "mgda", "nash", "aligned", "upgrad")

Section = TypeVar("Section")


@dataclass
class BalancingConfig:
    """How the task losses become one update. Sources and formulas: docs/objectives.md.

    Every method sees the losses times their ``model.loss_weights``; "log" takes these as factors of the logarithms.

    Args:
        name: One backward pass: static, dwa, uncertainty, gls, rlw, log, famo, stch. One per task: gradnorm, pcgrad,
            cagrad, imtl, mgda, nash, aligned, upgrad (extra: balancing).
        over: Balance the tasks' losses only, or all of them and the consistency losses.
        sampling: Probability, per task, that its loss takes part in an optimiser step; missing tasks always do, and
            at least one does.
        dwa_temperature: T of dwa; larger is closer to equal weights.
        uncertainty_lr: Learning rate of the log-variances; null takes ``model.optimizer.lr``.
        famo_lr: Learning rate of famo's logits.
        famo_decay: Their weight decay.
        stch_mu: Smoothing of stch; smaller is closer to the largest loss alone.
        stch_warmup: Epochs in which stch minimises the sum of the logarithms; the last one's mean losses are its scale.
        gradnorm_alpha: Exponent of gradnorm: how strongly slow tasks are favoured.
        gradnorm_lr: Learning rate of gradnorm's weights.
        cagrad_c: Radius of cagrad, as a share of the mean gradient's length.
    """

    name: Literal[
        "static",
        "dwa",
        "uncertainty",
        "gls",
        "rlw",
        "log",
        "famo",
        "stch",
        "gradnorm",
        "pcgrad",
        "cagrad",
        "imtl",
        "mgda",
        "nash",
        "aligned",
        "upgrad",
    ] = "static"
    over: Literal["tasks", "all"] = "tasks"
    sampling: dict[str, float] | None = None
    dwa_temperature: float = 2.0
    uncertainty_lr: float | None = None
    famo_lr: float = 0.025
    famo_decay: float = 1e-3
    stch_mu: float = 0.1
    stch_warmup: int = 1
    gradnorm_alpha: float = 1.5
    gradnorm_lr: float = 0.025
    cagrad_c: float = 0.4

    def __post_init__(self) -> None:
        """Check the values."""
        above = ("dwa_temperature", "uncertainty_lr", "famo_lr", "stch_mu", "gradnorm_lr")
        for key in (*above, "famo_decay", "stch_warmup", "gradnorm_alpha", "cagrad_c"):
            value = getattr(self, key)
            if value is None and key == "uncertainty_lr":
                continue
            low = "above 0" if key in above else "at least 0"
            if not (0 < value < math.inf if key in above else 0 <= value < math.inf):
                raise ConfigError(f"model.balancing.{key} is {value}; it must be {low}")
        for task, ratio in (self.sampling or {}).items():
            if not 0 < ratio <= 1:
                raise ConfigError(f"model.balancing.sampling.{task} is {ratio}; give a probability above 0, at most 1")


@dataclass
class TermConfig:
    """What every consistency loss has.

    Args:
        weight: λ; 0 switches the loss off. M2H's paper has 0.1 for its two losses.
        start_epoch: First epoch in which it acts.
        ramp: Epochs over which λ rises linearly from 0, counted from the first one in which it acts.
    """

    section: ClassVar[str]
    """Its key below ``model.consistency``."""

    weight: float = 0.0
    start_epoch: int = 0
    ramp: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        key = f"model.consistency.{self.section}"
        if not 0 <= self.weight < math.inf:
            raise ConfigError(f"{key}.weight is {self.weight}; it must be a number of at least 0")
        if self.start_epoch < 0:
            raise ConfigError(f"{key}.start_epoch is {self.start_epoch}; epochs count from 0")
        if not 0 <= self.ramp < math.inf:
            raise ConfigError(f"{key}.ramp is {self.ramp}; give epochs, at least 0")


@dataclass
class DepthNormalsConfig(TermConfig):
    """Consistency of depth and normals: 1 − cos between the predicted normals and those of the predicted depth.

    Args:
        detach: The side that is taken as given and receives no gradient.
        max_step: Largest relative depth step between neighbours, of the labels where known, else of the prediction;
            pixels beyond lie at occlusion edges and are left out.
    """

    section = "depth_normals"

    detach: Literal["none", "depth", "normals"] = "none"
    max_step: float = 0.05

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if not 0 < self.max_step < math.inf:
            raise ConfigError(f"model.consistency.depth_normals.max_step is {self.max_step}; it must be above 0")


@dataclass
class EdgesSemsegConfig(TermConfig):
    """Consistency of edges and classes: edge probability against the soft boundary of the class posteriors.

    Args:
        detach: The side that is taken as given and receives no gradient.
        boundary: Soft boundary between neighbours x and x′: "variation" ½ Σ |p(x) − p(x′)|, or
            "disagreement" 1 − Σ p(x)p(x′), which takes a place where both are equally unsure for a boundary too.
        band: Only pixels with two labelled classes within this distance (pixels, a square) count, as edge labels hold
            more than class borders; images without class labels go by the predicted ones. 0 takes all pixels.
    """

    section = "edges_semseg"

    detach: Literal["none", "edges", "semseg"] = "none"
    boundary: Literal["variation", "disagreement"] = "variation"
    band: int = 5

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.band < 0:
            raise ConfigError(f"model.consistency.edges_semseg.band is {self.band}; give pixels, at least 0")


@dataclass
class SmoothnessConfig(TermConfig):
    """Edge-aware smoothness of depth: |∂d*| e^(−|∂I|), d* inverse depth over its mean (Godard et al., CVPR 2017)."""

    section = "smoothness"


@dataclass
class ConsistencyConfig:
    """Losses between predictions, added to the tasks' own; all off by default.

    Args:
        depth_normals: Normals of the predicted depth against predicted normals.
        edges_semseg: Predicted edges against the boundaries of predicted classes.
        smoothness: Edge-aware smoothness of predicted depth.
    """

    depth_normals: DepthNormalsConfig = field(default_factory=DepthNormalsConfig)
    edges_semseg: EdgesSemsegConfig = field(default_factory=EdgesSemsegConfig)
    smoothness: SmoothnessConfig = field(default_factory=SmoothnessConfig)

    def __post_init__(self) -> None:
        """Take sections that are plain mappings, as checkpoints store them."""
        self.depth_normals = _section(DepthNormalsConfig, self.depth_normals)
        self.edges_semseg = _section(EdgesSemsegConfig, self.edges_semseg)
        self.smoothness = _section(SmoothnessConfig, self.smoothness)


def _section(kind: type[Section], value: Section | dict[str, Any]) -> Section:
    return kind(**value) if isinstance(value, dict) else value
