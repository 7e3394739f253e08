"""``m2h summary``: parameters and GMACs per box of the network that a configuration describes."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from m2h_lightning.commands.arguments import Arguments
from m2h_lightning.commands.training import TrainingCLI, run_cli
from m2h_lightning.errors import ConfigError

USAGE = """usage: m2h summary --config experiments/rooms.yaml [--model.* …] [--size H W]

Print parameters and multiply-adds (GMACs) per box of the network's figure, and how it would train: adapters, stages,
average of the weights, balancing. Nothing is trained, loaded or written.
  --size H W   height and width of the image in pixels (default 448 448)"""


class SummaryCLI(TrainingCLI):
    """Builds the model from the same keys as ``fit`` and prints its cost; makes no trainer and no run folder."""

    trial = True
    size: tuple[int, int] = (448, 448)

    def before_instantiate_classes(self) -> None:
        """Leave pretrained weights where they are: counting needs none."""
        super().before_instantiate_classes()
        if "backbone" in self.options.model:
            self.options.model.backbone.pretrained = False
            self.options.model.backbone.checkpoint = None
            if self.options.model.init_weights is not None:
                rank_zero_info("model.init_weights is not read: nothing is loaded to count")
            self.options.model.init_weights = None
            self.options.model.init_partial = False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make no trainer."""
        return None  # type: ignore[return-value]

    def _run_subcommand(self, subcommand: str) -> None:
        from m2h_lightning.network.summary import format_summary, summarize
        from m2h_lightning.recipe import training_lines

        model = self.model
        print(format_summary(summarize(model.net, self.size), self.size))
        for line in training_lines(model.net, model.timeline, model.optimizer_config.lr, model.ema):
            print(line)
        balancing = model.objective.balancing.name
        if balancing != "static":
            model.count_cost()
            print(f"balancing {balancing}: {model.objective.balancer.cost}")


def main_summary(words: list[str]) -> int:
    """Print the table; return the exit code.

    Args:
        words: The words after ``summary``.

    Raises:
        ConfigError: ``--size`` is not two whole numbers, or a key is wrong.
    """
    if "--help" in words or "-h" in words:
        print(USAGE)
        return 0
    size, words = take_size(words)
    command = type("SummaryCLI", (SummaryCLI,), {"size": size})
    return run_cli(command, Arguments.read("fit", words))


def take_size(words: list[str]) -> tuple[tuple[int, int], list[str]]:
    """Split ``--size H W`` off the words; return the size and the rest.

    Raises:
        ConfigError: It is not followed by two whole numbers of at least 16.
    """
    if "--size" not in words:
        return SummaryCLI.size, words
    at = words.index("--size")
    sides = words[at + 1 : at + 3]
    if len(sides) != 2 or not all(side.isdigit() and int(side) >= 16 for side in sides):
        raise ConfigError(f"--size is '{' '.join(sides)}'; give height and width in pixels, e.g. --size 448 448")
    return (int(sides[0]), int(sides[1])), [*words[:at], *words[at + 3 :]]
