"""The run folder ``runs/<experiment>/<run id>/``: naming, creation, atomic files, provenance. Imports no torch.

A folder holds ``config.yaml`` (re-runs the run), ``metrics.csv``, ``checkpoints/``, ``pictures/``, loggers' files and,
written last and atomically, ``result.json``. A folder without ``result.json`` is unfinished; ``failure.txt`` says
why when the run itself could still say so. ``run.json`` lists when and how the run was started and resumed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from m2h_lightning.errors import CheckpointError, ConfigError
from m2h_lightning.files import atomic

RUN_DIR_VARIABLE = "M2H_RUN_DIR"
"""Set by rank 0 for the processes Lightning launches from it; read by processes of rank > 0 only."""

CONFIG, RESULT, FAILURE, HISTORY, METRICS = "config.yaml", "result.json", "failure.txt", "run.json", "metrics.csv"
CHECKPOINTS, PICTURES, PREDICTIONS = "checkpoints", "pictures", "predictions"
STOPPED_CHECKPOINT = "stopped.ckpt"
"""Among the checkpoints that of a run that was told to stop; removed when the run is finished."""


PACKAGES = ("m2h-lightning", "torch", "torchvision", "lightning", "timm", "torchmetrics", "numpy", "jsonargparse")


@dataclass
class RunConfig:
    """Where a run keeps its files and which loggers watch it.

    Args:
        experiment: Name of the experiment; the folder is ``<root>/<experiment>/<id>``. Default: the stem of the first
            ``--config`` file, else ``run``.
        root: Folder of all runs.
        id: Name of this run. Default: time of the start and a random suffix. An existing one is never overwritten.
        resume: Folder of a run to continue in place, from its newest complete checkpoint (command line only).
        wandb: Weights & Biases mode. ``auto``: $WANDB_MODE, else online when an API key is present, else offline.
        wandb_project: Weights & Biases project. Default: $WANDB_PROJECT, else ``m2h-lightning``.
        wandb_entity: Weights & Biases user or team. Default: the account's own.
        tensorboard: Whether to write TensorBoard files, if TensorBoard is installed.
        pictures: Number of validation (or test) images, at most 8, drawn after each epoch; 0 draws none.
        test: After training, also evaluate the trained network on the test split; ``result.json`` holds both.
    """

    experiment: str | None = None
    root: str = "runs"
    id: str | None = None
    resume: str | None = None
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    wandb_project: str | None = None
    wandb_entity: str | None = None
    tensorboard: bool = True
    pictures: int = 4
    test: bool = False


def global_rank(env: Mapping[str, str] = os.environ) -> int:
    """Return this process's rank as its launcher tells it; 0 when there is no launcher.

    Knows torchrun (``RANK``), Lightning's own subprocesses (``LOCAL_RANK``, ``NODE_RANK``) and srun (``SLURM_PROCID``).
    """
    if "RANK" in env:
        return int(env["RANK"])
    if "LOCAL_RANK" in env:
        return int(env["LOCAL_RANK"]) + (1 if int(env.get("NODE_RANK", env.get("GROUP_RANK", "0"))) else 0)
    return int(env["SLURM_PROCID"]) if _in_srun_step(env) else 0


def _in_srun_step(env: Mapping[str, str]) -> bool:
    """True in a task of a multi-task ``srun`` step: in a plain batch script every command shares the job id."""
    return "SLURM_STEP_ID" in env and int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def launcher_run_id(env: Mapping[str, str] = os.environ) -> str | None:
    """Return a run id that every rank derives alike from its launcher, or None when one process starts the run.

    Raises:
        ConfigError: torchrun on several nodes without ``--rdzv-id``: the ranks have no common name.
    """
    if "TORCHELASTIC_RUN_ID" in env:
        name = env["TORCHELASTIC_RUN_ID"]
        if name == "none":  # torchrun's default without --rdzv-id or --standalone
            if int(env.get("GROUP_WORLD_SIZE", "1")) > 1:
                raise ConfigError("torchrun on several nodes gives the ranks no common name; add --rdzv-id or --run.id")
            name = f"{env.get('MASTER_PORT', '0')}-{os.getppid()}"
        return slug(f"torchrun-{name}-{env.get('TORCHELASTIC_RESTART_COUNT', '0')}")
    if _in_srun_step(env):
        restart = env.get("SLURM_RESTART_COUNT", "0")
        return slug(f"slurm-{env['SLURM_JOB_ID']}-{env['SLURM_STEP_ID']}" + (f"-r{restart}" if restart != "0" else ""))
    return None


def slug(name: str) -> str:
    """Return ``name`` with everything but letters, digits, ``.``, ``_`` and ``-`` replaced by ``-``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"


