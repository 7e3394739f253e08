"""odsF, oisF and AP of boundaries as the NYUDv2 and PASCAL-Context tables define them (SEISM, BSDS), in plain NumPy."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from m2h_lightning.boundaries.counts import Count, Image
from m2h_lightning.boundaries.maps import THRESHOLDS
from m2h_lightning.errors import ConfigError
from m2h_lightning.metrics.protocol import Sizes, require_probabilities
from m2h_lightning.processes import Crew, cores

LARGE_IMAGE = 100_000
"""Pixels of an image from which ``workers=None`` matches in other processes; small ones are quick anyway."""

_HINT = "try fewer metrics.workers (0 matches in the training process), and run again"


class BoundaryScore(Metric):
    """F-score of thinned boundaries that are matched one to one within a distance (Arbeláez et al., TPAMI 2011).

    The recipe is that of the SEISM kit behind the published NYUDv2 tables. Prediction: quantised to 8 bits; non-maximum
    suppression along the orientation of the triangle-smoothed map (Dollár's toolbox: r = 1, s = 5, m = 1.01); ``>``
    each of 101 thresholds {0.001, 0.01, 0.02, …, 0.99, 0.999}; thinned (``bwmorph(…, 'thin', inf)``). Label: taken as a
    *region map*, so that the borders of its lines are the boundary; thinned (a line of one pixel becomes one line
    again, a thicker one becomes two). Assignment: as many pairs as possible, no further apart than ``max_dist`` times
    the diagonal. Pixels are counted over all images per threshold.

    ``odsf``: the largest F = 2PR/(P + R) over thresholds, one for the set; no interpolation between thresholds.
    ``oisf``: each image at its own best threshold (the lowest of equals), counts then summed. ``ap``: the precision
    interpolated linearly at recalls 0, 0.01, …, 1, zero outside the recalls reached, summed and divided by 100
    (``edgesEvalDir`` and ``general_ap``). Unlike there it is 1 at most, not 1.01, and precision × recall where all
    thresholds have the same recall, not 0: a perfect map of one probability has an AP of 1.

    The fast way (``…_fast``) thins once, at the lowest threshold, instead of at each, and is otherwise the same.

    Pixels labelled 255 count on neither side: predictions there take part in suppression and thinning and are dropped
    afterwards. Padding (see ``sizes``) is cut off first.

    As input to ``update``: ``prediction`` edge probability B×1×H×W in [0, 1]; ``target`` B×1×H×W in {0, 1}, 255 =
    ignore; ``sizes`` (h, w) of each image before padding at the right and the bottom, None for no padding.

    As output of ``compute``: a dict of float64 scalars. mode "exact": ``odsf``, ``oisf``, ``ap``, precision, recall and
    threshold at odsF as ``odsf_precision``, ``odsf_recall``, ``odsf_threshold``, and ``odsf_fast``; mode "fast":
    ``odsf_fast``, ``oisf_fast``, ``ap_fast``. NaN when no label holds an edge.

    Args:
        max_dist: Tolerance as a share of the image's diagonal: 0.011 on NYUDv2, 0.0075 elsewhere.
        mode: "exact" or "fast".
        workers: Processes that match while this one goes on; 0 matches in this process. None takes the cores per local
            process of a distributed run where images have 100,000 pixels or more and the mode is "exact", else 0.
            Scores do not depend on it.

    Raises:
        ConfigError: An argument is out of range.
        DataError: A prediction is not in [0, 1], or a working process died.

    Example:
        >>> import torch
        >>> score = BoundaryScore(max_dist=0.05, workers=0)
        >>> target = torch.zeros(1, 1, 40, 40)
        >>> target[..., 10:30, 20] = 1
        >>> score.update(0.8 * target, target)
        >>> score.compute()["odsf"].item()
        1.0
    """

    higher_is_better = True
    full_state_update = False
    counts: Tensor
    best: Tensor

    def __init__(self, max_dist: float, mode: str = "exact", workers: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < max_dist < 1:
            raise ConfigError(f"max_dist of BoundaryScore is {max_dist}; give a share of the diagonal such as 0.0075")
        if mode not in ("exact", "fast"):
            raise ConfigError(f"mode of BoundaryScore is {mode!r}; choose from exact, fast")
        if workers is not None and workers < 0:
            raise ConfigError(f"workers of BoundaryScore is {workers}; give at least 0, or None")
        self.mode, self.workers = mode, workers
        self._job = Count(max_dist, exact=mode == "exact")
        self._crew: Crew[Image, np.ndarray] | None = None
        ways = 2 if mode == "exact" else 1
        # Per way, and for counts per threshold: cntR, sumR, cntP, sumP of the benchmark.
        self.add_state("counts", torch.zeros(ways, len(THRESHOLDS), 4, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("best", torch.zeros(ways, 4, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, sizes: Sizes | None = None) -> None:
        """Add a batch, B×1×H×W each."""
        for index in range(len(target)):
            height, width = target.shape[-2:] if sizes is None else sizes[index]
            label = target[index, 0, :height, :width]
            guess = prediction[index, 0, :height, :width].float()
            known = label <= 1
            require_probabilities(guess, known, "edges")
            levels = (255 * guess.nan_to_num(0).clamp(0, 1)).round().byte().cpu().numpy()
            labels = torch.where(known, label, 255).byte().cpu().numpy()
            self._count(Image(levels, labels))

    def _count(self, image: Image) -> None:
        if self._crew is None:
            count = self._processes(image.levels.size)
            if count == 0:
                self._add(self._job(image))
                return
            self._crew = Crew(self._job, count, _HINT)
        self._crew.submit(image, "matching boundaries")
        self._collect(wait=False)

    def _processes(self, pixels: int) -> int:
        if self.workers is not None:
            return self.workers
        if self.mode == "fast" or pixels < LARGE_IMAGE:
            return 0
        count = cores() // local_processes()
        return count if count > 1 else 0

    def _add(self, counts: np.ndarray) -> None:
        """Add the counts of one image, M×T×4."""
        self.counts += torch.from_numpy(counts).to(self.counts.device)
        chosen = np.stack([way[np.argmax(f_score(*way.T))] for way in counts])
        self.best += torch.from_numpy(chosen).to(self.best.device)

    def _collect(self, wait: bool) -> None:
        """Add what the working processes have finished."""
        if self._crew is None:
            return
        try:
            for counts in self._crew.finished(wait):
                self._add(counts)
        except BaseException:
            self._crew.close()
            self._crew = None
            raise

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the working processes, then add up the states of the processes of a distributed run."""
        self._collect(wait=True)
        super().sync(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch and return its own scores."""
        self._collect(wait=True)  # forward() sets the states aside: they must be complete
        return super().forward(*args, **kwargs)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the states of another metric."""
        self._collect(wait=True)
        if isinstance(incoming_state, BoundaryScore):
            incoming_state._collect(wait=True)
        super().merge_state(incoming_state)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores over everything added so far; the working processes end."""
        self._end()
        counts, best = self.counts.double().cpu().numpy(), self.best.double().cpu().numpy()
        scores = summarize(counts[0], best[0])
        result = {f"{name}_fast": scores[name] for name in ("odsf", "oisf", "ap")}
        if self.mode == "exact":
            result = {**summarize(counts[1], best[1]), "odsf_fast": scores["odsf"]}
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in result.items()}

    def reset(self) -> None:
        """Forget everything added so far, and what is still being matched."""
        self._end()
        super().reset()

    def _end(self) -> None:
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()

    def __getstate__(self) -> dict[str, Any]:
        self._collect(wait=True)
        return {**super().__getstate__(), "_crew": None}


def local_processes() -> int:
    """Return how many processes of this run share this machine; all of a distributed run where nobody says."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def f_score(matched_true: Any, true: Any, matched_predicted: Any, predicted: Any) -> Any:
    """Return F = 2PR/(P + R) of counts; 0 where nothing is matched.

    Args:
        matched_true: True pixels with a partner, any shape.
        true: True pixels.
        matched_predicted: Predicted pixels with a partner.
        predicted: Predicted pixels.
    """
    recall = matched_true / np.maximum(true, 1)
    precision = matched_predicted / np.maximum(predicted, 1)
    return 2 * precision * recall / np.where(precision + recall > 0, precision + recall, 1)


def summarize(counts: np.ndarray, best: np.ndarray) -> dict[str, float]:
    """Return the scores of one way of counting.

    Args:
        counts: T×4, summed over images.
        best: 4, summed over images at each one's best threshold.
    """
    names = ("odsf", "oisf", "ap", "odsf_precision", "odsf_recall", "odsf_threshold")
    matched_true, true, matched_predicted, predicted = counts.T
    if not true.any():
        return dict.fromkeys(names, float("nan"))
    f = f_score(*counts.T)
    index = int(np.argmax(f))
    recall = matched_true / true
    precision = np.where(predicted > 0, matched_predicted / np.maximum(predicted, 1), 1.0)
    reached, first = np.unique(recall, return_index=True)
    if len(reached) > 1:
        area = np.interp(np.linspace(0, 1, 101), reached, precision[first], left=0.0, right=0.0).sum() / 100
    else:
        area = precision[first[0]] * reached[0]
    values = (
        float(f[index]),
        float(f_score(*best)),
        min(float(area), 1.0),
        float(precision[index]),
        float(recall[index]),
        float(THRESHOLDS[index]),
    )
    return dict(zip(names, values, strict=True))
