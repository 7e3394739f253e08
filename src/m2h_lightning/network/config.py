"""What can be chosen about the network: one dataclass per box, and the two published sizes.

Every ablation of the paper is one field here. The ``Args:`` lines become the ``--help`` text of the command line.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from m2h_lightning.errors import ConfigError, did_you_mean


@dataclass
class BackboneConfig:
    """The image encoder, any vision transformer or four-stage network of timm.

    Args:
        name: Model name as timm spells it; a tag after the dot picks the pretrained weights.
        pretrained: Load timm's pretrained weights; it is an error when they cannot be had. False: random weights.
        checkpoint: Local weights file (.pth, .pt, .bin, .safetensors, or .npz where the model reads it), used instead
            of the download.
        freeze: True trains nothing of the backbone, False everything, "last_<n>" its last n blocks (stages) and what
            follows them.
        unfreeze: What trains from an epoch (counted from 0) on, by epoch, such as {2: last_4, 5: false}; each must
            train more than the one before.
        lr_factor: Learning rate of the trainable backbone parameters as a factor of the network's.
        layer_decay: Factor on the learning rate per block towards the image, above 0, at most 1: the last block has it
            once, the one before twice. 1 gives all the same rate.
        drop_path: Stochastic depth rate, 0 to 1 (only where the backbone trains and the model offers it).
        lora_rank: Rank of low-rank adapters on the backbone's layers, which train whatever is frozen; 0 puts none
            there. Their learning rate has ``lr_factor`` too, which should be 1 or so for them (extra: lora).
        lora_alpha: Their outputs count lora_alpha / lora_rank times; null is 2 · lora_rank.
        lora_targets: Layers that get one, by the end of their name; null is attention's: qkv and proj.
    """

    name: str = "vit_small_patch14_dinov2.lvd142m"
    pretrained: bool = True
    checkpoint: str | None = None
    freeze: bool | str = True
    unfreeze: dict[int, bool | str] | None = None
    lr_factor: float = 0.1
    layer_decay: float = 1.0
    drop_path: float = 0.0
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_targets: list[str] | None = None

    def __post_init__(self) -> None:
        """Check what needs no model to be checked."""
        if self.lora_rank < 0:
            raise ConfigError(f"model.backbone.lora_rank is {self.lora_rank}; give a rank of at least 1, or 0 for none")
        if self.lora_alpha is not None and not 0 < self.lora_alpha < math.inf:
            raise ConfigError(f"model.backbone.lora_alpha is {self.lora_alpha}; it must be above 0")
        if self.lora_targets is not None and not all(self.lora_targets or [""]):
            raise ConfigError("model.backbone.lora_targets is empty; name layers (as qkv), or leave it out")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"model.backbone.layer_decay is {self.layer_decay}; give a factor above 0, at most 1")
        # Files of other kinds than YAML (JSON) know words as keys only.
        self.unfreeze = {int(epoch): value for epoch, value in (self.unfreeze or {}).items()} or None
        before = self.freeze
        for epoch, value in sorted((self.unfreeze or {}).items()):
            key = f"model.backbone.unfreeze.{epoch}"
            if epoch < 1:
                raise ConfigError(f"{key}: epochs are counted from 0, give 1 or more; what trains first is freeze")
            if trained_share(value, key) <= trained_share(before):
                raise ConfigError(
                    f"{key} is '{plain_freeze(value)}', after '{plain_freeze(before)}'; it must train more (freezing "
                    "again is for model.stages)"
                )
            before = value


@dataclass
class WMCAConfig:
    """Windowed multi-task cross-attention: the tasks exchange features inside small windows.

    Args:
        enabled: Use the block; False removes it from the network.
        window_size: Side p of a window in cells of the fused map; border windows are smaller.
        layers: Number of attention layers.
        heads: Attention heads; must divide the channels.
        form: "joint": every token attends to all tasks of its window. "cross": to the other tasks only.
        shift: Shift the windows of every second layer by half a window, so that neighbouring windows exchange too.
        position_bias: Learned bias for the relative position of query and key.
        task_embedding: Learned vector per task, added to what attention reads.
        mlp_ratio: Width of the feed-forward part as a factor of the channels.
        chunk: Windows processed at once on a CPU, so that they stay in its cache; 0 is all. Other devices take all.
    """

    enabled: bool = True
    window_size: int = 7
    layers: int = 2
    heads: int = 4
    form: Literal["joint", "cross"] = "joint"
    shift: bool = False
    position_bias: bool = True
    task_embedding: bool = True
    mlp_ratio: float = 4.0
    chunk: int = 8


@dataclass
class GGFMConfig:
    """Global gated feature merging: each task's map is gated by its own mean and given the backbone's last stage.

    Args:
        enabled: Use the block; False removes it from the network.
        reduction: The gate's hidden layer has this many times fewer channels.
    """

    enabled: bool = True
    reduction: int = 4


class Preset(NamedTuple):
    """Widths of a published size: channels of the fused maps, channels inside the heads."""

    channels: int
    head_channels: int


PRESETS: dict[str, Preset] = {"m2h": Preset(256, 192), "m2h-small": Preset(96, 64)}


def preset(name: str, channels: int | None = None, head_channels: int | None = None) -> Preset:
    """Look up a preset and replace the widths that are given.

    Raises:
        ConfigError: The preset is unknown or a width is not positive.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"model.preset: unknown '{name}', use one of {', '.join(PRESETS)}{did_you_mean(name, PRESETS)}"
        )
    widths = Preset(channels or PRESETS[name].channels, head_channels or PRESETS[name].head_channels)
    for key, value, given in zip(Preset._fields, widths, (channels, head_channels), strict=True):
        if value < 1 or given == 0:
            raise ConfigError(f"model.{key}: must be at least 1, got {given}")
    return widths


