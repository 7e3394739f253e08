"""`m2h data prepare` given archives, and given nonsense."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import toy_source
from m2h_lightning.data.prepare import main_prepare
from m2h_lightning.data.store import PreparedStore
from m2h_lightning.errors import ConfigError, DataError
from prepare_helpers import contents, damage, prepare
from toy_source import write_toy

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy") / "raw")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    toy_source.register(monkeypatch.setattr)


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    """What an uninterrupted run writes."""
    patch = pytest.MonkeyPatch()
    toy_source.register(patch.setattr)
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare(raw, out)
    patch.undo()
    return contents(out)


def _pack(raw, path, prefix, keep=lambda name: True):
    files = [p for p in sorted(raw.rglob("*")) if p.is_file() and keep(str(p.relative_to(raw)))]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for p in files:
                file.write(p, prefix + str(p.relative_to(raw)))
    else:
        with tarfile.open(path, "w:gz") as file:
            for p in files:
                file.add(p, prefix + str(p.relative_to(raw)))
    return path


@pytest.mark.parametrize(("name", "prefix"), [("a.zip", ""), ("a.tgz", "toy/"), ("a.tar.gz", "deep/er/")])
def test_an_archive_is_unpacked_used_and_removed(raw, whole, tmp_path, capsys, name, prefix):
    archive = _pack(raw, tmp_path / name, prefix)
    prepare(archive, tmp_path / "out")
    found = contents(tmp_path / "out")
    told = json.loads(found.pop("manifest.json"))
    assert told["archives"] == [{"name": name, "bytes": archive.stat().st_size}]
    wanted = {k: v for k, v in whole.items() if k != "manifest.json"}
    assert found == wanted, "an archive gives the same store as its folder, and nothing unpacked is left"
    capsys.readouterr()
    prepare(archive, tmp_path / "out")
    out, err = capsys.readouterr()
    assert "nothing to do" in out and "unpacking" not in err


def test_several_archives_are_one_data_set(raw, whole, tmp_path):
    one = _pack(raw, tmp_path / "one.zip", "", lambda name: "samples/b" in name)
    two = _pack(raw, tmp_path / "two.zip", "", lambda name: "samples/b" not in name)
    prepare([one, two], tmp_path / "out")
    assert contents(tmp_path / "out")["samples.csv"] == whole["samples.csv"]
    with pytest.raises(ConfigError, match="several --src are several archives"):
        prepare([one, raw / "lists.json"], tmp_path / "other")


def test_an_unpacked_archive_is_used_again_after_an_error(raw, tmp_path, capsys):
    broken = shutil.copytree(raw, tmp_path / "raw")
    damage(broken, "b/0")
    archive = _pack(broken, tmp_path / "a.zip", "")
    with pytest.raises(DataError, match="1 sample"):
        prepare(archive, tmp_path / "out")
    assert "unpacking a.zip" in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("unpacked-*"))) == 1
    prepare(archive, tmp_path / "out", "--skip-corrupt")
    assert "unpacking" not in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("unpacked-*"))
    assert "unpacked" not in (tmp_path / "out" / "manifest.json").read_text()


def test_an_archive_of_something_else_is_one_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x/y.txt", "hello")
    with pytest.raises(DataError, match="no lists.json here"):
        prepare(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("toi --src {raw} --out {out}", "there is no data set 'toi'"),
        ("nyut --src {raw} --out {out}", "did you mean 'nyud'"),
        ("toy --out {out}", "--src"),
        ("toy --src {raw}", "--out"),
        ("--src {raw} --out {out}", "SET"),
        ("toy --src {raw}/gone --out {out}", "gone: does not exist; expected lists.json"),
        ("toy --src {raw}/samples --out {out}", "no lists.json here"),
        ("toy --src {raw} --out {out} --workers 0", "--workers is 0"),
        ("toy --src {raw} --out {out} --samples-per-shard 0", "--samples-per-shard is 0"),
        ("toy --src {raw} --out {out} --worker 2", "did you mean '--workers'"),
        ("toyfar --src {raw} --out {out} --crop none", "unrecognized arguments"),
        ("toy --src {raw} --out {out} --normals derived", "toy has provided, none"),
        ("toy --src {raw} --out {raw}/lists.json", "cannot be made"),
        ("toy --src {raw}/none.zip --out {out}", "no such file"),
        ("toy --src {raw} {raw} --out {out}", "several --src are several archives of one set"),
    ],
)
def test_nonsense_is_one_line(raw, tmp_path, words, message):
    argv = words.format(raw=raw, out=tmp_path / "out").split()
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        main_prepare(argv)
    assert "\n" not in str(caught.value)


def test_axes_that_begin_with_a_minus(raw, tmp_path):
    for number, words in enumerate((["--normal-axes", "-x,y,-z"], ["--normal-axes=-x,y,-z"])):
        prepare(raw, tmp_path / str(number), *words)
        assert PreparedStore(tmp_path / str(number), normal_axes="-x,y,-z").manifest["normals"]["axes"] == "-x,y,-z"


def test_a_store_is_no_source(raw, tmp_path):
    prepare(raw, tmp_path / "out")
    with pytest.raises(ConfigError, match="is a prepared store already"):
        prepare(tmp_path / "out", tmp_path / "again")


def test_a_list_that_names_a_sample_twice(raw, tmp_path):
    other = shutil.copytree(raw, tmp_path / "raw")
    lists = json.loads((other / "lists.json").read_text())
    lists["train"].append(lists["train"][0])
    (other / "lists.json").write_text(json.dumps(lists))
    with pytest.raises(DataError, match="lists sample 'b/0' twice"):
        prepare(other, tmp_path / "out")


def test_help_names_the_options_of_the_set(capsys):
    with pytest.raises(SystemExit) as caught:
        main_prepare(["hypersim", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "options of hypersim" in out and "--partial" in out and "--skip-corrupt" in out


def test_preparing_loads_no_torch(raw, tmp_path):
    code = (
        "import sys, toy_source; toy_source.command(); sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    )
    words = ["toy", "--src", str(raw), "--out", str(tmp_path / "out"), "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    run = subprocess.run([sys.executable, "-c", code, *words], env=environment, check=False, stdout=subprocess.PIPE)
    assert run.returncode == 0
