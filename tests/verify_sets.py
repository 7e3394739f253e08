"""A toy data set for the tests of verification: rooms of planes in closed form, kept as .npy files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from m2h_lightning.data.raw import RawSample
from m2h_lightning.data.sources.axes import apply_axes
from m2h_lightning.data.sources.base import Item, Source
from m2h_lightning.data.sources.reading import read_npy
from m2h_lightning.geometry import pixel_rays, plane_normals

SIZE = (72, 96)
K = np.array([[80.0, 0, 50.0], [0, 82.0, 33.0], [0, 0, 1]])
MODALITIES = ("image", "semseg", "depth", "normals", "edges")
SPLITS = ("train", "val")


def room(seed: int, planes: int = 7) -> dict[str, np.ndarray]:
    """A closed room seen from inside: every pixel lies on the nearest of its walls; float64 labels.

    Args:
        seed: Of the wall's tilts and distances.
        planes: 1 is the wall in front alone, and so on: floor, ceiling, left, right, two slanted ones.
    """
    rng = np.random.default_rng(seed)
    walls = [(0, 0, -1), (0, -1, 0), (0, 1, 0), (1, 0, 0), (-1, 0, 0), (0.8, 0.3, -0.6), (-0.5, -0.6, -0.6)][:planes]
    away = [3.0, 1.2, 1.3, 1.6, 1.5, 2.4, 2.0][:planes]
    rays = pixel_rays(K, *SIZE)
    depth, normals, semseg = np.full(SIZE, np.inf), np.zeros((*SIZE, 3)), np.zeros(SIZE, np.uint8)
    for index, (wall, distance) in enumerate(zip(walls, away, strict=True)):
        n = np.asarray(wall) + rng.normal(0, 0.04, 3) * (planes > 1)
        n /= np.linalg.norm(n)
        towards = np.einsum("c,chw->hw", n, rays)
        with np.errstate(divide="ignore"):
            z = np.where(towards < 0, -distance * rng.uniform(0.9, 1.1) / towards, np.inf)
        nearer = z < depth
        depth[nearer], normals[nearer], semseg[nearer] = z[nearer], n, index
    edges = np.zeros(SIZE, np.uint8)
    edges[:, :-1] |= semseg[:, :-1] != semseg[:, 1:]
    edges[:-1] |= semseg[:-1] != semseg[1:]
    image = np.repeat((40 + 25 * semseg)[..., None], 3, -1) + rng.integers(0, 12, (*SIZE, 3), dtype=np.uint8)
    return {"image": image, "semseg": semseg, "depth": depth, "normals": normals, "edges": edges}


def make_set(root: Path, counts: tuple[int, int] = (10, 8), planes: int = 7, **changes) -> Path:
    """Write a healthy set.

    Args:
        root: Folder to make.
        counts: Samples in train and val.
        planes: See :func:`room`.
        changes: A function of the array for a modality, or a value of ``facts.json``.
    """
    for split, count in zip(SPLITS, counts, strict=True):
        for modality in MODALITIES:
            (root / split / modality).mkdir(parents=True)
        for index in range(count):
            maps = room(index + 100 * (split == "val"), planes)
            for key, array in maps.items():
                if key in changes:
                    array = changes[key](array)
                array = array.astype(np.float32) if array.dtype == np.float64 else array
                np.save(root / split / key / f"{split}_{index:04d}.npy", array)
    facts = {"official": dict(zip(SPLITS, counts, strict=True)), "K": K.tolist(), "derived": False, "axes": "x,y,z"}
    facts |= {key: value for key, value in changes.items() if key in facts or key in ("scenes", "turned")}
    (root / "facts.json").write_text(json.dumps(facts))
    return root


class ToySource(Source):
    """Reads what :func:`make_set` writes."""

    name = "toy"
    folders = ("toy",)
    layout_hint = "facts.json, train/ and val/"
    classes = ("front", "floor", "ceiling", "left", "right", "slanted", "ramp")
    depth_range = (0.1, 10.0)
    packaging = "toy set [v1]"
    splits = SPLITS
    edge_rules = ("provided", "semantic")
    tasks = ("semseg", "depth", "normals", "edges")

    def __init__(self, path, edges=None, normals=None, normal_axes=None) -> None:
        super().__init__(path, edges, normals, normal_axes)
        self.facts = json.loads((self.path / "facts.json").read_text())
        self.official = self.facts["official"]
        self.stored_axes = normal_axes or self.facts["axes"]
        self.provenance = {"normals": "derived from depth" if self.facts["derived"] else "provided"}

    def items(self, split: str) -> list[Item]:
        listed = self.path / split / "list.txt"
        names = listed.read_text().split() if listed.exists() else None
        names = names or sorted(path.stem for path in (self.path / split / "image").iterdir())
        scenes = self.facts.get("scenes", {})
        return [
            Item(
                name,
                split,
                scenes.get(name, name),
                {key: self.path / split / key / f"{name}.npy" for key in MODALITIES},
            )
            for name in names
        ]

    def load(self, item: Item) -> RawSample:
        out = {key: read_npy(item.files[key]) for key in MODALITIES}
        camera = np.array(self.facts["K"], np.float64)
        if self.facts["derived"]:
            out["normals"] = plane_normals(out["depth"], camera)
        else:
            out["normals"] = apply_axes(out["normals"], self.stored_axes)
        if self.facts.get("turned"):  # as readers of sets with inward normals do
            away = np.einsum("hwc,chw->hw", out["normals"], pixel_rays(camera, *SIZE)) > 0
            out["normals"] = np.where(away[..., None], -out["normals"], out["normals"])
        return {**out, "K": camera, "id": item.id}


def open_toy(name, path, partial=False, **options) -> Source:
    """Stands in for ``open_source``."""
    return ToySource(path, **options)
