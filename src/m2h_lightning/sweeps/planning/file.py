"""Sweep files: W&B's own format, read without W&B. ``wandb sweep FILE`` takes the same files unchanged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from m2h_lightning.errors import ConfigError, did_you_mean
from m2h_lightning.runs.folder import slug
from m2h_lightning.sweeps.planning.parameters import Parameter, read_parameter

METHODS = ("grid", "random", "bayes")
_KEYS = (
    *("name", "description", "program", "project", "entity"),
    *("method", "metric", "parameters", "command", "early_terminate", "run_cap"),
)
ENVIRONMENT = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
"""W&B's macro for an environment variable."""

ARGS = "${args}"
_WANDB_ONLY = {
    "controller": "it belongs to W&B's own servers",
    "scheduler": "it belongs to W&B's own servers",
    "job": "it belongs to W&B Launch",
    "image_uri": "it belongs to W&B Launch",
    "metrics": "one metric is compared; give metric",
    "apiVersion": "it says nothing",
    "kind": "it says nothing",
}
"""Keys that W&B takes and we do not."""

_MACROS = ("${env}", "${interpreter}", "${program}", ARGS)
_EARLY = ("type", "min_iter", "eta")
_EARLY_OTHERS = {
    "max_iter": "give min_iter = max_iter / eta^s instead",
    "s": "give min_iter = max_iter / eta^s instead",
    "strict": "leave it out",
}


@dataclass(frozen=True)
class SweepFile:
    """What a sweep file says.

    Args:
        path: The file.
        name: Its name: the key ``name``, else the file's stem.
        method: "grid": every combination. "random", "bayes": a search.
        metric: Name of the metric that is searched for and shown as the best, such as ``test/score``.
        higher_is_better: Its direction.
        parameters: The parameters by their dotted keys, in the file's order.
        command: The words of a cell's command, macros included.
        early_terminate: When a search gives a run up (hyperband), or None.
        run_cap: Number of runs of a search.
    """

    path: Path
    name: str
    method: str
    metric: str
    higher_is_better: bool
    parameters: dict[str, Parameter]
    command: tuple[str, ...]
    early_terminate: dict[str, Any] | None = None
    run_cap: int | None = None


def read_sweep(path: Path) -> SweepFile:
    """Read a sweep file.

    Raises:
        ConfigError: It is missing, no YAML, or says what cannot be done; with file and key.
    """
    content = _load(path)
    for key in content:
        if key in _WANDB_ONLY:
            raise ConfigError(f"{path}: {key} is not supported: {_WANDB_ONLY[key]}; leave it out")
        if key not in _KEYS:
            raise ConfigError(f"{path}: {key}: there is no such key{did_you_mean(str(key), _KEYS)}")
    method = content.get("method")
    if method not in METHODS:
        raise ConfigError(f"{path}: method is {method!r}; use one of {', '.join(METHODS)}")
    given = content.get("parameters")
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(
            f"{path}: parameters: give at least one, such as 'model.wmca.window_size: {{values: [5, 7]}}'"
        )
    parameters = {
        str(key): read_parameter(str(key), value, f"{path}: parameters.{key}") for key, value in given.items()
    }
    if method == "grid":
        for parameter in parameters.values():
            if parameter.kind in ("float", "int"):
                raise ConfigError(f"{path}: parameters.{parameter.name}: a grid needs values, not a range")
    metric, higher = _metric(path, content.get("metric"))
    name = content.get("name", path.stem)
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{path}: name is {name!r}; give a word")
    return SweepFile(
        path,
        slug(name),
        method,
        metric,
        higher,
        parameters,
        _command(path, content),
        _early_terminate(path, content.get("early_terminate")),
        _run_cap(path, method, content.get("run_cap")),
    )


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = sorted(str(other) for other in path.parent.glob("*.yaml"))[:12] if path.parent.is_dir() else []
        there = f" (there are {', '.join(near)})" if near else ""
        raise ConfigError(f"there is no sweep file {path}{there}")
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        _check_once(path, yaml.compose(text, Loader=yaml.SafeLoader))
    except RecursionError as error:
        raise ConfigError(f"{path}: an alias (*name) in it holds itself; write the values out") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a sweep file is a YAML mapping with method, metric, parameters and command")
    return content


