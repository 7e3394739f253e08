"""``m2h evaluate``: score a folder of predictions, whoever made them. This file reads the words; no torch."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from m2h_lightning.errors import ConfigError, did_you_mean
from m2h_lightning.predictions.values import Conventions
from m2h_lightning.runs.folder import PREDICTIONS, RESULT, slug

USAGE = """usage: m2h evaluate --pred DIR (--config experiments/nyud.yaml | --data NYUDv2) [--data.* …] [--metrics.* …]

Score predictions that lie in files against the labels of a data set, under all protocols; no network is built.
DIR holds a folder per task (semseg, depth, normals, edges or edge) with a file per sample, named by the sample's id:
.png or .npy, as 'm2h predict --save DIR' writes them, or anybody else; or the .npz files of a run's predictions folder.
Of an experiment's file only the data set and model.metrics count.

  --pred DIR                    the predictions
  --tasks TASK …                score these; with one task DIR may hold its files directly (default: what is there)
  --split test|val              default test
  --out FILE                    default DIR/result.json
  --name NAME                   name of the method in tables (default: the name of DIR)
  --partial                     score what is there although files are missing
  --temporal auto|on|off        stability from frame to frame, on sets with camera poses (default auto)
  --metrics.KEY VALUE           as model.metrics.KEY of a configuration: protocol, crop, cap, trimap, odsf_test, …

what the numbers mean, where the predictions are not this package's own
  --pred-name PATTERN           file name without suffix; {id} is the sample's id, {name} the last part (default {id})
  --pred-depth-scale FACTOR     stored number to the data set's unit: 0.001 for millimetres in 16 bits
  --pred-normal-axes AXES       which channel is x, y, z of the camera (x right, y down, z forward), e.g. x,-y,-z
  --pred-semseg-offset NUMBER   added to class ids: -1 where they count from 1
  --pred-semseg-palette voc     classes are drawn in the VOC colours"""

OWN = (
    "pred", "tasks", "split", "out", "name", "partial", "temporal", "pred-name", "pred-depth-scale",
    "pred-normal-axes", "pred-semseg-offset", "pred-semseg-palette",
)  # fmt: skip
"""This command's own options; those that follow are handed on."""

HANDED_ON = ("config", "data", "metrics", "model.metrics")


@dataclass
class EvaluateOptions:
    """What ``m2h evaluate`` was asked to do.

    Args:
        pred: Folder of predictions.
        conventions: What the numbers in it mean.
        given: Which of the conventions the user wrote.
        words: The words that choose data set and scoring, as ``m2h fit`` takes them.
        out: The file to write.
        name: Name of the method.
        tasks: Tasks to score; None takes those that are there.
        split: "test" or "val".
        partial: Score what is there although files are missing.
        temporal: Whether to score stability from frame to frame.
        pattern: Name of a sample's file.
    """

    pred: Path
    conventions: Conventions
    given: list[str]
    words: list[str]
    out: Path
    name: str
    tasks: list[str] | None = None
    split: str = "test"
    partial: bool = False
    temporal: str = "auto"
    pattern: str = "{id}"


class _Parser(argparse.ArgumentParser):
    """Takes no abbreviations and raises instead of exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise one line."""
        raise ConfigError(f"m2h evaluate: {message}")


def read_options(words: list[str]) -> EvaluateOptions:
    """Read this command's own words and check what needs no data set.

    Raises:
        ConfigError: An option is unknown or its value is wrong, or a folder or file cannot be what it is to be.
    """
    parser = _Parser(prog="m2h evaluate", add_help=False, allow_abbrev=False)
    parser.add_argument("--pred", required=True)
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--out")
    parser.add_argument("--name")
    parser.add_argument("--partial", action="store_true")
    parser.add_argument("--temporal", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--pred-name", default="{id}")
    parser.add_argument("--pred-depth-scale", type=float)
    parser.add_argument("--pred-normal-axes")
    parser.add_argument("--pred-semseg-offset", type=int)
    parser.add_argument("--pred-semseg-palette")
    own, rest = _divide(words)
    values = parser.parse_args(own)
    meant: dict[str, Any] = {
        key: getattr(values, f"pred_{key}")
        for key in ("depth_scale", "normal_axes", "semseg_offset", "semseg_palette")
        if getattr(values, f"pred_{key}") is not None
    }
    if not -255 <= meant.get("semseg_offset", 0) <= 255:
        raise ConfigError(f"--pred-semseg-offset is {meant['semseg_offset']}; give -255 to 255")
    pred = Path(values.pred).expanduser()
    if not pred.is_dir():
        what = "is a file" if pred.exists() else "does not exist"
        raise ConfigError(f"--pred: {pred} {what}; give the folder of predictions")
    out = Path(values.out).expanduser() if values.out else pred / RESULT
    _check_out(out)
    tasks = [task for word in values.tasks for task in word.split(",") if task] if values.tasks else None
    if tasks is not None and (not tasks or len(set(tasks)) != len(tasks)):
        raise ConfigError(f"--tasks is '{' '.join(values.tasks)}'; name at least one task, each once")
    return EvaluateOptions(
        pred, Conventions(**meant), list(meant), rest, out, _name(values.name, pred), tasks, values.split,
        values.partial, values.temporal, values.pred_name,
    )  # fmt: skip


def _divide(words: list[str]) -> tuple[list[str], list[str]]:
    """Divide the words into this command's own and those handed on; a value stays with its option.

    Raises:
        ConfigError: An option is neither.
    """
    own: list[str] = []
    rest: list[str] = []
    target = rest
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "-c" or not word.startswith("--"):
            target = rest if word == "-c" else target
            target.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        plain = name.replace("_", "-")
        if plain in OWN:
            target = own
            if not equals and plain not in ("tasks", "partial") and position < len(words):
                if words[position].startswith("--"):
                    raise ConfigError(f"--{plain} needs a value")
                equals, value = "=", words[position]  # a value may start with a dash: -1, or -x,y,z
                position += 1
            own.append(f"--{plain}{equals}{value}")
        elif any(name == key or name.startswith(f"{key}.") for key in HANDED_ON):
            target = rest
            name = f"model.{name}" if name.split(".")[0] == "metrics" else name
            rest.append(f"--{name}{equals}{value}")
        else:
            trained = name.split(".")[0] in ("model", "trainer", "run", "ckpt_path", "seed_everything")
            why = "m2h evaluate builds no network and trains nothing; leave it out" if trained else "see --help"
            raise ConfigError(
                f"m2h evaluate has no option --{name}{did_you_mean(name, [*OWN, *HANDED_ON]) or f'; {why}'}"
            )
    return own, rest


def _check_out(out: Path) -> None:
    """Refuse a place that cannot be written, or that holds something else than an earlier result of this command."""
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a folder; give a file such as {out / RESULT}")
    if not out.parent.is_dir():
        raise ConfigError(f"--out: there is no folder {out.parent}; make it first")
    if not os.access(out.parent, os.W_OK):
        raise ConfigError(f"{out.parent} cannot be written; name another place with --out")
    if out.is_file():
        try:
            command = json.loads(out.read_text(encoding="utf-8")).get("command")
        except (OSError, ValueError, AttributeError):
            command = None
        if command != "evaluate":
            raise ConfigError(f"{out} exists and is no result of m2h evaluate; name another place with --out")


def _name(given: str | None, pred: Path) -> str:
    if given is not None and not given.strip():
        raise ConfigError("--name is empty; give the name of the method")
    if given is not None:
        return " ".join(given.split())
    place = pred.resolve()
    return slug(place.parent.name if place.name == PREDICTIONS else place.name)
