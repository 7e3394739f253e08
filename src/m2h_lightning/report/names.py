"""How metrics are called in tables: label, direction, unit and decimals."""

from __future__ import annotations

import re
from dataclasses import dataclass

TASKS = ("semseg", "depth", "normals", "edges")
"""Order of the tasks in every table; others follow by name."""

SUFFIXES: dict[str, str] = {"pooled": "", "per_image": "_per_image"}
"""What a protocol adds to the key of a metric; per-batch scores depend on the batch size and are never compared."""


@dataclass(frozen=True)
class MetricName:
    """How a metric is printed.

    Args:
        label: The field's usual name.
        higher_is_better: Its direction.
        unit: "%" for shares between 0 and 1, which are printed times 100; else the unit of the value, or "".
        digits: Decimals that are printed.
        whole_set: Whether it is defined for the whole set only and therefore the same under every protocol.
    """

    label: str
    higher_is_better: bool
    unit: str = ""
    digits: int = 4
    whole_set: bool = False

    @property
    def scale(self) -> float:
        """What a value is multiplied with to be printed."""
        return 100.0 if self.unit == "%" else 1.0


def _share(label: str, higher_is_better: bool = True, whole_set: bool = False) -> MetricName:
    return MetricName(label, higher_is_better, "%", 2, whole_set)


def _error(label: str, unit: str = "", digits: int = 4) -> MetricName:
    return MetricName(label, False, unit, digits)


METRICS: dict[str, dict[str, MetricName]] = {
    "semseg": {
        "miou": _share("mIoU"),
        "pixel_accuracy": _share("pixel acc."),
        "mean_accuracy": _share("mean acc."),
        "boundary_iou": _share("boundary IoU"),
        "ece": _share("ECE", higher_is_better=False),
    },
    "depth": {
        "rmse_m": _error("RMSE", "m"),
        "rmse_px": _error("RMSE", "px"),
        "rmse_per_m": _error("RMSE", "1/m"),
        "absrel": _error("AbsRel"),
        "sqrel": _error("SqRel"),
        "log_rmse": _error("RMSE log"),
        "log10": _error("log10"),
        "silog": _error("SILog"),
        "delta1": _share("δ1"),
        "delta2": _share("δ2"),
        "delta3": _share("δ3"),
    },
    "normals": {
        "mean_deg": _error("mErr", "°", 2),
        "median_deg": _error("median", "°", 2),
        "rmse_deg": _error("RMSE", "°", 2),
        "within_11.25": _share("within 11.25°"),
        "within_22.5": _share("within 22.5°"),
        "within_30": _share("within 30°"),
    },
    "edges": {
        "odsf": _share("odsF", whole_set=True),
        "oisf": _share("oisF", whole_set=True),
        "ap": _share("AP", whole_set=True),
        "odsf_fast": _share("odsF (fast)", whole_set=True),
        "oisf_fast": _share("oisF (fast)", whole_set=True),
        "ap_fast": _share("AP (fast)", whole_set=True),
        "f_pixel": _share("pixel F"),
    },
}
"""Metrics that are compared, by task and pooled key. Operating points, counts and scores per class are not."""

OLD_HEADLINES: dict[str, tuple[str, ...]] = {
    "semseg": ("miou",),
    "depth": ("rmse_m", "rmse_px", "rmse_per_m"),
    "normals": ("mean_deg",),
    "edges": ("odsf", "odsf_fast", "f_pixel"),
}
"""Headline metrics of results that do not name their own; the first that is there."""


def task_order(task: str) -> tuple[int, str]:
    """Return a key that sorts tasks as tables show them."""
    return (TASKS.index(task) if task in TASKS else len(TASKS), task)


def metric_name(task: str, key: str, higher_is_better: bool | None = None) -> MetricName | None:
    """Return how a metric is printed.

    Args:
        task: Name of the task.
        key: Its pooled key.
        higher_is_better: Direction of a metric that is not known here; None leaves it unknown.

    Returns:
        None for a metric that is not known and has no direction.
    """
    known = METRICS.get(task, {}).get(key)
    if known is None and task == "semseg" and (width := re.fullmatch(r"miou_trimap(\d+)", key)):
        return _share(f"mIoU within {width[1]} px")
    if known is None and higher_is_better is not None:
        return MetricName(key, higher_is_better)
    return known


def metric_key(task: str, key: str, protocol: str) -> str:
    """Return the key of a metric under a protocol; one that is of the whole set by definition has only its own."""
    name = metric_name(task, key)
    return key if name is not None and name.whole_set else f"{key}{SUFFIXES[protocol]}"


def all_metrics(task: str, keys: set[str]) -> list[str]:
    """Return the pooled keys among ``keys`` that are compared, in the order of tables.

    The fast mode of the boundary scores is left out where the exact one is there: it would count twice.
    """
    known = [key for key in METRICS.get(task, {}) if key in keys]
    known += sorted((k for k in keys if k.startswith("miou_trimap") and metric_name(task, k)), key=_natural)
    return [key for key in known if not (key.endswith("_fast") and key.removesuffix("_fast") in keys)]


def _natural(key: str) -> tuple[int, str]:
    return (len(key), key)
