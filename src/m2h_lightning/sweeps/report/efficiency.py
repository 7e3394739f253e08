"""What the networks of a sweep cost: parameters, multiply–adds, latency and throughput, measured side by side.

All networks are in one process and take turns, round by round, so that a machine that slows down slows all of them.
Their weights are random: the speed does not depend on them.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from m2h_lightning.errors import DataError
from m2h_lightning.runs import folder as runs
from m2h_lightning.runs.machine import processor

if TYPE_CHECKING:
    import torch

    from m2h_lightning.network import M2HNet

FORMAT = 2
BATCH = 8
"""Images at a time when throughput is measured."""

WARM_UP = 2
"""Passes of each network before it is timed: the first ones fill caches and choose kernels."""

FOR_P95 = 20
"""Rounds below which there is no 95th percentile: it would be the slowest pass."""


@dataclass(frozen=True)
class Budget:
    """How many rounds are run. A busy machine, or large networks, shall not take for ever.

    Args:
        rounds: Rounds that are wanted.
        needed: Rounds that make a good number; the time for them is longer.
        least: Rounds that are run however long they take.
        wanted_s: Seconds after which no round is begun, once there are as many as needed.
        needed_s: Seconds after which no round is begun, once there are the least.
    """

    rounds: int
    needed: int
    least: int
    wanted_s: float
    needed_s: float

    def goes_on(self, done: int, seconds: float) -> bool:
        """Whether another round is begun after so many, and so many seconds."""
        limit = math.inf if done < self.least else self.needed_s if done < self.needed else self.wanted_s
        return done < self.rounds and seconds < limit


LATENCY = Budget(rounds=50, needed=FOR_P95, least=3, wanted_s=60.0, needed_s=240.0)
THROUGHPUT = Budget(rounds=8, needed=3, least=2, wanted_s=30.0, needed_s=120.0)

_NO_INFLUENCE = {
    "model": (
        *("losses", "loss_weights", "balancing", "consistency", "optimizer", "schedule", "stages", "ema", "metrics"),
        *("init_weights", "init_partial", "gradient_checkpointing"),
    ),
    "backbone": ("pretrained", "checkpoint", "freeze", "unfreeze", "lr_factor", "layer_decay", "drop_path"),
    "data": ("batch_size", "eval_batch_size", "workers", "augment", "labels", "seed", "root", "render_workers"),
}
"""Keys that change nothing of how long the finished network takes; a key that is missing here costs time, no truth."""


def network_hash(config: Path) -> str | None:
    """Return a digest of what shapes the network of a run; None where there is no configuration.

    Args:
        config: Its ``config.yaml``.

    Raises:
        DataError: The file is damaged.
    """
    if not config.is_file():
        return None
    try:
        tree = yaml.safe_load(config.read_text(encoding="utf-8"))
        model = {key: value for key, value in tree["model"].items() if key not in _NO_INFLUENCE["model"]}
        if isinstance(model.get("backbone"), dict):
            model["backbone"] = {k: v for k, v in model["backbone"].items() if k not in _NO_INFLUENCE["backbone"]}
        data = tree.get("data") or {}
        settings = {k: v for k, v in (data.get("init_args") or {}).items() if k not in _NO_INFLUENCE["data"]}
        return runs.config_hash({"model": model, "data": [data.get("class_path"), settings]})
    except (OSError, ValueError, yaml.YAMLError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{config}: is damaged ({error}); restore it, or report with --no-measure") from error


def machine() -> dict[str, Any]:
    """Return where and with what is measured."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "device": gpu or processor(),
        "type": "cuda" if gpu else "cpu",
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "precision": "32 bit",
        "batch": BATCH,
        "warm_up": WARM_UP,
        "cores": os.cpu_count(),
    }


def _work() -> tuple[float, float, float] | None:
    """Return seconds: the time, the work of all processes on this machine, and that of this one; None if not told."""
    path = Path("/proc/stat")
    if not path.is_file():
        return None
    user, nice, system, _idle, _wait, *interrupts = map(int, path.read_text().split("\n", 1)[0].split()[1:9])
    all_of_them = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), all_of_them, time.process_time()


def _others(before: tuple[float, float, float] | None, after: tuple[float, float, float] | None) -> float | None:
    """Return how many cores other processes used between two moments."""
    if before is None or after is None:
        return None
    passed, everything, own = (later - earlier for earlier, later in zip(before, after, strict=True))
    return max(0.0, everything - own) / passed if passed > 0 else None


