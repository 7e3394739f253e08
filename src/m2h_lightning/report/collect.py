"""Reads results of runs and says which of them may stand side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2h_lightning.errors import ConfigError, DataError, M2HError
from m2h_lightning.report.names import OLD_HEADLINES, TASKS, task_order
from m2h_lightning.runs import folder as runs

STAGE = "test"

CONDITIONS: dict[str, str] = {
    "name": "data set",
    "fingerprint": "data",
    "test": "test samples",
    "images": "number of test images",
    "depth_unit": "unit of depth",
    "edge_rule": "rule of edges",
    "eval_size": "input size",
    "labels": "size of the labels",
    "crop": "crop",
    "cap": "cap of depth",
    "odsf": "mode of odsF",
    "max_dist": "tolerance of odsF",
}
"""What has to be alike for two values to be comparable, and how it is called."""


class NotFinishedError(ConfigError):
    """A run without test metrics of a completed test."""


@dataclass(frozen=True)
class Headline:
    """The metric by which a task is judged: its key under each protocol, and its direction."""

    keys: dict[str, str]
    higher_is_better: bool


@dataclass(frozen=True)
class Run:
    """What a ``result.json`` says, as far as tables need it.

    Args:
        path: The file.
        experiment: Name of the experiment.
        run: Name of the run.
        command: The verb that wrote it.
        seed: Its seed as text.
        tasks: Its tasks in the order of tables.
        metrics: Test metrics by task and key; None where a value is not a finite number.
        headlines: Headline metric of each task that was scored.
        protocol: The heading protocol; None where nothing is known.
        conditions: What decides whether values are comparable (``CONDITIONS``); None where that is not known.
        data: Name of the data set.
        backbone: Name, origin of the weights and freezing of the backbone; None where the network is not known.
        network: Preset, channels, blocks, length and labels of the training, which should be alike and need not.
        label: What it was called when somebody's predictions were scored; None for runs of this package.
    """

    path: Path
    experiment: str
    run: str
    command: str
    seed: str | None
    tasks: tuple[str, ...]
    metrics: dict[str, dict[str, float | None]]
    headlines: dict[str, Headline]
    protocol: str | None
    conditions: dict[str, Any] | None
    data: str
    backbone: dict[str, Any] | None
    network: dict[str, Any] = field(default_factory=dict)
    label: str | None = None

    @property
    def name(self) -> str:
        """Experiment and run, or the name that scored predictions were given."""
        return self.label or f"{self.experiment}/{self.run}"

    @property
    def conditions_key(self) -> str:
        """Text that is equal exactly for comparable runs; of its own where conditions are not known."""
        return f"unknown {self.path}" if self.conditions is None else json.dumps(self.conditions, sort_keys=True)


def collect(places: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Read runs from run folders, ``result.json`` files and experiment folders.

    Of an experiment folder all tested runs are taken, by name; a run that is named twice counts once.

    Args:
        places: What to read, in the order of the table.

    Returns:
        The runs, and a sentence for each experiment folder in which runs were left out.

    Raises:
        ConfigError: A place is no run, is not finished, or has no test metrics.
        DataError: A file cannot be read or is not a result.
    """
    found: dict[Path, Run] = {}
    notes = []
    for place in places:
        try:
            read, note = _read_place(place)
        except OSError as error:
            raise DataError(f"{place}: cannot be read ({error.strerror}); have its rights given to you") from error
        notes += note
        for run in read:
            found.setdefault(run.path.resolve(), run)
    return list(found.values()), notes


def _read_place(place: Path) -> tuple[list[Run], list[str]]:
    if not place.exists():
        raise ConfigError(f"{place}: there is no such run; give a run folder, its {runs.RESULT}, or runs/<experiment>")
    if place.is_file() or _is_run(place):
        return [read_run(place)], []
    folders = sorted(folder for folder in place.iterdir() if folder.is_dir() and _is_run(folder))
    if not folders:
        raise ConfigError(f"{place}: is no run folder and holds none; give runs/<experiment>/<run id>")
    read, left_out = [], []
    for folder in folders:
        try:
            read.append(read_run(folder))
        except NotFinishedError as error:
            left_out.append(str(error))
    if not read:
        raise ConfigError(f"{place}: none of its {len(folders)} runs has test metrics; the first: {left_out[0]}")
    if not left_out:
        return read, []
    return read, [f"{place}: {len(left_out)} of {len(folders)} runs left out, without a finished test"]


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (runs.RESULT, runs.CONFIG, runs.HISTORY))


def read_run(place: Path) -> Run:
    """Read the result of one run.

    Args:
        place: The run's folder, or its ``result.json``.

    Raises:
        NotFinishedError: It is not finished, was a trial of one batch, or has no test metrics.
        DataError: The file is not JSON, or is something else.
        OSError: It cannot be read.
    """
    path = place / runs.RESULT if place.is_dir() else place
    if not path.is_file():
        raise NotFinishedError(f"{place}: the run is not finished, it has no {runs.RESULT}{_reason(place)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is damaged or no JSON ({error}); run the test again") from error
    if not isinstance(content, dict) or "metrics" not in content:
        raise DataError(f"{path}: is no result of a run: it has no group 'metrics'; give a {runs.RESULT}")
    if content.get("status", "finished") != "finished":  # other programs, run by a sweep, need not say so
        raise NotFinishedError(f"{path}: the run is not finished, its status is {content['status']!r}")
    if content.get("fast_dev_run"):
        raise NotFinishedError(f"{path}: is a trial of one batch (fast_dev_run), which measures nothing; train it")
    try:
        return _parse(path, content)
    except M2HError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: is not as a run writes it ({type(error).__name__}: {error})") from error


