"""Unpack archives of data sets, trusting none of them. Standard library only.

Everything is unpacked into a temporary folder beside the target, which gets its name when all is well. Nothing is
written outside of it: names that leave it, links, devices and clashing names are refused, and so is what is larger than
it says, larger than allowed, or larger than the disk.
"""

from __future__ import annotations

import filecmp
import gzip
import hashlib
import os
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from m2h_lightning.errors import DataError

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_BYTES = 4 * 2**40
MAX_FILES = 5_000_000
MAX_RATIO = 200
"""Most bytes unpacked per byte of the archive; pictures and floats are far below, archives made to fill disks above."""

_RATIO_FROM = 2**30  # bytes unpacked before the ratio counts
_HEADROOM = 64 * 2**20
_BLOCK = 1 << 20
_RUBBISH = ("__MACOSX", ".DS_Store")
_WORDS = ("readme", "license", "licence")


def is_archive(path: Path) -> bool:
    """Whether a path is the name of an archive that can be unpacked."""
    return path.name.lower().endswith(ENDINGS)


@dataclass
class _Limits:
    """Counts what comes out of one archive.

    Args:
        archive: For messages.
        folder: Where it is unpacked: the disk that must not fill up.
        max_bytes: Most bytes.
        max_files: Most members.
    """

    archive: Path
    folder: Path
    max_bytes: int
    max_files: int
    unpacked: int = 0
    files: int = 0
    names: dict[str, str] = field(default_factory=dict)

    def refuse(self, name: str, why: str) -> DataError:
        """Return the error for a member; names of attackers may hold anything, so only what can be printed is shown."""
        shown = "".join(c if c.isprintable() else "?" for c in name[:200])
        return DataError(f"{self.archive}: member '{shown}' {why}; get the archive again from its publisher")

    def enter(self, name: str, size: int, is_file: bool) -> PurePosixPath | None:
        """Check a member before anything of it is written; return its path, or None when it is not wanted.

        Raises:
            DataError: The member is refused.
        """
        if "\0" in name or "\\" in name or name.startswith("/") or name[1:2] == ":":
            raise self.refuse(name, "has an absolute or forbidden name")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise self.refuse(name, "leads out of the folder ('..')")
        if is_file and not parts:
            raise self.refuse(name, "has no name")
        self.files += 1
        if self.files > self.max_files:
            raise DataError(f"{self.archive}: holds more than {self.max_files:,} members; unpack it by hand")
        if not parts or any(part in _RUBBISH for part in parts) or parts[-1].startswith("._"):
            return None
        path = PurePosixPath(*parts)
        if is_file:
            self._clash(path, name)
            self.grow(name, size, declared=True)
        return path

    def _clash(self, path: PurePosixPath, name: str) -> None:
        """Refuse two files that are one on some file system, and files that are also folders."""
        key = unicodedata.normalize("NFC", str(path)).casefold()
        if key in self.names:
            other = "twice" if self.names[key] == str(path) else f"beside '{self.names[key]}'"
            raise self.refuse(name, f"is there {other}: on some disks they are one file")
        self.names[key] = str(path)

    def grow(self, name: str, size: int, declared: bool) -> None:
        """Count bytes against all bounds.

        Raises:
            DataError: One is passed.
        """
        total = self.unpacked + size
        if size < 0 or total > self.max_bytes:
            raise self.refuse(name, f"would bring it above {self.max_bytes:,} bytes unpacked")
        if total > _RATIO_FROM and total > MAX_RATIO * self.archive.stat().st_size:
            raise self.refuse(name, f"is packed more than {MAX_RATIO} times: it was made to fill disks")
        if declared:
            free = shutil.disk_usage(self.folder).free
            if size + _HEADROOM > free:
                raise DataError(
                    f"{self.archive}: its member '{name}' needs {size:,} bytes, {free:,} are free at {self.folder}: "
                    "free space, or choose another --out"
                )
        else:
            self.unpacked = total

    def copy(self, source: IO[bytes], path: Path, name: str, size: int) -> None:
        """Write a member, and stop where it gets larger than it says.

        Raises:
            DataError: It is larger or smaller than it says.
        """
        written = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            while block := source.read(_BLOCK):
                written += len(block)
                if written > size:
                    raise self.refuse(name, f"is larger than the {size:,} bytes it declares")
                self.grow(name, len(block), declared=False)
                file.write(block)
        if written != size:
            raise self.refuse(name, f"ends after {written:,} of {size:,} bytes (cut off?)")


