"""``m2h data verify SET PATH``: look at every sample of a data set and say what is wrong."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from m2h_lightning.data.arguments import OneLineParser, add_own_options, own_options
from m2h_lightning.data.raw import LABELS
from m2h_lightning.data.sources import SETS, Source, source_class
from m2h_lightning.data.sources.base import Item
from m2h_lightning.data.verify.axes_findings import judge_axes
from m2h_lightning.data.verify.axes_search import decide
from m2h_lightning.data.verify.contact_sheet import write_contact_sheet
from m2h_lightning.data.verify.depths import judge_depth
from m2h_lightning.data.verify.edge_agreement import judge_edges
from m2h_lightning.data.verify.flatness import judge_flatness
from m2h_lightning.data.verify.labels import judge_labels
from m2h_lightning.data.verify.listing import judge_counts, judge_lists, judge_pictures, list_items
from m2h_lightning.data.verify.maps import MapTally, judge_maps
from m2h_lightning.data.verify.one_sample import derived_normals
from m2h_lightning.data.verify.opening import axes_option, open_source
from m2h_lightning.data.verify.orphans import find_orphans, judge_orphans
from m2h_lightning.data.verify.problems import Finding, ordered
from m2h_lightning.data.verify.report import Report, print_report, write_json
from m2h_lightning.data.verify.scan import scan, spread
from m2h_lightning.errors import ConfigError, DataError, did_you_mean
from m2h_lightning.processes import cores


def _parser(source: type[Source] | None) -> OneLineParser:
    parser = OneLineParser(
        prog="m2h data verify",
        description="Look at every sample of a data set and say what is wrong: counts, leaks, corrupt files, units, "
        "axes of normals, edges. Exit code 0: healthy; 2: something is wrong. Nothing is written unless asked for.",
        allow_abbrev=False,
    )
    parser.add_argument("set", choices=SETS, metavar="SET", help=f"the data set: {', '.join(SETS)}")
    parser.add_argument("path", type=Path, metavar="PATH", help="its folder, or the folder of a prepared store")
    parser.add_argument("--split", metavar="NAME", help="train, val or test (default: all that are there)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--samples", type=int, metavar="N", help="so many, spread evenly (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers and findings")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="write a contact sheet")
    parser.add_argument("--normal-axes", metavar="AXES", help="axes of the stored normals: --normal-axes=x,-y,-z")
    parser.add_argument("--normals", metavar="HOW", help="provided, derived or none")
    parser.add_argument("--edges", metavar="RULE", help="provided, semantic or instance")
    parser.add_argument("--partial", action="store_true", help="an incomplete copy: missing samples are no problem")
    if source is not None:
        add_own_options(parser, source, without=("partial",))
    return parser


def verify(
    source: Source, split: str | None = None, samples: int | None = None, workers: int = 1, partial: bool = False
) -> tuple[Report, list[Item]]:
    """Run all checks.

    Args:
        source: The set.
        split: Only this split is read; scenes and orphans are looked for in all.
        samples: So many, spread evenly over the splits; None takes all.
        workers: Processes.
        partial: The set is known to be incomplete.

    Returns:
        The report, and the samples that were looked at.

    Raises:
        ConfigError: There is no such split here.
        DataError: A process was killed.
    """
    if split is not None and split not in source.splits:
        hint = did_you_mean(split, source.splits)
        raise ConfigError(f"--split {split}: {source.packaging} has {', '.join(source.splits) or 'no splits'}{hint}")
    asked = (split,) if split else source.splits
    listed, findings = list_items(source, asked)
    chosen = {name: listed[name] for name in asked if name in listed}
    counts = {name: len(items) for name, items in chosen.items()}
    findings += judge_counts(counts, source.official, (split,) if split else tuple(source.official), partial)
    findings += judge_lists(listed)
    if len(listed) == len(source.splits):  # else the files of the split that cannot be listed would all be orphans
        findings += judge_orphans(find_orphans([item for items in listed.values() for item in items]))
    every = [item for items in chosen.values() for item in items]
    items = spread(every, samples)

    totals = scan(source, items, workers)
    findings += totals.findings
    findings += judge_pictures((record.id, record.split, record.digest) for record in totals.records)
    findings += judge_maps(totals.maps, source.tasks, totals.read)
    complete = split is None and totals.read == len(every)
    findings += judge_labels(totals.labels, source.classes, complete)
    if getattr(source, "depth_target", "metric") == "metric":
        findings += judge_depth(totals.depth, source.depth_range)
    findings += judge_flatness(totals.flatness)
    verdict, axes = decide(totals.axes), source.stored_axes or "x,y,z"
    derived = derived_normals(source) if "normals" in totals.maps else ""
    findings += judge_axes(totals.axes, verdict, axes, derived, axes_option(source))
    if "edges" in totals.maps:
        findings += judge_edges(totals.edges, totals.maps.get("edges", MapTally()).samples)
    findings += [found for found in _judge_store(source) if not any(found.file in other.line for other in findings)]
    missing = [label for label in LABELS if label not in source.tasks]
    if missing:
        findings.append(Finding("note", "labels", f"no {', no '.join(missing)}: these labels are not here"))
    if items and not totals.read:
        findings.append(Finding("problem", "sample", "not one sample could be read"))
    return Report(source, counts, len(items), totals, verdict, axes, ordered(findings)), items


def _judge_store(source: Source) -> list[Finding]:
    """Compare the shards of a prepared store with the digests in its manifest."""
    from m2h_lightning.data.store import PreparedStore, damaged_shards

    if not isinstance(source, PreparedStore):
        return []
    mend = "delete it and run the same 'm2h data prepare' again, it writes only this file"
    return [
        Finding("problem", "store", "its content is not what the manifest says", mend, str(path))
        for path in damaged_shards(source)
    ]


def _check_targets(args: argparse.Namespace) -> None:
    """Refuse to write a report over anything but a report.

    Raises:
        ConfigError: The name has another ending, or something is there that is no plain file or is of the data set.
    """
    for option, path, endings in (("--json", args.json, (".json",)), ("--sheet", args.sheet, (".png",))):
        if path is None:
            continue
        if path.suffix.lower() not in endings:
            raise ConfigError(f"{option} {path}: must end in {' or '.join(endings)}")
        inside = args.path.expanduser().resolve() in path.expanduser().resolve().parents
        if path.is_symlink() or (path.exists() and (inside or not path.is_file())):
            why = "is a file of the data set" if inside else "is no plain file"
            raise ConfigError(f"{option} {path}: {why}; choose another name")


def main_verify(argv: list[str], opener: Callable[..., Source] = open_source) -> int:
    """Run the verb.

    Args:
        argv: Arguments after ``m2h data verify``.
        opener: Makes the reader from the set's name, the path and the options; another one in tests.

    Returns:
        0 when nothing is wrong; ``--help`` leaves by SystemExit(0) as argparse does.

    Raises:
        ConfigError: An argument is wrong; the message is one line.
        DataError: The set cannot be opened, a file cannot be written, or something is wrong with the set.
    """
    name = next((word for word in argv if word in SETS), None)
    args = _parser(source_class(name) if name else None).parse_args(argv)
    if args.set != name:  # a word in front of it was the name of a set too
        args = _parser(source_class(args.set)).parse_args(argv)
    for key in ("workers", "samples"):
        value = getattr(args, key)
        if value is not None and value < 1:
            raise ConfigError(f"--{key} is {value}; it must be at least 1")
    _check_targets(args)
    start = time.monotonic()
    options = {key: getattr(args, key) for key in ("edges", "normals", "normal_axes")}
    options |= own_options(args, source_class(args.set), without=("partial",))
    source = opener(args.set, args.path.expanduser(), partial=args.partial, **options)
    workers = args.workers or cores()
    report, items = verify(source, args.split, args.samples, workers, args.partial)
    print_report(report)
    sys.stdout.flush()
    if args.json:
        write_json(report, args.json)
        print(f"report: {args.json}")
    if args.sheet:
        drawn = write_contact_sheet(source, items, args.sheet)
        print(f"contact sheet: {args.sheet}" if drawn else "contact sheet: no sample could be read, none was written")
    print(f"{report.looked_at} samples in {time.monotonic() - start:.1f} s", file=sys.stderr)
    problems = report.problems
    if problems:
        more = "see the list above" + (f" and {args.json}" if args.json else " (--json FILE keeps it)")
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise DataError(f"{count} in {args.path}: first {problems[0].line}; {more}")
    return 0
