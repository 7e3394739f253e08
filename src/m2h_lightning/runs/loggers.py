"""The loggers of a run: CSV always, TensorBoard if installed, Weights & Biases in the mode :mod:`wandb_mode` finds.

All of them write inside the run folder and receive the same flat configuration (``model.wmca.window_size``).
"""

from __future__ import annotations

import csv
import io
import math
import os
from argparse import Namespace
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from m2h_lightning.runs.folder import METRICS, RunConfig, write_text
from m2h_lightning.runs.wandb_mode import resolve_wandb_mode

FIRST_COLUMNS = ("epoch", "step")


class RunCSVLogger(Logger):
    """Writes ``metrics.csv`` at the root of the run folder: one row per logged set of metrics, one column per name.

    Every row is one write to the file's end, so a killed process leaves whole rows. A new name rewrites the file with
    one more column, atomically. An existing file is continued: a resumed run appends to it.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = Path(folder) / METRICS
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """No name and no version: the run folder is the place itself."""
        return ""

    @property
    def version(self) -> str:
        """See :attr:`name`."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``config.yaml`` is the record of the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row.

        Args:
            metrics: Values by name; ``epoch`` among them.
            step: The optimiser step they belong to.
        """
        row = {**{name: _cell(value) for name, value in metrics.items()}, "step": "" if step is None else str(step)}
        if self._columns is None:
            self._columns = list(read_rows(self.path)[0])
        new = sorted(name for name in row if name not in self._columns)
        if new:
            rows = read_rows(self.path)[1]
            first = [name for name in FIRST_COLUMNS if name in self._columns or name in new]
            self._columns = [*first, *(name for name in [*self._columns, *new] if name not in first)]
            write_text(self.path, _text(self._columns, [*rows, row], header=True))
        else:
            with open(self.path, "ab", buffering=0) as file:
                file.write(_text(self._columns, [row], header=False).encode())

    @rank_zero_only
    def keep_before(self, step: int, validates_again: bool = False) -> None:
        """Drop the rows of ``step`` and later, and a torn last row: a run resumed at ``step`` writes them again.

        Args:
            step: The optimiser step at which the run goes on.
            validates_again: Whether it begins with the validation after the last step: its row is dropped too.
        """
        columns, rows = read_rows(self.path)
        if columns:
            kept = [row for row in rows if not row.get("step") or int(row["step"]) < step]
            if validates_again:
                last = str(step - 1)
                kept = [row for row in kept if row["step"] != last or not _is_validation(row)]
            write_text(self.path, _text(columns, kept, header=True))
        self._columns = None


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a ``metrics.csv``: its columns and its whole rows (cells as text, empty where a row has no value)."""
    if not path.is_file():
        return [], []
    content = path.read_text(encoding="utf-8")
    whole = content[: content.rfind("\n") + 1]  # a row without its line break was torn by a crash of the machine
    reader = csv.DictReader(io.StringIO(whole))
    return list(reader.fieldnames or []), list(reader)


def _is_validation(row: Mapping[str, str]) -> bool:
    return any(value and name.startswith("val/") for name, value in row.items())


def _cell(value: Any) -> str:
    number = float(value)
    return str(int(number)) if math.isfinite(number) and isinstance(value, int) else repr(number)


def _text(columns: list[str], rows: list[dict[str, str]], header: bool) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def make_loggers(folder: Path, run: RunConfig, given: Any, quiet: bool = False) -> list[Logger]:
    """Return the run's loggers, the CSV logger first.

    Args:
        folder: The run folder.
        run: The ``run.*`` settings.
        given: ``trainer.logger`` as the user set it: None or True for the defaults, False for CSV only, or loggers.
        quiet: True in trial runs (``fast_dev_run``), where Lightning replaces all loggers: make the CSV logger only.
    """
    loggers: list[Logger] = [RunCSVLogger(folder)]
    if quiet or given is False:
        return loggers
    if given is not None and given is not True:
        return [*loggers, *(given if isinstance(given, list | tuple) else [given])]
    if run.tensorboard and find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(save_dir=str(folder), name="tensorboard", version=""))
    mode, reason = resolve_wandb_mode(run.wandb)
    if mode != "disabled":
        loggers.append(_wandb_logger(folder, run, mode))
        sync = f"; send it later with: wandb sync {_relative(folder)}/wandb/offline-run-*" if mode == "offline" else ""
        rank_zero_info(f"W&B: {mode} ({reason}){sync}")
    return loggers


class AgentWandbLogger(WandbLogger):
    """Logs into the run that W&B's sweep agent made: its id, sweep and project are in the environment.

    ``wandb.init`` takes them from there, and warns of every other; the sweep's own values are in the run's
    configuration already, under the same keys, and locked.
    """

    def __init__(self, explicit: Mapping[str, str | None], **settings: Any) -> None:
        super().__init__(id=os.environ[_AGENT_RUN], **settings)
        for key in ("id", "project", "entity"):
            if not explicit.get(key):
                self._wandb_init.pop(key, None)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log what the sweep has not set; what differs from it is logged too, so that W&B says so."""
        known = dict(self.experiment.config)
        flat = vars(params) if isinstance(params, Namespace) else params
        super().log_hyperparams({k: v for k, v in flat.items() if not (k in known and known[k] == v)})


_AGENT_RUN, _AGENT_SWEEP = "WANDB_RUN_ID", "WANDB_SWEEP_ID"
"""What ``wandb agent`` sets for the command it starts."""

_CELL = "M2H_CELL"
"""What ``m2h sweep`` sets for every cell."""


def in_wandb_agent() -> bool:
    """Whether W&B's sweep agent started this process."""
    return bool(os.environ.get(_AGENT_SWEEP) and os.environ.get(_AGENT_RUN))


def _wandb_logger(folder: Path, run: RunConfig, mode: str) -> WandbLogger:
    settings: dict[str, Any] = {"mode": mode}
    if mode == "offline":
        settings["resume"] = None  # offline runs are joined by their id when they are synced
        settings["settings"] = {"silent": True}  # the one line of make_loggers says how to sync
    settings |= {
        "save_dir": str(folder),
        "name": folder.name,
        "project": run.wandb_project or os.environ.get("WANDB_PROJECT") or "m2h-lightning",
        "entity": run.wandb_entity,
        "group": folder.parent.name,
    }
    logger: WandbLogger
    if in_wandb_agent():
        explicit = {"project": run.wandb_project, "entity": run.wandb_entity}
        logger = AgentWandbLogger(explicit, job_type="cell", **settings)
    elif os.environ.get(_CELL):
        logger = WandbLogger(id=folder.name, job_type="cell", **settings)
    else:
        logger = WandbLogger(id=folder.name, **settings)
    logger._wandb_init.pop("anonymous", None)  # wandb warns about it on every run
    return logger


def close_loggers(loggers: list[Logger]) -> None:
    """Close the W&B runs: the next run of this process would else be logged into them."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger._experiment is not None:
            logger._experiment.finish()


def define_wandb_axes(loggers: list[Logger]) -> None:
    """Show validation and test metrics over epochs on W&B; called on rank 0, once the runs exist."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.define_metric("epoch")
            for stage in ("val", "test"):
                logger.experiment.define_metric(f"{stage}/*", step_metric="epoch")


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
