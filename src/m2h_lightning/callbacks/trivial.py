"""Trivial predictors scored beside the network: what a number is worth when nothing was learnt."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from m2h_lightning.data.raw import RawSample, decode
from m2h_lightning.labels import IGNORE


class TrainingPriors:
    """Statistics of stored training samples that need no image: the best constant guesses.

    * semseg: the most frequent class;
    * depth: the mean over pixels, metres;
    * normals: the normalised mean vector;
    * edges: the share of edge pixels, a constant probability.

    Args:
        classes: Number of classes.
    """

    tasks = ("semseg", "depth", "normals", "edges")

    def __init__(self, classes: int) -> None:
        self.histogram = np.zeros(classes, np.int64)
        self.depth = np.zeros(2)
        self.normals = np.zeros(3)
        self.edges = np.zeros(2)

    def add(self, raw: RawSample) -> None:
        """Add a stored sample, whatever its codes."""
        raw = decode(raw)
        if "semseg" in raw:
            labels = raw["semseg"][raw["semseg"] != IGNORE]
            self.histogram += np.bincount(labels.ravel(), minlength=len(self.histogram))
        if "depth" in raw:
            known = raw["depth"][raw["depth"] > 0]
            self.depth += (known.sum(dtype=np.float64), known.size)
        if "normals" in raw:
            self.normals += raw["normals"].reshape(-1, 3).sum(0, dtype=np.float64)
        if "edges" in raw:
            self.edges += ((raw["edges"] == 1).sum(), (raw["edges"] <= 1).sum())

    def predict(self, task: str, target: Tensor) -> Tensor:
        """Return the constant prediction of ``task`` for a batch of targets, as its metric takes it."""
        if task == "semseg":
            return torch.full_like(target, int(self.histogram.argmax()))
        if task == "depth":
            return torch.full_like(target, float(self.depth[0] / self.depth[1]))
        if task == "normals":
            mean = self.normals / max(float(np.linalg.norm(self.normals)), 1e-12)
            return torch.as_tensor(mean, dtype=target.dtype, device=target.device).reshape(1, 3, 1, 1).expand_as(target)
        if task == "edges":
            return torch.full_like(target, float(self.edges[0] / self.edges[1]))
        raise KeyError(task)


class TrivialBaseline(L.Callback):
    """Scores constant predictors on the test set and logs them as ``test/<task>/trivial_<metric>``.

    The table at the end of a run shows them beside the network's.

    The constants come from stored training samples, spread evenly over the training set.

    Args:
        samples: Number of training samples to take the statistics from.
    """

    def __init__(self, samples: int = 200) -> None:
        self.samples = samples
        self._priors: TrainingPriors | None = None
        self._metrics: dict[str, MetricCollection] = {}

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the statistics of the training set."""
        module: Any = pl_module
        dataset = trainer.datamodule.dataset("train")  # type: ignore[attr-defined]
        self._priors = TrainingPriors(len(module.facts["classes"]))
        for index in np.linspace(0, len(dataset) - 1, min(self.samples, len(dataset))).round().astype(int):
            self._priors.add(dataset[int(index)])
        self._metrics = {
            name: task.metrics(module.protocol).to(module.device)
            for name, task in module.tasks.items()
            if name in TrainingPriors.tasks
        }

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the constants on the batch's targets."""
        assert self._priors is not None
        for name, metric in self._metrics.items():
            if name in batch:
                metric.update(self._priors.predict(name, batch[name]), batch[name])

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the scores of the constants."""
        module: Any = pl_module
        for name, metric in self._metrics.items():
            score = metric.compute()[module.tasks[name].headline]
            pl_module.log(f"test/{name}/trivial_{module.tasks[name].headline}", score.float())
