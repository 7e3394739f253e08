"""WMCA, windowed multi-task cross-attention: inside every p×p window, all tasks' tokens form one sequence.

What the released block lacked and this one has: an identity path from the raw input, no padded keys, relative position
bias and task embedding, fused attention on stacked tasks, shifted windows, any number of tasks by name, no state
between calls.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from m2h_lightning.network.config import WMCAConfig, check_wmca
from m2h_lightning.network.layers import init_attention
from m2h_lightning.network.windows import Segment, axis_segments, window_partition, window_reverse


def relative_position_index(height: int, width: int, window: int, device: torch.device | None = None) -> Tensor:
    """Row of the (2p−1)² bias table for every (query, key) pair of an h×w window, h and w at most p.

    Shapes: → (h·w)×(h·w) int64.
    """
    rows = torch.arange(height, device=device).repeat_interleave(width)
    columns = torch.arange(width, device=device).repeat(height)
    down = rows[:, None] - rows[None, :] + window - 1
    across = columns[:, None] - columns[None, :] + window - 1
    return down * (2 * window - 1) + across


class ExchangeLayer(nn.Module):
    """One pre-norm attention layer and its feed-forward part over the tokens of all tasks in a window.

    The task embedding enters after the norm, in the branch only: the path from input to output stays the identity.

    Args:
        tasks: Task names, in the order of the tokens.
        channels: C.
        config: Form, heads, bias, embedding, window size.
        shift: Cells by which this layer's windows are shifted.
    """

    def __init__(self, tasks: Iterable[str], channels: int, config: WMCAConfig, shift: int = 0) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.heads, self.window_size, self.shift = config.heads, config.window_size, shift
        self.form: Literal["joint", "cross"] = config.form
        hidden = max(1, int(channels * config.mlp_ratio))
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))
        self.apply(init_attention)
        self.bias_table: nn.Parameter | None = None
        if config.position_bias:
            table = torch.empty((2 * config.window_size - 1) ** 2, config.heads)
            self.bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.task_embedding = nn.ParameterDict()
        if config.task_embedding:
            for task in self.tasks:
                self.task_embedding[task] = nn.Parameter(nn.init.trunc_normal_(torch.empty(channels), std=0.02))

    def attention_bias(self, height: int, width: int, tasks: int) -> Tensor | None:
        """What is added to the logits of a T·h·w sequence, or None for nothing. One table serves all pairs of tasks.

        Shapes: → 1×heads×(T·h·w)×(T·h·w).
        """
        length = height * width
        device = self.proj.weight.device
        bias = None
        if self.bias_table is not None:
            index = relative_position_index(height, width, self.window_size, device)
            bias = self.bias_table[index].permute(2, 0, 1).repeat(1, tasks, tasks)[None]
        if self.form == "cross":
            task = torch.arange(tasks, device=device).repeat_interleave(length)
            own = task[:, None] == task[None, :]
            if bias is None:
                bias = torch.zeros(1, 1, *own.shape, device=device, dtype=self.proj.weight.dtype)
            bias = bias.masked_fill(own, float("-inf"))
        return bias

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Shapes: x N×T×L×C, bias 1×heads×T·L×T·L (or None) → N×T×L×C."""
        number, tasks, length, channels = x.shape
        y = self.norm1(x)
        if self.task_embedding:
            y = y + torch.stack([self.task_embedding[task] for task in self.tasks])[:, None]
        qkv = self.qkv(y).view(number, tasks * length, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # N×heads×T·L×C/heads
        mask = None if bias is None else bias.to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.proj(y.transpose(1, 2).reshape(number, tasks, length, channels))
        return x + self.mlp(self.norm2(x))


class WMCA(nn.Module):
    """The block: ``layers`` exchange layers over the same cut, every second one shifted by ⌊p/2⌋ if asked.

    Args:
        tasks: Task names.
        channels: C.
        config: See :class:`.config.WMCAConfig`.
        gradient_checkpointing: Recompute the layers in the backward pass instead of storing them.

    Raises:
        ConfigError: Values that cannot work together (heads and channels, "cross" with one task, sizes below 1).
    """

    def __init__(
        self, tasks: Iterable[str], channels: int, config: WMCAConfig, gradient_checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.tasks = list(tasks)
        check_wmca(config, channels, len(self.tasks))
        self.window_size, self.chunk = config.window_size, config.chunk
        self.gradient_checkpointing = gradient_checkpointing
        half = config.window_size // 2 if config.shift else 0
        self.layers = nn.ModuleList(
            ExchangeLayer(self.tasks, channels, config, shift=half if i % 2 else 0) for i in range(config.layers)
        )

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Shapes: {task: B×C×h×w} → {task: B×C×h×w}."""
        stack = [maps[task] for task in self.tasks]
        height, width = stack[0].shape[-2:]
        if self.window_size > max(height, width) and not torch.compiler.is_compiling():
            warnings.warn(
                f"wmca.window_size {self.window_size} exceeds the {height}×{width} map: one window covers it",
                stacklevel=2,
            )
        # Neighbouring layers of equal shift share one cut: a window passes through both while it is in the cache.
        for shift, group in itertools.groupby(self._layers(), key=lambda layer: layer.shift):
            stack = self._exchange(stack, list(group), shift)
        return dict(zip(self.tasks, stack, strict=True))

    def borders(self, height: int, width: int) -> tuple[list[int], list[int]]:
        """Tell where windows of a height×width map meet: before which rows and columns any of the layers cuts."""

        def cuts(length: int) -> list[int]:
            shifts = {layer.shift for layer in self._layers()}
            segments = [cut for shift in shifts for cut in axis_segments(length, self.window_size, shift)]
            return sorted({start + i * size for start, number, size in segments for i in range(number)} - {0})

        return cuts(height), cuts(width)

    def _layers(self) -> list[ExchangeLayer]:
        return [layer for layer in self.layers if isinstance(layer, ExchangeLayer)]

    def _exchange(self, stack: Sequence[Tensor], layers: Sequence[ExchangeLayer], shift: int) -> list[Tensor]:
        height, width = stack[0].shape[-2:]
        bands = []
        for rows in axis_segments(height, self.window_size, shift):
            regions = [
                window_reverse(self._run(window_partition(stack, rows, columns), rows, columns, layers), rows, columns)
                for columns in axis_segments(width, self.window_size, shift)
            ]
            bands.append(torch.cat(regions, 3) if len(regions) > 1 else regions[0])
        joined = torch.cat(bands, 2) if len(bands) > 1 else bands[0]
        return list(joined.permute(0, 1, 4, 2, 3).unbind(0))  # channels-last views

    def _run(self, windows: Tensor, rows: Segment, columns: Segment, layers: Sequence[ExchangeLayer]) -> Tensor:
        """All windows of one shape through the layers; on a CPU a cache-sized number at a time."""
        biases = [layer.attention_bias(rows.size, columns.size, len(self.tasks)) for layer in layers]

        def through(x: Tensor) -> Tensor:
            for layer, bias in zip(layers, biases, strict=True):
                x = layer(x, bias)
            return x

        if self.gradient_checkpointing and torch.is_grad_enabled():
            step = through

            def through(x: Tensor) -> Tensor:
                return checkpoint(step, x, use_reentrant=False)

        # A compiled graph must not depend on the number of chunks, and an accelerator is best fed whole.
        if not self.chunk or windows.device.type != "cpu" or torch.compiler.is_compiling():
            return through(windows)
        parts = [through(part) for part in windows.split(self.chunk)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]
