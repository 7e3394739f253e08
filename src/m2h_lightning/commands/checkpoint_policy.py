"""Which of the model's keys a checkpoint decides, and which the user does.

A checkpoint's weights fit one architecture. Keys that nobody wrote take the checkpoint's values. A key written by the
user that changes the architecture is an error: neither silently ignoring it nor loading weights that do not fit is what
was asked for. Keys that only steer training are the user's.
"""

from __future__ import annotations

from typing import Any

from m2h_lightning.commands.arguments import Arguments
from m2h_lightning.errors import ConfigError
from m2h_lightning.runs.folder import flatten, plain

TRAINING_KEYS = (
    "optimizer",
    "schedule",
    "losses",
    "loss_weights",
    "balancing",
    "consistency",
    "stages",
    "ema",
    "metrics",
    "compile",
    "gradient_checkpointing",
    "init_weights",
    "init_partial",
    "backbone.pretrained",
    "backbone.checkpoint",
    "backbone.freeze",
    "backbone.unfreeze",
    "backbone.lr_factor",
    "backbone.layer_decay",
    "backbone.drop_path",
    "wmca.chunk",
)
"""Keys below ``model`` that change no weight's shape and no prediction of given weights."""


def steers_training_only(key: str) -> bool:
    """Tell whether a key below ``model`` may differ from the checkpoint's."""
    return any(key == name or key.startswith(f"{name}.") for name in TRAINING_KEYS)


def merge_hyper_parameters(
    stored: dict[str, Any], given: dict[str, Any], current: dict[str, Any], path: str, arguments: Arguments
) -> dict[str, Any]:
    """Return the model keys that take the checkpoint's value.

    Args:
        stored: The checkpoint's ``hyper_parameters``, nested.
        given: The keys below ``model`` the user wrote, flat.
        current: All keys below ``model`` as parsed, flat.
        path: The checkpoint's path, for messages.
        arguments: The command line, which knows where keys stand.

    Raises:
        ConfigError: A written key asks for another architecture than the checkpoint's.
    """
    taken: dict[str, Any] = {}
    for key, value in flatten({name: item for name, item in stored.items() if name != "facts"}).items():
        written = [name for name in given if name == key or name.startswith(f"{key}.") or key.startswith(f"{name}.")]
        if key not in current and not any(name.startswith(f"{key}.") for name in current):
            continue  # of another version of this package; the weights themselves are checked when they are loaded
        now = current.get(key, value)
        if plain(now) == plain(value):
            continue
        if not written:
            taken[key] = value
        elif not steers_training_only(key):
            raise ConfigError(
                f"model.{key} is {_show(now)}{arguments.place(f'model.{key}')}, but the checkpoint {path} was trained "
                f"with {_show(value)}; leave the key out to take the checkpoint's, or train anew without the checkpoint"
            )
    return taken


def _show(value: Any) -> str:
    return "null" if value is None else repr(plain(value))
