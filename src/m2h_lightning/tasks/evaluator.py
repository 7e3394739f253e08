"""Scores predictions of all tasks against a batch: the same code for training, testing and foreign predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric

from m2h_lightning.errors import DataError
from m2h_lightning.metrics.cross import build_cross
from m2h_lightning.metrics.protocol import share_work, unscored_is_no_fault
from m2h_lightning.metrics.seams import WindowGrid
from m2h_lightning.metrics.settings import SUFFIXES, MetricsConfig
from m2h_lightning.tasks.base import Task


@dataclass(frozen=True)
class Headline:
    """The metric by which a task is judged.

    Args:
        task: Name of the task.
        metric: Key of the metric, without stage and task, under the heading protocol.
        higher_is_better: Whether larger is better.
        keys: Key per protocol that is computed; a metric that a protocol does not define is absent.
    """

    task: str
    metric: str
    higher_is_better: bool
    keys: dict[str, str]


class Evaluator(nn.Module):
    """All metrics of a run in one stage; an ``nn.Module`` only to move between devices with its owner.

    Args:
        tasks: Tasks by name.
        config: How to score.
        facts: Facts of the data set; ``name`` decides the tolerance of boundary matching.
        stage: "val" or "test".
        details: Whether detailed scores are computed.
    """

    def __init__(
        self, tasks: dict[str, Task], config: MetricsConfig, facts: dict[str, Any], stage: str, details: bool
    ) -> None:
        super().__init__()
        self.config = config
        self.stage = stage
        self.metrics = nn.ModuleDict(
            {name: nn.ModuleDict(task.metrics(config, facts["name"], stage, details)) for name, task in tasks.items()}
        )
        self.cross = nn.ModuleDict(build_cross(list(tasks), config, facts.get("depth_unit", "m")) if details else {})
        self.images = SumMetric(nan_strategy="disable")
        self.tasks = tasks

    def headline(self, task: str) -> Headline:
        """Return the metric by which a task is judged in this stage."""
        kind = self.tasks[task]
        name = kind.headline_in(self.config, self.stage)
        protocols = [p for p in SUFFIXES if p != "per_batch" or self.config.per_batch]
        keys = {p: f"{name}{SUFFIXES[p]}" for p in protocols if p == "pooled" or kind.has_protocols(name)}
        return Headline(task, keys.get(self.config.protocol, name), kind.higher_is_better, keys)

    @property
    def headlines(self) -> dict[str, dict[str, Any]]:
        """Headlines of all tasks as plain values: the key per protocol, and which way is better."""
        found = {task: self.headline(task) for task in self.tasks}
        return {task: {**line.keys, "higher_is_better": line.higher_is_better} for task, line in found.items()}

    def update(self, predictions: dict[str, Tensor], batch: dict[str, Any], grid: WindowGrid | None = None) -> None:
        """Score a batch.

        Args:
            predictions: Activated predictions per task at the labels' size, as ``Task.activate`` returns them; class
                maps B×H×W may stand for logits.
            batch: A batch of the sample contract; ``label_size`` tells the images' sizes before padding. Tasks without
                label in it are left out.
            grid: Borders of attention windows in pixels of the labels; None where there are none.

        Raises:
            DataError: A prediction is NaN or infinite where it counts; the message names task and samples.
        """
        sizes = batch["label_size"].tolist()
        self.images.update(len(sizes))
        try:
            with share_work():
                for name, metrics in self.metrics.items():
                    if name in predictions and name in batch:
                        for metric in metrics.values():  # type: ignore[operator]
                            metric.update(predictions[name], batch[name], sizes)
                for metric in self.cross.values():
                    metric.update(predictions, batch, sizes, grid)  # type: ignore[operator]
        except DataError as error:
            raise DataError(f"{error}; samples {', '.join(batch['id'])}") from error

    def compute(self) -> dict[str, Tensor]:
        """Return all scores as ``task/metric``, over all processes of a distributed run; NaN for what was not scored.

        Beside them the number of ``images`` and ``score``, one number for all tasks: the geometric mean of their
        headlines, errors as 1/error. Which of two runs has the better one does not depend on any unit or weight; a
        relative gain in any task counts alike, as in Δm, of which its logarithm is the first order.

        Every process has to call it: this is where processes add up their states.
        """
        with unscored_is_no_fault():
            result: dict[str, Tensor] = {"images": self.images.compute()}
            for name, metrics in self.metrics.items():
                for metric in metrics.values():  # type: ignore[operator]
                    result.update({f"{name}/{key}": value for key, value in metric.compute().items()})
            for metric in self.cross.values():
                result.update(metric.compute())  # type: ignore[operator]
        gains = [self._logarithm(task, result) for task in self.tasks]
        result["score"] = torch.stack(gains).mean().exp()
        return result

    def _logarithm(self, task: str, scores: dict[str, Tensor]) -> Tensor:
        """Return the logarithm of a task's headline, more of it being better."""
        line = self.headline(task)
        value = scores[f"{task}/{line.metric}"].double().log()
        return value if line.higher_is_better else -value

    def reset(self) -> None:
        """Forget everything added so far."""
        self.images.reset()
        for metrics in (*self.metrics.values(), self.cross):
            for metric in metrics.values():  # type: ignore[operator]
                metric.reset()
