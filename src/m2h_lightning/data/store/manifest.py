"""Describe a finished store: list of samples, digests of sources, and the manifest that makes it a store. No torch.

Nothing here depends on the machine, the time, or the way there: the same sources and options give the same bytes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

from m2h_lightning.data.raw import DepthTarget
from m2h_lightning.data.sources.base import Source
from m2h_lightning.data.store.plan import FORMAT, SplitPlan
from m2h_lightning.data.store.reader import KIND, MANIFEST, SAMPLES
from m2h_lightning.data.store.record import DEPTH_TEXT, EDGES_TEXT, HAS_TEXT, NORMALS_TEXT, POSE_TEXT, Layout
from m2h_lightning.data.store.shards import write_atomically
from m2h_lightning.data.store.writer import Report

SOURCES = "sources.sha256"


def facts(source: Source, layout: Layout, another: Callable[..., Source]) -> dict[str, Any]:
    """Return what a reader of the store has to know of the set.

    Args:
        source: What is prepared.
        layout: What records hold.
        another: Opens the same source with ``edges`` or ``depth_target`` set: their words differ.
    """
    targets = {"metric": source}
    if layout.depth == "coded":
        targets = {target: another(depth_target=target) for target in get_args(DepthTarget)}
    texts = {rule: another(edges=rule).provenance.get("edges", "") for rule in layout.edge_rules}
    origin = None
    if "normals" in source.tasks:
        derived = source.provenance.get("normals", "").startswith("derived")
        origin = source.normals or ("derived" if derived else "provided")
    axes = source.stored_axes if origin == "provided" else None
    return {
        "packaging": source.packaging,
        "tasks": list(source.tasks),
        "classes": list(source.classes),
        "depth": {
            "stored": layout.depth,
            "coding": DEPTH_TEXT[layout.depth],
            "targets": {
                target: {"range": list(one.depth_range), "provenance": one.provenance.get("depth", "")}
                for target, one in targets.items()
            },
        },
        "normals": {
            "from": origin or "none",
            "axes": axes,
            "coding": NORMALS_TEXT,
        },
        "edges": {"rules": texts, "coding": EDGES_TEXT},
        **({"pose": {"coding": POSE_TEXT}} if layout.pose else {}),
        "has": HAS_TEXT,
        "provenance": dict(source.provenance),
        "official": dict(source.official),
    }


def write_lists(folder: Path, plans: dict[str, SplitPlan], reports: dict[str, Report], files: dict[str, list]) -> dict:
    """Write the list of samples and the list of source files; return what the manifest says of everything stored.

    Args:
        folder: The store.
        plans: Of each split.
        reports: Of each shard, by its name.
        files: Size and SHA-256 of every source file, by its path within the data set.

    Raises:
        DataError: A file cannot be written.
    """
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "split", "scene", "shard", "row"])
    splits, shards, skipped = {}, [], []
    for split, plan in plans.items():
        places: dict[str, list[Any]] = {}
        labels: dict[str, int] = {}
        for shard in plan.shards:
            report = reports[shard.name]
            left_out = dict(report.skipped)
            skipped += [{"id": name, "split": split, "reason": reason} for name, reason in report.skipped]
            kept = [item for item in shard.items if item.id not in left_out]
            places.update({item.id: [item.scene, shard.name, row] for row, item in enumerate(kept)})
            for key, count in report.labels.items():
                labels[key] = labels.get(key, 0) + count
            if kept:
                entry = {"split": split, "height": shard.height, "width": shard.width, "samples": len(kept)}
                shards.append({"name": shard.name, **entry, "bytes": report.bytes, "sha256": report.sha256})
        for name in plan.order:
            if name in places:
                scene, shard_name, row = places[name]
                rows.writerow([name, split, scene, shard_name, row])
        scenes = len({scene for scene, _, _ in places.values()})
        splits[split] = {"samples": len(places), "scenes": scenes, "with": labels}
    listed = "".join(f"{sha256}  {name}\n" for name, (_, sha256) in sorted(files.items()))
    out: dict[str, dict[str, Any]] = {}
    for key, name, content in (("samples", SAMPLES, text.getvalue()), ("sources", SOURCES, listed)):
        data = content.encode()
        write_atomically(folder / name, data)
        out[key] = {"file": name, "sha256": hashlib.sha256(data).hexdigest()}
    out["sources"] |= {"files": len(files), "bytes": sum(size for size, _ in files.values())}
    beyond = sum(report.beyond for report in reports.values())
    return {
        "splits": splits,
        "depth_beyond_half_floats": beyond,
        "skipped": skipped,
        "samples": out["samples"],
        "sources": out["sources"],
        "shards": shards,
    }


def write_manifest(folder: Path, identity: dict[str, Any], *parts: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest, last of all; return it.

    Raises:
        DataError: It cannot be written.
    """
    manifest: dict[str, Any] = {"kind": KIND, "format": FORMAT, **identity}
    for part in parts:
        manifest |= part
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / MANIFEST, text.encode())
    return manifest


def stored_names(manifest: dict[str, Any]) -> Iterable[str]:
    """Return the names of a manifest's shards."""
    return [entry["name"] for entry in manifest["shards"]]
