"""Δm between runs, or why there is none: what cannot be compared is refused, never averaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.report.collect import CONDITIONS, Run, shown
from m2h_lightning.report.delta import DeltaM, delta_m
from m2h_lightning.report.names import all_metrics, metric_key, metric_name, task_order
from m2h_lightning.runs import folder as runs

VARIANTS = ("headline", "all")


def seedless_key(run: Run) -> str | None:
    """Return a digest of a run's configuration without its seed; None where there is no ``config.yaml``.

    Raises:
        DataError: The file is damaged.
    """
    import yaml

    path = run.path.parent / runs.CONFIG
    if not path.is_file():
        return None
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{path}: is no configuration; restore it, or leave --mean out")
    content = {key: value for key, value in config.items() if key not in ("run", "seed_everything")}
    text = json.dumps([runs.plain(content), run.conditions, run.tasks, run.command], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_seeds(same: Sequence[Run]) -> None:
    """Refuse to average runs of one configuration that have the same seed: they are no independent repetitions.

    Raises:
        ConfigError: Two of them do.
    """
    by_seed: dict[str | None, Run] = {}
    for run in same:
        if run.seed in by_seed:
            raise ConfigError(
                f"{by_seed[run.seed].path} and {run.path} have the same configuration and the same seed {run.seed}; "
                "leave one of them out"
            )
        by_seed[run.seed] = run


@dataclass
class Baselines:
    """The single-task runs, by task. Several seeds of one configuration are averaged.

    Args:
        runs: Runs by task.
    """

    runs: dict[str, list[Run]] = field(default_factory=dict)

    @classmethod
    def of(cls, singles: Sequence[Run]) -> Baselines:
        """Sort single-task runs by task.

        Raises:
            ConfigError: A run has several tasks, or a task has runs that differ in more than the seed.
        """
        by_task: dict[str, list[Run]] = {}
        for run in singles:
            if len(run.tasks) != 1:
                raise ConfigError(
                    f"--single {run.path}: is no single-task run, it has the tasks {', '.join(run.tasks) or 'none'}; "
                    "train one with --model.tasks [depth] for each task"
                )
            by_task.setdefault(run.tasks[0], []).append(run)
        for task, same in by_task.items():
            keys = {seedless_key(run) for run in same}
            if len(same) > 1 and (len(keys) > 1 or None in keys):
                raise ConfigError(
                    f"--single: {same[0].path} and {same[-1].path} are both baselines for '{task}' and are not known "
                    "to differ in the seed alone; give one"
                )
            check_seeds(same)
            check_comparable(same[0], same[1:])
        return cls({task: by_task[task] for task in sorted(by_task, key=task_order)})

    @property
    def all_runs(self) -> list[Run]:
        """All single-task runs."""
        return [run for same in self.runs.values() for run in same]

    def value(self, task: str, base: str, protocol: str) -> float | None:
        """Return a metric of the task's baseline, its mean over seeds; None where a run lacks it."""
        values = [run.metrics[task].get(metric_key(task, base, protocol)) for run in self.runs.get(task, ())]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None


def check_comparable(run: Run, others: Sequence[Run]) -> None:
    """Refuse runs whose values say nothing about each other.

    Raises:
        ConfigError: Evaluation settings, data, resolution or backbone differ or are not known; the message names both
            files and the values.
    """
    for other in others:
        pair = f"Δm: {run.path} and {other.path}"
        for one in (run, other):
            if one.conditions is None:
                raise ConfigError(
                    f"{pair} cannot be compared: the evaluation settings of {one.path} are unknown, it was written by "
                    "an older version; test its checkpoint again"
                )
            if one.backbone is None:
                raise ConfigError(f"{pair} cannot be compared: the network of {one.path} is unknown")
        assert run.conditions is not None
        assert other.conditions is not None
        assert run.backbone is not None
        assert other.backbone is not None
        checks: list[tuple[str, Any, Any]] = [
            (text, run.conditions[key], other.conditions[key]) for key, text in CONDITIONS.items()
        ]
        texts = {"name": "backbone", "weights": "weights of the backbone", "freeze": "freezing of the backbone"}
        checks += [(text, run.backbone[key], other.backbone[key]) for key, text in texts.items()]
        differing = [f"{text} {shown(one)} / {shown(two)}" for text, one, two in checks if one != two]
        if differing:
            raise ConfigError(f"{pair} cannot be compared, they differ in: {'; '.join(differing)}")


def check_protocols(all_runs: Sequence[Run]) -> None:
    """Refuse runs with different heading protocols when nobody chose one.

    Raises:
        ConfigError: There are two.
    """
    for run in all_runs[1:]:
        if run.protocol != all_runs[0].protocol:
            raise ConfigError(
                f"Δm: {all_runs[0].path} and {run.path} have the heading protocols {all_runs[0].protocol} and "
                f"{run.protocol}; choose one with --protocol"
            )


def compare(run: Run, baselines: Baselines, protocol: str, variant: str) -> DeltaM:
    """Return Δm of a run over its single-task baselines.

    Args:
        run: A run of any number of tasks.
        baselines: Single-task runs, at least for its tasks.
        protocol: "pooled" or "per_image".
        variant: "headline": one metric per task. "all": all metrics that run and baseline share, averaged inside a task
            first.

    Raises:
        ConfigError: They cannot be compared (:func:`check_comparable`), or a value is missing or not defined.
    """
    for task in run.tasks:
        if task not in baselines.runs:
            given = ", ".join(baselines.runs) or "none"
            raise ConfigError(
                f"Δm of {run.path}: no single-task baseline for '{task}' (--single has {given}); train one with "
                f"--model.tasks [{task}]"
            )
    needed = [other for task in run.tasks for other in baselines.runs[task]]
    check_comparable(run, needed)
    multi: dict[str, dict[str, float | None]] = {}
    single: dict[str, dict[str, float | None]] = {}
    directions: dict[str, dict[str, bool]] = {}
    for task in run.tasks:
        multi[task], single[task], directions[task] = {}, {}, {}
        for base in _bases(run, baselines, task, protocol, variant):
            key = metric_key(task, base, protocol)
            multi[task][key] = run.metrics[task].get(key)
            single[task][key] = baselines.value(task, base, protocol)
            headline = run.headlines.get(task)
            own = headline.higher_is_better if headline and headline.keys.get("pooled") == base else None
            name = metric_name(task, base, own)
            if name is not None:
                directions[task][key] = name.higher_is_better
    where = ", ".join(str(other.path) for other in needed)
    return delta_m(multi, single, directions, (str(run.path), where))


def _bases(run: Run, baselines: Baselines, task: str, protocol: str, variant: str) -> list[str]:
    """Return the pooled keys of the metrics to compare."""
    if variant == "headline":
        headline = run.headlines.get(task)
        return [headline.keys["pooled"]] if headline else []
    shared = set(run.metrics[task]).intersection(*(other.metrics[task] for other in baselines.runs[task]))
    bases = all_metrics(task, set(run.metrics[task]))
    return [base for base in bases if metric_key(task, base, protocol) in shared]


def unlike(run: Run, baselines: Baselines) -> list[str]:
    """Return in words where networks and training differ that should be alike, and need not."""
    found: dict[str, None] = {}
    for other in baselines.all_runs:
        for key, value in run.network.items():
            if other.network.get(key) != value:
                found[f"{key} {shown(value)} / {shown(other.network.get(key))} ({run.name} / {other.name})"] = None
    return list(found)
