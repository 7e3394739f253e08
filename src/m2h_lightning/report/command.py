"""``m2h table``: runs side by side, with published results and Δm. Loads no torch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from m2h_lightning.data.arguments import OneLineParser
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.files import atomic
from m2h_lightning.report.collect import Run, collect
from m2h_lightning.report.render import ENDINGS, FORMATS
from m2h_lightning.report.table import Options, build


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="m2h table",
        description="Put test results of runs into one table. Runs that were scored differently, or on other data, "
        "stand in groups of their own and are never ranked together.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run folder, its result.json (also that of m2h evaluate), or runs/<experiment> for all its tested runs",
    )
    parser.add_argument(
        "--single",
        nargs="+",
        type=Path,
        default=[],
        metavar="RUN",
        help="single-task runs, one per task: adds them as a row, and the column Δm",
    )
    parser.add_argument(
        "--protocol",
        choices=("pooled", "per_image", "both"),
        help="which scores are shown (default: the heading protocol of the runs)",
    )
    parser.add_argument(
        "--metrics", choices=("headline", "all"), default="headline", help="one metric per task, or all of them"
    )
    parser.add_argument(
        "--variant",
        choices=("headline", "all"),
        default="headline",
        help="Δm of one metric per task, or of all, averaged inside a task first",
    )
    parser.add_argument("--mean", action="store_true", help="runs that differ in the seed alone become mean ± std (n)")
    parser.add_argument("--sort", metavar="TASK", help="sort the rows of each group by this task, best first")
    parser.add_argument("--paper", action="store_true", help="add published results of the same data sets")
    parser.add_argument(
        "--format", choices=tuple(FORMATS), help="default: by the ending of --out (.md, .csv, .tex), else markdown"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write here instead of printing")
    return parser


def main_table(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: Arguments after ``m2h table``.

    Returns:
        0; ``--help`` leaves by SystemExit(0) as argparse does.

    Raises:
        ConfigError: An argument is wrong, a run is missing or not finished, or runs cannot be compared.
        DataError: A file is damaged or cannot be read or written.
    """
    args = _parser().parse_args(argv)
    runs, notes = collect(args.runs)
    singles, more = collect(args.single)
    if args.out is not None:
        _check_target(args.out, [*runs, *singles])
    options = Options(args.protocol, args.metrics, args.variant, args.paper, args.mean, args.sort)
    table = build(runs, singles, options, [*notes, *more])
    by_name = "markdown" if args.out is None else ENDINGS[args.out.suffix.lower()]
    text = FORMATS[args.format or by_name](table)
    if args.out is None:
        print(text, end="")
        return 0
    try:
        with atomic(args.out) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise DataError(f"--out {args.out}: cannot be written ({error.strerror}); choose another place") from error
    print(f"table: {args.out}")
    return 0


def _check_target(path: Path, runs: Sequence[Run]) -> None:
    """Refuse to write a table over anything but a table.

    Raises:
        ConfigError: The folder is missing, or something is there that is not to be overwritten.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path}: there is no folder {path.parent}; create it")
    if path.suffix.lower() not in ENDINGS:
        what = "exists and is no table" if path.exists() else "is no name of a table"
        raise ConfigError(f"--out {path}: {what} ({', '.join(ENDINGS)}); choose another name")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ConfigError(f"--out {path}: is no plain file; choose another name")
    if any(path.exists() and os.path.samefile(path, run.path) for run in runs):
        raise ConfigError(f"--out {path}: is one of the runs; choose another name")
