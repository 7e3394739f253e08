"""``make bench``: multiply-adds, paired times and data throughput, as a table and as JSON.

Times that are compared are taken in turn (A B A B …) in one process, and the median of the pairwise ratios is the
result: the machine's drift cancels. Absolute times only say how fast this machine was today.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from m2h_lightning.files import atomic
from m2h_lightning.network import BackboneConfig, GGFMConfig, M2HNet, WMCAConfig
from m2h_lightning.network.summary import summarize
from m2h_lightning.runs.machine import processor

TASKS = {"semseg": 40, "depth": 1, "normals": 3, "edges": 1}


def paired(a: Callable[[], Any], b: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Time two functions in turn after one warm-up each.

    Returns:
        Median seconds of ``a``, of ``b``, and the median of the pairwise ratios a / b.
    """
    a(), b()
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        pair = []
        for function in (a, b):
            start = time.perf_counter()
            function()
            pair.append(time.perf_counter() - start)
        times.append((pair[0], pair[1]))
    return (
        statistics.median(x for x, _ in times),
        statistics.median(y for _, y in times),
        statistics.median(x / y for x, y in times),
    )


def machine() -> dict[str, Any]:
    """Return where and with what was measured."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seed": 0,
        "date": time.strftime("%Y-%m-%d"),
    }


def tell(rows: list[dict[str, Any]], about: dict[str, Any], out: Path | None) -> None:
    """Print results and where they were measured; write them as JSON where asked."""
    width = max(len(row["what"]) for row in rows)
    for row in rows:
        print(f"{row['what']:<{width}}  {row['value']:>9.2f} {row['unit']}")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    if out:
        with atomic(out) as temporary:
            temporary.write_text(json.dumps({"machine": about, "rows": rows}, indent=1))


def network(preset: str, **changes: Any) -> M2HNet:
    """Return a network of random weights in evaluation mode."""
    backbone = BackboneConfig(pretrained=False)
    return M2HNet(TASKS, preset=preset, backbone=backbone, **changes).eval()  # type: ignore[arg-type]


def cost_rows() -> list[dict[str, Any]]:
    """Parameters and multiply-adds of the presets at 448×448."""
    rows = []
    for preset in ("m2h", "m2h-small"):
        boxes = summarize(network(preset), size=(448, 448))
        rows.append(
            {
                "what": f"{preset}: GMACs at 448×448 (conv + matmul + attention)",
                "value": sum(box.gmacs for box in boxes),
                "unit": f"GMAC, {sum(box.parameters for box in boxes) / 1e6:.2f} M parameters",
            }
        )
    return rows


@torch.inference_mode()
def speed_rows(size: int, rounds: int) -> list[dict[str, Any]]:
    """Whole network against its backbone, and the parts of WMCA against each other."""
    small = network("m2h-small")
    image = torch.randn(1, 3, size, size).contiguous(memory_format=torch.channels_last)
    rows = []

    def row(what: str, a: Callable[[], Any], b: Callable[[], Any]) -> None:
        first, second, ratio = paired(a, b, rounds)
        rows.append({"what": what, "value": ratio, "unit": f"× ({first * 1e3:.0f} ms against {second * 1e3:.0f} ms)"})

    row(f"m2h-small / its backbone alone, {size}×{size}, float32", lambda: small(image), lambda: small.backbone(image))
    whole = network("m2h-small", wmca=WMCAConfig(chunk=0))
    row("WMCA in one pass / in cache-sized chunks", lambda: whole(image), lambda: small(image))
    plain = network("m2h-small", wmca=WMCAConfig(enabled=False), ggfm=GGFMConfig(enabled=False))
    row("WMCA + GGFM / neither (plain MSF)", lambda: small(image), lambda: plain(image))
    return rows


def data_rows(folder: Path) -> list[dict[str, Any]]:
    """Rendering and loading of rooms at 240×320, one process."""
    from m2h_lightning.data.rooms import Rooms
    from m2h_lightning.data.synthesis.generate import render_room

    render_room(0, "train", 99, 1, 240, 320)
    start = time.perf_counter()
    for room in range(4):
        render_room(0, "train", room, 8, 240, 320)
    rows = [
        {"what": "rooms rendered, 240×320, all labels", "value": 32 / (time.perf_counter() - start), "unit": "images/s"}
    ]
    data = Rooms(root=str(folder), rooms=[4, 1, 1], views=8, size=(240, 320), crop=(224, 224), workers=0, batch_size=8)
    data.prepare_data()
    loader = data.train_dataloader()
    list(loader)
    start, count = time.perf_counter(), 0
    for _ in range(4):
        count += sum(len(batch["id"]) for batch in loader)
    rows.append(
        {
            "what": "training samples loaded (crop 224×224, all augmentation)",
            "value": count / (time.perf_counter() - start),
            "unit": "samples/s per process",
        }
    )
    return rows


def main() -> None:
    """Run the benchmarks and print them."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--size", type=int, default=448, help="side of the image in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="pairs per ratio")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the results as JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = cost_rows() + speed_rows(arguments.size, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        rows += data_rows(Path(folder))
    tell(rows, machine(), arguments.out)


if __name__ == "__main__":
    main()
