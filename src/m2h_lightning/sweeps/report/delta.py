"""What Δm of the variants of a sweep is counted over: single-task runs, those of the sweep, or its baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m2h_lightning.errors import ConfigError
from m2h_lightning.report import ablation
from m2h_lightning.report.ablation import Reference, Variant
from m2h_lightning.report.collect import Run, collect, differences
from m2h_lightning.report.compare import Baselines
from m2h_lightning.report.names import SUFFIXES

if TYPE_CHECKING:
    from m2h_lightning.sweeps.report.model import Report

TASKS = "model.tasks"


def references(report: Report, single: Sequence[Path], baseline: Variant | None) -> dict[str, Reference]:
    """Return what each variant's Δm is counted over: given single-task runs, those of the sweep, else the baseline."""
    if single:
        reference = _given(report, single)
        return {variant.label: reference for variant in report.variants}
    own = _own_singles(report)
    if own:
        return own
    if baseline is None or not any(measure.headline for measure in report.measures):
        return {}
    reference = Reference(f"the baseline ({baseline.label})", ablation.means_of(baseline, report.measures))
    return {v.label: reference for v in report.variants if v.tasks == baseline.tasks and v is not baseline}


def _given(report: Report, single: Sequence[Path]) -> Reference:
    found, _ = collect(single)
    baselines = Baselines.of(found)
    for run in found:
        if report.cells.conditions is None or run.conditions is None:
            raise ConfigError(f"--single {run.path}: how it, or the sweep, was scored is not known")
        if differing := differences(run.conditions, report.cells.conditions):
            raise ConfigError(
                f"--single {run.path}: is not comparable with the sweep; this / it: {'; '.join(differing)}"
            )
    means = {}
    for measure in report.measures:
        if measure.headline and measure.task in baselines.runs:
            key = measure.id.partition("/")[2]
            value = baselines.value(measure.task, key.removesuffix(SUFFIXES[report.protocol] or "\0"), report.protocol)
            if value is not None:
                means[measure.id] = value
    _tell_backbones(report, found)
    return Reference(f"the single-task runs {', '.join(run.name for run in found)}", means)


def _tell_backbones(report: Report, singles: Sequence[Run]) -> None:
    theirs = {str((run.backbone or {}).get("name")) for run in singles}
    ours = {str((done.run.backbone or {}).get("name")) for done in report.cells.done if done.run is not None}
    if ours - theirs:
        report.notes.append(
            f"Δm: the single-task runs have the backbone {', '.join(sorted(theirs))}, cells of the sweep "
            f"{', '.join(sorted(ours))}."
        )


def _own_singles(report: Report) -> dict[str, Reference]:
    """Return, for each variant of several tasks, the sweep's own cells of its single tasks with all else equal."""
    singles = {}
    for variant in report.variants:
        if len(variant.tasks) == 1:
            singles[variant.tasks[0], _rest(variant)] = variant
    found = {}
    for variant in report.variants:
        own = [singles.get((task, _rest(variant))) for task in variant.tasks]
        if len(variant.tasks) > 1 and all(one is not None for one in own):
            means: dict[str, float] = {}
            for one in own:
                if one is not None:
                    means |= ablation.means_of(one, report.measures)
            found[variant.label] = Reference("the single-task cells of this sweep", means)
    return found


def _rest(variant: Variant) -> str:
    return str(sorted((key, str(value)) for key, value in variant.values.items() if key != TASKS))
