"""``m2h sweep report``: what a sweep found: scores with intervals, what is noise, cost, pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2h_lightning.data.arguments import OneLineParser
from m2h_lightning.sweeps.arguments import existing


def _rounds(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{word}' is below 1")
    return number


def main(words: list[str]) -> int:
    """Write the report of a sweep and print it; return the exit code.

    Raises:
        M2HError: There is no such sweep, no cell is finished, or an option does not fit.
    """
    parser = OneLineParser(prog="m2h sweep report", description=__doc__, allow_abbrev=False)
    parser.add_argument("sweep", type=Path, help="the sweep's folder, or its file (with --experiment)")
    parser.add_argument("--experiment", help="experiment file, to find the folder of a sweep's file")
    parser.add_argument("--root", default="runs", help="folder of all runs, to find the folder of a sweep's file")
    parser.add_argument("--name", help="name of the sweep's folder, to find the folder of a sweep's file")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="PATH", help="write PATH.md, .csv, .json, PATH-*.png (FOLDER/report/report)"
    )
    parser.add_argument(
        "--baseline",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="what the others are compared with (default: the first value of every parameter)",
    )
    parser.add_argument(
        "--single",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="RUN",
        help="single-task runs, one per task, that Δm is counted over (default: those of the sweep, else the baseline)",
    )
    parser.add_argument("--protocol", choices=("pooled", "per_image"), help="default: the runs' heading protocol")
    cost = parser.add_mutually_exclusive_group()
    cost.add_argument("--no-measure", action="store_true", help="measure no latency; take what was measured before")
    cost.add_argument(
        "--rounds",
        type=_rounds,
        metavar="N",
        help="measure latency anew, with N rounds (default: what is not known yet, 50 rounds if time allows)",
    )
    parser.add_argument("--no-plots", action="store_true", help="draw no pictures")
    options = parser.parse_args(words)
    plan = existing(options.sweep, options.experiment, options.root, options.name)

    from m2h_lightning.sweeps.report.build import build
    from m2h_lightning.sweeps.report.files import check_target, write
    from m2h_lightning.sweeps.report.model import ReportOptions

    base = options.out
    if base is None:
        base = plan.folder / "report" / "report"
        base.parent.mkdir(exist_ok=True)
    elif base.suffix in (".md", ".csv", ".json"):
        base = base.with_suffix("")
    check_target(base)
    report = build(
        plan,
        ReportOptions(
            tuple(options.baseline),
            tuple(options.single),
            options.protocol,
            not options.no_measure,
            options.rounds,
            not options.no_plots,
            tuple(words),
        ),
    )
    print(write(report, base, not options.no_plots), end="")
    return 0
