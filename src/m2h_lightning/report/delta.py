"""Δm: by how many percent a multi-task network is better than single-task networks. No torch.

It stands here and not in ``metrics/``, whose import loads torch: ``m2h table`` is to answer at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from m2h_lightning.errors import ConfigError

Scores = Mapping[str, Mapping[str, float | None]]
"""Value per metric, by task; None stands for a value that is not defined."""


@dataclass(frozen=True)
class DeltaM:
    """Δm and what it is the mean of.

    Args:
        percent: Δm in percent; above 0 the multi-task network is better.
        per_task: The same for each task.
        metrics: The metrics that were compared, by task.
    """

    percent: float
    per_task: dict[str, float]
    metrics: dict[str, tuple[str, ...]]


def delta_m(
    multi: Scores,
    single: Scores,
    higher_is_better: Mapping[str, Mapping[str, bool]],
    names: tuple[str, str] = ("the multi-task run", "the single-task runs"),
) -> DeltaM:
    """Return the mean relative gain over single-task networks, ``Δm = 100/T · Σ_t (−1)^{l_t} (M_t − S_t)/S_t``.

    M_t and S_t are the values of task t in the multi-task and in its single-task network; l_t is 1 where lower is
    better (Maninis et al., "Attentive Single-Tasking of Multiple Tasks", CVPR 2019). With several metrics in a task,
    its gains are averaged first and then those of the tasks (as in LibMTL), so that a task with many metrics has no
    larger say.

    Args:
        multi: The multi-task network's values. All of its tasks and metrics are compared.
        single: Values of the single-task networks, at least for these tasks and metrics.
        higher_is_better: Direction of each metric.
        names: How to call the two sides in messages.

    Returns:
        Δm in percent.

    Raises:
        ConfigError: There is nothing to compare; a baseline or a direction is missing; a value is not finite; or a
            baseline is not above 0, so that there is no relative gain.

    Example:
        >>> multi = {"semseg": {"miou": 0.44}, "depth": {"rmse_m": 0.54}}
        >>> single = {"semseg": {"miou": 0.40}, "depth": {"rmse_m": 0.60}}
        >>> direction = {"semseg": {"miou": True}, "depth": {"rmse_m": False}}
        >>> round(delta_m(multi, single, direction).percent, 3)
        10.0
    """
    ours, theirs = names
    if not multi or not all(multi.values()):
        empty = next((task for task, metrics in multi.items() if not metrics), None)
        what = "no task" if empty is None else f"no metric of '{empty}' in common"
        raise ConfigError(f"Δm of {ours}: there is {what} to compare with {theirs}")
    per_task: dict[str, float] = {}
    for task, metrics in multi.items():
        if not single.get(task):
            raise ConfigError(f"Δm of {ours}: no single-task baseline for '{task}' in {theirs}")
        gains = []
        for metric, value in metrics.items():
            place = f"{task}/{metric}"
            base = single[task].get(metric)
            for name, number in ((ours, value), (theirs, base)):
                if number is None or not math.isfinite(number):
                    raise ConfigError(f"Δm of {ours}: {place} is not a finite number in {name}")
            assert value is not None
            assert base is not None
            if base <= 0:
                raise ConfigError(f"Δm of {ours}: the baseline {place} is {base:g} in {theirs}; it must be above 0")
            if metric not in higher_is_better.get(task, {}):
                raise ConfigError(f"Δm of {ours}: nobody said whether higher is better for {place}")
            gains.append((1 if higher_is_better[task][metric] else -1) * (value - base) / base)
        per_task[task] = 100 * math.fsum(gains) / len(gains)
    return DeltaM(
        percent=math.fsum(per_task.values()) / len(per_task),
        per_task=per_task,
        metrics={task: tuple(metrics) for task, metrics in multi.items()},
    )
