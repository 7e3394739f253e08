"""The image encoder: four stages of any timm model, as tokens of one grid (ViT) or as a pyramid (Swin, ConvNeXt …)."""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from m2h_lightning.errors import ConfigError, did_you_mean
from m2h_lightning.network.config import BackboneConfig, parse_freeze
from m2h_lightning.network.lora import check_reached, import_peft, inject_lora, is_adapter, merge_lora
from m2h_lightning.network.weights import load_file, pretrained_file

STAGES = 4
MIN_PATCH = 8  # at 4/patch of the image the fused maps must stay at or below half its size


class Stage(NamedTuple):
    """One stage of the backbone.

    Attributes:
        map: Features, B×D×h×w, channels-last in memory.
        summary: The image's summary token, B×D; None for pyramids.
    """

    map: Tensor
    summary: Tensor | None


class Backbone(nn.Module):
    """A timm model cut into four stages.

    Plain transformers give four evenly spaced blocks (of 12: the 0-based 2, 5, 8, 11), each with the final norm applied
    as DINOv2 does, and the class token as summary; registers are dropped. A transformer without a class token is
    summarised by the mean of its patch tokens. Networks with stages give the last four.

    Args:
        config: Name, weights and freezing.
        gradient_checkpointing: Recompute the trainable blocks in the backward pass instead of storing them.

    Attributes:
        channels: Channels of each stage. strides: Pixels per cell of each stage. plain: One grid for all stages.
        multiple: The image's sides must be multiples of this. loaded_share: (loaded, all) tensors. source: From where.
        units: Names of the blocks or stages that hold weights, in the order of computation.
        adapted: Names of the layers that have an adapter, as the timm model names them.

    Raises:
        ConfigError: The name is unknown or the model cannot serve as a dense encoder.
        CheckpointError: The weights cannot be had, or do not fill the model.
    """

    def __init__(self, config: BackboneConfig, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        parse_freeze(config.freeze)
        if config.lora_rank:
            import_peft()  # its absence shows before weights are fetched
        self.name = config.name
        self.gradient_checkpointing = gradient_checkpointing
        self.model: Any = _create(config)  # timm's interface is not nn.Module's
        info = _feature_info(self.model, config.name)
        self.plain = len({entry["reduction"] for entry in info}) == 1
        if len(info) < STAGES and not self.plain:
            raise ConfigError(f"model.backbone.name: '{config.name}' has {len(info)} stages, {STAGES} are needed")
        if self.plain:
            # Evenly spaced and ending at the last block; models of fewer than four blocks repeat some.
            self.taps = [math.ceil((i + 1) * len(info) / STAGES) - 1 for i in range(STAGES)]
        else:
            self.taps = list(range(len(info) - STAGES, len(info)))
        # What the stages do not need would be trained by nothing: heads, poolings, a pyramid's final norm.
        self.model.prune_intermediate_layers(sorted(set(self.taps)), prune_norm=not self.plain, prune_head=True)
        # A ResNet's first feature is an activation: nothing in it could train, so it is no block.
        names = [name for name, _ in self.model.named_parameters()]
        units = [str(entry["module"]) for entry in info]
        self.units = [unit for unit in units if any(name.startswith(f"{unit}.") for name in names)]
        arguments = inspect.signature(self.model.forward_intermediates).parameters
        self._prefix = "return_prefix_tokens" in arguments and getattr(self.model, "num_prefix_tokens", 0) > 0
        self._class_token = self._prefix and getattr(self.model, "cls_token", None) is not None

        self.strides = [int(info[tap]["reduction"]) for tap in self.taps]
        self.channels = [int(info[tap]["num_chs"]) for tap in self.taps]
        self.multiple = max(self.strides)
        if self.plain and self.multiple < MIN_PATCH:
            raise ConfigError(
                f"model.backbone.name: '{config.name}' has patches of {self.multiple} pixels, "
                f"use one of {MIN_PATCH} or more"
            )
        self._probe()
        self.loaded_share, self.source = _load(self.model, config)
        self.adapted = inject_lora(self.model, self.units, config)
        if self.adapted:
            check_reached(self.model, self.adapted, self._probe, config.name)
        self.set_freeze(config.freeze)

    def trainable_names(self, freeze: bool | str, key: str = "model.backbone.freeze") -> set[str]:
        """Return which of :meth:`named_parameters` train under a value of ``freeze``.

        Args:
            freeze: True nothing, False everything, ``"last_<n>"`` the last n blocks or stages and the norm. Adapters
                always train.
            key: Where the value stands, for messages.

        Raises:
            ConfigError: The value is none of these, or there are fewer than n blocks.
        """
        last = parse_freeze(freeze, key)
        units = self.unit_numbers()
        if last is None:
            return set(units)
        adapters = {name for name in units if is_adapter(name)}
        if last > len(self.units):
            raise ConfigError(f"{key}: 'last_{last}', but {self.name} has {len(self.units)} blocks")
        return adapters | {name for name, number in units.items() if last > 0 and number > len(self.units) - last}

    def unit_numbers(self) -> dict[str, int]:
        """Return where each of :meth:`named_parameters` lies: 0 before the blocks, 1 … n in block n, n + 1 after them.

        timm registers in the order of computation: what stands between two blocks belongs to the later one.
        """
        numbers: dict[str, int] = {}
        seen = 0
        for name, _ in self.named_parameters():
            inside = [i for i, unit in enumerate(self.units) if name.startswith(f"model.{unit}.")]
            seen = inside[0] + 1 if inside else seen
            numbers[name] = seen if inside or seen == 0 else seen + 1
        return numbers

    def set_freeze(self, freeze: bool | str) -> None:
        """Choose what trains; see :meth:`trainable_names`. What is frozen loses its gradient: no optimiser moves it.

        Raises:
            ConfigError: The value is none of these, or there are fewer than n blocks.
        """
        trains = self.trainable_names(freeze)
        self.freeze = freeze
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trains)
            if name not in trains:
                parameter.grad = None
        if hasattr(self.model, "set_grad_checkpointing"):
            self.model.set_grad_checkpointing(self.gradient_checkpointing and self.trainable)
        self.train(self.training)

    @property
    def trainable(self) -> bool:
        """Whether any parameter trains."""
        return self.freeze is not True or bool(self.adapted)

    def merge_lora(self) -> None:
        """Add the adapters to the weights beside them and remove them; the predictions stay the same."""
        merge_lora(self.model, self.adapted)
        self.adapted = []
        self.set_freeze(self.freeze)

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode; what is frozen stays in evaluation mode (its dropout and batch statistics too)."""
        super().train(mode)
        if not hasattr(self, "freeze") or self.freeze is False:
            return self
        self.model.eval()
        for module in self.model.modules():
            parameters = list(module.parameters())
            if parameters and all(parameter.requires_grad for parameter in parameters):
                module.train(mode)
        return self

    def forward(self, image: Tensor) -> list[Stage]:
        """Shapes: image B×3×H×W, sides multiples of ``multiple`` → 4 × (map B×D×h×w, summary B×D or None)."""
        if self.trainable:
            return self._stages(image)
        with torch.no_grad():  # not inference_mode: its tensors could not enter the trainable part
            return self._stages(image)

    def _stages(self, image: Tensor) -> list[Stage]:
        taps = sorted(set(self.taps))
        options: dict[str, Any] = {"intermediates_only": True}
        if not self.plain:
            maps = self.model.forward_intermediates(image, indices=taps, **options)
            return [Stage(map.contiguous(memory_format=torch.channels_last), None) for map in maps]
        if self._prefix:
            options["return_prefix_tokens"] = True
        outputs = self.model.forward_intermediates(image, indices=taps, norm=True, output_fmt="NLC", **options)
        height, width = image.shape[-2] // self.multiple, image.shape[-1] // self.multiple
        found = {}
        for tap, output in zip(taps, outputs, strict=True):
            tokens, prefix = output if self._prefix else (output, None)
            summary = prefix[:, 0] if prefix is not None and self._class_token else tokens.mean(1)
            # B×N×D is already channels-last: the map is a view, no copy.
            found[tap] = Stage(tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2), summary)
        return [found[tap] for tap in self.taps]

    @torch.no_grad()
    def _probe(self) -> None:
        """Run a small, oblong image: a model that is fixed to its training size fails here and not in epoch one."""
        self.model.eval()
        height, width = 2 * self.multiple, 3 * self.multiple
        parameter = next(self.model.parameters())
        image = torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype)
        try:
            shapes = [tuple(stage.map.shape[1:]) for stage in self._stages(image)]
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"model.backbone.name: '{self.name}' takes no images of other sizes than its own ({reason[:120]}), "
                "use a vit_*, swin_*, convnext_* or resnet* model"
            ) from error
        expected = [(c, height // s, width // s) for c, s in zip(self.channels, self.strides, strict=True)]
        if shapes != expected:
            raise ConfigError(f"model.backbone.name: '{self.name}' gives stages {shapes}, expected {expected}")


def _create(config: BackboneConfig) -> Any:
    """Build the timm model without weights, able to take any image size where the model family can."""
    import timm  # late: it takes a second, which `fit --help` need not wait for

    architecture = config.name.split(".")[0]
    known = timm.list_models(include_tags=False)
    if architecture not in known:
        raise ConfigError(
            f"model.backbone.name: timm {timm.__version__} has no model '{architecture}'"
            f"{did_you_mean(architecture, known)}"
        )
    options: dict[str, Any] = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    flexible: list[dict[str, Any]] = [{"dynamic_img_size": True}, {"strict_img_size": False}, {}]
    for sizes in flexible:
        try:
            return timm.create_model(config.name, pretrained=False, num_classes=0, **sizes, **options)
        except RuntimeError as error:  # timm: "Invalid pretrained tag (x) for y."
            raise ConfigError(f"model.backbone.name: '{config.name}': {error}") from error
        except TypeError as error:
            if "unexpected keyword argument 'drop_path_rate'" in str(error):
                raise ConfigError(f"model.backbone.drop_path: '{config.name}' offers none, set it to 0") from error
            if not sizes or "unexpected keyword argument" not in str(error):
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _feature_info(model: Any, name: str) -> list[dict[str, Any]]:
    info = getattr(model, "feature_info", None)
    if not info or not hasattr(model, "forward_intermediates") or not hasattr(model, "prune_intermediate_layers"):
        raise ConfigError(
            f"model.backbone.name: timm offers no intermediate features of '{name}', "
            "use a vit_*, swin_*, convnext_* or resnet* model"
        )
    return list(getattr(info, "info", info))


def _load(model: nn.Module, config: BackboneConfig) -> tuple[tuple[int, int], str]:
    if config.checkpoint is not None:
        return load_file(model, config.checkpoint, "model.backbone.checkpoint"), config.checkpoint
    if config.pretrained:
        path = pretrained_file(model, config.name)
        return load_file(model, path, "model.backbone.pretrained"), path
    return (0, len(model.state_dict())), "random initialisation (pretrained: false)"
