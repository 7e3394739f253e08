"""``make bench-metrics``: what scoring costs, and how far the fast boundary score lies from the exact one.

Rendered rooms at 425×560 (the size of NYUDv2's labels), one thread; processor time, which other programs on the machine
hardly change. Predictions are made from the labels, so that they have the structure that decides the cost. Freed memory
is kept, as the commands that evaluate keep it. A metric's own row holds all that it needs; in the Evaluator several
metrics share a part of that, so their rows add up to more than it takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from scipy import ndimage
from torch import Tensor

from benchmarks.run import machine, tell
from m2h_lightning.boundaries.counts import Image, count_exact, count_fast, prepare
from m2h_lightning.data.memory import keep_freed_memory
from m2h_lightning.data.synthesis.generate import render_room
from m2h_lightning.data.synthesis.render import decode_octahedral
from m2h_lightning.metrics import BoundaryScore, MetricsConfig, WindowGrid
from m2h_lightning.metrics.settings import NYUD_MAX_DIST
from m2h_lightning.tasks import Evaluator, build_tasks

SIZE = (425, 560)
CLASSES, TEST_IMAGES = 40, 654  # of NYUDv2


def edge_prediction(room: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an edge probability as a network's looks: thick, unequally sure, with borders of texture and shade in it.

    Labels are blurred and displaced by up to a few pixels, their strength varies over the image down to nothing
    (misses), gradients of the image are mixed in (false positives), and smooth noise is added before the sigmoid.

    Args:
        room: One rendered sample.
        rng: Source of randomness.

    Returns:
        float32 H×W in (0, 1).
    """

    def smooth_noise(sigma: float) -> np.ndarray:
        noise = ndimage.gaussian_filter(rng.standard_normal(SIZE), sigma)
        return noise / noise.std()

    rows, columns = np.indices(SIZE)
    moved = [rows + 1.5 * smooth_noise(12), columns + 1.5 * smooth_noise(12)]
    lines = ndimage.map_coordinates((room["edges"] == 1).astype(float), moved, order=1, mode="nearest")
    lines = ndimage.gaussian_filter(lines, 1.5) * 3.5
    texture = ndimage.gaussian_gradient_magnitude(room["image"].mean(-1) / 255, 1.5)
    texture = np.minimum(texture / np.percentile(texture, 99), 1)
    strength = np.clip(0.9 + 0.8 * smooth_noise(25), 0, 2)
    logits = -3 + 4 * strength * lines + 3 * texture + 0.8 * smooth_noise(2) + 0.8 * smooth_noise(8)
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def scene(number: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Render one view of a room; return it as a batch of one, and predictions of all tasks with their usual errors."""
    room = render_room(0, "test", number, 1, *SIZE)[0]
    rng = np.random.default_rng(number)
    noise = torch.Generator().manual_seed(number)
    size = torch.tensor([SIZE])
    normals = torch.from_numpy(decode_octahedral(room["normals"]).astype(np.float32)).permute(2, 0, 1)[None]
    batch = {
        "id": [f"room {number}"],
        "image": torch.zeros(1, 3, *SIZE),
        "semseg": torch.from_numpy(room["semseg"].astype(np.int64))[None],
        "depth": torch.from_numpy(room["depth"].astype(np.float32))[None, None],
        "normals": normals,
        "edges": torch.from_numpy(room["edges"].astype(np.float32))[None, None],
        "K": torch.from_numpy(room["K"].astype(np.float32))[None],
        "size": size,
        "image_size": size,
        "label_size": size,
    }
    known = torch.where(batch["semseg"] < CLASSES, batch["semseg"], 0)
    logits = torch.nn.functional.one_hot(known, CLASSES).permute(0, 3, 1, 2) * 3.0
    predictions = {
        "semseg": logits + torch.randn(logits.shape, generator=noise),
        "depth": (batch["depth"].clamp(min=0.5) * (1 + 0.1 * torch.randn(1, 1, *SIZE, generator=noise))).clamp(min=0.1),
        "normals": torch.nn.functional.normalize(normals + 0.2 * torch.randn(normals.shape, generator=noise), dim=1),
        "edges": torch.from_numpy(edge_prediction(room, rng))[None, None],
    }
    return batch, predictions


def milliseconds(call: Callable[[int], Any], count: int, rounds: int) -> float:
    """Median milliseconds of ``call(0)`` … ``call(count − 1)``, each ``rounds`` times, after a warm-up."""
    times = []
    call(0)
    for _ in range(rounds):
        for index in range(count):
            start = time.process_time()
            call(index)
            times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def boundary_rows(scenes: list[tuple[dict[str, Any], dict[str, Tensor]]], rounds: int) -> list[dict[str, Any]]:
    """Cost of the boundary score per image, and what the fast way changes."""
    pairs = [(predictions["edges"], batch["edges"]) for batch, predictions in scenes]
    images = [Image((255 * guess[0, 0]).round().byte().numpy(), label[0, 0].byte().numpy()) for guess, label in pairs]
    maps = [prepare(image, NYUD_MAX_DIST) for image in images]
    rows = [
        {"what": f"boundary matching, {what}", "value": milliseconds(call, len(images), rounds), "unit": "ms an image"}
        for what, call in (
            ("suppression and thinning of the label", lambda i: prepare(images[i], NYUD_MAX_DIST)),
            ("fast: thinned once, 101 thresholds", lambda i: count_fast(*maps[i])),
            ("exact: 101 thresholds", lambda i: count_exact(*maps[i])),
        )
    ]
    found: dict[str, Tensor] = {}
    for mode in ("fast", "exact"):
        score = BoundaryScore(NYUD_MAX_DIST, mode, workers=0)
        start = time.process_time()
        for guess, label in pairs:
            score.update(guess, label)
        seconds = (time.process_time() - start) / len(pairs)
        found |= score.compute()
        rows.append({"what": f"BoundaryScore, {mode}", "value": seconds, "unit": "s an image (mean)"})
    rows.append({"what": "odsF of these predictions, exact", "value": 100 * found["odsf"].item(), "unit": "%"})
    for name in ("odsf", "oisf", "ap"):
        difference = 100 * (found[f"{name}_fast"] - found[name]).item()
        rows.append({"what": f"{name}: fast − exact, {len(pairs)} images", "value": difference, "unit": "% points"})
    return rows


def pixel_rows(scenes: list[tuple[dict[str, Any], dict[str, Tensor]]], rounds: int) -> list[dict[str, Any]]:
    """Cost of every other metric of a test, and of all together over NYUDv2's test set."""
    facts = {
        "name": "nyud",
        "tasks": ["semseg", "depth", "normals", "edges"],
        "classes": [f"class {number}" for number in range(CLASSES)],
        "depth_range": (0.1, 10.0),
    }
    config = MetricsConfig(odsf_val="none", odsf_test="none")
    # Windows of 7 cells at a sixteenth of the image, as the network has them.
    step = 7 * 16.0
    grid = WindowGrid(
        tuple(step * k for k in range(1, int(SIZE[0] / step) + 1)),
        tuple(step * k for k in range(1, int(SIZE[1] / step) + 1)),
        (16.0, 16.0),
    )
    rows = []
    maps = [{**predictions, "semseg": predictions["semseg"].argmax(1)} for _, predictions in scenes]
    for what, guesses in (("logits", [predictions for _, predictions in scenes]), ("class maps", maps)):
        evaluator = Evaluator(build_tasks(None, facts), config, facts, "test", details=True)
        calls: dict[str, Callable[[int], Any]] = {}
        for task, metrics in evaluator.metrics.items():
            for metric in metrics.values():  # type: ignore[operator]

                def score(index: int, metric: Any = metric, task: str = task, guesses: Any = guesses) -> None:
                    metric.update(guesses[index][task], scenes[index][0][task], [SIZE])

                if what == "logits" or task == "semseg":
                    calls[f"{task}: {type(metric).__name__}"] = score
        for metric in evaluator.cross.values():

            def cross(index: int, metric: Any = metric, guesses: Any = guesses) -> None:
                metric.update(guesses[index], scenes[index][0], [SIZE], grid)

            calls[f"across tasks: {type(metric).__name__}"] = cross
        for name, call in calls.items():
            value = milliseconds(call, len(scenes), rounds)
            rows.append({"what": f"{name} ({what})", "value": value, "unit": "ms an image"})
        evaluator.reset()

        def everything(index: int, evaluator: Evaluator = evaluator, guesses: Any = guesses) -> None:
            evaluator.update(guesses[index], scenes[index][0], grid)

        total = milliseconds(everything, len(scenes), rounds)
        rows += [
            {"what": f"Evaluator with details, without odsF ({what})", "value": total, "unit": "ms an image"},
            {
                "what": f"the same over {TEST_IMAGES} images ({what})",
                "value": total * TEST_IMAGES / 1e3,
                "unit": "s on one core",
            },
        ]
    return rows


def main() -> None:
    """Run the benchmarks and print them."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--images", type=int, default=16, help="rooms to render")
    parser.add_argument("--rounds", type=int, default=3, help="times each is measured")
    parser.add_argument("--out", type=Path, help="write the results as JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    scenes = [scene(number) for number in range(arguments.images)]
    with torch.inference_mode():
        rows = boundary_rows(scenes, arguments.rounds) + pixel_rows(scenes[:4], arguments.rounds)
    versions = {"numpy": np.__version__, "scipy": scipy.__version__}
    tell(rows, {**machine(), **versions, "freed_memory_kept": kept}, arguments.out)


if __name__ == "__main__":
    main()
