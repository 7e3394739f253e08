"""Window seams: whether predictions are worse, or jump, at the borders of attention windows."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from m2h_lightning.grid import WindowGrid
from m2h_lightning.labels import IGNORE
from m2h_lightning.metrics.class_maps import class_map
from m2h_lightning.metrics.consistency import finite_where
from m2h_lightning.metrics.normals import known_normals, normal_angles, planar
from m2h_lightning.metrics.protocol import Sizes, require_same_shape

__all__ = ["WindowGrid", "WindowSeams"]

BORDER, CONTROL, REST = range(3)
_REGION = torch.tensor([min(row, column) for row in range(3) for column in range(3)])  # of a pixel, by row and column


@lru_cache(maxsize=64)
def regions(borders: tuple[float, ...], cell: float, length: int, between: bool = False) -> Tensor:
    """Tell which pixels of an axis lie at a border, at a control line, or at neither.

    Control lines lie midway between neighbouring borders (or a border and the image's edge) that are at least two cells
    apart: the grid moved by half a window. "At" a line is within half a cell, which is where the resize to pixels mixes
    the two cells beside it, and at least within half a pixel.

    Args:
        borders: Positions inside the axis, rising; pixel i covers [i, i + 1].
        cell: Pixels per cell.
        length: Pixels of the axis.
        between: Ask for the length − 1 pairs of neighbouring pixels instead of the pixels.

    Returns:
        float32 3×length (3×(length − 1)): one row each for border, control and rest; one 1 per column.
    """
    places = (
        torch.arange(1, length, dtype=torch.float64) if between else torch.arange(length, dtype=torch.float64) + 0.5
    )
    borders = tuple(border for border in borders if 0 < border < length)
    gaps = pairwise((0.0, *borders, float(length))) if borders else ()
    middles = tuple((a + b) / 2 for a, b in gaps if b - a >= 2 * cell - 1e-6)

    def at(lines: tuple[float, ...]) -> Tensor:
        lines_ = torch.tensor(lines, dtype=torch.float64)[:, None]
        return ((places - lines_).abs() <= max(cell, 1.0) / 2 + 1e-6).any(0)

    border, control = at(borders), at(middles)
    return torch.stack([border, control & ~border, ~(border | control)]).float()


class WindowSeams(Metric):
    """Error and unevenness at the borders of attention windows, against the pixels inside the windows.

    A pixel lies at a border if its centre is within half a cell of one. Errors per pixel: semseg 0 or 1; depth
    |d − d*|/d*; normals the angle in degrees; edges |p − p*|. Over all pixels with a label:

    * ``seams/<task>_error_border`` and ``…_error_inside``: mean error at borders, and elsewhere.
    * ``seams/<task>_error`` = border/inside − 1: 0.1 says that borders are 10 % worse.
    * ``seams/<task>_error_control``: the same for lines midway between the borders, against the pixels near neither.
    * ``seams/<task>_jump``: mean absolute difference of the prediction between neighbouring pixels, for pairs that lie
      across a border (within half a cell; down for horizontal borders, across for vertical ones) relative to all other
      pairs, minus 1; and of that the same number of the label subtracted, on the same pairs. Differences: another class
      0 or 1; depth relative to the mean of both true depths; the distance between unit normals; edge probability.
    * ``seams/<task>_jump_control``: the same for the lines midway.

    Why a control: objects are not spread evenly over an image, and a regular grid meets some of them more often than
    others. A seam is real only if its number clearly exceeds its control, which knows of no window. The control leaves
    the pixels at borders out, so that a seam does not hide in it; it is NaN where windows are too small for it.

    Ratios are 0 where both means are 0, and NaN (not infinite) where only the inside's is.

    As input to ``update``: ``predictions`` and ``batch`` per task as in the sample contract, "semseg" as logits
    B×C×H×W or classes B×H×W; ``grid`` in pixels of the labels. Batches without grid (no attention windows, or windows
    that cover the image) are left out; if all were, ``compute`` returns nothing.

    As output of ``compute``: a dict of float64 scalars, pooled over all images; NaN where no pixel was scored.

    Args:
        tasks: Names of tasks; those without a definition here are passed over.

    Raises:
        DataError: A scored prediction is NaN or infinite, or does not fit its label.

    Example:
        >>> import torch
        >>> depth = torch.full((1, 1, 1, 16), 2.0)
        >>> wrong = depth.clone()
        >>> wrong[..., 7:9] = 3.0  # beside the border at 8
        >>> wrong[..., 0] = 3.0
        >>> seams = WindowSeams(["depth"])
        >>> seams.update({"depth": wrong}, {"depth": depth}, None, WindowGrid((), (8.0,), (2.0, 2.0)))
        >>> result = seams.compute()
        >>> round(result["seams/depth_error_border"].item(), 3), round(result["seams/depth_error"].item(), 3)
        (0.5, 13.0)
    """

    TASKS = ("semseg", "depth", "normals", "edges")
    full_state_update = False
    sums: Tensor
    images: Tensor

    def __init__(self, tasks: Iterable[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tasks = [task for task in tasks if task in self.TASKS]
        # Per task and region: error and number of pixels; differences of prediction and label, and number of pairs.
        self.add_state("sums", torch.zeros(len(self.tasks), 3, 5, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        predictions: dict[str, Tensor],
        batch: dict[str, Any],
        sizes: Sizes | None = None,
        grid: WindowGrid | None = None,
    ) -> None:
        """Add a batch."""
        if grid is None or not (grid.rows or grid.columns):
            return
        for number, task in enumerate(self.tasks):
            if task not in predictions or task not in batch:
                continue
            prediction, target = predictions[task], batch[task]
            if task == "semseg":
                prediction = class_map(prediction)[0] if prediction.ndim == 4 else prediction.to(torch.uint8)
                target = target.to(torch.uint8)
            require_same_shape(prediction, target, task)
            fields = _FIELDS[task](prediction, target)
            shapes = [target.shape[-2:]] * len(target) if sizes is None else sizes
            for index, (height, width) in enumerate(shapes):
                guess, truth, valid, error = (field[index, ..., :height, :width] for field in fields)
                self.sums[number] += _image(task, guess, truth, valid, error, grid)
        self.images += len(next(iter(predictions.values())))

    def compute(self) -> dict[str, Tensor]:
        """Return the scores over everything added so far; nothing where there never was a grid."""
        if self.images == 0:
            return {}
        result = {}
        for task, sums in zip(self.tasks, self.sums, strict=True):
            inside = sums[CONTROL] + sums[REST]
            border, control, rest = (_means(part) for part in sums)
            error = {"error_border": border[0], "error_inside": _means(inside)[0]}
            for suffix, at, against in (("", border, _means(inside)), ("_control", control, rest)):
                excess = [_excess(mine, other) for mine, other in zip(at, against, strict=True)]
                error[f"error{suffix}"] = excess[0]
                error[f"jump{suffix}"] = excess[1] - excess[2]
            result.update({f"seams/{task}_{key}": value for key, value in error.items()})
        return result


def _means(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean error, and mean difference of prediction and of label."""
    error, pixels, jump, true_jump, pairs = sums.unbind()
    return error / pixels, jump / pairs, true_jump / pairs


def _excess(at: Tensor, against: Tensor) -> Tensor:
    """Return at/against − 1; 0 where both are 0, NaN where only ``against`` is, or one is not known."""
    ratio = torch.where(against > 0, at / against - 1, torch.nan)
    return torch.where((at == 0) & (against == 0), torch.zeros_like(ratio), ratio)


def _image(task: str, guess: Tensor, truth: Tensor, valid: Tensor, error: Tensor, grid: WindowGrid) -> Tensor:
    """Return the sums of one image's fields, region × (error, pixels, differences of prediction and label, pairs)."""
    height, width = valid.shape
    axes = ((grid.rows, grid.cell[0], height), (grid.columns, grid.cell[1], width))
    down, across = (regions(*axis).to(valid.device) for axis in axes)
    # Sums over each pair of a row's and a column's region, then over the pairs that make a pixel's region.
    table = [((down @ field).double() @ across.double().T).flatten() for field in (error * valid, valid)]
    sums = torch.zeros(3, 5, dtype=torch.float64, device=valid.device)
    sums[:, :2].index_add_(0, _REGION.to(valid.device), torch.stack(table, 1))
    for dim, axis in enumerate(axes):
        pairs = regions(*axis, between=True).to(valid.device).double()
        both = _first(valid, dim) * _last(valid, dim)
        weight = both
        if task == "depth":
            weight = (2 * both).div_((_first(truth[0], dim) + _last(truth[0], dim)).clamp_(min=1e-6))
        parts = [_difference(field, dim).mul_(weight) for field in (guess, truth)]
        sums[:, 2:] += pairs @ torch.stack([part.sum(1 - dim) for part in (*parts, both)], 1).double()
    return sums


def _first(field: Tensor, dim: int) -> Tensor:
    """Return all rows (columns) of H×W but the last."""
    return field.narrow(dim, 0, field.shape[dim] - 1)


def _last(field: Tensor, dim: int) -> Tensor:
    """Return all rows (columns) of H×W but the first."""
    return field.narrow(dim, 1, field.shape[dim] - 1)


def _difference(field: Tensor, dim: int) -> Tensor:
    """Return how much neighbours along an axis differ: classes by 0 or 1, values and vectors by their distance."""
    if not field.is_floating_point():
        return (_first(field[0], dim) != _last(field[0], dim)).view(torch.uint8).float()
    if len(field) == 1:
        return (_last(field[0], dim) - _first(field[0], dim)).abs_()
    square = (_last(field[0], dim) - _first(field[0], dim)).square_()
    for plane in field[1:]:
        step = _last(plane, dim) - _first(plane, dim)
        square.addcmul_(step, step)
    # The root of exactly 0, usual on walls, takes vector libraries five times as long: a floor far below what float32
    # tells apart in parts of 1, whose root is exact and is taken off again.
    return square.clamp_(min=2.0**-120).sqrt_().sub_(2.0**-60)


Fields = tuple[Tensor, Tensor, Tensor, Tensor]
"""Prediction and label B×C×H×W, finite everywhere; B×H×W whether (1.0, 0.0) a pixel has a label; its error."""


def _mask(known: Tensor) -> Tensor:
    return known.view(torch.uint8).float()


def _semseg(prediction: Tensor, target: Tensor) -> Fields:
    return prediction[:, None], target[:, None], _mask(target != IGNORE), _mask(prediction != target)


def _depth(prediction: Tensor, target: Tensor) -> Fields:
    known = target > 0
    target = target.float()
    prediction = finite_where(prediction.float(), known, "depth")
    error = (prediction - target).abs_().div_(target.clamp(min=1e-6))
    return prediction, target, _mask(known[:, 0]), error[:, 0]


def _normals(prediction: Tensor, target: Tensor) -> Fields:
    known, angles = known_normals(target), normal_angles(prediction, target)
    prediction = finite_where(planar(prediction).float(), known[:, None], "normals")
    return prediction, planar(target).float(), _mask(known), angles.float()


def _edges(prediction: Tensor, target: Tensor) -> Fields:
    known = target <= 1
    prediction, target = finite_where(prediction.float(), known, "edges"), target.float()
    return prediction, target, _mask(known[:, 0]), (prediction - target).abs_()[:, 0]


_FIELDS = {"semseg": _semseg, "depth": _depth, "normals": _normals, "edges": _edges}