def unpack(archive: Path, folder: Path, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> None:
    """Unpack one archive into a new folder.

    Args:
        archive: A .zip, .tar, .tar.gz or .tgz.
        folder: Does not exist; its parent does. It is there only when all was unpacked.
        max_bytes: Most bytes unpacked.
        max_files: Most members.

    Raises:
        DataError: The archive is missing, damaged, of another kind, or holds what is refused; one line that names the
            member.
    """
    if folder.exists():
        raise DataError(f"{folder}: is there already; remove it or choose another folder")
    with _temporary(folder) as temporary:
        _unpack_into(archive, temporary, max_bytes, max_files)
        os.replace(temporary, folder)


def unpack_all(archives: Sequence[Path], folder: Path, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> None:
    """Unpack several archives into one new folder, as if they were one.

    Args:
        archives: Of one data set.
        folder: See :func:`unpack`.
        max_bytes: Most bytes unpacked of each.
        max_files: Most members of each.

    Raises:
        DataError: See :func:`unpack`; also when two archives hold different files of one name (notes such as README and
            license apart: of these the first is kept).
    """
    with _temporary(folder) as temporary:
        merged = temporary / "all"
        merged.mkdir()
        for number, archive in enumerate(archives):
            part = temporary / str(number)
            part.mkdir()
            _unpack_into(archive, part, max_bytes, max_files)
            _merge(part, merged, archive)
        os.replace(merged, folder)


def key_of(archives: Sequence[Path]) -> str:
    """Return a short text that changes when an archive is replaced.

    Raises:
        DataError: One is missing or of another kind.
    """
    digest = hashlib.sha256()
    for archive in archives:
        _check_kind(archive)
        state = archive.stat()
        digest.update(repr((archive.name, state.st_size, state.st_mtime_ns)).encode())
    return digest.hexdigest()[:12]


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    try:
        temporary.mkdir()
        yield temporary
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be unpacked here ({error.strerror or error}): free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_kind(archive: Path) -> None:
    if not archive.is_file():
        raise DataError(f"{archive}: there is no such file")
    if not is_archive(archive):
        raise DataError(f"{archive}: is none of {', '.join(ENDINGS)}; unpack it by hand and give the folder")


def _unpack_into(archive: Path, folder: Path, max_bytes: int, max_files: int) -> None:
    _check_kind(archive)
    limits = _Limits(archive, folder, max_bytes, max_files)
    try:
        if archive.name.lower().endswith(".zip"):
            _unzip(archive, folder, limits)
        else:
            _untar(archive, folder, limits)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: damaged or cut off ({error}); get it again") from error
    except NotImplementedError as error:
        raise DataError(f"{archive}: packed in a way not known here ({error}); unpack it by hand") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        name = Path(str(error.filename)).relative_to(folder) if error.filename else "?"
        raise limits.refuse(str(name), "is a file and a folder at once") from error


def _unzip(archive: Path, folder: Path, limits: _Limits) -> None:
    with zipfile.ZipFile(archive) as file:
        wanted = []
        total = 0
        for info in file.infolist():
            # Look at all before writing any: a zip tells everything at its end.
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.flag_bits & 0x1:
                raise limits.refuse(info.filename, "is encrypted")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise limits.refuse(info.filename, "is a link or a device")
            is_file = not info.filename.endswith("/")
            path = limits.enter(info.orig_filename, info.file_size, is_file)
            total += info.file_size
            if total > limits.max_bytes:
                raise limits.refuse(info.filename, f"would bring it above {limits.max_bytes:,} bytes unpacked")
            if path is not None and is_file:
                wanted.append((info, path))
        free = shutil.disk_usage(folder).free
        if total + _HEADROOM > free:
            raise DataError(
                f"{archive}: needs {total:,} bytes unpacked, {free:,} are free at {folder.parent}: free space"
            )
        for info, path in wanted:
            with file.open(info) as source:
                limits.copy(source, folder / path, info.filename, info.file_size)


def _untar(archive: Path, folder: Path, limits: _Limits) -> None:
    # One pass: of a packed tar the names are known only as it is unpacked. A late refusal removes the rest too.
    with tarfile.open(archive, "r:gz" if not archive.name.lower().endswith(".tar") else "r:") as file:
        for member in file:
            if not (member.isreg() or member.isdir()):
                raise limits.refuse(member.name, "is a link or a device")
            path = limits.enter(member.name, member.size, member.isreg())
            if path is None or not member.isreg():
                continue
            source = file.extractfile(member)
            assert source is not None
            with source:
                limits.copy(source, folder / path, member.name, member.size)


def _merge(part: Path, merged: Path, archive: Path) -> None:
    for folder, _, names in os.walk(part):
        target = merged / Path(folder).relative_to(part)
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            old, new = target / name, Path(folder) / name
            if old.exists() and not filecmp.cmp(old, new, shallow=False):
                if not name.lower().startswith(_WORDS):
                    raise DataError(
                        f"{archive}: its {old.relative_to(merged)} differs from that of another archive; give the "
                        "archives of one version of the data set"
                    )
                continue
            os.replace(new, old)
    shutil.rmtree(part)
