"""What of the network trains, when and how fast, in words: one line for each setting that is on."""

from __future__ import annotations

from itertools import accumulate

from m2h_lightning.network import M2HNet
from m2h_lightning.network.lora import is_adapter, lora_alpha
from m2h_lightning.recipe.stages import Timeline


def training_lines(net: M2HNet, timeline: Timeline, lr: float, ema: float | None) -> list[str]:
    """Return a line each for adapters, layer-wise decay, stages or unfreezing, and the average of the weights.

    Args:
        net: The network.
        timeline: Stages and unfreezing.
        lr: ``model.optimizer.lr``.
        ema: ``model.ema``.
    """
    found = (_adapters(net), _layer_decay(net, timeline, lr), _plan(net, timeline), _average(ema))
    return [line for line in found if line is not None]


def millions(net: M2HNet, freeze: bool | str) -> float:
    """Return how many parameters (10⁶) of the network train under a value of ``model.backbone.freeze``."""
    inside = {f"backbone.{name}" for name in net.backbone.trainable_names(freeze)}
    trained = sum(
        parameter.numel()
        for name, parameter in net.named_parameters()
        if (name in inside if name.startswith("backbone.") else parameter.requires_grad)
    )
    return trained / 1e6


def _adapters(net: M2HNet) -> str | None:
    adapted, config = net.backbone.adapted, net.backbone_config
    if not adapted:
        return None
    numbers = sum(parameter.numel() for name, parameter in net.named_parameters() if is_adapter(name))
    kinds = dict.fromkeys(name.rsplit(".", 1)[-1] for name in adapted)
    return (
        f"LoRA: rank {config.lora_rank}, alpha {lora_alpha(config):g}, on {len(adapted)} layers "
        f"({', '.join(kinds)}), {numbers / 1e6:.3f} M parameters, lr {config.lr_factor:g} × the network's"
    )


def _layer_decay(net: M2HNet, timeline: Timeline, lr: float) -> str | None:
    decay = net.backbone_config.layer_decay
    groups = [group for group in net.parameter_groups(timeline.freezes.values()) if "_layer_" in group["name"]]
    if decay == 1 or not groups:
        return None
    rates = [lr * group["lr_factor"] for group in groups]
    return (
        f"layer decay {decay:g}: backbone's lr from {min(rates):.2g} in the first layers that train to {max(rates):.2g}"
    )


def _plan(net: M2HNet, timeline: Timeline) -> str | None:
    if timeline.stages:
        begins = [0, *accumulate(stage.epochs for stage in timeline.stages)][:-1]
    elif timeline.unfreeze:
        begins = list(timeline.unfreeze)
    else:
        return None
    return "; ".join(
        f"{timeline.describe(epoch)} ({millions(net, timeline.freeze_at(epoch)):.2f} M trainable)" for epoch in begins
    )


def _average(ema: float | None) -> str | None:
    return None if ema is None else f"EMA: average of the weights with decay {ema:g}, which is validated and tested"
