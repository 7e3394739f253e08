"""Reads a training command without running it: the configuration it would have, and the tasks it would train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from m2h_lightning.commands.arguments import Arguments
from m2h_lightning.commands.training import StrictParser, TrainingCLI, run_cli
from m2h_lightning.errors import ConfigError, M2HError
from m2h_lightning.objectives import BalancingConfig, ConsistencyConfig
from m2h_lightning.objectives.settings import check_balancing, check_consistency
from m2h_lightning.tasks import build_tasks


@dataclass
class Plan:
    """What a ``fit`` command would do.

    Args:
        tree: The configuration as its ``config.yaml`` would hold it.
        tasks: The tasks it would train, in the order of tables.
    """

    tree: dict[str, Any]
    tasks: list[str]

    @property
    def experiment(self) -> Path:
        """The folder of the experiment's runs."""
        run = self.tree["run"]
        return Path(run["root"]).expanduser() / (run["experiment"] or "run")


class PlanCLI(TrainingCLI):
    """Takes the keys of ``fit`` and builds the data set alone, for its tasks; no network, no trainer, no run folder."""

    trial = True
    quiet = True
    plans: list[Plan]
    checks: bool

    def _set_seed(self) -> None:
        """Leave the seed to the run, which has to be found again by it."""
        seed = self.options.seed_everything
        if isinstance(seed, bool):
            raise ConfigError(f"seed_everything is {str(seed).lower()}; give a number, so that the run can be repeated")

    def instantiate_classes(self) -> None:
        """Build the data set; an error of the user's that jsonargparse wraps is raised as it was."""
        parser = StrictParser(parser_mode="omegaconf")
        parser.add_subclass_arguments(self.data_class, "data", required=True)
        try:
            made = parser.instantiate_classes(parser.parse_object({"data": self.options.data.as_dict()}))
        except (M2HError, ValueError) as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, M2HError):
                cause = cause.__cause__ or cause.__context__
            raise (cause or error) from None
        self.datamodule = made.data
        if self.checks:
            self.datamodule.check()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make no trainer."""
        return None  # type: ignore[return-value]

    def _run_subcommand(self, subcommand: str) -> None:
        tasks = build_tasks(self.options.model.tasks, self.datamodule.facts)
        model = self.options.model.as_dict()
        check_balancing(BalancingConfig(**model["balancing"]), list(tasks))
        check_consistency(ConsistencyConfig(**model["consistency"]), list(tasks))
        self.plans.append(Plan(self.tree, list(tasks)))


def plan_of(words: list[str], check: bool = False) -> Plan:
    """Return what ``m2h fit`` would do with these words.

    Args:
        words: The words after ``fit``.
        check: Whether to look for the data set's files.

    Raises:
        M2HError: A key or value is wrong, or the data set is not there.
    """
    plans: list[Plan] = []
    run_cli(type("PlanCLI", (PlanCLI,), {"plans": plans, "checks": check}), Arguments.read("fit", words))
    return plans[0]
