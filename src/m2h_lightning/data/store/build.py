"""Build a store: what is there already, what is missing, write that, describe all. No torch."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2h_lightning.data.sources.base import Source
from m2h_lightning.data.store import manifest as describe
from m2h_lightning.data.store.plan import FORMAT, SHARDS, Shard, SplitPlan, plan, relative
from m2h_lightning.data.store.progress import Reporter
from m2h_lightning.data.store.reader import KIND, MANIFEST, PREPARED, SAMPLES
from m2h_lightning.data.store.record import HAS, Layout, depth_stored
from m2h_lightning.data.store.shards import HEADROOM, free_bytes, write_atomically
from m2h_lightning.data.store.writer import Report, WriteShard, read_report
from m2h_lightning.errors import ConfigError, DataError, did_you_mean
from m2h_lightning.processes import cores, work

UNPACKED = "unpacked-"


@dataclass(frozen=True)
class Wish:
    """What is to be prepared.

    Args:
        source: The set's reader.
        options: For its constructor.
        splits: Which splits; None for all that are here.
        samples: Most samples in a shard.
        skip_corrupt: Leave out samples that cannot be read.
        workers: Processes; None for one per core, at most 8.
        archives: Name and size of the archives from which the set was unpacked.
    """

    source: type[Source]
    options: dict[str, Any]
    splits: tuple[str, ...] | None = None
    samples: int = 64
    skip_corrupt: bool = False
    workers: int | None = None
    archives: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        for key, value in (("workers", self.workers), ("samples-per-shard", self.samples)):
            if value is not None and value < 1:
                raise ConfigError(f"--{key} is {value}, expected at least 1")

    @property
    def identity(self) -> dict[str, Any]:
        """What a store must have been prepared with, so that this wish may continue it."""
        options = {key: value for key, value in self.options.items() if key != "partial" and value is not None}
        return {
            "set": self.source.name,
            "options": json.loads(json.dumps(options, default=str)),
            "prepared_splits": list(self.splits) if self.splits else "all",
            "samples_per_shard": self.samples,
        }


@dataclass
class Outcome:
    """What became of it.

    Args:
        manifest: Of the store; empty when samples could not be read.
        written: Samples written by this run.
        seconds: Time that took.
        errors: Id and reason of samples that could not be read, when they are not to be left out.
    """

    manifest: dict[str, Any]
    written: int = 0
    seconds: float = 0.0
    errors: tuple[tuple[str, str], ...] = ()


def claim(out: Path, wish: Wish, overwrite: bool) -> None:
    """Make sure that a folder is new, or the store (finished or not) of the same wish; nothing is written.

    Args:
        out: The store; exists, and is locked by this process.
        wish: What is to be prepared.
        overwrite: What was prepared there before may be of another wish.

    Raises:
        DataError: The folder holds something else.
        ConfigError: It holds a store prepared with other options.
    """
    path = out / PREPARED
    content = {"kind": KIND, "format": FORMAT, **wish.identity}
    if path.is_file():
        if overwrite:
            return
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not readable ({error}): give --overwrite to prepare anew") from error
        for key, value in content.items():
            if found.get(key) != value:
                raise ConfigError(
                    f"{out}: was prepared with {key} {_short(found.get(key))}, now asked for {_short(value)}: "
                    "choose another --out, or --overwrite to remove what is there"
                )
    else:
        others = [name for name in (entry.name for entry in out.iterdir()) if not _ours(name)]
        if others:
            raise DataError(f"{out}: is not empty ({sorted(others)[0]}) and no prepared store; give --out a new folder")


def _take(out: Path, wish: Wish, overwrite: bool) -> None:
    """Write down whose store this is, once the source is known to be good; remove what is to be replaced."""
    if overwrite:
        for name in (MANIFEST, PREPARED, SAMPLES, describe.SOURCES):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / SHARDS, ignore_errors=True)
    if not (out / PREPARED).is_file():
        content = {"kind": KIND, "format": FORMAT, **wish.identity}
        write_atomically(out / PREPARED, json.dumps(content, indent=1, ensure_ascii=False).encode())
    (out / SHARDS).mkdir(exist_ok=True)


def _ours(name: str) -> bool:
    return name == ".lock" or name.startswith(UNPACKED) or name.endswith(".tmp")


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def finished(out: Path, wish: Wish) -> dict[str, Any] | None:
    """Return the manifest of a complete store, judged by the sizes of its files, or None."""
    try:
        manifest = json.loads((out / MANIFEST).read_text())
        whole = all(
            (out / SHARDS / f"{entry['name']}.npy").stat().st_size == entry["bytes"] for entry in manifest["shards"]
        )
        lists = [out / manifest[key]["file"] for key in ("samples", "sources")]
        if not (whole and all(path.is_file() for path in lists)):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if manifest["skipped"] and not wish.skip_corrupt else manifest


def build(out: Path, path: Path, wish: Wish, overwrite: bool = False) -> Outcome:
    """Complete a store.

    Args:
        out: Its folder, claimed and locked.
        path: The data set's own files.
        wish: What is to be prepared.
        overwrite: Remove what was prepared there before, once the source is known to be good.

    Raises:
        DataError: The set cannot be read, the disk is too small or full.
        ConfigError: A split or an option that the set does not have.
    """
    source = wish.source(path, **wish.options)
    splits = _splits(source, wish.splits)
    coded = hasattr(source, "depth_target") and "depth" in source.tasks
    labels = tuple(key for key in HAS if key in source.tasks)
    how = depth_stored(source.depth_range, coded)
    layout = Layout(labels, how, source.edge_rules, len(source.classes), source.poses)
    plans = plan(source, splits, layout, wish.identity["options"], wish.samples)
    shards = [shard for split in plans.values() for shard in split.shards]
    if overwrite and path.resolve() != out.resolve() and out.resolve() in path.resolve().parents and not wish.archives:
        raise ConfigError(f"--src {path}: lies in --out, which --overwrite would remove; move it first")
    if not overwrite:
        _refuse_loss(out, plans)
    _take(out, wish, overwrite)
    for folder in (out, out / SHARDS):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
    reports: dict[str, Report] = {}
    for shard in shards:
        if (kept := _done(out, shard, wish)) is not None:
            reports[shard.name] = kept
    todo = [shard for shard in shards if shard.name not in reports]
    facts = describe.facts(source, layout, lambda **changes: wish.source(path, **{**wish.options, **changes}))
    before = finished(out, wish)
    if before is not None and not todo:
        told = {name for name, report in reports.items() if report.samples}
        same = all(before.get(key) == value for key, value in facts.items())
        if same and told == set(describe.stored_names(before)):
            return Outcome(before)
    (out / MANIFEST).unlink(missing_ok=True)
    _check_space(out, layout, todo)
    with Reporter(f"prepare {source.name}", sum(len(shard.items) for shard in todo)) as reporter:
        users = Counter(path for shard in shards for path in {p for item in shard.items for p in item.files.values()})
        shared = frozenset(path for path, count in users.items() if count > 1)
        job = WriteShard(out, source, layout, wish.skip_corrupt, shared)
        count = min(wish.workers or min(cores(), 8), max(1, len(todo)))
        sizes = {shard.name: len(shard.items) for shard in todo}
        errors: list[tuple[str, str]] = []
        for report in work(job, todo, count, _name):
            assert isinstance(report, Report)
            reporter.advance(sizes[report.name])
            reports[report.name] = report
            if not wish.skip_corrupt:
                errors += [(name, reason) for name, reason in report.skipped]
        if errors:
            return Outcome({}, 0, reporter.seconds, tuple(sorted(errors)))
        files = _digests(source, plans, reports, job, count)
        if not any(report.samples for report in reports.values()):
            reasons = [reason for report in reports.values() for _, reason in report.skipped]
            raise DataError(f"{path}: no sample could be read ({reasons[0] if reasons else 'its lists are empty'})")
        stored = describe.write_lists(out, plans, reports, files)
        archives = [{"name": name, "bytes": size} for name, size in wish.archives]
        _remove_stale(out, reports)
        written = sum(reports[shard.name].samples for shard in todo)
        manifest = describe.write_manifest(out, wish.identity, facts, {"archives": archives}, stored)
    return Outcome(manifest, written, reporter.seconds)


def _name(task: Shard | Path) -> str:
    return f"digest of {task}" if isinstance(task, Path) else f"shard {task.name}"


def _splits(source: Source, asked: Sequence[str] | None) -> tuple[str, ...]:
    for split in asked or ():
        if split not in source.splits:
            raise ConfigError(
                f"--split {split}: {source.packaging} has {', '.join(source.splits)}"
                f"{did_you_mean(split, source.splits)}"
            )
    return tuple(split for split in source.splits if not asked or split in asked)


def _done(out: Path, shard: Shard, wish: Wish) -> Report | None:
    """Return the report of a finished shard; one with samples left out counts only where that is asked for."""
    report = read_report(out, shard.name)
    return None if report is not None and report.skipped and not wish.skip_corrupt else report


def _refuse_loss(out: Path, plans: dict[str, SplitPlan]) -> None:
    """Refuse to drop stored samples because the source has fewer now: more likely the wrong folder was given.

    Raises:
        DataError: Samples of the finished store are not in the source.
    """
    if not (out / MANIFEST).is_file():
        return
    with contextlib.suppress(OSError, ValueError), open(out / SAMPLES, newline="") as file:
        ids = {(split, name) for split, plan in plans.items() for name in plan.order}
        gone = [row["id"] for row in csv.DictReader(file) if (row.get("split"), row.get("id")) not in ids]
        if gone:
            raise DataError(
                f"{out}: holds {len(gone)} samples that --src does not have ({', '.join(gone[:3])}): give the --src "
                "it was made from, or --overwrite to prepare anew"
            )


def _check_space(out: Path, layout: Layout, todo: list[Shard]) -> None:
    need = sum(shard.bytes(layout) + (1 << 16) for shard in todo) + HEADROOM
    free = free_bytes(out)
    if need > free:
        raise DataError(
            f"{out}: {len(todo)} shards need {need:,} bytes, {free:,} are free: free space, choose another --out, or "
            "prepare fewer splits with --split"
        )


def _digests(
    source: Source, plans: dict[str, SplitPlan], reports: dict[str, Report], job: WriteShard, count: int
) -> dict[str, list[Any]]:
    """Return size and SHA-256 of every file that was read: from the reports, and of files that many shards read."""
    files: dict[str, list[Any]] = {}
    wanted: dict[str, Path] = {}
    for shard in (shard for split in plans.values() for shard in split.shards):
        report = reports[shard.name]
        files.update(report.sources)
        left_out = dict(report.skipped)
        for item in shard.items:
            if item.id not in left_out:
                wanted.update({relative(path, source.path): path for path in item.files.values()})
    missing = {path: name for name, path in wanted.items() if name not in files and path.is_file()}
    for answer in work(job, list(missing), min(count, len(missing)), _name):
        assert isinstance(answer, tuple)
        files[missing[answer[0]]] = answer[1]
    return files


def _remove_stale(out: Path, reports: dict[str, Report]) -> None:
    """Remove shards of older plans."""
    for path in (out / SHARDS).iterdir():
        if path.stem not in reports or (path.suffix == ".npy" and not reports[path.stem].samples):
            path.unlink(missing_ok=True)
