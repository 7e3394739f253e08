"""Every packaging that can be read can be prepared, and the store then gives what its reader gives."""

from __future__ import annotations

import numpy as np
import pytest

from fixture_sets import FIXTURES
from m2h_lightning.data.prepare import run
from m2h_lightning.data.raw import decode
from m2h_lightning.data.sources import source_class
from m2h_lightning.data.store import PreparedStore
from m2h_lightning.data.store.build import Wish
from m2h_lightning.data.store.record import STEP

HALF = 2.0**-11  # relative rounding of half floats


@pytest.mark.parametrize("name", FIXTURES)
def test_the_store_gives_what_the_reader_gives(tmp_path, name):
    fixture = FIXTURES[name]
    root = fixture.write(tmp_path / "raw")
    reader = source_class(fixture.set)
    options = {**fixture.options, **({"partial": True} if fixture.set == "hypersim" else {})}
    run(tmp_path / "out", root, Wish(reader, options, workers=1), [])
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    for rule in reader(root, **options).edge_rules:
        source, store = reader(root, edges=rule, **options), PreparedStore(tmp_path / "out", edges=rule)
        for fact in ("name", "classes", "depth_range", "tasks", "splits", "provenance", "edge_rules", "official"):
            assert getattr(store, fact) == getattr(source, fact), fact
        for split in source.splits:
            for item, original in zip(store.items(split), source.items(split), strict=True):
                assert (item.id, item.scene, store.size(item)) == (original.id, original.scene, source.size(original))
                _compare(decode(store.read(item)), decode(source.read(original)), store.layout.depth)


def _compare(found, want, depth):
    assert set(found) == set(want)
    for key in ("image", "semseg", "edges", "K"):
        if key in want:
            assert np.array_equal(found[key], want[key], equal_nan=key == "K"), key
    if "depth" in want:
        assert np.array_equal(found["depth"] == 0, want["depth"] == 0)
        bound = {"steps": STEP / 2 + 1e-6, "half": HALF * want["depth"], "coded": 0}[depth]
        assert (np.abs(found["depth"] - want["depth"]) <= bound).all()
    if "normals" in want:
        lengths = np.linalg.norm(found["normals"], axis=-1), np.linalg.norm(want["normals"], axis=-1)
        assert np.array_equal(lengths[0] > 0, lengths[1] >= 0.5)
        known = lengths[0] > 0
        cosine = (found["normals"] * want["normals"]).sum(-1)[known] / lengths[1][known]
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max(initial=0) < 0.4