def _reason(folder: Path) -> str:
    failure = folder / runs.FAILURE
    lines = failure.read_text(encoding="utf-8", errors="replace").splitlines() if failure.is_file() else []
    return f" ({lines[0]})" if lines else f"; continue it with m2h fit --run.resume {folder}"


def _parse(path: Path, content: dict[str, Any]) -> Run:
    metrics = content["metrics"].get(STAGE)
    if not metrics:
        raise NotFinishedError(f"{path}: has no test metrics; run m2h test, or fit with --run.test true")
    if not isinstance(metrics, Mapping):
        raise DataError(f"{path}: metrics.{STAGE} is no table of tasks but {metrics!r:.40}")
    given = content.get("tasks")
    tasks = [str(t) for t in given] if given else [t for t in TASKS if isinstance(metrics.get(t), Mapping)]
    tasks.sort(key=task_order)
    scores = {task: _numbers(path, f"metrics.{STAGE}.{task}", metrics.get(task) or {}) for task in tasks}
    headlines = {
        task: Headline(
            {key: str(line[key]) for key in ("pooled", *line) if key != "higher_is_better"},
            bool(line["higher_is_better"]),
        )
        for task, line in (content.get("headlines") or {}).items()
        if task in tasks
    }
    for task in tasks:
        if task not in headlines and (headline := _old_headline(task, scores[task])):
            headlines[task] = headline
    evaluation, data = content.get("evaluation"), content.get("data") or {}
    network = content.get("network")
    return Run(
        path=path,
        experiment=str(content.get("experiment") or path.absolute().parent.parent.name),
        run=str(content.get("run") or path.absolute().parent.name),
        command=str(content.get("command") or ""),
        seed=None if content.get("seed") is None else str(content["seed"]),
        tasks=tuple(tasks),
        metrics=scores,
        headlines=headlines,
        protocol=None if evaluation is None else str(evaluation["protocol"]),
        conditions=None
        if evaluation is None
        else _conditions(evaluation, data, content["metrics"][STAGE].get("images")),
        data=str(data.get("name") or "unknown data"),
        backbone=None if network is None else _backbone(network),
        label=str(content["name"]) if content.get("name") else None,
        network={key: (network or {}).get(key) for key in ("preset", "channels")}
        | {block: ((network or {}).get(block) or {}).get("enabled") for block in ("wmca", "ggfm")}
        | {key: (content.get("budget") or {}).get(key) for key in ("max_epochs", "max_steps")}
        | {"training labels": _training_labels(data.get("training_labels"))},
    )


def _numbers(path: Path, place: str, values: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the scores of the whole set among ``values``; groups, such as scores per class, are not compared."""
    numbers: dict[str, float | None] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            continue
        if isinstance(value, bool) or not (value is None or isinstance(value, int | float)):
            raise DataError(f"{path}: {place}.{key} is {value!r:.40}, not a number")
        numbers[key] = float(value) if value is not None and math.isfinite(value) else None
    return numbers


def _old_headline(task: str, scores: dict[str, float | None]) -> Headline | None:
    key = next((key for key in OLD_HEADLINES.get(task, ()) if key in scores), None)
    return None if key is None else Headline({"pooled": key}, task in ("semseg", "edges"))


def _conditions(evaluation: Mapping[str, Any], data: Mapping[str, Any], images: Any) -> dict[str, Any]:
    """Return what has to be alike; numbers as floats, so that 10 and 10.0 are.

    The number of images tells a test of a part of the split (``trainer.limit_test_batches``).
    """
    size = evaluation.get("eval_size", data.get("eval_size"))
    labels = evaluation.get("labels", data.get("eval_labels")) or "own"
    found = {
        **{key: data.get(key) for key in ("name", "test", "depth_unit", "edge_rule")},
        # What is held out of the training samples does not change the official test samples.
        "fingerprint": data.get("test_fingerprint", data.get("fingerprint")),
        "images": images,
        "eval_size": size,
        "labels": "own" if size is None else labels,  # without a size of its own the input is as large as its labels
        "crop": evaluation["crop"],
        "cap": evaluation["cap"],
        "odsf": evaluation[f"odsf_{STAGE}"],
        "max_dist": evaluation["max_dist"],
    }
    return {k: float(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for k, v in found.items()}


def _training_labels(given: Mapping[str, Any] | None) -> str:
    """Return in words which labels a run was trained with (``data.labels``)."""
    if not given:
        return "all"
    shares = [f"{task} {share:g}" for task, share in sorted(given["shares"].items())]
    return ", ".join([f"{given['mode']} (seed {given['seed']})", *shares])


def _backbone(network: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of the backbone, whether it stands in a group of its own or beside the rest."""
    inner = network.get("backbone")
    group = inner if isinstance(inner, Mapping) else network
    name = group.get("name") if isinstance(inner, Mapping) else inner
    weights = group.get("weights", group.get("pretrained"))
    return {"name": None if name is None else str(name), "weights": weights, "freeze": group.get("freeze")}


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return in words where the conditions of two runs differ: ``cap of depth 10 / none``."""
    return [
        f"{text} {shown(one.get(key))} / {shown(other.get(key))}"
        for key, text in CONDITIONS.items()
        if one.get(key) != other.get(key)
    ]


def shown(value: Any) -> str:
    """Return a setting as text."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "×".join(str(part) for part in value)
    return str(value)