def parse_freeze(freeze: bool | str, key: str = "model.backbone.freeze") -> int | None:
    """Number of trainable last blocks: None for all (False), 0 for none (True), n for ``"last_<n>"``.

    Args:
        freeze: The value.
        key: Where it stands, for messages.

    Raises:
        ConfigError: The value is none of these.
    """
    if isinstance(freeze, bool):
        return 0 if freeze else None
    match = re.fullmatch(r"last_([1-9]\d*)", str(freeze))
    if match is None:
        raise ConfigError(f"{key}: got '{freeze}', use true, false or last_<n> with n >= 1 (as last_4)")
    return int(match[1])


def trained_share(freeze: bool | str, key: str = "model.backbone.freeze") -> float:
    """Return the number of trainable last blocks, infinite for all, so that values can be compared."""
    blocks = parse_freeze(freeze, key)
    return math.inf if blocks is None else blocks


def plain_freeze(freeze: bool | str) -> str:
    """Return a value of ``freeze`` as YAML spells it."""
    return str(freeze).lower() if isinstance(freeze, bool) else freeze


def check_tasks(tasks: dict[str, int]) -> None:
    """Raise ConfigError unless there is at least one task, all have channels, and all names can name a module."""
    if not tasks:
        raise ConfigError("model.tasks: at least one task is needed")
    for name, channels in tasks.items():
        if not name.isidentifier() or hasattr(dict, name) or name in ("type", "training", "forward"):
            raise ConfigError(f"model.tasks: '{name}' cannot name a task, use letters, digits and _ (as depth)")
        if channels < 1:
            raise ConfigError(f"model.tasks: task '{name}' needs at least 1 output channel, got {channels}")


def check_wmca(config: WMCAConfig, channels: int, tasks: int) -> None:
    """Raise ConfigError for values of the attention block that cannot work together."""
    for key in ("window_size", "layers", "heads"):
        if getattr(config, key) < 1:
            raise ConfigError(f"model.wmca.{key}: must be at least 1, got {getattr(config, key)}")
    if channels % config.heads:
        raise ConfigError(f"model.wmca.heads: {config.heads} does not divide model.channels {channels}")
    if config.mlp_ratio <= 0 or config.chunk < 0:
        key, value = ("mlp_ratio", config.mlp_ratio) if config.mlp_ratio <= 0 else ("chunk", config.chunk)
        raise ConfigError(f"model.wmca.{key}: must not be negative (mlp_ratio: above 0), got {value}")
    if config.form not in ("joint", "cross"):
        raise ConfigError(f"model.wmca.form: got '{config.form}', use joint or cross")
    if config.form == "cross" and tasks < 2:
        raise ConfigError(
            "model.wmca.form: 'cross' needs at least 2 tasks, with one task set model.wmca.form=joint or "
            "model.wmca.enabled=false"
        )
