"""Cutting maps into windows and joining them again, without padding.

Each axis is cut at the window borders, so windows at the border are simply smaller. Windows of one shape are processed
together; an axis has at most three sizes (head, middle, tail), a map at most nine groups. There is no padded cell that
could act as a key, no mask, and nothing is computed to be thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Segment(NamedTuple):
    """``number`` windows of ``size`` cells in a row along one axis, from cell ``start``."""

    start: int
    number: int
    size: int


def axis_segments(length: int, window: int, shift: int = 0) -> list[Segment]:
    """Cut one axis: a head of ``window − shift`` cells (if shifted), windows of full size, and a tail of what is left.

    Example:
        >>> axis_segments(16, 7)
        [Segment(start=0, number=2, size=7), Segment(start=14, number=1, size=2)]
        >>> axis_segments(16, 7, shift=3)
        [Segment(start=0, number=1, size=4), Segment(start=4, number=1, size=7), Segment(start=11, number=1, size=5)]
    """
    head = min(window - shift, length) if shift else 0
    full, tail = (length - head) // window, (length - head) % window
    cuts = [Segment(0, 1, head), Segment(head, full, window), Segment(length - tail, 1, tail)]
    return [cut for cut in cuts if cut.number and cut.size]


def window_partition(maps: Sequence[Tensor], rows: Segment, columns: Segment) -> Tensor:
    """Cut one group of equal windows out of the tasks' maps, in one copy.

    Shapes: T × B×C×H×W → N×T×(h·w)×C with N = B · windows, ordered by image, row, column.
    """
    (top, down, h), (left, across, w) = rows, columns
    views = [
        m.permute(0, 2, 3, 1)[:, top : top + down * h, left : left + across * w]
        .unflatten(2, (across, w))
        .unflatten(1, (down, h))
        .transpose(2, 3)  # B×down×across×h×w×C
        for m in maps
    ]
    batch, channels = views[0].shape[0], views[0].shape[-1]
    return torch.stack(views, 3).reshape(batch * down * across, len(maps), h * w, channels)


def window_reverse(windows: Tensor, rows: Segment, columns: Segment) -> Tensor:
    """Join a group of windows to the region of the maps it was cut from.

    Shapes: N×T×(h·w)×C → T×B×(rows·h)×(columns·w)×C.
    """
    (_, down, h), (_, across, w) = rows, columns
    _, tasks, _, channels = windows.shape
    x = windows.view(-1, down, across, tasks, h, w, channels).permute(3, 0, 1, 4, 2, 5, 6)
    return x.reshape(tasks, -1, down * h, across * w, channels)
