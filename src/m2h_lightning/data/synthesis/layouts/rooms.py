"""``m2h data synthesize rooms --layout``: render Rooms with the camera of a data set and write them in its layout."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from m2h_lightning.data.sources import nyud_facts
from m2h_lightning.data.sources.reading import import_h5py
from m2h_lightning.data.synthesis.layouts import LayoutSample, check_target, write_layout
from m2h_lightning.data.synthesis.layouts.cityscapes import check_scale
from m2h_lightning.data.synthesis.store import RoomsSpec, RoomsStore, ensure_rooms
from m2h_lightning.errors import ConfigError
from m2h_lightning.geometry import resize_intrinsics

Frame = tuple[str, str, str, int]
"""Id and scene as the layout spells them, the split, and the number of the sample in that split's cache."""

SPLITS = {
    "nyud": ("train", "test"),
    "hypersim": ("train", "val", "test"),
    "cityscapes": ("train", "val", "test"),
    "folder": ("train", "val", "test"),
}
SIZES = {"nyud": (480, 640), "hypersim": (768, 1024), "cityscapes": (1024, 2048), "folder": (240, 320)}
"""Height and width as published (or, for a plain folder, as Rooms has them)."""
NYUD_D_SIZE = (288, 384)

# Cities by split (cityscapesScripts, README); rooms take turns.
_CITIES = {
    "train": "aachen bochum bremen cologne darmstadt dusseldorf erfurt hamburg hanover jena krefeld monchengladbach "
    "strasbourg stuttgart tubingen ulm weimar zurich",
    "val": "frankfurt lindau munster",
    "test": "berlin bielefeld bonn leverkusen mainz munich",
}


@dataclass(frozen=True)
class Request:
    """What to render and how to write it.

    Args:
        layout: Name of the layout.
        out: Folder to make.
        split: "train", "val", "test", or "all" for those the layout has.
        rooms: Rooms per split.
        views: Samples per room.
        height: Pixels; None as published.
        width: Pixels; None as published.
        seed: Seed of Rooms.
        mode: "views" or "sequence".
        workers: Rendering processes; None for one per core, at most 8.
        cache: Folder of the rendered rooms, which is kept; None renders beside ``out`` and clears it up.
        options: Of the layout's writer.
    """

    layout: str
    out: Path
    split: str
    rooms: int
    views: int
    height: int | None
    width: int | None
    seed: int
    mode: str
    workers: int | None
    cache: Path | None
    options: dict[str, Any]


def _splits(request: Request) -> tuple[str, ...]:
    splits = SPLITS[request.layout]
    if request.options.get("packaging") == "mat" and request.split != "all":
        raise ConfigError("--packaging mat numbers train and test samples in one file: leave --split out")
    if request.split == "all":
        return splits
    if request.split not in splits:
        raise ConfigError(f"--split is '{request.split}'; the layout {request.layout} has {', '.join(splits)} (or all)")
    return (request.split,)


def _size(request: Request) -> tuple[int, int]:
    height, width = NYUD_D_SIZE if request.options.get("packaging") == "D" else SIZES[request.layout]
    return request.height or height, request.width or width


def camera(layout: str, height: int, width: int) -> tuple[float, float, float, float] | None:
    """Return fx, fy, cx, cy of a data set's camera at a size; None where each sample may have its own.

    Raises:
        ConfigError: The set's camera is not known at this size.
    """
    if layout == "folder":
        return None
    if layout == "hypersim":  # the standard camera: 60° across, centred (ml-hypersim, issue 9)
        focal = width / (2 * np.tan(np.pi / 6))
        return focal, focal, (width - 1) / 2, (height - 1) / 2
    if layout == "cityscapes":  # the intrinsics that most camera files hold
        full = np.array([[2262.52, 0.0, 1096.98], [0.0, 2265.3017905988554, 513.137], [0.0, 0.0, 1.0]])
        K: np.ndarray | None = resize_intrinsics(full, height / 1024, width / 2048)
    else:
        K = nyud_facts.camera(height, width)
    if K is None:
        raise ConfigError(
            f"--height {height} --width {width}: NYUDv2's files say nothing of the camera, it follows from the size; "
            "take 480×640, a size of the same shape, or 425×560"
        )
    return float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])


def official_frames(split: str, rooms: int, views: int) -> list[int]:
    """Return NYUDv2 ids for the samples of ``rooms`` rooms: each room has a run of frames to itself where one is left.

    Raises:
        ConfigError: There are not so many ids.
    """
    ids = nyud_facts.official_ids(split)
    if rooms * views > len(ids):
        raise ConfigError(
            f"--rooms {rooms} --views {views}: NYUDv2 has {len(ids)} {split} ids, not {rooms * views}; ask for less"
        )
    runs: dict[str, list[int]] = {}
    for number in ids:
        runs.setdefault(nyud_facts.run_of(number), []).append(number)
    own = [run[:views] for run in runs.values() if len(run) >= views][:rooms]
    taken = {number for run in own for number in run}
    rest = [number for number in ids if number not in taken]
    return [number for run in own for number in run] + rest[: rooms * views - len(taken)]


