"""Which mode Weights & Biases runs in, decided once per run without importing wandb."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

WandbMode = Literal["online", "offline", "disabled"]

_MODES: dict[str, WandbMode] = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline"}


def resolve_wandb_mode(setting: str, env: Mapping[str, str] = os.environ) -> tuple[WandbMode, str]:
    """Return the mode and its reason: explicit setting > $WANDB_MODE > online when a key is present > offline.

    Without an account, online mode stops the job at its first step; without network it blocks for minutes. Hence
    offline is the default: nothing is lost, ``wandb sync`` sends it later.

    Args:
        setting: ``auto``, ``online``, ``offline`` or ``disabled`` (the key ``run.wandb``).
        env: The environment.
    """
    if setting != "auto":
        return setting, f"run.wandb = {setting}"  # type: ignore[return-value]
    variable = env.get("WANDB_MODE", "").strip().lower()
    if variable in _MODES:
        return _MODES[variable], f"$WANDB_MODE = {variable}"
    if variable == "disabled" or env.get("WANDB_DISABLED", "").lower() in ("1", "true"):
        return "disabled", "$WANDB_MODE = disabled" if variable else "$WANDB_DISABLED"
    if has_wandb_key(env):
        return "online", "an API key is present"
    return "offline", "no API key"


def has_wandb_key(env: Mapping[str, str] = os.environ) -> bool:
    """Tell whether wandb would find an API key: in $WANDB_API_KEY or in the netrc file. The key is not returned."""
    if env.get("WANDB_API_KEY"):
        return True
    host = env.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0].split(":")[0]
    home = Path(env.get("HOME", "~")).expanduser()
    places = [Path(env["NETRC"])] if env.get("NETRC") else [home / ".netrc", home / "_netrc"]
    for place in places:
        try:
            if netrc.netrc(place).authenticators(host) is not None:
                return True
        except (OSError, netrc.NetrcParseError):  # absent or not ours to judge: wandb would find no key there either
            continue
    return False