def new_run_id() -> str:
    """Return a fresh run id: local time to the second and 24 random bits, so that ids sort by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def choose_folder(run: RunConfig, config_files: list[str], env: Mapping[str, str] = os.environ) -> Path:
    """Return the absolute path of this process's run folder, creating nothing.

    Args:
        run: The ``run.*`` settings.
        config_files: The ``--config`` files in order; the first one names the experiment by default.
        env: The environment.

    Raises:
        ConfigError: ``run.id`` names an existing folder, or a name would leave ``run.root``.
    """
    if run.resume is not None:
        return Path(run.resume).absolute()
    if global_rank(env) > 0 and RUN_DIR_VARIABLE in env:
        return Path(env[RUN_DIR_VARIABLE])
    for key, value in (("run.experiment", run.experiment), ("run.id", run.id)):
        if value is not None and (value != slug(value) or not value):
            raise ConfigError(f"{key}: '{value}' is not a folder name; use letters, digits, '.', '_' and '-'")
    experiment = run.experiment or (slug(Path(config_files[0]).stem) if config_files else "run")
    folder = Path(run.root).expanduser().absolute() / experiment / (run.id or launcher_run_id(env) or new_run_id())
    if folder.exists() and global_rank(env) == 0:
        raise ConfigError(f"run folder {folder} exists; give another run.id, or continue it with --run.resume {folder}")
    return folder


def create_folder(folder: Path) -> None:
    """Create a run folder that must not exist yet.

    Raises:
        ConfigError: It exists, or it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError as error:
        raise ConfigError(f"cannot create run folder {folder}: {error.filename} exists; give another run.id") from error
    except OSError as error:
        raise ConfigError(f"cannot create run folder {folder}: {error.strerror}; set run.root") from error


def checkpoint_candidates(folder: Path) -> list[Path]:
    """Return the checkpoints of a run folder, newest first; a link and its target count once."""
    files: dict[Path, float] = {}
    for path in (folder / CHECKPOINTS).glob("*.ckpt"):
        with contextlib.suppress(FileNotFoundError):  # a dangling last.ckpt
            files[path.resolve(strict=True)] = path.stat().st_mtime
    return sorted(files, key=lambda path: (files[path], path.name), reverse=True)


def check_resumable(folder: Path) -> None:
    """Check that ``folder`` is a run folder with something to continue from.

    Raises:
        ConfigError: It is no run folder.
        CheckpointError: It has no checkpoint.
    """
    if not folder.is_dir():
        raise ConfigError(f"run.resume: {folder} is not a folder; give a run folder such as runs/<experiment>/<run id>")
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"run.resume: {folder} is not a run folder of a started run: it has no {CONFIG}")
    if not checkpoint_candidates(folder):
        raise CheckpointError(
            f"run.resume: nothing to resume in {folder / CHECKPOINTS}: no complete checkpoint; start anew"
        )


def record_start(folder: Path, command: list[str]) -> None:
    """Append this start of the run (command, time, host, process) to the folder's ``run.json``."""
    path = folder / HISTORY
    starts = json.loads(path.read_text())["starts"] if path.is_file() else []
    starts.append({"time": timestamp(), "command": command, "host": socket.gethostname(), "pid": os.getpid()})
    write_json(path, {"starts": starts})


def timestamp() -> str:
    """Return the local time with its offset, ISO 8601, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: it appears whole, on disk, or not at all."""
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically; non-finite numbers become null, since JSON has none."""
    write_text(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Return ``value`` in JSON's own types: paths as text, tuples as lists, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys; ``init_args`` levels vanish, so that ``data.crop`` is ``data.crop``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, name))
        else:
            flat[name] = value
    return flat


def config_hash(config: Mapping[str, Any]) -> str:
    """Return 16 hex digits that name a configuration, whatever its run folder (``run.*`` is left out)."""
    content = {key: value for key, value in config.items() if key != "run"}
    return hashlib.sha256(json.dumps(plain(content), sort_keys=True).encode()).hexdigest()[:16]


def nested_metrics(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Nest ``stage/task/metric`` names: ``{"val/depth/rmse_m": 0.5}`` → ``{"val": {"depth": {"rmse_m": 0.5}}}``."""
    tree: dict[str, Any] = {}
    for name, value in sorted(metrics.items()):
        *branches, leaf = name.split("/")
        node = tree
        for branch in branches:
            child = node.setdefault(branch, {})
            if not isinstance(child, dict):  # both "val/loss" and "val/loss/depth" are logged
                child = node[branch] = {"total": child}
            node = child
        if isinstance(node.get(leaf), dict):
            node[leaf]["total"] = value
        else:
            node[leaf] = value
    return tree


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Return commit and cleanliness of the code's repository, or None where there is none (or no git).

    Args:
        folder: A folder in the repository. Default: this package's, else the working directory.
    """
    for place in [folder] if folder else [Path(__file__).parent, Path.cwd()]:
        try:
            commit, status = (
                subprocess.run(
                    ["git", "-C", str(place), *words], capture_output=True, text=True, timeout=20, check=True
                )
                for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
            )
        except (OSError, subprocess.SubprocessError):
            continue
        return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}
    return None


def versions() -> dict[str, str | None]:
    """Return the versions of Python, the system and the packages that shape a result."""
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
