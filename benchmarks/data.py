"""``make bench-data``: how fast samples are read from published files and from a prepared store, and made ready.

Rooms are rendered at 480×640, written as a folder of PNG and npy files, and prepared. One process, one thread: a loader
process is one core. What is compared is read in turn in this process (A B A B …); the median of the pairwise ratios is
the result.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.run import machine, paired, tell
from m2h_lightning.cli import main as m2h
from m2h_lightning.data.augment import TrainTransform
from m2h_lightning.data.augment_config import AugmentConfig
from m2h_lightning.data.loader import make_loader
from m2h_lightning.data.memory import start_worker
from m2h_lightning.data.raw import decode
from m2h_lightning.data.recorded import SourceDataset
from m2h_lightning.data.sample import collate, to_contract
from m2h_lightning.data.sources import Item, Source, source_class
from m2h_lightning.data.store import PreparedStore

CHAINS = {
    "scale 0.75–1.5, flip, colour jitter": AugmentConfig(scale=[0.75, 1.5]),
    "scale 0.5–2, cat_max_ratio, flip, colour jitter (InvPT)": AugmentConfig(scale=[0.5, 2.0], cat_max_ratio=0.75),
    "scale and flip alone": AugmentConfig(scale=[0.75, 1.5], brightness=0, contrast=0, saturation=0, hue=0),
}


def make_sets(folder: Path, count: int) -> tuple[Source, Source]:
    """Write a tree of files and prepare it; return both readers."""
    raw, store = folder / "raw", folder / "store"
    rooms = ["--rooms", str(count // 8), "--views", "8", "--height", "480", "--width", "640", "--split", "train"]
    for words in (
        ["data", "synthesize", "rooms", "--layout", "folder", "--out", str(raw), *rooms],
        ["data", "prepare", "folder", "--src", str(raw), "--out", str(store)],
    ):
        if m2h(words):
            raise SystemExit(f"m2h {' '.join(words)} failed")
    return source_class("folder")(raw), PreparedStore(store)


def check_labels(raw: Source, store: Source) -> None:
    """Refuse to compare readers that do not return the same labels."""
    for a, b in zip(raw.items("train"), store.items("train"), strict=True):
        one, two = decode(raw.read(a)), decode(store.read(b))
        for key in ("image", "semseg", "edges"):
            if not np.array_equal(one[key], two[key]):  # type: ignore[literal-required]
                raise SystemExit(f"{a.id}: {key} of the store is not that of the files")
        if not np.allclose(one["depth"], two["depth"], rtol=1e-3, atol=2e-4):
            raise SystemExit(f"{a.id}: depth of the store is not that of the files")


def touch(sample: dict[str, Any]) -> None:
    """Read every byte of a sample: a memory map has read nothing until somebody looks."""
    for key in ("image", "semseg", "depth", "normals", "edges"):
        if key in sample:
            np.ascontiguousarray(sample[key]).copy()


def read_all(source: Source, items: list[Item]) -> None:
    """Read all samples, whole."""
    for item in items:
        touch(source.read(item))  # type: ignore[arg-type]


def rows(folder: Path, count: int, rounds: int) -> list[dict[str, Any]]:
    """Measure everything."""
    raw, store = make_sets(folder, count)
    check_labels(raw, store)
    published, prepared = raw.items("train"), store.items("train")
    slow, fast, ratio = paired(
        lambda: read_all(raw, published), lambda: [read_all(store, prepared) for _ in range(10)], rounds
    )
    found = [
        ("read whole samples from PNG and npy files, 480×640", count / slow, "samples/s per core"),
        ("read whole samples from the prepared store", 10 * count / fast, "samples/s per core"),
        ("prepared store / files", 10 * ratio, "× (median of paired ratios)"),
    ]
    for name, config in CHAINS.items():
        transform = TrainTransform((448, 448), config)

        def train(transform: TrainTransform = transform) -> None:
            for number, item in enumerate(prepared):
                transform(store.read(item), np.random.default_rng(number))

        seconds, _, _ = paired(train, train, max(rounds, 5))
        found.append((f"training samples 448×448 from the store: {name}", count / seconds, "samples/s per core"))
    transform = TrainTransform((448, 448), CHAINS["scale 0.75–1.5, flip, colour jitter"])
    samples = [transform(store.read(item), np.random.default_rng(0)) for item in prepared[:8]]
    stack, finish, _ = paired(lambda: collate(samples), lambda: to_contract(collate(samples)), 20)
    found += [
        ("collate a batch of 8", 1e3 * stack / 8, "ms a sample"),
        ("make the contract's floats of it, on the CPU", 1e3 * (finish - stack) / 8, "ms a sample"),
    ]
    loader = make_loader(
        SourceDataset(store, prepared * 8), transform, train=True, batch_size=8, workers=1, seed=0, classes=40
    )
    batches = iter(loader)
    next(batches)  # the process has started
    start = time.perf_counter()
    loaded = sum(len(batch["id"]) for batch in batches)
    found.append(
        ("the same through a loader with one process", loaded / (time.perf_counter() - start), "samples/s per process")
    )
    return [{"what": what, "value": value, "unit": unit} for what, value, unit in found]


def main() -> None:
    """Run the benchmarks and print them."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--samples", type=int, default=64, help="samples to render (a multiple of 8)")
    parser.add_argument("--rounds", type=int, default=5, help="pairs per ratio")
    parser.add_argument("--out", type=Path, help="write the results as JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start_worker(0)  # as a loading process is prepared
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        results = rows(Path(folder), arguments.samples, arguments.rounds)
    tell(results, {**machine(), "opencv": cv2.__version__, "numpy": np.__version__}, arguments.out)


if __name__ == "__main__":
    main()
