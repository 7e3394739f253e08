"""Backbone weights: find the file, load it, and account for every tensor. Never random weights in silence."""

from __future__ import annotations

import inspect
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from m2h_lightning.errors import CheckpointError

REACH_SECONDS = 8.0
_MEND = "set model.backbone.checkpoint to a local file, or model.backbone.pretrained=false for random weights"


def pretrained_file(model: nn.Module, name: str) -> str:
    """Path of timm's pretrained weights of ``model``: from the cache, else downloaded into it.

    Raises:
        CheckpointError: There are none, or they are neither cached nor reachable. The message names the wanted file.
    """
    source: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
    if source.get("file"):
        return str(source["file"])
    if source.get("hf_hub_id"):
        return _from_hub(str(source["hf_hub_id"]), source.get("hf_hub_filename"), name)
    if source.get("url"):
        return _from_url(str(source["url"]), name)
    raise CheckpointError(f"model.backbone.pretrained: timm has no pretrained weights of '{name}': {_MEND}")


def _from_hub(hub_id: str, filename: str | None, name: str) -> str:
    from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache

    repository, _, revision = hub_id.partition("@")
    candidates = [filename] if filename else ["model.safetensors", "pytorch_model.bin"]
    for candidate in candidates:
        cached = try_to_load_from_cache(repository, candidate, revision=revision or None)
        if isinstance(cached, str):
            return cached
    folder = os.path.join(constants.HF_HUB_CACHE, "models--" + repository.replace("/", "--"))
    wanted = f"'{candidates[0]}' of '{repository}' is not in the cache {folder}"
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"weights of backbone '{name}': {wanted} and HF_HUB_OFFLINE is set: {_MEND}")
    # The hub's own client retries for half a minute; one short question first tells whether anybody answers.
    if (reason := _unreachable(hf_hub_url(repository, candidates[0], revision=revision or None))) is not None:
        raise CheckpointError(
            f"weights of backbone '{name}': {wanted} and the hub cannot be reached ({reason}): {_MEND}"
        )
    reason = ""
    for candidate in candidates:
        try:
            return hf_hub_download(repository, candidate, revision=revision or None)
        except Exception as error:  # the hub's errors share no useful base class across its versions
            reason = reason or _first_line(error)
    raise CheckpointError(f"weights of backbone '{name}': {wanted} and could not be downloaded ({reason}): {_MEND}")


def _from_url(url: str, name: str) -> str:
    path = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url.split("?")[0]))
    if os.path.isfile(path):
        return path
    reason = _unreachable(url)
    if reason is None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, path, progress=False)
            return path
        except Exception as error:  # as above: network errors of many kinds, each the user's to see in one line
            reason = _first_line(error)
    raise CheckpointError(
        f"weights of backbone '{name}': {path} is missing and {url} cannot be had ({reason}): {_MEND}"
    )


def _unreachable(url: str) -> str | None:
    """Why nobody answers at ``url``, or None when somebody does (even with an error page)."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        return _first_line(getattr(error, "reason", error))
    return None


def load_file(model: nn.Module, path: str, key: str) -> tuple[int, int]:
    """Fill ``model`` from a weights file and account for every tensor.

    The checkpoint goes through timm's own converter of the model family first (other projects' names, position
    embeddings of another grid). Tensors that the file has beyond the model (classifiers) are ignored.

    Args:
        model: A timm model, already cut down to what is used.
        path: .npz for models that read it, else what ``torch.save`` or safetensors wrote. Read with ``weights_only``.
        key: The configuration key to name in errors.

    Returns:
        (loaded, all) tensors of the model; they are equal.

    Raises:
        CheckpointError: The file is missing, unreadable, or fills less than the whole model.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"{key}: no weights file at {path}")
    try:
        found = _read_npz(model, path) if path.endswith((".npz", ".npy")) else _read(model, path)
    except CheckpointError:
        raise
    except Exception as error:  # unpickling and converters fail in every way there is; the file is the user's
        raise CheckpointError(
            f"{key}: cannot read {path} as weights of this backbone ({_first_line(error)})"
        ) from error
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in found]
    shapes = [k for k in wanted if k in found and tuple(found[k].shape) != tuple(wanted[k].shape)]
    if missing or shapes:
        loaded = len(wanted) - len(missing) - len(shapes)
        parts = []
        if missing:
            parts.append(f"{len(missing)} missing ({_some(missing)})")
        if shapes:
            first = shapes[0]
            sizes = f"{tuple(found[first].shape)} for {tuple(wanted[first].shape)}"
            parts.append(f"{len(shapes)} of another shape ({_some(shapes)}: {sizes})")
        if unexpected := len([k for k in found if k not in wanted]):
            parts.append(f"{unexpected} unexpected")
        raise CheckpointError(f"{key}: {path} fills {loaded} of {len(wanted)} backbone tensors, {', '.join(parts)}")
    model.load_state_dict({k: found[k] for k in wanted})
    return len(wanted), len(wanted)


def _read(model: nn.Module, path: str) -> dict[str, Tensor]:
    from timm.models import load_state_dict  # late: timm takes a second to import

    state = load_state_dict(path, device="cpu", weights_only=True)
    # timm keeps the converter beside the model class; it is the only public trace of it.
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        options: dict[str, Any] = {}
        if "adapt_layer_scale" in inspect.signature(convert).parameters and any(k.endswith("gamma_1") for k in state):
            options["adapt_layer_scale"] = True  # DeiT-3's name of the layer scale
        state = convert(state, model, **options)
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def _read_npz(model: nn.Module, path: str) -> dict[str, Tensor]:
    """JAX weights are copied by the model itself, which does not say what it filled: mark everything first."""
    reader = getattr(model, "load_pretrained", None)
    if reader is None:
        raise CheckpointError(f"{path}: this backbone does not read .npz files, use .pth or .safetensors")
    before = {k: v.detach().clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
        try:
            reader(path)
        finally:
            after = {k: v.detach().clone() for k, v in model.state_dict().items()}
            model.load_state_dict(before)
    return {k: v for k, v in after.items() if not (v.is_floating_point() and v.isnan().any())}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
