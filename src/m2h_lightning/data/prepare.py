"""``m2h data prepare``: decode a data set once into a store that training reads by memory map. Loads no torch."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from m2h_lightning.data import archives
from m2h_lightning.data.arguments import OneLineParser, add_own_options, own_options
from m2h_lightning.data.sources import SETS, Source, source_class
from m2h_lightning.data.store import is_store
from m2h_lightning.data.store.build import UNPACKED, Outcome, Wish, build, claim, finished
from m2h_lightning.data.store.shards import locked
from m2h_lightning.errors import ConfigError, DataError

_SHOWN = 10  # lines of samples that cannot be read


def _parser(source: type[Source] | None) -> OneLineParser:
    parser = OneLineParser(
        prog="m2h data prepare",
        description="Decode a data set once; training then reads it by memory map, every label exactly as stored.",
        epilog="The edge rule, and what a disparity becomes, are chosen at load: all are kept. An interrupted run goes "
        "on where it stopped when the same command is given again.",
        allow_abbrev=False,
    )
    parser.add_argument("set", metavar="SET", help=f"the data set: {', '.join(SETS)}")
    parser.add_argument(
        "--src", type=Path, nargs="+", required=True, metavar="PATH", help="its folder or file, or its archives"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the store's own folder")
    parser.add_argument("--split", nargs="+", metavar="NAME", help="train, val, test (default: all that are there)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core, at most 8)")
    parser.add_argument(
        "--samples-per-shard", type=int, default=64, metavar="N", help="most samples in a file (default %(default)s)"
    )
    parser.add_argument("--normals", metavar="HOW", help="provided, derived (from depth) or none")
    parser.add_argument("--normal-axes", metavar="AXES", help='axes of the stored normals, such as "x,-y,-z"')
    parser.add_argument("--skip-corrupt", action="store_true", help="leave out samples that cannot be read")
    parser.add_argument("--overwrite", action="store_true", help="remove what was prepared in --out before")
    if source is None:
        return parser
    add_own_options(parser, source)
    return parser


def _options(source: type[Source], args: Any) -> dict[str, Any]:
    """Return what differs from the defaults of the set's reader."""
    common = {"normals": args.normals, "normal_axes": args.normal_axes}
    return {key: value for key, value in common.items() if value is not None} | own_options(args, source)


