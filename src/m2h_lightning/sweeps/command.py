"""``m2h sweep …``: the words of its verbs."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2h_lightning.data.arguments import OneLineParser
from m2h_lightning.errors import ConfigError, did_you_mean
from m2h_lightning.sweeps.file import read_sweep
from m2h_lightning.sweeps.plan import Plan, Request, load_plan, make_plan, merged

VERBS = {
    "plan": "every cell: id, command, cost, done or not; starts nothing:  sweep plan FILE --experiment …",
    "run": "run what is missing, on this machine or with --launcher slurm: sweep run FILE --experiment … --workers 4",
    "worker": "one more worker on a planned sweep, anywhere:                sweep worker FOLDER",
}


def main_sweep(words: list[str]) -> int:
    """Run one verb; return the exit code.

    Raises:
        M2HError: The user's input is wrong.
    """
    verb = words[0] if words else "--help"
    if verb in ("--help", "-h"):
        lines = "\n".join(f"  {name:<8}{text}" for name, text in VERBS.items())
        print(f"usage: m2h sweep VERB …\n\n{lines}\n\n'm2h sweep VERB --help' lists the options")
        return 0
    if verb == "worker":
        return _worker(words[1:])
    if verb == "plan":
        return _plan(words[1:])
    if verb == "run":
        return _run(words[1:])
    raise ConfigError(f"there is no command 'sweep {verb}'{did_you_mean(verb, VERBS)} (sweep {', sweep '.join(VERBS)})")


def _sweep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="sweep file, such as sweeps/window_size.yaml")
    parser.add_argument("--experiment", help="experiment file, for ${envvar:EXPERIMENT} of the sweep's command")
    parser.add_argument("--seeds", type=_seeds, help="number of seeds, or a list: 3, or 0,1,7 (default: the file's)")
    parser.add_argument("--name", help="name of the sweep's folder (default: the file's and the experiment's)")
    parser.add_argument("--root", default="runs", help="folder of all runs")
    parser.add_argument("--storage", help="ledger: journal:PATH, postgresql://…, sqlite:///PATH, grpc://HOST:PORT")
    parser.add_argument("--data-root", help="folder of the data sets (M2H_DATA)")
    parser.add_argument("--prune", action="store_true", help="let early_terminate give up cells of a grid too")


def _seeds(text: str) -> tuple[int, ...]:
    try:
        listed = [part for part in text.split(",") if part.strip()]
        seeds = tuple(map(int, listed)) if "," in text else tuple(range(int(text)))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seeds and no list such as 0,1,2") from None
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"'{text}': give at least one seed, each once, 0 or more")
    return seeds


def _planned(words: list[str], parser: argparse.ArgumentParser) -> tuple[Plan, argparse.Namespace]:
    """Read a sweep file and the words after ``--``; return the checked plan."""
    at = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:at])
    request = Request(
        options.experiment, options.seeds, options.name, options.root, options.storage, options.data_root,
        tuple(words[at + 1 :]), options.prune,
    )  # fmt: skip
    plan = make_plan(read_sweep(options.file), request)
    return plan, options


def _plan(words: list[str]) -> int:
    parser = OneLineParser(prog="m2h sweep plan", allow_abbrev=False)
    _sweep_arguments(parser)
    plan, _ = _planned(words, parser)
    import shlex

    for cell in plan.cells:
        print(cell.id, shlex.join(plan.command_of(cell, cell.overrides or {})))
    return 0


def _run(words: list[str]) -> int:
    from m2h_lightning.sweeps.run import Run, RunOptions
    from m2h_lightning.sweeps.worker import WorkerOptions

    parser = OneLineParser(prog="m2h sweep run", allow_abbrev=False)
    _sweep_arguments(parser)
    parser.add_argument("--workers", type=int, help="cells at a time")
    parser.add_argument("--gpus-per-cell", type=int, default=1)
    parser.add_argument("--grace", type=float, default=60.0)
    parser.add_argument("--retry-oom", action="store_true")
    plan, options = _planned(words, parser)
    plan = merged(plan)
    plan.save()
    worker = WorkerOptions(grace=options.grace, retry_oom=options.retry_oom)
    return Run(plan, RunOptions(options.workers, options.gpus_per_cell, worker)).run()


def _worker(words: list[str]) -> int:
    from m2h_lightning.sweeps.worker import WorkerOptions, work

    parser = OneLineParser(prog="m2h sweep worker", allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cell")
    parser.add_argument("--gpus")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--grace", type=float, default=60.0)
    parser.add_argument("--retry-oom", action="store_true")
    options = parser.parse_args(words)
    plan = load_plan(options.folder)
    return work(plan, WorkerOptions(options.cell, options.gpus, options.threads, options.grace, options.retry_oom))