def _check_once(path: Path, node: yaml.Node | None) -> None:
    """Refuse a key that stands twice: YAML would take the last one without a word."""
    children = node.value if isinstance(node, yaml.SequenceNode | yaml.MappingNode) else []
    seen: set[str] = set()
    for child in children:
        if isinstance(child, tuple):
            key = str(child[0].value)
            if key in seen:
                raise ConfigError(f"{path}:{child[0].start_mark.line + 1}: {key} stands there twice; leave one out")
            seen.add(key)
        _check_once(path, child[1] if isinstance(child, tuple) else child)


def _metric(path: Path, given: Any) -> tuple[str, bool]:
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise ConfigError(f"{path}: metric: give {{name: test/score, goal: maximize}}")
    goal = given.get("goal", "minimize")  # W&B's default
    if goal not in ("minimize", "maximize"):
        raise ConfigError(f"{path}: metric.goal is {goal!r}; use minimize or maximize")
    for key in given:
        if key == "target":
            raise ConfigError(f"{path}: metric.target: every cell is run here, whatever others reach; leave it out")
        if key not in ("name", "goal"):
            raise ConfigError(f"{path}: metric.{key}: there is no such key{did_you_mean(str(key), ('name', 'goal'))}")
    return given["name"], goal == "maximize"


def _command(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    given = content.get("command")
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{path}: command: give the list of its words, '{ARGS}' among them")
    words = []
    for word in given:
        text = str(word)
        if text.startswith("${") and text.endswith("}") and text not in _MACROS and not ENVIRONMENT.fullmatch(text):
            if text == "${args_no_boolean_flags}":
                raise ConfigError(f"{path}: command: {text} drops what is false; use {ARGS}")
            raise ConfigError(
                f"{path}: command: {text} is not supported; known are {', '.join(_MACROS)}, ${{envvar:X}}"
            )
        if text == "${program}":
            if not content.get("program"):
                raise ConfigError(f"{path}: command has ${{program}}, but there is no key program")
            text = str(content["program"])
        words.append(text)
    if words.count(ARGS) != 1:
        raise ConfigError(f"{path}: command: '{ARGS}' must stand in it once: there the parameters go")
    return tuple(words)


def _early_terminate(path: Path, given: Any) -> dict[str, Any] | None:
    if given is None:
        return None
    place = f"{path}: early_terminate"
    if not isinstance(given, Mapping) or given.get("type") != "hyperband":
        raise ConfigError(f"{place}: W&B knows one type: {{type: hyperband, min_iter: 3}}")
    for key in given:
        if key in _EARLY_OTHERS:
            raise ConfigError(f"{place}.{key} is not supported: {_EARLY_OTHERS[key]}")
        if key not in _EARLY:
            raise ConfigError(f"{place}.{key}: there is no such key{did_you_mean(str(key), _EARLY)}")
    for key in ("min_iter", "eta"):
        low = 1 if key == "min_iter" else 2
        value = given.get(key, 3)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ConfigError(f"{place}.{key} is {value!r}; give a whole number of at least {low}")
    if "min_iter" not in given:
        raise ConfigError(f"{place}: give min_iter, the number of validations before the first run may be given up")
    return dict(given)


def _run_cap(path: Path, method: str, given: Any) -> int | None:
    if given is None:
        if method != "grid":
            raise ConfigError(f"{path}: run_cap: give the number of runs of the search")
        return None
    if method == "grid":
        raise ConfigError(f"{path}: run_cap: a grid runs all its cells; leave it out")
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise ConfigError(f"{path}: run_cap is {given!r}; give a number of runs of at least 1")
    return given
