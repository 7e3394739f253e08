"""A tiny data set of .npz files with everything that a store must keep; importable by working processes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np

from m2h_lightning.data.raw import DepthCode
from m2h_lightning.data.sources.base import Item, Source
from m2h_lightning.errors import ConfigError, DataError

CLASSES = ("floor", "wall", "thing")


class ToySource(Source):
    """One .npz per sample, lists in ``lists.json``: {split: [[id, scene, height, width], …]}."""

    name = "toy"
    folders = ("toy",)
    layout_hint = "lists.json and samples/*.npz"
    classes = CLASSES
    official = {"train": 9}

    def __init__(self, path, edges=None, normals=None, normal_axes=None, partial=False):
        super().__init__(path, edges, normals, normal_axes)
        if not (self.path / "lists.json").is_file():
            raise DataError(f"{self.path}: no lists.json here; expected {self.layout_hint}")
        if normals == "derived":
            raise ConfigError("data.normals is 'derived'; toy has provided, none")
        self.lists = json.loads((self.path / "lists.json").read_text())
        self.packaging = f"toy with {sum(map(len, self.lists.values()))} samples"
        self.splits = tuple(self.lists)
        self.tasks = ("semseg", "depth", *(() if normals == "none" else ("normals",)), "edges")
        self.edge_rules = ("provided", "semantic", "instance")
        self.provenance = {
            "semseg": "drawn",
            "depth": "drawn",
            "normals": "provided, drawn",
            "edges": f"edges {self.edges}",
        }

    def items(self, split):
        return [
            Item(name, split, scene, {"image": self.path / "samples" / f"{name}.npz"})
            for name, scene, _, _ in self.lists[split]
        ]

    def size(self, item):
        if not item.files["image"].is_file():
            raise DataError(f"{item.files['image']}: missing; get it again")
        return next((h, w) for name, _, h, w in self.lists[item.split] if name == item.id)

    def load(self, item):
        time.sleep(float(os.environ.get("TOY_SLOW", 0)))
        path = item.files["image"]
        try:
            with np.load(path) as content:
                raw = dict(content)
        except Exception as error:
            raise DataError(f"{path}: corrupt ({type(error).__name__}); get it again") from None
        if "normals" not in self.tasks:
            raw.pop("normals", None)
        return {**raw, "id": item.id}


class ToyFar(ToySource):
    """The same with a depth range beyond 13.1 m."""

    name = "toyfar"
    depth_range = (0.1, 100.0)


class ToyStereo(ToySource):
    """The same with stored disparities."""

    name = "toystereo"

    def __init__(self, path, edges=None, normals=None, normal_axes=None, depth_target="metric"):
        super().__init__(path, edges, normals, normal_axes)
        self.depth_target = depth_target
        self.depth_range = {"metric": (1.0, 80.0), "disparity": (5.0, 256.0), "inverse": (0.0125, 1.0)}[depth_target]
        self.provenance["depth"] = f"disparity as {depth_target}"

    def load(self, item):
        raw = super().load(item)
        stored = np.rint(raw["depth"] * 2000).astype(np.uint16)
        code = DepthCode(baseline_fx=400.0 + len(item.id), target=self.depth_target, cap=80.0)
        return {**raw, "depth": stored, "depth_code": code}


class ToyPosed(ToySource):
    """The same with poses, but for every third sample."""

    name = "toyposed"
    poses = True

    def load(self, item):
        raw = super().load(item)
        number = int(item.id.rpartition("/")[2])
        return raw if number % 3 == 1 else {**raw, "pose": toy_pose(number)}


def toy_pose(number: int) -> np.ndarray:
    """A pose whose numbers have no end in binary."""
    pose = np.array([[0.0, -1, 0, 1 / 3], [1, 0, 0, -2 / 7], [0, 0, 1, 1e5 / 9], [0, 0, 0, 1]])
    pose[0, 3] += number
    return pose


SIZES = ((24, 32), (20, 28))


def draw(seed: int, height: int, width: int) -> dict[str, np.ndarray]:
    """A sample with every kind of unknown pixel."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 3, (height // 4, width // 4))
    semseg = np.kron(coarse, np.ones((4, 4), int)).astype(np.uint8)
    semseg[random.random((height, width)) < 0.05] = 255
    depth = random.uniform(0.3, 9.9, (height, width)).astype(np.float32)
    depth[random.random((height, width)) < 0.1] = 0
    normals = random.normal(size=(height, width, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[random.random((height, width)) < 0.1] = 0
    edges = random.integers(0, 2, (height, width)).astype(np.uint8)
    edges[random.random((height, width)) < 0.1] = 255
    return {
        "image": random.integers(0, 256, (height, width, 3)).astype(np.uint8),
        "semseg": semseg,
        "depth": depth,
        "normals": normals,
        "edges": edges,
        "instance": random.integers(0, 4, (height, width)).astype(np.int32),
        "K": np.array([[30.0 + seed, 0, 15.5], [0, 31.0, 11.5], [0, 0, 1]]),
    }


def write_toy(root: Path, train: int = 9, test: int = 3, sizes=SIZES) -> Path:
    """Write the data set: every third sample is smaller; "b/3" lacks depth, "b/4" normals and instances."""
    lists = {"train": [], "test": []}
    for split, count in (("train", train), ("test", test)):
        for number in range(count):
            name = f"{split[0].replace('t', 'b') if split == 'train' else 'c'}/{number}"
            height, width = sizes[number % 3 == 2]
            sample = draw(len(lists[split]) + 100 * (split == "test"), height, width)
            for key in {"b/3": ("depth",), "b/4": ("normals", "instance")}.get(name, ()):
                del sample[key]
            path = root / "samples" / f"{name}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **sample)
            lists[split].append([name, f"scene {number // 2}", height, width])
    (root / "lists.json").write_text(json.dumps(lists))
    return root


def register(setattr=setattr) -> None:
    """Let the command line know these sets; give ``monkeypatch.setattr`` to undo it after a test."""
    from m2h_lightning.data import prepare, sources

    where = {cls.name: cls for cls in (ToySource, ToyFar, ToyStereo)}
    known = sources.source_class
    setattr(prepare, "SETS", (*sources.SETS, *where))
    setattr(prepare, "source_class", lambda name: where.get(name) or known(name))


def command() -> int:
    """The command line with these sets, for processes of their own."""
    import sys

    from m2h_lightning.data.prepare import main_prepare
    from m2h_lightning.errors import M2HError

    register()
    try:
        return main_prepare(sys.argv[1:])
    except M2HError as error:
        print(f"m2h: error: {error}", file=sys.stderr)
        return 2
