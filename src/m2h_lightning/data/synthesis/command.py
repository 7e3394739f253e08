"""``m2h data synthesize rooms``: render the Rooms data set ahead of training."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from m2h_lightning.data.rooms_store import RoomsSpec, RoomsStore, ensure_rooms
from m2h_lightning.data.synthesis.generate import SPLIT_CODES
from m2h_lightning.errors import ConfigError, did_you_mean


class _Parser(argparse.ArgumentParser):
    """A parser that reports in one line."""

    def error(self, message: str) -> NoReturn:
        hint = ""
        if message.startswith("unrecognized arguments: "):
            word = message.split(": ", 1)[1].split()[0].split("=")[0]
            options = [option for action in self._actions for option in action.option_strings]
            hint = did_you_mean(word, options)
        raise ConfigError(f"{self.prog}: {message}{hint} (see {self.prog} --help)")


def _parser() -> _Parser:
    defaults = {field.name: field.default for field in fields(RoomsSpec)}
    parser = _Parser(
        prog="m2h data synthesize", description="Render the procedural data set Rooms into a cache.", allow_abbrev=False
    )
    parser.add_argument("dataset", choices=["rooms"], help="the data set to make")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder under which the caches lie")
    parser.add_argument("--rooms", type=int, default=defaults["rooms"], help="rooms per split (default %(default)s)")
    parser.add_argument(
        "--views", type=int, default=defaults["views_per_room"], help="samples per room (default %(default)s)"
    )
    parser.add_argument("--height", type=int, default=defaults["height"], help="pixels (default %(default)s)")
    parser.add_argument("--width", type=int, default=defaults["width"], help="pixels (default %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults["seed"], help="default %(default)s")
    parser.add_argument("--split", default="train", help="train, val, test or all (default %(default)s)")
    parser.add_argument("--mode", default=defaults["mode"], help="views or sequence (default %(default)s)")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core, at most 8)")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also write a contact sheet of the first split")
    return parser


def main_synthesize(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: Arguments after ``m2h data synthesize``.

    Returns:
        0; ``--help`` leaves by SystemExit(0) as argparse does.

    Raises:
        ConfigError: An argument is wrong; the message is one line.
        DataError: The cache or the sheet cannot be written.
    """
    args = _parser().parse_args(argv)
    splits = list(SPLIT_CODES) if args.split == "all" else [args.split]
    specs = [
        RoomsSpec(split, args.rooms, args.views, args.height, args.width, args.seed, args.mode) for split in splits
    ]
    folders = []
    for spec in specs:
        folder = ensure_rooms(args.out, spec, workers=args.workers)
        folders.append(folder)
        print(f"{spec.split}: {spec.count} samples of {spec.rooms} rooms in {folder}")
    if args.sheet:
        from m2h_lightning.data.synthesis.sheet import write_sheet

        write_sheet(RoomsStore(folders[0]), args.sheet)
        print(f"contact sheet: {args.sheet}")
    return 0
