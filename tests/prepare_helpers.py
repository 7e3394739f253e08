"""What tests of ``m2h data prepare`` share."""

from __future__ import annotations

from pathlib import Path

from m2h_lightning.data.prepare import main_prepare


def prepare(raw, out, *options, name="toy"):
    sources = raw if isinstance(raw, list) else [raw]
    words = [name, "--src", *map(str, sources), "--out", str(out), "--samples-per-shard", "2"]
    return main_prepare([*words, *(() if "--workers" in options else ("--workers", "1")), *map(str, options)])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def damage(raw, *names):
    for name in names:
        path = raw / "samples" / f"{name}.npz"
        path.write_bytes(path.read_bytes()[:200])