def _nyud_frames(splits: tuple[str, ...], rooms: int, views: int, packaging: str) -> list[Frame]:
    if packaging == "mat":
        # Position is id, and the official lists say which side an id is on: as many as both sides have samples for.
        test = set(nyud_facts.official_ids("test"))
        used = {"train": 0, "test": 0}
        frames: list[Frame] = []
        for number in range(1, nyud_facts.COUNT + 1):
            split = "test" if number in test else "train"
            if used[split] == rooms * views:
                break
            room = used[split] // views + (rooms if split == "test" else 0)
            frames.append((f"{number:04d}", f"room_{room + 1:04d}", split, used[split]))
            used[split] += 1
        return frames
    return [
        (f"{number:04d}", nyud_facts.run_of(number), split, index)
        for split in splits
        for index, number in enumerate(official_frames(split, rooms, views))
    ]


def frames_of(layout: str, splits: tuple[str, ...], rooms: int, views: int, packaging: str = "A") -> list[Frame]:
    """Return the names that the samples get in a layout.

    Args:
        layout: Name of the layout.
        splits: Splits in the order of the caches.
        rooms: Rooms per split.
        views: Samples per room.
        packaging: Of NYUDv2.

    Raises:
        ConfigError: The layout has not so many names.
    """
    if layout == "nyud":
        return _nyud_frames(splits, rooms, views, packaging)
    frames: list[Frame] = []
    for split in splits:
        for index in range(rooms * views):
            room, view = divmod(index, views)
            if layout == "cityscapes":
                cities = _CITIES[split].split()
                scene = f"{cities[room % len(cities)]}_{room // len(cities):06d}"
                name = f"{scene}_{view:06d}"
            elif layout == "hypersim":
                number = room + rooms * SPLITS[layout].index(split)
                if number >= 9990:
                    raise ConfigError(f"--rooms {rooms}: Hypersim's names are for 9990 scenes; ask for less")
                scene = f"ai_{number // 10 + 1:03d}_{number % 10 + 1:03d}"
                name = f"{scene}/cam_00/frame.{view:04d}"
            else:
                scene = f"{split}-room-{room:05d}"
                name = f"{scene}/{view:03d}"
            frames.append((name, scene, split, index))
    return frames


def _samples(frames: list[Frame], stores: dict[str, RoomsStore], posed: bool) -> Iterator[LayoutSample]:
    for name, scene, split, index in frames:
        raw = stores[split].read(index, extras=True)
        keys = ("image", "semseg", "depth", "normals", "edges", "K")
        yield LayoutSample(
            **{key: raw[key] for key in keys},
            instance=raw["instance"].astype(np.int32),
            pose=raw["pose"] if posed else None,
            id=name,
            scene=scene,
            split=split,
        )


def _with_progress(samples: Iterator[LayoutSample], total: int, out: Path) -> Iterator[LayoutSample]:
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(samples, f"writing {out.name}", total=total, console=console)
        return
    print(f"layout: writing {total} samples into {out}", file=sys.stderr, flush=True)
    yield from samples


def synthesize_layout(request: Request) -> dict[str, int]:
    """Render and write.

    Returns:
        Number of samples written of each split.

    Raises:
        ConfigError: An option does not suit the layout.
        DataError: The output folder is in use, or something cannot be written.
        MissingExtraError: h5py is needed and not installed.
    """
    check_target(request.out)
    # All that can be wrong is found before anything is rendered.
    if "metres_scale" in request.options:
        check_scale(request.options["metres_scale"])
    if request.layout == "hypersim" or request.options.get("packaging") == "mat":
        import_h5py()
    splits, (height, width) = _splits(request), _size(request)
    K = camera(request.layout, height, width)
    frames = frames_of(request.layout, splits, request.rooms, request.views, request.options.get("packaging", "A"))
    # A name that a second attempt finds again: what was rendered before a kill is not rendered twice.
    cache = request.cache or request.out.with_name(f".{request.out.name}.rooms")
    stores = {}
    for split in splits:
        spec = RoomsSpec(split, request.rooms, request.views, height, width, request.seed, request.mode, K)
        stores[split] = RoomsStore(ensure_rooms(cache, spec, workers=request.workers))
    # Hypersim has poses of all views; a folder only where they make a walk.
    posed = request.layout == "hypersim" or request.mode == "sequence"
    samples = _with_progress(_samples(frames, stores, posed), len(frames), request.out)
    write_layout(request.layout, request.out, samples, **request.options)
    if request.cache is None:
        shutil.rmtree(cache, ignore_errors=True)
    return {split: sum(frame[2] == split for frame in frames) for split in splits}