def read_cache(path: Path) -> list[dict[str, Any]]:
    """Return the measurements of earlier reports, newest first.

    Raises:
        DataError: The file is damaged.
    """
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return []  # measured again
        found = [dict(entry) for entry in content["measurements"]]
        return sorted(found, key=lambda entry: str(entry["date"]), reverse=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged ({error}); remove it, it is measured again") from error


def cached(path: Path, hashes: set[str], where: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the newest measurement that has all these networks, which were measured together.

    Args:
        path: The cache.
        hashes: The networks.
        where: The machine; None takes any.
    """
    for entry in read_cache(path):
        if hashes <= set(entry["networks"]) and (where is None or entry["machine"] == where):
            return entry
    return None


def efficiency(path: Path, configs: Mapping[str, Path], rounds: int | None = None) -> dict[str, Any]:
    """Return the cost of some networks, measured now or taken from the cache of this machine.

    Args:
        path: The cache, written anew when something was measured.
        configs: A ``config.yaml`` for each network by its hash.
        rounds: Rounds with one image; a number measures anew, whatever the cache has.

    Returns:
        ``date``, ``machine``, ``others`` (cores that other processes used meanwhile; None where that is not known),
        ``rounds`` (``latency``, ``throughput``), and ``networks`` (see :func:`measure`).

    Raises:
        M2HError: A configuration cannot be built here.
    """
    where = machine()
    known = cached(path, set(configs), where)
    if known is not None and rounds is None:
        return known
    nets = {name: build(config) for name, config in configs.items()}
    before = _work()
    networks, counts = measure(nets, LATENCY if rounds is None else replace(LATENCY, rounds=rounds))
    others = _others(before, _work())
    entry = {"date": runs.timestamp(), "machine": where, "others": others, "rounds": counts, "networks": networks}
    elsewhere = [old for old in read_cache(path) if old["machine"] != where]
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(path, {"format": FORMAT, "measurements": [entry, *elsewhere]})
    return entry


def build(config: Path) -> tuple[M2HNet, tuple[int, int]]:
    """Build the network of a run as its configuration says, with random weights; return it and its input's size.

    Raises:
        M2HError: The configuration is wrong, or needs what is not installed.
    """
    from m2h_lightning.commands.arguments import Arguments
    from m2h_lightning.commands.summary import SummaryCLI
    from m2h_lightning.commands.training import run_cli

    made: list[tuple[M2HNet, tuple[int, int]]] = []

    class Builder(SummaryCLI):
        quiet = True

        def _run_subcommand(self, subcommand: str) -> None:
            made.append((self.model.net, tuple(self.datamodule.crop)))

    with contextlib.redirect_stdout(io.StringIO()):
        run_cli(Builder, Arguments.read("fit", ["--config", str(config)]))
    if not made:
        raise DataError(f"{config}: no network was built")
    return made[0]


def measure(
    nets: Mapping[str, tuple[M2HNet, tuple[int, int]]], latency: Budget = LATENCY, throughput: Budget = THROUGHPUT
) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Measure networks in turn, on the GPU where there is one.

    Args:
        nets: Network and size of its image in pixels, by name.
        latency: Forward passes of each network with one image.
        throughput: The same with ``BATCH`` images.

    Returns:
        By name: ``parameters``, ``gmacs``, ``size``, ``latency_p50_ms`` and ``latency_p95_ms`` (one image; None with
        fewer than ``FOR_P95`` rounds), ``images_per_s`` (``BATCH`` images at a time); and the rounds that were run,
        ``latency`` and ``throughput``.
    """
    import torch

    from m2h_lightning.network.summary import summarize, total

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, dict[str, Any]] = {}
    for name, (net, size) in nets.items():
        cost = total(summarize(net, size))
        found[name] = {"parameters": cost.parameters, "gmacs": cost.gmacs, "size": list(size)}
        net.to(device).eval()
    rounds = {}
    with torch.inference_mode():
        single = {name: _forward(net, 1, size, device) for name, (net, size) in nets.items()}
        for name, times in in_turn(single, latency).items():
            rounds["latency"] = len(times)
            found[name]["latency_p50_ms"] = 1e3 * statistics.median(times)
            found[name]["latency_p95_ms"] = None if len(times) < FOR_P95 else 1e3 * _p95(times)
        batch = {name: _forward(net, BATCH, size, device) for name, (net, size) in nets.items()}
        for name, times in in_turn(batch, throughput).items():
            rounds["throughput"] = len(times)
            found[name]["images_per_s"] = BATCH / statistics.median(times)
    return found, rounds


def _p95(times: list[float]) -> float:
    return statistics.quantiles(times, n=20, method="inclusive")[-1]


def _forward(net: M2HNet, batch: int, size: tuple[int, int], device: torch.device) -> Callable[[], float]:
    """Return a function that runs the network once and returns the seconds it took."""
    import torch

    image = torch.rand(batch, 3, *size, device=device)

    def run() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        net(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return run


def in_turn(
    functions: Mapping[str, Callable[[], float]], budget: Budget, clock: Callable[[], float] = time.monotonic
) -> dict[str, list[float]]:
    """Return the times of each function; every round begins with another one, so that none is always the first.

    Args:
        functions: What returns the seconds it took, by name.
        budget: How many rounds.
        clock: Seconds that pass.
    """
    names = list(functions)
    for name in names:
        for _ in range(WARM_UP):
            functions[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    begin, number = clock(), 0
    while budget.goes_on(number, clock() - begin):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            times[name].append(functions[name]())
        number += 1
    return times
