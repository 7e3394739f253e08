"""Arguments that several verbs of ``m2h sweep`` share."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2h_lightning.sweeps.planning.file import read_sweep
from m2h_lightning.sweeps.planning.plan import Plan, Request, folder_of, load_plan, make_plan

MOST_SEEDS = 1000


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what names a sweep."""
    parser.add_argument("file", type=Path, help="sweep file, such as sweeps/window_size.yaml")
    parser.add_argument("--experiment", help="experiment file, for ${envvar:EXPERIMENT} of the sweep's command")
    parser.add_argument("--seeds", type=_seeds, help="number of seeds, or a list: 3, or 0,1,7 (default: the file's)")
    parser.add_argument("--name", help="name of the sweep's folder (default: the file's and the experiment's)")
    parser.add_argument("--root", default="runs", help="folder of all runs")
    parser.add_argument("--storage", help="ledger: journal:PATH, postgresql://…, sqlite:///PATH, grpc://HOST:PORT")
    parser.add_argument("--data-root", help="folder of the data sets (M2H_DATA)")
    parser.add_argument("--prune", action="store_true", help="let early_terminate give up cells of a grid too")
    parser.epilog = "Words after -- are added to every cell's command: -- --trainer.max_epochs 2"


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how workers work."""
    parser.add_argument("--grace", type=_seconds, default=60.0, help="seconds a cell has to leave a checkpoint")
    parser.add_argument("--retry-oom", action="store_true", help="out of memory: once more with half the batch")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds from 0 to 86400")
    return seconds


def _seeds(text: str) -> tuple[int, ...]:
    try:
        listed = [part for part in text.split(",") if part.strip()]
        seeds = tuple(map(int, listed)) if "," in text else tuple(range(min(int(text), MOST_SEEDS + 1)))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seeds and no list such as 0,1,2") from None
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"'{text}': give at least one seed, each once, 0 or more")
    if len(seeds) > MOST_SEEDS:
        raise argparse.ArgumentTypeError(f"'{text}' are more than {MOST_SEEDS} seeds; give fewer")
    return seeds


def split(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the words before ``--``, and those after it."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], tuple(words[at + 1 :])


def planned(options: argparse.Namespace, extra: tuple[str, ...]) -> Plan:
    """Return the plan of a sweep as its file and the options say; not checked, nothing written.

    Raises:
        ConfigError: File or options are wrong.
    """
    request = Request(
        experiment=options.experiment,
        seeds=options.seeds,
        name=options.name,
        root=options.root,
        storage=options.storage,
        data_root=options.data_root,
        words=extra,
        prune=options.prune,
    )
    return make_plan(read_sweep(options.file), request)


def existing(place: Path, experiment: str | None = None, root: str = "runs", name: str | None = None) -> Plan:
    """Return the plan of a sweep that was started: by its folder, or by its file and what it was started with.

    Args:
        place: The sweep's folder, or its file.
        experiment: Experiment's file, for a sweep's file.
        root: Folder of all runs, for a sweep's file.
        name: Name of the sweep's folder, for a sweep's file.

    Raises:
        ConfigError: There is none.
    """
    if place.suffix in (".yaml", ".yml") and not place.is_dir():
        place = folder_of(read_sweep(place), Request(experiment=experiment, root=root, name=name))
    return load_plan(place)