def main_prepare(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: Arguments after ``m2h data prepare``.

    Returns:
        0; 130 after Ctrl-C. ``--help`` leaves by SystemExit(0) as argparse does.

    Raises:
        ConfigError: An argument is wrong; the message is one line.
        DataError: The set cannot be read, samples of it cannot, or the store cannot be written.
    """
    words = [word for word in argv if not word.startswith("-")]
    name = next((word for word in words if word in SETS), None)
    if name is None and argv and not argv[0].startswith("-"):
        source_class(argv[0])  # says what it could have meant
    source = source_class(name) if name else None
    args = _parser(source).parse_args(argv)
    if args.set != name:  # a word in front of it was the name of a set too
        source = source_class(args.set)
        args = _parser(source).parse_args(argv)
    assert source is not None
    splits = tuple(dict.fromkeys(part for word in args.split or () for part in word.split(",") if part))
    archived = _archives(args.src)
    wish = Wish(
        source,
        _options(source, args),
        splits or None,
        args.samples_per_shard,
        args.skip_corrupt,
        args.workers,
        tuple((path.name, path.stat().st_size) for path in archived),
    )
    out: Path = args.out.expanduser()
    try:
        outcome = run(out, args.src[0].expanduser(), wish, archived, args.overwrite)
    except KeyboardInterrupt:
        print("m2h data prepare: stopped; give the same command again to go on", file=sys.stderr)
        return 130
    if outcome.errors:
        _tell_errors(outcome)
        raise DataError(
            f"{len(outcome.errors)} sample(s) of {wish.source.name} cannot be read: mend them, or give --skip-corrupt "
            "to leave them out; what is finished is kept, the next run goes on from there"
        )
    _tell(out, outcome)
    return 0


def _archives(sources: Sequence[Path]) -> list[Path]:
    """Return the archives among the sources: all of them, or none.

    Raises:
        DataError: One is missing.
        ConfigError: One is no archive though another is, or a prepared store.
    """
    paths = [path.expanduser() for path in sources]
    if is_store(paths[0]):
        raise ConfigError(f"--src {paths[0]}: is a prepared store already; give the data set's own files")
    if not archives.is_archive(paths[0]) and len(paths) == 1:
        return []
    for path in paths:
        if not archives.is_archive(path):
            raise ConfigError(
                f"--src {path}: is none of {', '.join(archives.ENDINGS)}; several --src are several archives of one set"
            )
    archives.key_of(paths)
    return paths


def run(out: Path, path: Path, wish: Wish, archived: list[Path], overwrite: bool = False) -> Outcome:
    """Prepare a store, unpacking archives first.

    Args:
        out: The store's folder; made when it is not there.
        path: The data set's own folder or file; not used where ``archived`` are given.
        wish: What is to be prepared.
        archived: Archives of the set.
        overwrite: Remove what was prepared there before.

    Raises:
        DataError: See :func:`main_prepare`.
        ConfigError: See :func:`main_prepare`.
    """
    if not archived:
        if not path.exists():
            raise DataError(f"--src {path}: does not exist; expected {wish.source.layout_hint}")
        wish.source(path, **wish.options)  # what is wrong with it is told before --overwrite removes anything
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: cannot be made ({error.strerror}): choose another folder") from error
    with locked(out, wait=False):
        claim(out, wish, overwrite)
        if archived and not overwrite and (manifest := finished(out, wish)) is not None:
            listed = [{"name": name, "bytes": size} for name, size in wish.archives]
            if manifest.get("archives") == listed:
                return Outcome(manifest)
        if not archived:
            return build(out, path, wish, overwrite)
        with _unpacked(out, archived) as folder:
            outcome = build(out, _find(folder, wish), wish, overwrite)
        if not outcome.errors:
            _remove_unpacked(out)
        return outcome


@contextlib.contextmanager
def _unpacked(out: Path, archived: list[Path]) -> Iterator[Path]:
    """Unpack archives within the store; an earlier run's unpacked files are used again."""
    folder = out / f"{UNPACKED}{archives.key_of(archived)}"
    for other in out.glob(f"{UNPACKED}*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    if not folder.is_dir():
        print(f"prepare: unpacking {', '.join(path.name for path in archived)}", file=sys.stderr, flush=True)
        archives.unpack_all(archived, folder)
    yield folder


def _remove_unpacked(out: Path) -> None:
    for folder in out.glob(f"{UNPACKED}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _find(folder: Path, wish: Wish) -> Path:
    """Return the data set's folder: the unpacked one, or the only folder in it, and so on.

    Raises:
        DataError: The set is in none of them.
    """
    first: DataError | None = None
    while True:
        try:
            wish.source(folder, **wish.options)
            return folder
        except DataError as error:
            first = first or error
        below = [path for path in folder.iterdir() if path.is_dir()]
        files = [path for path in folder.iterdir() if path.suffix == ".mat"]
        if len(below) != 1 or files:
            raise first
        folder = below[0]


def _tell_errors(outcome: Outcome) -> None:
    for name, reason in outcome.errors[:_SHOWN]:
        print(f"  {name}: {reason}", file=sys.stderr)
    if len(outcome.errors) > _SHOWN:
        print(f"  … and {len(outcome.errors) - _SHOWN} more", file=sys.stderr)


def _tell(out: Path, outcome: Outcome) -> None:
    """Say what is there now and how it is used."""
    manifest = outcome.manifest
    name = manifest["set"]
    print(f"{name}: {manifest['packaging']}")
    for split, told in manifest["splits"].items():
        official = manifest["official"].get(split)
        of = f" of {official}" if official not in (None, told["samples"]) else ""
        print(f"  {split}: {told['samples']}{of} samples of {told['scenes']} scenes")
    if manifest["skipped"]:
        print(f"  left out: {len(manifest['skipped'])} that cannot be read, listed in manifest.json under 'skipped'")
    if manifest["depth_beyond_half_floats"]:
        print(f"  depth beyond 65504 m: {manifest['depth_beyond_half_floats']} pixels, unknown now")
    size = sum(entry["bytes"] for entry in manifest["shards"])
    amount = f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"
    print(f"  {out}: {amount} in {len(manifest['shards'])} shards")
    if outcome.written:
        rate = outcome.written / max(outcome.seconds, 1e-9)
        print(f"  {outcome.written} samples written in {outcome.seconds:.1f} s, {rate:.1f} samples/s")
    else:
        print("  complete already: nothing to do")
    print(f"use it: --data.path {out}  (or keep it as <root>/{name}-prepared)")
