"""``m2h data synthesize rooms``: render the Rooms data set ahead of training, or in the layout of another data set."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

from m2h_lightning.data.arguments import OneLineParser
from m2h_lightning.data.synthesis.generate import SPLIT_CODES
from m2h_lightning.data.synthesis.layouts import LAYOUTS
from m2h_lightning.data.synthesis.store import RoomsSpec, RoomsStore, ensure_rooms
from m2h_lightning.errors import ConfigError

_ONLY = {"packaging": ("--packaging", "nyud"), "metres_scale": ("--metres-scale", "cityscapes")}
"""Options of single layouts."""


def _parser() -> OneLineParser:
    defaults = {field.name: field.default for field in fields(RoomsSpec)}
    parser = OneLineParser(
        prog="m2h data synthesize",
        description="Render the procedural data set Rooms into a cache, or as files in the layout of another data set.",
        allow_abbrev=False,
    )
    size = f"pixels (default {{}}; of a layout: as published, {defaults['height']}×{defaults['width']} for folder)"
    parser.add_argument("dataset", choices=["rooms"], help="the data set to make")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder under which the caches lie, or the layout's root"
    )
    parser.add_argument("--rooms", type=int, default=defaults["rooms"], help="rooms per split (default %(default)s)")
    parser.add_argument(
        "--views", type=int, default=defaults["views_per_room"], help="samples per room (default %(default)s)"
    )
    parser.add_argument("--height", type=int, help=size.format(defaults["height"]))
    parser.add_argument("--width", type=int, help=size.format(defaults["width"]))
    parser.add_argument("--seed", type=int, default=defaults["seed"], help="default %(default)s")
    parser.add_argument("--split", help="train, val, test or all (default train; with --layout all that it has)")
    parser.add_argument("--mode", help="views or sequence: one smooth walk a room (default views)")
    parser.add_argument(
        "--walk",
        action="store_true",
        help="short for --mode sequence; the layouts folder and hypersim then hold the cameras' poses",
    )
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core, at most 8)")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also write a contact sheet of the first split")
    layouts = parser.add_argument_group("layouts", "Write files as the publishers of another data set do.")
    layouts.add_argument("--layout", choices=LAYOUTS, help="whose layout; --out is then a new folder")
    layouts.add_argument("--packaging", choices=["A", "B", "C", "D", "mat"], help="of nyud (default A)")
    layouts.add_argument(
        "--metres-scale", type=float, metavar="FACTOR", help="of cityscapes: enlarge the world (default 8)"
    )
    layouts.add_argument("--cache", type=Path, metavar="DIR", help="keep the rendered rooms here for another layout")
    return parser


def _layout(args: Namespace) -> int:
    from m2h_lightning.data.synthesis.layouts.rooms import Request, synthesize_layout

    if args.sheet:
        raise ConfigError("--sheet shows a cache; leave it out with --layout")
    options: dict[str, Any] = {}
    for key, (option, layout) in _ONLY.items():
        if getattr(args, key) is not None:
            if args.layout != layout:
                raise ConfigError(f"{option} is of the layout {layout}, not of {args.layout}")
            options[key] = getattr(args, key)
    request = Request(
        layout=args.layout,
        out=args.out.expanduser(),
        split=args.split or "all",
        rooms=args.rooms,
        views=args.views,
        height=args.height,
        width=args.width,
        seed=args.seed,
        mode=args.mode,
        workers=args.workers,
        cache=args.cache.expanduser() if args.cache else None,
        options=options,
    )
    counts = synthesize_layout(request)
    what = ", ".join(f"{count} {split}" for split, count in counts.items())
    print(f"{args.layout}: {what} samples in {request.out}")
    return 0


def main_synthesize(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: Arguments after ``m2h data synthesize``.

    Returns:
        0; ``--help`` leaves by SystemExit(0) as argparse does.

    Raises:
        ConfigError: An argument is wrong; the message is one line.
        DataError: The cache, the sheet or the layout cannot be written.
        MissingExtraError: The layout needs h5py, which is an extra.
    """
    args = _parser().parse_args(argv)
    if args.walk and args.mode not in (None, "sequence"):
        raise ConfigError(f"--walk is --mode sequence, but --mode is '{args.mode}'; leave one of them out")
    args.mode = "sequence" if args.walk else RoomsSpec.mode if args.mode is None else args.mode
    if args.layout:
        return _layout(args)
    for option in ("packaging", "metres_scale", "cache"):
        if getattr(args, option) is not None:
            raise ConfigError(f"--{option.replace('_', '-')} is for --layout")
    split = args.split or "train"
    height = RoomsSpec.height if args.height is None else args.height
    width = RoomsSpec.width if args.width is None else args.width
    specs = [
        RoomsSpec(name, args.rooms, args.views, height, width, args.seed, args.mode)
        for name in (SPLIT_CODES if split == "all" else [split])
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
