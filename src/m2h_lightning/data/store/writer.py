"""Write one shard of the store, and tell what is in it. Runs in the working processes. No torch."""

from __future__ import annotations

import hashlib
import json
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2h_lightning.data.sources.base import Item, Source
from m2h_lightning.data.store.plan import FORMAT, SHARDS, Shard, relative
from m2h_lightning.data.store.record import HAS, HAS_EDGES, Layout
from m2h_lightning.data.store.shards import cannot_write, npy_header, write_atomically
from m2h_lightning.errors import DataError
from m2h_lightning.files import atomic


@dataclass
class Report:
    """What became of a shard; kept beside it as ``<name>.json``.

    Args:
        name: Of the shard.
        samples: Number of samples written.
        bytes: Size of the file; 0 when no sample was left to write.
        sha256: Of the file.
        labels: Number of samples with each label.
        beyond: Pixels whose depth lay beyond half floats and became unknown.
        skipped: Id and reason of each sample left out.
        sources: SHA-256 of every file read, by its path within the data set; without files that other shards read too.
        format: Of the store.
    """

    name: str
    samples: int = 0
    bytes: int = 0
    sha256: str = ""
    labels: dict[str, int] = field(default_factory=dict)
    beyond: int = 0
    skipped: list[list[str]] = field(default_factory=list)
    sources: dict[str, list[Any]] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True)
class WriteShard:
    """The job of a working process: write a shard, or (for a file that many shards read) digest a file.

    Args:
        folder: The store.
        source: Where samples come from.
        layout: What records hold.
        skip_corrupt: Leave out samples that cannot be read; else write nothing and tell all of them.
        shared: Files that several shards read; they are digested once, apart.
    """

    folder: Path
    source: Source
    layout: Layout
    skip_corrupt: bool
    shared: frozenset[Path] = frozenset()

    def __call__(self, task: Shard | Path) -> Report | tuple[Path, list[Any]]:
        """Do one task.

        Raises:
            DataError: The shard cannot be written.
        """
        return (task, digest(task)) if isinstance(task, Path) else self.write(task)

    def write(self, shard: Shard) -> Report:
        """Write a shard and, after it, its report; with errors and without ``skip_corrupt``, neither.

        Raises:
            DataError: It cannot be written.
        """
        report = Report(shard.name)
        path = self.folder / SHARDS / f"{shard.name}.npy"
        try:
            with atomic(path) as temporary:
                self._fill(shard, temporary, report)
                if report.skipped and not self.skip_corrupt:
                    raise _Corrupt
                if not report.samples:
                    raise _Corrupt
        except _Corrupt:
            path.unlink(missing_ok=True)  # of an earlier run with --skip-corrupt
            if not self.skip_corrupt:
                report_path(self.folder, shard.name).unlink(missing_ok=True)
                return report
        except OSError as error:
            raise cannot_write(path, error) from error
        text = json.dumps(vars(report), indent=1, ensure_ascii=False)
        write_atomically(report_path(self.folder, shard.name), text.encode())
        return report

    def _fill(self, shard: Shard, path: Path, report: Report) -> None:
        """Write all samples into a file, one after the other: a shard of large pictures need not fit into memory."""
        record = self.layout.empty(shard.height, shard.width)
        header = npy_header(record.dtype, len(shard.items))
        content = hashlib.sha256(header)
        strict = not self.skip_corrupt
        with open(path, "wb") as file:
            file.write(header)
            for item in shard.items:
                try:
                    beyond = self.layout.encode(self.source.load(item), record)
                    digests = self._sources(item, report)
                except DataError as error:
                    report.skipped.append([item.id, self._reason(error)])
                    continue
                except (OSError, ArithmeticError, ValueError, TypeError, LookupError) as error:
                    # A reader that fails in an unforeseen way should name the sample, not stop the other thousands.
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    where_text = f"{Path(where.filename).name}:{where.lineno}"
                    text = f"sample '{item.id}': {type(error).__name__}: {error} ({where_text}); report this"
                    report.skipped.append([item.id, self._reason(text)])
                    continue
                if strict and report.skipped:
                    continue  # nothing will be kept; only look for more errors
                data = record.tobytes()
                file.write(data)
                content.update(data)
                report.samples += 1
                report.beyond += beyond
                report.sources.update(digests)
                self._count(int(record["has"]), report)
            if report.samples != len(shard.items):
                file.seek(0)
                file.write(npy_header(record.dtype, report.samples))
        report.bytes = path.stat().st_size if report.samples else 0
        report.sha256 = content.hexdigest() if report.samples else ""
        if 0 < report.samples < len(shard.items):
            report.sha256 = digest(path)[1]  # the header was another one

    def _reason(self, error: object) -> str:
        return " ".join(str(error).split()).replace(f"{self.source.path}/", "")

    def _count(self, has: int, report: Report) -> None:
        for key in self.layout.labels:
            report.labels[key] = report.labels.get(key, 0) + bool(has & HAS[key])
        for place, rule in enumerate(self.layout.edge_rules):
            key = f"edges ({rule})"
            report.labels[key] = report.labels.get(key, 0) + bool(has >> (HAS_EDGES + place) & 1)

    def _sources(self, item: Item, report: Report) -> dict[str, list[Any]]:
        files = {relative(path, self.source.path): path for path in item.files.values() if path not in self.shared}
        return {name: digest(path) for name, path in files.items() if name not in report.sources and path.is_file()}


class _Corrupt(Exception):
    """Nothing is to be kept of this shard."""


def report_path(folder: Path, name: str) -> Path:
    """Return where the report of a shard lies."""
    return folder / SHARDS / f"{name}.json"


def read_report(folder: Path, name: str) -> Report | None:
    """Return the report of a shard, or None when it is not there or not whole."""
    try:
        report = Report(**json.loads(report_path(folder, name).read_text()))
        size = (folder / SHARDS / f"{name}.npy").stat().st_size if report.samples else 0
    except (OSError, ValueError, TypeError):
        return None
    return report if report.name == name and report.format == FORMAT and report.bytes == size else None


def digest(path: Path) -> list[Any]:
    """Return size and SHA-256 of a file."""
    content, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
            size += len(block)
    return [size, content.hexdigest()]
