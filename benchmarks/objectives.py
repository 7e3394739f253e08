"""``make bench-objectives``: what balancing methods and consistency losses do to the scores, over several seeds.

Trains variants of one experiment, each with the same seeds, one process per run, and writes a table of means with 95 %
intervals (Student's t over seeds) and of paired differences from the baseline (the same seed with and without). A run
that is finished is not repeated, one that was cut short goes on: the command can be stopped and started at any time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.run import machine
from m2h_lightning.files import atomic
from m2h_lightning.report.statistics import interval, paired

NO_CONSISTENCY = ["--model.consistency.depth_normals.weight", "0", "--model.consistency.edges_semseg.weight", "0"]


class Variant(NamedTuple):
    """One row: its name, what it is compared with (None for a baseline), and how it differs from the experiment."""

    name: str
    baseline: str | None
    words: list[str]


VARIANTS = [
    Variant("static", None, ["--model.balancing.name", "static", *NO_CONSISTENCY]),
    Variant("dwa", "static", NO_CONSISTENCY),
    Variant("uncertainty", "static", ["--model.balancing.name", "uncertainty", *NO_CONSISTENCY]),
    Variant("dwa + consistency", "dwa", []),
]


INTRO = """# Balancing and consistency losses on rooms

Written by `make bench-objectives`; scores of every seed and the commit of the runs: [objectives.json](objectives.json).
Pooled protocol, exact odsF, test images of rooms that are in no training image. Means over seeds with 95 % intervals
(Student's t), then differences of runs of the same seed, with theirs. **better** and **worse** mark intervals without
0; no correction for the number of comparisons. What follows from it:
[docs/objectives.md](../objectives.md#what-they-do-on-rooms).
"""


class Score(NamedTuple):
    """One column: heading, place in ``metrics.test`` of ``result.json``, and whether higher is better."""

    heading: str
    key: str
    higher: bool
    digits: int


SCORES = [
    Score("mIoU", "semseg/miou", True, 4),
    Score("RMSE m", "depth/rmse_m", False, 4),
    Score("normals °", "normals/mean_deg", False, 2),
    Score("odsF", "edges/odsf", True, 4),
    Score("depth–normals °", "consistency/depth_normals_deg", False, 2),
    Score("edges–classes F", "consistency/edges_semseg_f", True, 4),
]


def slug(variant: Variant, seed: int) -> str:
    """Return the run's name."""
    return f"{variant.name.replace(' + ', '-')}-seed{seed}"


def run_all(experiment: Path, root: Path, seeds: int, workers: int, words: list[str]) -> list[str]:
    """Run what is missing, ``workers`` processes at a time, seed by seed; return the names of failed runs."""
    waiting = deque((variant, seed) for seed in range(seeds) for variant in VARIANTS)
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    while waiting or running:
        while waiting and len(running) < workers:
            variant, seed = waiting.popleft()
            name = slug(variant, seed)
            folder = root / "objectives" / name
            if (folder / "result.json").is_file():
                continue
            if (folder / "checkpoints").is_dir():
                command = ["fit", "--run.resume", str(folder), "--run.test", "true"]
            else:
                command = ["fit", "--config", str(experiment), *variant.words, *words, "--seed_everything", str(seed)]
                command += ["--run.root", str(root), "--run.experiment", "objectives", "--run.id", name]
                command += ["--run.test", "true", "--run.wandb", "disabled"]
            print(f"{datetime.datetime.now():%H:%M:%S} {name}", flush=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with open(folder.parent / f"{name}.log", "ab") as log:
                running[name] = subprocess.Popen(
                    [sys.executable, "-m", "m2h_lightning", *command, "--trainer.enable_progress_bar", "false"],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "OMP_NUM_THREADS": threads},
                )
        for name in list(running):
            try:
                if running[name].wait(timeout=1) != 0:
                    failed.append(name)
                    print(f"{name} failed: see {root / 'objectives' / name}.log", flush=True)
                del running[name]
            except subprocess.TimeoutExpired:
                pass
    return failed


def look_up(result: dict[str, Any], key: str) -> float:
    """Return a test score of a ``result.json``."""
    node: Any = result["metrics"]["test"]
    for part in key.split("/"):
        node = node[part]
    return float(node)


def collect(root: Path, seeds: int) -> dict[str, dict[int, dict[str, Any]]]:
    """Return the results by variant and seed; unfinished runs are left out."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for variant in VARIANTS:
        for seed in range(seeds):
            path = root / "objectives" / slug(variant, seed) / "result.json"
            if path.is_file():
                found.setdefault(variant.name, {})[seed] = json.loads(path.read_text())
    return found


def tables(results: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    """Return the Markdown lines of both tables."""
    heads = " | ".join(f"{score.heading} {'↑' if score.higher else '↓'}" for score in SCORES)
    lines = [f"| variant | seeds | {heads} |", "|---" * (len(SCORES) + 2) + "|"]
    for name, by_seed in results.items():
        cells = []
        for score in SCORES:
            mean, half = interval([look_up(result, score.key) for result in by_seed.values()])
            cells.append(f"{mean:.{score.digits}f} ± {half:.{score.digits}f}")
        lines.append(f"| {name} | {len(by_seed)} | {' | '.join(cells)} |")
    lines += ["", f"| paired difference | seeds | {heads} |", "|---" * (len(SCORES) + 2) + "|"]
    for variant in VARIANTS:
        if variant.baseline is None or variant.name not in results or variant.baseline not in results:
            continue
        ours, theirs = results[variant.name], results[variant.baseline]
        both = sorted(ours.keys() & theirs.keys())
        if not both:
            continue
        cells = []
        for score in SCORES:
            gap = paired(*([look_up(side[seed], score.key) for seed in both] for side in (ours, theirs)))
            clear = ""
            if abs(gap.mean) > gap.half:  # never with one seed, whose interval is NaN
                clear = " **better**" if (gap.mean > 0) == score.higher else " **worse**"
            cells.append(f"{gap.mean:+.{score.digits}f} ± {gap.half:.{score.digits}f}{clear}")
        lines.append(f"| {variant.name} − {variant.baseline} | {len(both)} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    """Run, then print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=Path("experiments/rooms-finetune.yaml"))
    parser.add_argument("--root", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--out", type=Path, default=None, help="write OUT.md and OUT.json beside printing")
    parser.add_argument("--report", action="store_true", help="run nothing, only report what is finished")
    arguments, words = parser.parse_known_args()
    failed = []
    if not arguments.report:
        failed = run_all(arguments.experiment, arguments.root, arguments.seeds, arguments.workers, words)
    results = collect(arguments.root, arguments.seeds)
    if not results:
        print("no finished run")
        return 1
    some = next(iter(next(iter(results.values())).values()))
    where = ", ".join(f"{key} {value}" for key, value in machine().items() if key not in ("seed", "threads"))
    about = f"{arguments.experiment}, test set {some['data']['test_fingerprint']}; {where}"
    lines = tables(results)
    print("\n".join([*lines, "", about]))
    if arguments.out is not None:
        record = {
            "about": about,
            "commit": (some.get("git") or {}).get("commit"),
            "scores": {
                name: {
                    str(seed): {score.key: look_up(result, score.key) for score in SCORES}
                    for seed, result in by_seed.items()
                }
                for name, by_seed in results.items()
            },
        }
        for suffix, text in (
            (".md", "\n".join([INTRO, *lines, "", f"*{about}*", ""])),
            (".json", json.dumps(record, indent=1)),
        ):
            target = arguments.out.with_suffix(suffix)
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic(target) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
