"""Trains fewer tasks than an experiment's file is written for: what the file says of the others is left out.

``--model.tasks [depth]`` makes a single-task baseline of any experiment. Weights, sampling ratios and consistency
losses that a file gives to tasks which a later file, the command line or a checkpoint leaves out are dropped, and told.
What contradicts itself stays, and is refused where the model is built: a weight of an absent task on the command line,
or in the file that names the tasks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import yaml
from jsonargparse import Namespace

from m2h_lightning.commands.arguments import Arguments
from m2h_lightning.data.raw import LABELS
from m2h_lightning.objectives.settings import CONSISTENCY_TASKS

MAPPINGS = ("model.loss_weights", "model.balancing.sampling")
"""Keys whose value is a number per task."""


def narrow(options: Namespace, given: dict[str, Any], arguments: Arguments) -> str | None:
    """Drop what files say of tasks that are not trained.

    Args:
        options: The parsed keys of the verb; changed in place.
        given: The keys that the user wrote, flat.
        arguments: The command line, which knows where keys stand.

    Returns:
        One line that names what was dropped; None where nothing was.
    """
    tasks = options.get("model.tasks")
    if not tasks or not set(tasks) <= set(LABELS):  # an unknown task is told where the model is built
        return None
    limit = _rank("model.tasks", arguments) if "model.tasks" in given else len(_files(arguments))
    dropped = []
    for mapping in MAPPINGS:
        values = dict(options.get(mapping) or {})
        absent = [task for task in values if task in LABELS and task not in tasks]
        for task in absent:
            if _rank(f"{mapping}.{task}", arguments) < limit:
                dropped.append(f"{mapping}.{task}{arguments.place(f'{mapping}.{task}')}")
                del values[task]
        options[mapping] = values or None
    for key in _consistency(options, tasks):
        if _rank(key, arguments) < limit:
            dropped.append(f"{key}{arguments.place(key)}")
            options[key] = 0.0
    if not dropped:
        return None
    return f"model.tasks is [{', '.join(tasks)}]; what is written for other tasks is left out: {', '.join(dropped)}"


def _consistency(options: Namespace, tasks: list[str]) -> Iterator[str]:
    """Yield the weights of consistency losses that are switched on and lack a task."""
    for key, needed in consistency_weights().items():
        if options.get(key) and not set(needed) <= set(tasks):
            yield key


def consistency_weights() -> dict[str, tuple[str, ...]]:
    """Return the keys of the consistency losses' weights, and the tasks each of them needs."""
    return {
        f"model.consistency.{term.removeprefix('consistency/')}.weight": needed
        for term, needed in CONSISTENCY_TASKS.items()
    }


def _files(arguments: Arguments) -> list[str]:
    """Return the configuration files in the order in which they are read."""
    return list(dict.fromkeys(place.rpartition(":")[0] for place in arguments.places.values()))


def _rank(key: str, arguments: Arguments) -> float:
    """Return the place of a key's source in the order of reading: files from 0, the command line after all of them."""
    parts = key.split(".")
    names = ["--" + ".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    if any(word.partition("=")[0].rstrip("+") in names for word in arguments.words):
        return math.inf
    place = arguments.places.get(key)
    return -1 if place is None else _files(arguments).index(place.rpartition(":")[0])


def words_of_task(words: list[str], task: str) -> list[str]:
    """Return the words of a command without weights of other tasks, so that they can go to a run of one task.

    Args:
        words: Options of ``fit`` that were written for several tasks.
        task: The one that is trained.
    """
    kept: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        key, equals, value = word.partition("=")
        key = key.removeprefix("--").rstrip("+")
        mapping, _, leaf = key.rpartition(".")
        of_another = mapping in MAPPINGS and leaf in LABELS and leaf != task
        if of_another or not set(consistency_weights().get(key, (task,))) <= {task}:
            if not equals and left:
                left.pop(0)
        elif key in MAPPINGS and (equals or left):
            value = value if equals else left.pop(0)
            given = yaml.safe_load(value)
            if isinstance(given, dict):
                value = json.dumps({name: item for name, item in given.items() if name == task or name not in LABELS})
            kept += [f"--{key}", value]
        else:
            kept.append(word)
    return kept
