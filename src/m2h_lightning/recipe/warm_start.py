"""A warm start: training begins with the network's weights of another run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from m2h_lightning.errors import CheckpointError
from m2h_lightning.network import BackboneConfig, M2HNet
from m2h_lightning.network.lora import base_name, is_adapter
from m2h_lightning.runs.checkpoint_io import newest_checkpoint, read_checkpoint

KEY = "model.init_weights"
_PREFIX = "net."
_SHOWN = 8


@dataclass
class Source:
    """The network's weights of a checkpoint.

    Attributes:
        path: The checkpoint.
        tensors: Tensors by their name in the network.
        backbone_weights: Where its backbone's weights once came from, in words.
        facts: Facts of the data set it was trained on.
    """

    path: Path
    tensors: dict[str, Tensor]
    backbone_weights: str
    facts: dict[str, Any]


@dataclass
class Match:
    """Which tensors of a network a checkpoint fills.

    Attributes:
        found: Name in the checkpoint of every tensor that is filled, by its name in the network.
        missing: Tensors the checkpoint lacks.
        shapes: Tensors of another shape, with both: (there, here).
        unexpected: Tensors of the checkpoint that the network has no place for.
        fresh: Tensors of adapters, where the checkpoint has no adapters at all: they start anew, which is no mismatch.
        parameters: Numbers in the parameters that are filled. all_parameters: In those that could be.
    """

    found: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    parameters: int = 0
    all_parameters: int = 0

    @property
    def share(self) -> str:
        """The share that is filled, in words."""
        tensors = len(self.found) + len(self.missing) + len(self.shapes)
        return (
            f"{len(self.found)} of {tensors} tensors of the network "
            f"({self.parameters / 1e6:.2f} of {self.all_parameters / 1e6:.2f} M parameters)"
        )

    @property
    def mismatches(self) -> dict[str, list[str]]:
        """What does not fit, each tensor in words, by kind; kinds without any are left out."""
        kinds = {
            "missing": self.missing,
            "of another shape": [f"{name}: {there} there, {here} here" for name, (there, here) in self.shapes.items()],
            "unexpected": self.unexpected,
        }
        return {kind: names for kind, names in kinds.items() if names}

    def fills(self, part: str) -> bool:
        """Whether every tensor of a part of the network ("backbone.") is filled, or starts anew as an adapter."""
        return not any(name.startswith(part) for name in (*self.missing, *self.shapes))


def read_source(path: str) -> Source:
    """Read the network's weights of a run folder (its newest readable checkpoint) or of a checkpoint file.

    Only tensors and plain values are read (``weights_only``). A run with an exponential moving average stores that as
    its weights.

    Raises:
        CheckpointError: There is no such file, it cannot be read, or it holds no network of this package.
    """
    place = Path(path).expanduser()
    if not place.exists() or not path:
        raise CheckpointError(f"{KEY}: '{path}' does not exist; give a run folder or a .ckpt file of one")
    try:
        if place.is_dir():
            place = newest_checkpoint(place)
        content = read_checkpoint(place)
    except CheckpointError as error:
        raise CheckpointError(f"{KEY}: {error}") from error
    tensors = {
        name.removeprefix(_PREFIX): value
        for name, value in content["state_dict"].items()
        if name.startswith(_PREFIX) and isinstance(value, Tensor)
    }
    if not tensors:
        raise CheckpointError(f"{KEY}: {place} holds no network of this package; give a checkpoint of an m2h run")
    facts = (content.get("hyper_parameters") or {}).get("facts") or {}
    return Source(place, tensors, str(content.get("backbone_weights", "not recorded")), facts)


def match(net: M2HNet, tensors: Mapping[str, Tensor]) -> Match:
    """Find out which tensors of a network those of a checkpoint fill.

    A layer that has an adapter on one side only has its own weights under another name there; it is the same layer.
    """
    by_base = {base_name(name): name for name in tensors if not is_adapter(name)}
    by_base |= {name: name for name in tensors if is_adapter(name)}
    adapters = any(is_adapter(name) for name in tensors)
    parameters = {name: parameter.numel() for name, parameter in net.named_parameters()}
    result = Match()
    for name, tensor in net.state_dict().items():
        there = by_base.pop(base_name(name), None)
        if there is None and is_adapter(name) and not adapters:
            result.fresh.append(name)
            continue
        result.all_parameters += parameters.get(name, 0)
        if there is None:
            result.missing.append(name)
        elif tensors[there].shape != tensor.shape:
            result.shapes[name] = tuple(tensors[there].shape), tuple(tensor.shape)
        else:
            result.found[name] = there
            result.parameters += parameters.get(name, 0)
    result.unexpected = list(by_base.values())
    return result


def warm_started(
    make: Callable[[BackboneConfig], M2HNet], backbone: BackboneConfig, source: Source, partial: bool
) -> tuple[M2HNet, str]:
    """Make a network and fill it with the weights of another run.

    Pretrained weights of the backbone are fetched only where the other run's do not replace them all.

    Args:
        make: Makes the network, with the backbone it is given.
        backbone: The backbone that is configured.
        source: The other run's weights.
        partial: Take what fits, instead of refusing what does not match in every tensor.

    Returns:
        The network, whose backbone says where its weights came from, and the share that was filled, in words.

    Raises:
        CheckpointError: Some tensors do not match, or not one does. All that do not are named, in the message or, if
            they are many, in the log before it.
    """
    net = make(replace(backbone, pretrained=False, checkpoint=None))
    found = match(net, source.tensors)
    if found.mismatches and not (partial and found.found):
        raise _refusal(found, source.path)
    whole = found.fills("backbone.")
    if not whole and (backbone.pretrained or backbone.checkpoint is not None):
        net = make(backbone)
    with torch.no_grad():
        own = net.state_dict()
        for name, there in found.found.items():
            own[name].copy_(source.tensors[there])
    _describe_backbone(net, found, source, whole)
    rank_zero_info(f"{KEY}: {found.share} from {source.path}")
    if found.mismatches:
        rank_zero_info("\n".join([f"{KEY}: these do not fit and are left as they are:", *_lines(found)]))
    if found.fresh:
        rank_zero_info(f"{KEY}: {source.path} has no adapters; {len(found.fresh)} tensors of adapters start anew")
    return net, f"{found.share} from {source.path}"


def warn_of_other_meaning(source: Source, facts: Mapping[str, Any], tasks: Iterable[str]) -> None:
    """Tell where tensors fit, yet their outputs meant something else: other classes, depth in another unit.

    Args:
        source: The weights.
        facts: Facts of the data set to train on.
        tasks: The tasks to train.
    """
    was, now = source.facts, facts
    if not was:
        return
    there, here = list(was.get("classes") or ()), list(now.get("classes") or ())
    if "semseg" in tasks and there != here and len(there) == len(here):
        first = next(pair for pair in zip(there, here, strict=True) if pair[0] != pair[1])
        rank_zero_warn(
            f"{KEY}: {source.path} was trained on '{was.get('name')}', whose classes are others ({first[0]} where "
            f"'{now.get('name')}' has {first[1]}): the semseg head starts with weights for those"
        )
    if "depth" in tasks and was.get("depth_unit", "m") != now.get("depth_unit", "m"):
        rank_zero_warn(
            f"{KEY}: {source.path} was trained on depth in {was.get('depth_unit', 'm')}, the data set gives it in "
            f"{now.get('depth_unit', 'm')}"
        )


def _describe_backbone(net: M2HNet, found: Match, source: Source, whole: bool) -> None:
    """Make the network say where its backbone's weights are from."""
    taken = [name for name in found.found if name.startswith("backbone.")]
    if whole:
        net.backbone.loaded_share = (len(taken), len(taken))
        net.backbone.source = f"init_weights {source.path} (there: {source.backbone_weights})"
    elif taken:
        net.backbone.source += f", but {len(taken)} tensors from init_weights {source.path}"


def _lines(found: Match) -> list[str]:
    return [f"  {kind}: {text}" for kind, texts in found.mismatches.items() for text in texts]


def _refusal(found: Match, path: Path) -> CheckpointError:
    """Return the error that names what does not fit; the whole list goes into the log where it is long."""
    parts = []
    for kind, texts in found.mismatches.items():
        more = f", … {len(texts) - _SHOWN} more, listed above" if len(texts) > _SHOWN else ""
        parts.append(f"{len(texts)} {kind} ({', '.join(texts[:_SHOWN])}{more})")
    if any(len(texts) > _SHOWN for texts in found.mismatches.values()):
        rank_zero_info("\n".join([f"{KEY}: {path} and the network differ in:", *_lines(found)]))
    mend = "give a checkpoint of this architecture"
    if found.found:
        mend = "describe the network as there, or set model.init_partial=true to take what fits"
    return CheckpointError(f"{KEY}: {path} fills {found.share}; {'; '.join(parts)}; {mend}")
