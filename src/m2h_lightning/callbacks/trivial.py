"""Trivial predictors scored beside the network: what a number is worth when nothing was learnt."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m2h_lightning.data.raw import RawSample, decode
from m2h_lightning.labels import IGNORE
from m2h_lightning.network.padding import at_label_size
from m2h_lightning.tasks import Evaluator


class TrainingPriors:
    """Statistics of stored training samples that need no image: the best constant guesses.

    * semseg: the most frequent class;
    * depth: the mean over pixels, metres;
    * normals: the normalised mean vector.

    Edges have no useful constant: boundary scores thin a flat map to nothing. :func:`gradient_magnitude` stands for
    them.

    Args:
        classes: Number of classes.
    """

    tasks = ("semseg", "depth", "normals")

    def __init__(self, classes: int) -> None:
        self.histogram = np.zeros(classes, np.int64)
        self.depth = np.zeros(2)
        self.normals = np.zeros(3)

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

    def predict(self, task: str, target: Tensor) -> Tensor:
        """Return the constant prediction of ``task`` for a batch of targets, as its metric takes it."""
        if task == "semseg":
            return torch.full_like(target, int(self.histogram.argmax()))
        if task == "depth":
            return torch.full_like(target, float(self.depth[0] / self.depth[1]))
        if task == "normals":
            mean = self.normals / max(float(np.linalg.norm(self.normals)), 1e-12)
            return torch.as_tensor(mean, dtype=target.dtype, device=target.device).reshape(1, 3, 1, 1).expand_as(target)
        raise KeyError(task)


def gradient_magnitude(image: Tensor) -> Tensor:
    """Return an edge map that nothing was learnt for: the gradient of the smoothed image, the benchmarks' oldest entry.

    Derivatives of a Gaussian of 2 pixels, the strongest over the colours, divided by the image's 99.5th percentile.

    Args:
        image: B×3×H×W, at least 2 pixels wide and high.

    Returns:
        B×1×H×W in [0, 1].
    """
    steps = torch.arange(-6, 7, device=image.device, dtype=torch.float32)
    kernel = torch.exp(-(steps**2) / 8)
    kernel /= kernel.sum()
    colours = F.pad(image.float().flatten(0, 1)[:, None], (6, 6, 6, 6), mode="replicate")
    smooth = F.conv2d(F.conv2d(colours, kernel.reshape(1, 1, 1, -1)), kernel.reshape(1, 1, -1, 1))
    down, across = torch.gradient(smooth[:, 0], dim=(1, 2))
    strength = torch.hypot(down, across).unflatten(0, image.shape[:2]).amax(1, keepdim=True)
    top = torch.stack([torch.quantile(one.flatten()[:: max(1, one.numel() // 100_000)], 0.995) for one in strength])
    return (strength / top.clamp(min=1e-6).reshape(-1, 1, 1, 1)).clamp(max=1)


class TrivialBaseline(L.Callback):
    """Scores predictors that need no training on the test set and logs them as ``test/<task>/trivial_<metric>``.

    Constants for classes, depth and normals (:class:`TrainingPriors`), the image's gradient for edges. The table at the
    end of a run shows them beside the network's, under every protocol.

    The constants come from stored training samples, spread evenly over the training set.

    Args:
        samples: Number of training samples to take the statistics from.
    """

    def __init__(self, samples: int = 200) -> None:
        self.samples = samples
        self._priors: TrainingPriors | None = None
        self._evaluator: Evaluator | None = None

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the statistics of the training set."""
        module: Any = pl_module
        dataset = trainer.datamodule.dataset("train")  # type: ignore[attr-defined]
        self._priors = TrainingPriors(len(module.facts["classes"]))
        for index in np.linspace(0, len(dataset) - 1, min(self.samples, len(dataset))).round().astype(int):
            self._priors.add(dataset[int(index)])
        tasks = {name: task for name, task in module.tasks.items() if name in (*TrainingPriors.tasks, "edges")}
        self._evaluator = Evaluator(tasks, module.metrics_config, module.facts, "test", details=False).to(module.device)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the trivial predictions on the batch's targets."""
        assert self._priors is not None
        assert self._evaluator is not None
        guesses = {
            name: self._priors.predict(name, batch[name])
            for name in self._evaluator.tasks
            if name in batch and name in TrainingPriors.tasks
        }
        if "edges" in self._evaluator.tasks and "edges" in batch:
            edges = torch.zeros_like(batch["image"][:, :1])
            for index, (height, width) in enumerate(batch["image_size"].tolist()):  # padding would be an edge
                edges[index, :, :height, :width] = gradient_magnitude(
                    batch["image"][index : index + 1, :, :height, :width]
                )[0]
            guesses |= at_label_size({"edges": edges}, batch["image_size"], batch["label_size"])
        self._evaluator.update(guesses, batch)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the headline scores."""
        assert self._evaluator is not None
        scores = self._evaluator.compute()
        for name in self._evaluator.tasks:
            for key in self._evaluator.headline(name).keys.values():
                score = scores.get(f"{name}/{key}")
                if score is not None and not score.isnan():
                    pl_module.log(f"test/{name}/trivial_{key}", score)
        self._evaluator.reset()
