"""Look at one sample: read it whole and count what the judgements need, so that no picture has to be kept."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from m2h_lightning.data.raw import RawSample, check_raw, decode
from m2h_lightning.data.sources.base import Item, Source
from m2h_lightning.data.sources.edges import apply_edge_rule
from m2h_lightning.data.verify.axes_search import AxesTally, tally_axes
from m2h_lightning.data.verify.depths import DepthTally, metres, tally_depth
from m2h_lightning.data.verify.edge_agreement import EdgeTally, changes, tally_edges
from m2h_lightning.data.verify.flatness import FlatnessTally, tally_flatness
from m2h_lightning.data.verify.labels import tally_labels
from m2h_lightning.data.verify.maps import MAPS, MapTally, tally_map
from m2h_lightning.data.verify.problems import Finding
from m2h_lightning.errors import DataError


@dataclass(frozen=True)
class Record:
    """What is kept of each sample by itself: ``digest`` of the decoded picture, empty if it is of one colour."""

    id: str
    split: str
    digest: str = ""


@dataclass
class Totals:
    """Sums over samples."""

    read: int = 0
    maps: dict[str, MapTally] = field(default_factory=dict)
    sizes: Counter[str] = field(default_factory=Counter)
    """Number of samples of each "height×width"."""
    labels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    depth: DepthTally = field(default_factory=DepthTally)
    axes: AxesTally = field(default_factory=AxesTally)
    flatness: FlatnessTally = field(default_factory=FlatnessTally)
    edges: EdgeTally = field(default_factory=EdgeTally)
    records: list[Record] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: Totals) -> None:
        """Add the sums over other samples."""
        self.read += other.read
        for key, tally in other.maps.items():
            self.maps.setdefault(key, MapTally()).add(tally)
        self.sizes += other.sizes
        self.labels = self.labels + other.labels
        for name in ("depth", "axes", "flatness", "edges"):
            getattr(self, name).add(getattr(other, name))
        self.records += other.records
        self.findings += other.findings


def read_all(source: Source, item: Item) -> RawSample:
    """Read a sample with its edges and, where there are any, its object numbers."""
    if type(source).read is not Source.read:
        return source.read(item)  # the set makes edges in its own way
    raw = source.load(item)
    out = apply_edge_rule(raw, source.edges)
    if "instance" in raw:
        out["instance"] = raw["instance"]
    return out


def derived_normals(source: Source) -> str:
    """Return how normals were made from depth; empty if the set provides them."""
    text = source.provenance.get("normals", "")
    return (text or "from depth") if source.normals == "derived" or "derived" in text.lower() else ""


def examine(source: Source, item: Item) -> Totals:
    """Read one sample and count; a sample that cannot be read becomes a finding.

    Args:
        source: The set.
        item: One of its samples.
    """
    totals = Totals()
    try:
        raw = read_all(source, item)
        check_raw(raw, len(source.classes))
    except DataError as error:
        what, _, mend = str(error).rpartition("; ")
        file = next((str(path) for path in item.files.values() if str(path) in str(error)), item.id)
        totals.records.append(Record(item.id, item.split))
        totals.findings.append(Finding("problem", "sample", what or mend, mend if what else "", file))
        return totals
    totals.read = 1
    _count(totals, source, item, raw)
    return totals


def _count(totals: Totals, source: Source, item: Item, raw: RawSample) -> None:
    image = np.ascontiguousarray(raw["image"])
    blank = bool((image == image[0, 0]).all())
    digest = "" if blank else hashlib.blake2b(image.tobytes() + str(image.shape).encode(), digest_size=16).hexdigest()
    totals.records.append(Record(item.id, item.split, digest))
    totals.sizes[f"{image.shape[0]}×{image.shape[1]}"] += 1

    def complain(severity: str, check: str, text: str, mend: str = "") -> None:
        totals.findings.append(Finding(severity, check, f"sample '{item.id}': {text}", mend, _file(item, check)))  # type: ignore[arg-type]

    if image.dtype != np.uint8:
        complain("problem", "image", f"image is {image.dtype}, the contract is uint8", "this is a fault of the reader")
    if blank:
        complain("warning", "image", "the image is of one colour", "is it cut off or black?")
    decoded = decode(raw)
    for key in MAPS:
        if key in raw:
            tally = tally_map(key, raw[key], decoded[key])  # type: ignore[literal-required]
            totals.maps[key] = tally
            if tally.not_finite:
                complain("problem", key, f"{key} has {tally.not_finite} numbers that are NaN or infinite", "store 0")
    K = np.asarray(raw["K"], np.float64)
    if np.isnan(K).all():
        K_known = False
    else:
        K_known = bool(np.isfinite(K).all()) and abs(np.linalg.det(K)) > 1e-12
        if not K_known:
            complain("problem", "camera", f"K cannot be inverted: {K.tolist()}", "give the camera, or all NaN")
    if not K_known:
        K = np.full((3, 3), np.nan)
    normals = decoded.get("normals")
    depth = None
    if normals is not None:
        normals = np.nan_to_num(normals, nan=0.0, posinf=0.0, neginf=0.0)
    if "depth" in raw:
        depth = metres(raw["depth"], raw.get("depth_code"), str(getattr(source, "depth_target", "metric")))
        totals.depth = tally_depth(depth)
        depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
        independent = normals is not None and not derived_normals(source)
        if normals is not None:
            totals.axes = tally_axes(depth, normals, K, item.id, independent)
        if not independent and K_known:
            totals.flatness = tally_flatness(depth, K)
    if "semseg" in raw:
        totals.labels = tally_labels(raw["semseg"])
    if "edges" in raw:
        others: dict[str, np.ndarray] = {key: raw[key] for key in ("semseg", "instance") if key in raw}
        if normals is not None:
            others["normals"] = normals
        totals.edges = tally_edges(raw["edges"], changes(others, depth))


def _file(item: Item, modality: str) -> str:
    return str(item.files.get(modality, item.id))
