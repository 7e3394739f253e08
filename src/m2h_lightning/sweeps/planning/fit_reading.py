"""Reads a cell's ``fit`` command by training's own rules: its configuration, and a network that has only shapes.

Loads torch: :mod:`.check` and :mod:`.probe` import it when they need it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from m2h_lightning.commands import training
from m2h_lightning.commands.arguments import Arguments
from m2h_lightning.commands.fitting import check_fit
from m2h_lightning.commands.summary import SummaryCLI
from m2h_lightning.errors import CheckpointError, ConfigError
from m2h_lightning.objectives import BalancingConfig, ConsistencyConfig
from m2h_lightning.objectives.settings import check_balancing, check_consistency
from m2h_lightning.recipe import read_source


@dataclass(frozen=True)
class Reading:
    """What a ``fit`` command would do.

    Args:
        tree: The configuration as its ``config.yaml`` would hold it.
        tasks: The tasks it would train.
        data: Name of the data set's class.
    """

    tree: dict[str, Any]
    tasks: list[str]
    data: str


class ReadingCLI(SummaryCLI):
    """Takes the keys of ``fit``; builds the data set and a network without numbers, no trainer and no run folder."""

    quiet = True
    readings: list[Reading]

    def _set_seed(self) -> None:
        """Leave the seed to the run, which has to be found again by it."""
        seed = self.options.seed_everything
        if isinstance(seed, bool):
            raise ConfigError(f"seed_everything is {str(seed).lower()}; give a number, so that the run can be repeated")

    def before_instantiate_classes(self) -> None:
        """Look for the files that training would start from, since nothing is loaded here."""
        model = self.options.model
        if model.get("init_weights"):
            read_source(str(model.init_weights))
        checkpoint = model.get("backbone.checkpoint")
        if checkpoint and not Path(checkpoint).expanduser().is_file():
            raise CheckpointError(f"model.backbone.checkpoint: there is no file {checkpoint}")
        super().before_instantiate_classes()

    def instantiate_classes(self) -> None:
        """Build the network of tensors without numbers: a large one in a second and without memory."""
        with torch.device("meta"):
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        self.datamodule.check()
        callbacks = self.config_init[subcommand]["trainer"].get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list | tuple) else [callbacks]
        check_fit(self.model, self.datamodule, [one for one in callbacks if isinstance(one, Callback)])
        tasks, settings = list(self.model.tasks), self.options.model.as_dict()
        check_balancing(BalancingConfig(**settings["balancing"]), tasks)
        check_consistency(ConsistencyConfig(**settings["consistency"]), tasks)
        self.readings.append(Reading(self.tree, tasks, type(self.datamodule).__name__))


def prepare() -> None:
    """Import the data sets and the model; without garbage collection, which costs a second and finds nothing."""
    gc.disable()
    try:
        training.classes()
    finally:
        gc.enable()


def read_fit(words: list[str]) -> Reading:
    """Return what ``m2h fit`` would do with these words.

    Args:
        words: The words after ``fit``.

    Raises:
        M2HError: A key or value is wrong, the network cannot be built, or files are missing.
    """
    readings: list[Reading] = []
    with _silent():
        training.run_cli(type("ReadingCLI", (ReadingCLI,), {"readings": readings}), Arguments.read("fit", words))
    if not readings:
        raise ConfigError(f"'{' '.join(words)}' asks for help or for a printed configuration; a cell has to train")
    return readings[0]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Leave what training tells of itself to the run."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
