"""Low-rank adapters on the backbone: few weights that train beside frozen ones.

A layer W x becomes W x + (α / r) B A x, with A of r rows drawn at random and B of r columns zero at first, so that the
network starts as what it was (Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022). The adapters
come from the package peft.

In the state dictionary a layer ``…attn.qkv.weight`` becomes ``…attn.qkv.base_layer.weight``, and beside it stand
``…attn.qkv.lora_A.default.weight`` and ``…attn.qkv.lora_B.default.weight``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from m2h_lightning.errors import ConfigError, MissingExtraError
from m2h_lightning.network.config import BackboneConfig

DEFAULT_TARGETS = ("qkv", "proj")
"""Layers of a transformer's attention: from tokens to queries, keys and values, and back."""

_SHOWN = 12


def is_adapter(name: str) -> bool:
    """Tell whether a parameter or tensor of this name belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def base_name(name: str) -> str:
    """Return the name that a tensor has in a network without adapters."""
    return name.replace(".base_layer.", ".")


def lora_alpha(config: BackboneConfig) -> float:
    """Return α: what is given, else 2 r, so that the adapters' factor does not depend on their rank."""
    return 2.0 * config.lora_rank if config.lora_alpha is None else config.lora_alpha


def inject_lora(model: nn.Module, units: Sequence[str], config: BackboneConfig) -> list[str]:
    """Put adapters on the layers that a configuration asks for, in place; weights must be loaded before.

    Args:
        model: A timm model.
        units: Its blocks or stages; layers outside (a patch embedding) get no adapter.
        config: Rank, alpha and targets.

    Returns:
        Names of the layers that have an adapter now; empty for rank 0.

    Raises:
        ConfigError: A target names no layer. The message lists the layers there are.
        MissingExtraError: peft is not installed.
    """
    if config.lora_rank == 0:
        return []
    peft = import_peft()
    layers = [
        name
        for name, module in model.named_modules()
        if any(name.startswith(f"{unit}.") for unit in units)
        # peft adapts no grouped convolution whose groups do not divide the rank.
        and (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))
    ]
    targets = config.lora_targets or list(DEFAULT_TARGETS)
    chosen: list[str] = []
    for target in targets:
        found = [name for name in layers if name == target or name.endswith(f".{target}")]
        if not found:
            known = list(dict.fromkeys(last for name in layers if not (last := name.rsplit(".", 1)[-1]).isdigit()))
            more = ", …" if len(known) > _SHOWN else ""
            given = "" if config.lora_targets else " (the default)"
            raise ConfigError(
                f"model.backbone.lora_targets: '{config.name}' has no layer '{target}'{given} in its blocks; choose of "
                f"{', '.join(known[:_SHOWN])}{more}"
            )
        chosen += [name for name in found if name not in chosen]
    settings = peft.LoraConfig(
        r=config.lora_rank, lora_alpha=lora_alpha(config), target_modules=chosen, lora_dropout=0.0, bias="none"
    )
    peft.inject_adapter_in_model(settings, model)
    return chosen


def check_reached(model: nn.Module, adapted: Sequence[str], run: Callable[[], object], name: str) -> None:
    """Refuse adapters that the model goes past: some families take a layer's weight without calling the layer.

    Args:
        model: The model with adapters.
        adapted: Names of the layers that have one.
        run: Passes any image through the model.
        name: The model's name, for the message.

    Raises:
        ConfigError: Some adapters would have no effect.
    """
    reached: set[str] = set()
    hooks = [
        model.get_submodule(layer).register_forward_hook(lambda *_, layer=layer: reached.add(layer))
        for layer in adapted
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    missed = [layer for layer in adapted if layer not in reached]
    if missed:
        raise ConfigError(
            f"model.backbone.lora_targets: '{name}' takes the weights of {len(missed)} layers without calling them "
            f"({missed[0]}): adapters there would do nothing; choose others (as proj, fc1, fc2)"
        )


def merge_lora(model: nn.Module, adapted: Sequence[str]) -> None:
    """Add every adapter to the weights beside it and remove it, in place: W + (α / r) B A.

    The model computes the same, and its tensors have the names of a model that never had adapters.

    Args:
        model: The model with adapters.
        adapted: Names of the layers that have one.
    """
    for name in adapted:
        layer: Any = model.get_submodule(name)  # peft's interface is not nn.Module's
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())


def import_peft() -> Any:
    """Return the package peft.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import peft  # late: it takes seconds, and is an extra
    except ImportError as error:
        raise MissingExtraError("peft", "lora", "model.backbone.lora_rank") from error
    return peft
