"""Unpacking archives: nothing gets out of the folder, nothing fills the disk, every refusal is one line."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections import namedtuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m2h_lightning.data import archives
from m2h_lightning.data.archives import unpack, unpack_all
from m2h_lightning.errors import DataError

FILES = {"set/a.txt": b"one", "set/sub/b.bin": bytes(range(256)) * 40, "set/empty": b""}


def make_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, content)
    return path


def make_tar(path, members):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as file:
        for name, content in members.items():
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def make(path, files):
    return make_zip(path, files) if path.suffix == ".zip" else make_tar(path, files)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(archive, folder, message, **bounds):
    """The refusal is one line that names the archive, and leaves nothing behind."""
    before = set(folder.parent.rglob("*"))
    with pytest.raises(DataError, match=message) as caught:
        unpack(archive, folder, **bounds)
    assert "\n" not in str(caught.value) and str(archive) in str(caught.value)
    assert set(folder.parent.rglob("*")) == before
    return str(caught.value)


@pytest.fixture
def room(tmp_path):
    """A folder two levels down, so that what climbs out would be seen."""
    (tmp_path / "one" / "two").mkdir(parents=True)
    return tmp_path / "one" / "two"


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tgz", "X.ZIP"])
def test_all_kinds_are_unpacked_whole(tmp_path, name):
    path = tmp_path / name
    (make_zip if name.lower().endswith("zip") else make_tar)(path, FILES)
    unpack(path, tmp_path / "out")
    assert contents(tmp_path / "out") == FILES
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([name, "out"])


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/evil", "absolute"),
        ("../evil", r"'\.\.'"),
        ("set/../../evil", r"'\.\.'"),
        ("..", r"'\.\.'"),
        ("C:/evil", "absolute"),
        ("set\\..\\evil", "forbidden"),
    ],
)
def test_names_that_leave_the_folder_are_refused(tmp_path, room, kind, name, message):
    archive = make(tmp_path / f"x.{kind}", {"set/good": b"1", name: b"evil"})
    refused(archive, room / "out", message)
    assert not list(tmp_path.rglob("evil"))


def test_links_and_devices_in_a_tar_are_refused(tmp_path, room):
    for kind, target in (
        (tarfile.SYMTYPE, "../../outside"),
        (tarfile.SYMTYPE, "good"),
        (tarfile.LNKTYPE, "set/good"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ):
        link = tarfile.TarInfo("set/link")
        link.type, link.linkname = kind, target
        message = refused(make_tar(tmp_path / "x.tar", {"set/good": b"1", link: b""}), room / "out", "link or a device")
        assert "'set/link'" in message


def test_links_in_a_zip_are_refused(tmp_path, room):
    info = zipfile.ZipInfo("set/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(make_zip(tmp_path / "x.zip", {info: b"/etc/passwd"}), room / "out", "link or a device")


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("pair", [("set/A.txt", "set/a.txt"), ("set/\u00e9", "set/e\u0301"), ("a", "./a")])
def test_names_that_are_one_on_some_disks_are_refused(tmp_path, room, kind, pair):
    refused(make(tmp_path / f"x.{kind}", dict.fromkeys(pair, b"1")), room / "out", "on some disks they are one file")


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_a_file_that_is_a_folder_too_is_refused(tmp_path, room, kind, names):
    refused(make(tmp_path / f"x.{kind}", dict.fromkeys(names, b"1")), room / "out", "file and a folder at once")


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_bounds_on_bytes_and_files(tmp_path, room, kind):
    archive = make(tmp_path / f"x.{kind}", {"a": b"0" * 600, "b": b"0" * 600})
    refused(archive, room / "out", "'b' would bring it above 1,000 bytes", max_bytes=1000)
    refused(archive, room / "out", "more than 1 members", max_files=1)
    unpack(archive, room / "out", max_bytes=1200, max_files=2)


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_bombs_are_refused(tmp_path, room, kind, monkeypatch):
    monkeypatch.setattr(archives, "_RATIO_FROM", 10_000)
    refused(make(tmp_path / f"x.{kind}", {"bomb": b"\0" * 3_000_000}), room / "out", "'bomb' is packed more than 200")


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path, room):
    archive = make_zip(tmp_path / "x.zip", {"a": b"0" * 5000})
    content = archive.read_bytes()
    assert content.count((5000).to_bytes(4, "little")) == 2  # in the member's header and in the list at the end
    archive.write_bytes(content.replace((5000).to_bytes(4, "little"), (50).to_bytes(4, "little")))
    refused(archive, room / "out", "damaged|declares")


def test_encrypted_and_unknown_ways_of_packing(tmp_path, room):
    archive = make_zip(tmp_path / "x.zip", {"a": b"secret"})
    content = bytearray(archive.read_bytes())
    central = content.rindex(b"PK\x01\x02")
    content[central + 8] |= 1
    archive.write_bytes(content)
    refused(archive, room / "out", "'a' is encrypted")
    content[central + 8] &= 0xFE
    for place in (central + 10, content.index(b"PK\x03\x04") + 8):
        content[place] = 97
    archive.write_bytes(content)
    refused(archive, room / "out", "packed in a way not known here")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_cut_off_anywhere_are_refused(tmp_path, room, kind):
    whole = make(tmp_path / f"x.{kind}", {f"set/{k}": bytes([k]) * 3000 for k in range(9)}).read_bytes()
    archive = tmp_path / f"cut.{kind}"
    for keep in (0, 1, 100, len(whole) // 3, len(whole) // 2):
        archive.write_bytes(whole[:keep])
        refused(archive, room / "out", "damaged or cut off|ends after")


def test_a_flipped_byte_is_found(tmp_path, room):
    for kind in ("zip", "tgz"):
        archive = make(tmp_path / f"x.{kind}", {"a": bytes(range(256)) * 20})
        content = bytearray(archive.read_bytes())
        content[60] ^= 0x55
        archive.write_bytes(content)
        refused(archive, room / "out", "damaged or cut off")


def test_what_is_no_archive_is_refused(tmp_path, room):
    for name in ("x.tar.zst", "x.rar", "x.7z"):
        (tmp_path / name).write_bytes(b"1")
        refused(tmp_path / name, room / "out", "is none of .zip")
    refused(tmp_path / "gone.zip", room / "out", "no such file")
    (tmp_path / "text.zip").write_text("hello")
    refused(tmp_path / "text.zip", room / "out", "damaged or cut off")
    (tmp_path / "not.tar.gz").write_bytes(gzip.compress(b"hello" * 1000))
    refused(tmp_path / "not.tar.gz", room / "out", "damaged or cut off")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_full_disk_is_told_before_it_is_full(tmp_path, room, kind, monkeypatch):
    usage = namedtuple("usage", "total used free")(0, 0, 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    refused(make(tmp_path / f"x.{kind}", {"a": b"0" * 5000}), room / "out", "5,000 bytes.*1,000 are free")


def test_an_error_of_the_disk_is_one_line(tmp_path, room, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives._Limits, "copy", full)
    archive = make_zip(tmp_path / "x.zip", {"a": b"1"})
    with pytest.raises(DataError, match="No space left on device"):
        unpack(archive, room / "out")
    assert list(room.iterdir()) == []


def test_rubbish_of_file_managers_is_left_out(tmp_path):
    files = {"set/a": b"1", "__MACOSX/set/._a": b"x", "set/.DS_Store": b"x", "set/._a": b"x"}
    unpack(make_zip(tmp_path / "x.zip", files), tmp_path / "out")
    assert contents(tmp_path / "out") == {"set/a": b"1"}


def test_an_existing_folder_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="is there already"):
        unpack(make_zip(tmp_path / "x.zip", FILES), tmp_path / "out")


def test_several_archives_become_one_folder(tmp_path):
    images = make_zip(tmp_path / "images.zip", {"images/1": b"i", "README": b"of images", "same": b"s"})
    labels = make_tar(tmp_path / "labels.tgz", {"labels/1": b"l", "README": b"of labels", "same": b"s"})
    unpack_all([images, labels], tmp_path / "out")
    assert contents(tmp_path / "out") == {"images/1": b"i", "labels/1": b"l", "README": b"of images", "same": b"s"}
    other = make_zip(tmp_path / "other.zip", {"images/1": b"another"})
    with pytest.raises(DataError, match=r"other.zip: its images/1 differs from that of another archive"):
        unpack_all([images, other], tmp_path / "out2")
    assert not (tmp_path / "out2").exists() and not list(tmp_path.glob("*.part"))


def test_what_a_killed_run_left_is_removed(tmp_path):
    (tmp_path / "out.part" / "all").mkdir(parents=True)
    (tmp_path / "out.part" / "all" / "half").write_bytes(b"x")
    unpack(make_zip(tmp_path / "x.zip", FILES), tmp_path / "out")
    assert contents(tmp_path / "out") == FILES


NAMES = st.lists(
    st.sampled_from(["a", "B", "..", ".", "", "/", "\\", "c:", "link", "\0", "\n", "é"]), min_size=1, max_size=5
).map("/".join)


@given(files=st.dictionaries(NAMES, st.binary(max_size=20), max_size=4), kind=st.sampled_from(["zip", "tar", "tgz"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_names_nothing_leaves_the_folder(tmp_path_factory, files, kind):
    top = tmp_path_factory.mktemp("any")
    room = top / "one" / "two" / "three"
    room.mkdir(parents=True)
    archive = top / f"x.{kind}"
    try:
        make(archive, files)
    except (ValueError, UnicodeError):
        return  # such a name cannot even be written
    told = ""
    try:
        unpack(archive, room / "out")
    except DataError as error:
        told = str(error)
    assert "\n" not in told
    assert bool(told) != (room / "out").exists()
    outside = [p for p in top.rglob("*") if p.is_file() and p != archive and room / "out" not in p.parents]
    assert outside == []
