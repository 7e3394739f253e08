"""Verification with the real readers, on trees in the sets' own formats, and on prepared stores of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from analytic import analytic_sample, pinhole
from fixture_sets import FIXTURES
from m2h_lightning.data.prepare import main_prepare
from m2h_lightning.data.synthesis.layouts import LayoutSample, write_layout
from m2h_lightning.data.verify.command import main_verify
from m2h_lightning.errors import ConfigError, DataError

SETS = {
    "nyud-A": ["nyud"],
    "nyud-B": ["nyud"],
    "nyud-C": ["nyud"],
    "nyud-D": ["nyud13"],
    "nyud-mat": ["nyud", "--crop", "none"],
    "hypersim": ["hypersim"],
    "cityscapes": ["cityscapes"],
    "folder": ["folder"],
    "folder-npy": ["folder"],
}


def run(name: str, path, *words: object) -> int:
    return main_verify([name, str(path), "--workers", "1", "--partial", *map(str, words)])


@pytest.mark.parametrize("fixture", sorted(FIXTURES))
def test_every_layout_is_healthy(fixture, tmp_path, capsys):
    path = FIXTURES[fixture].write(tmp_path / "set")
    name, *options = SETS[fixture]
    assert run(name, path, *options, "--json", tmp_path / "report.json", "--sheet", tmp_path / "sheet.png") == 0
    capsys.readouterr()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["samples_read"] == report["samples_looked_at"] > 0
    search = report["normals"]["search"]
    if search is not None:
        assert (search["convention"], search["idea"]) == ("x,y,z", "planar") and search["mean"] < 1
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def sample(index: int, **changes) -> LayoutSample:
    """A sample of the size in which NYUDv2's camera is known in proportion."""
    from fixture_sets import nyu_camera

    split = "train" if index > 2 else "test"  # officially, 1 and 2 are tested, 3 and 4 are trained on
    one = analytic_sample(f"{index:04d}", f"scene-{index}", split, 60, 80, nyu_camera(60, 80), index)
    return LayoutSample(**{**one.__dict__, **changes})


def test_hypersim_whose_depth_was_made_planar_already_is_found(tmp_path, capsys):
    """Its reader divides what it takes for a distance; planar depth in its files comes out divided."""
    from m2h_lightning.geometry import pixel_rays

    K = pinhole(60, 80)
    length = np.linalg.norm(pixel_rays(K, 60, 80), axis=0)
    samples = []
    for index in range(4):
        one = analytic_sample(f"ai_001_001/cam_00/frame.{index:04d}", "ai_001_001", "train", 60, 80, K, index)
        samples.append(LayoutSample(**{**one.__dict__, "depth": one.depth / length}))
    write_layout("hypersim", tmp_path / "set", samples)
    with pytest.raises(DataError, match="converted from distance once too often"):
        run("hypersim", tmp_path / "set")


def test_the_mend_for_wrong_axes_works_with_the_real_reader_and_store(tmp_path, capsys):
    swapped = [sample(number) for number in (1, 2, 3, 4)]
    swapped = [LayoutSample(**{**one.__dict__, "normals": one.normals[..., [0, 2, 1]]}) for one in swapped]
    write_layout("nyud", tmp_path / "set", swapped, packaging="A")
    with pytest.raises(DataError) as caught:
        run("nyud", tmp_path / "set")
    axes = str(caught.value).split("data.normal_axes='")[1].split("'")[0]
    assert run("nyud", tmp_path / "set", "--normal-axes", axes) == 0

    prepare = ["nyud", "--src", str(tmp_path / "set"), "--workers", "1"]
    assert main_prepare([*prepare, "--out", str(tmp_path / "wrong")]) == 0
    with pytest.raises(DataError) as caught:
        run("nyud", tmp_path / "wrong")
    assert f"with m2h data prepare --normal-axes='{axes}' they agree" in str(caught.value)
    assert main_prepare([*prepare, "--out", str(tmp_path / "right"), f"--normal-axes={axes}"]) == 0
    assert run("nyud", tmp_path / "right") == 0
    capsys.readouterr()
    with pytest.raises(ConfigError, match="--normal-axes: .* is a prepared store"):
        run("nyud", tmp_path / "right", "--normal-axes", axes)
    with pytest.raises(DataError, match="prepared store of 'nyud', not of 'hypersim'"):
        run("hypersim", tmp_path / "right")


def test_damage_in_a_store_is_listed(tmp_path, capsys):
    write_layout("nyud", tmp_path / "set", [sample(number) for number in (1, 2, 3, 4)], packaging="A")
    assert (
        main_prepare(["nyud", "--src", str(tmp_path / "set"), "--out", str(tmp_path / "store"), "--workers", "1"]) == 0
    )
    shard = min((tmp_path / "store" / "shards").glob("*.npy"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    capsys.readouterr()
    with pytest.raises(DataError, match=r"1 problem in .*checksum differs"):
        run("nyud", tmp_path / "store")
    assert "readable 3" in capsys.readouterr().out
