"""M2H from image to raw maps: the boxes of the paper's figure in their order.

Udugama, Vosselman, Nex: M2H: Multi-Task Learning with Efficient Window-Based Cross-Task Attention for Monocular Spatial
Perception, arXiv 2510.17363.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn

from m2h_lightning.grid import WindowGrid
from m2h_lightning.network.backbone import Backbone
from m2h_lightning.network.config import BackboneConfig, GGFMConfig, WMCAConfig, check_tasks
from m2h_lightning.network.config import preset as look_up
from m2h_lightning.network.fusion import MSF, ParallelFusion
from m2h_lightning.network.ggfm import GGFM
from m2h_lightning.network.heads import Heads
from m2h_lightning.network.padding import pad_to_multiple, resize_and_crop
from m2h_lightning.network.reassemble import build_mstr
from m2h_lightning.network.wmca import WMCA

_NO_DECAY = ("bias_table", "pos_embed", "cls_token", "reg_token", "dist_token")


class M2HNet(nn.Module):
    """The M2H network.

    Image → pad → backbone → MSTR → MSF per task → WMCA ‖ GGFM → 1×1 fusion → head per task → resize → crop.
    With one exchange block the fusion reads that one; with none there is no fusion and the network is the MSF baseline.
    It knows nothing of a task but its name and number of channels; activations are the tasks' own.

    Args:
        tasks: Output channels of each task, by name. Any names, at least one.
        preset: "m2h" (256 channels) or "m2h-small" (96).
        channels: C, width of the fused maps; None takes the preset's.
        head_channels: Width inside the heads; None takes the preset's.
        backbone: The encoder, its weights and whether it trains.
        wmca: Windowed multi-task cross-attention.
        ggfm: Global gated feature merging.
        gradient_checkpointing: Trade time for memory in training: recompute blocks in the backward pass.

    Raises:
        ConfigError: A value is wrong, or two do not fit each other.
        CheckpointError: The backbone's weights cannot be had.
    """

    def __init__(
        self,
        tasks: dict[str, int],
        preset: Literal["m2h", "m2h-small"] = "m2h",
        channels: int | None = None,
        head_channels: int | None = None,
        backbone: BackboneConfig | None = None,
        wmca: WMCAConfig | None = None,
        ggfm: GGFMConfig | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_tasks(tasks)
        width, head_width = look_up(preset, channels, head_channels)
        self.tasks = dict(tasks)
        self.backbone_config = backbone or BackboneConfig()
        wmca, ggfm = wmca or WMCAConfig(), ggfm or GGFMConfig()

        self.backbone = Backbone(self.backbone_config, gradient_checkpointing)
        self.mstr = build_mstr(self.backbone, width)
        self.msf = MSF(tasks, width, gradient_checkpointing)
        self.wmca = WMCA(tasks, width, wmca, gradient_checkpointing) if wmca.enabled else None
        self.ggfm = GGFM(tasks, width, self.backbone.channels[-1], ggfm) if ggfm.enabled else None
        exchanges = int(wmca.enabled) + int(ggfm.enabled)
        self.fusion = ParallelFusion(tasks, width, exchanges) if exchanges else None
        self.heads = Heads(tasks, width, head_width, gradient_checkpointing)
        # Convolutions in this memory order measured 1.6× faster, and every block keeps it.
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Predict all tasks.

        Shapes: image B×3×H×W → {task: B×channels×H×W}, raw.

        Raises:
            DataError: The image is smaller than one patch (or coarsest cell) of the backbone.
        """
        height, width = image.shape[-2:]
        padded = pad_to_multiple(image, self.backbone.multiple).contiguous(memory_format=torch.channels_last)
        stages = self.backbone(padded)
        maps = self.msf(self.mstr(stages))
        parts = []
        if self.wmca is not None:
            parts.append(self.wmca(maps))
        if self.ggfm is not None:
            parts.append(self.ggfm(maps, stages[-1].map))
        if self.fusion is not None:
            maps = self.fusion(parts)
        raw = self.heads(maps)
        size = (padded.shape[-2], padded.shape[-1])
        return {task: resize_and_crop(raw[task], size, (height, width)) for task in self.tasks}

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile in place, as ``nn.Module.compile``, but one graph per image size unless ``dynamic`` is given.

        With symbolic sizes every cut of the windows would be a guard: tracing then takes minutes instead of seconds.
        """
        super().compile(*args, **{"dynamic": False, **options})

    def window_grid(self, height: int, width: int) -> WindowGrid | None:
        """Tell where the attention windows meet in an image of height×width pixels; None without WMCA.

        The map that is cut belongs to the *padded* image and is resized to exactly that, before the padding is cropped:
        a border after k cells lies at k cells' worth of pixels, whatever the padding. Borders in the padding are left
        out. A larger image has the same borders and more.
        """
        if self.wmca is None:
            return None
        # Plain transformers are fused at four cells per patch (4H/d), pyramids at their finest stage.
        cells = 4 if self.backbone.plain else 1
        stride = self.backbone.strides[0]
        sides = tuple(
            cells * -(-side // self.backbone.multiple) * self.backbone.multiple // stride for side in (height, width)
        )
        rows, columns = self.wmca.borders(*sides)
        cell = stride / cells
        return WindowGrid(
            tuple(cell * row for row in rows if cell * row < height),
            tuple(cell * column for column in columns if cell * column < width),
            (cell, cell),
        )

    def set_freeze(self, freeze: bool | str) -> None:
        """Choose what of the backbone trains; see :meth:`.Backbone.set_freeze`."""
        self.backbone.set_freeze(freeze)

    @property
    def loaded_share(self) -> tuple[int, int]:
        """Backbone tensors that were loaded, and all of them."""
        return self.backbone.loaded_share

    def backbone_report(self) -> str:
        """One line for the log: which backbone, how much of it was loaded, from where, and what of it trains."""
        loaded, total = self.loaded_share
        weights = f"{loaded}/{total} tensors from {self.backbone.source}" if loaded else self.backbone.source
        return f"backbone {self.backbone.name}: {weights}; freeze: {self.backbone.freeze}"

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The backbone's parameters that train."""
        return [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters that train now and that the losses of several tasks reach; none with a single task.

        These are backbone and MSTR, and with WMCA, where the tasks' maps meet, every task's MSF and WMCA itself. GGFM,
        the fusion after it and the heads are each task's own.
        """
        if len(self.tasks) < 2:
            return []
        parts: list[nn.Module] = [self.backbone, self.mstr]
        if self.wmca is not None:
            parts += [self.msf, self.wmca]
        return [p for part in parts for p in part.parameters() if p.requires_grad]

    def parameter_groups(self, freezes: Collection[bool | str] | None = None) -> list[dict[str, Any]]:
        """Parameters that ever train, in groups for the optimiser.

        Args:
            freezes: The values that ``model.backbone.freeze`` takes in the course of the run; what trains under any of
                them is in the groups. None: what trains now.

        Returns:
            Dicts of ``name``, ``params``, ``lr_factor`` and ``decay``, up to four: "backbone", "backbone_no_decay",
            "network", "network_no_decay". Biases, norms, position tables and task embeddings take no weight decay. With
            a ``layer_decay`` below 1, each block of the backbone has groups of its own, "backbone_layer_03" (00 is
            before the first of n blocks, n + 1 after the last), slower by that factor for every block between it and
            the end (Clark et al., ELECTRA, ICLR 2020; Bao et al., BEiT, ICLR 2022). Empty groups are left out.
        """
        config = self.backbone_config
        trains = {f"backbone.{n}" for value in freezes or () for n in self.backbone.trainable_names(value)}
        numbers = {f"backbone.{name}": number for name, number in self.backbone.unit_numbers().items()}
        after = len(self.backbone.units) + 1
        groups: dict[tuple[str, bool], dict[str, Any]] = {}
        for name, parameter in self.named_parameters():
            inside = name in numbers
            if not (name in trains if inside and freezes is not None else parameter.requires_grad):
                continue
            part, factor = ("backbone", config.lr_factor) if inside else ("network", 1.0)
            if inside and config.layer_decay < 1:
                part += f"_layer_{numbers[name]:02d}"
                factor *= config.layer_decay ** (after - numbers[name])
            decay = parameter.ndim > 1 and name.rsplit(".", 1)[-1] not in _NO_DECAY
            found = groups.setdefault(
                (part, decay),
                {"name": part + ("" if decay else "_no_decay"), "params": [], "lr_factor": factor, "decay": decay},
            )
            found["params"].append(parameter)
        return list(groups.values())
