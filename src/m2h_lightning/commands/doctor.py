"""``m2h doctor``: what is wrong with this installation and how to mend it. Imports no torch, so it answers at once.

It looks at names, versions and places only: which script answers to ``lightning``, whether torch and torchvision are a
pair, the versions this package cannot live with, Weights & Biases, TensorBoard, data folders and stray checkpoints.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import stat
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from m2h_lightning.errors import ConfigError
from m2h_lightning.files import atomic
from m2h_lightning.runs.wandb_mode import has_wandb_key, resolve_wandb_mode

OURS = re.compile(r"from m2h_lightning\.cli import main|m2h_lightning\.cli")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Args:
        what: What was looked at.
        state: ``ok``, ``note`` (works, worth knowing) or ``wrong``.
        detail: What was found.
        mend: How to mend it; empty when nothing is to be done.
    """

    what: str
    state: Literal["ok", "note", "wrong"]
    detail: str
    mend: str = ""


def main_doctor(argv: list[str]) -> int:
    """Run ``m2h doctor [--fix] [--json]``; return 0 when nothing is wrong, else 2."""
    parser = argparse.ArgumentParser(prog="m2h doctor", description="Tell what is wrong with this installation.")
    parser.add_argument("--fix", action="store_true", help="restore the 'lightning' script of this package")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options = parser.parse_args(argv)
    scripts = Path(sysconfig.get_path("scripts"))
    if options.fix:
        fix_script(scripts)
    findings = examine(scripts, Path.cwd(), os.environ)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            mark = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}[finding.state]
            print(f"{mark}  {finding.what:<18} {finding.detail}")
            if finding.mend:
                print(f"{'':<25} → {finding.mend}")
    return 2 if any(finding.state == "wrong" for finding in findings) else 0


def examine(scripts: Path, here: Path, env: Mapping[str, str]) -> list[Finding]:
    """Return all findings.

    Args:
        scripts: The folder of this environment's console scripts.
        here: The working directory.
        env: The environment variables.
    """
    return [
        *check_script(scripts, env),
        check_torch_pair(_version("torch"), _version("torchvision")),
        check_jsonargparse(_version("jsonargparse")),
        check_wandb(_version("wandb"), env),
        check_tensorboard(_version("tensorboard")),
        *check_data(here, env),
        *check_stray_checkpoints(here),
    ]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# ── the script `lightning` ──────────────────────────────────────────────────────────────────────────────────────────


def claimants(name: str = "lightning") -> list[str]:
    """Return the installed packages, other than this one, that declare a console script ``name``."""
    return sorted(
        {
            f"{script.dist.name} {script.dist.version}" if script.dist else script.value
            for script in metadata.entry_points(group="console_scripts").select(name=name)
            if not script.value.startswith("m2h_lightning")
        }
    )


def check_script(scripts: Path, env: Mapping[str, str]) -> list[Finding]:
    """Look at the script ``lightning``: whose it is, who else wants the name, and what ``PATH`` finds first."""
    script, others = scripts / "lightning", claimants()
    findings = []
    again = "; uninstalling that package later deletes the script again: run this once more then" if others else ""
    fix = "run 'm2h doctor --fix', or use 'm2h', which is the same command" + again
    if not script.exists():
        findings.append(Finding("lightning script", "wrong", f"{script} does not exist", fix))
    elif not OURS.search(script.read_text(errors="replace")):
        owner = f" (claimed by {', '.join(others)})" if others else ""
        findings.append(Finding("lightning script", "wrong", f"{script} is another package's{owner}", fix))
    else:
        findings.append(Finding("lightning script", "ok", f"{script} is this package's"))
    if others and not findings[0].mend:
        detail = f"{', '.join(others)} also installs a script 'lightning'"
        mend = "installing or uninstalling it overwrites or deletes ours: then run 'm2h doctor --fix'"
        findings.append(Finding("lightning script", "note", detail, mend))
    for name in ("lightning", "m2h"):
        found = shutil.which(name, path=env.get("PATH", ""))
        if found is None:
            detail = f"'{name}' is not on PATH"
            findings.append(Finding("PATH", "note", detail, f"activate the environment or add {scripts} to PATH"))
        elif Path(found).parent.resolve() != scripts.resolve() and (scripts / name).exists():
            detail = f"'{name}' runs {found}, of another environment, not {scripts / name}"
            findings.append(
                Finding("PATH", "wrong", detail, f"put {scripts} first on PATH, or activate its environment")
            )
    return findings


def fix_script(scripts: Path) -> None:
    """Put this package's ``lightning`` script back by copying its ``m2h`` script, atomically.

    Raises:
        ConfigError: There is no ``m2h`` script of this package to copy, or the folder cannot be written.
    """
    source, target = scripts / "m2h", scripts / "lightning"
    if not source.is_file() or not OURS.search(source.read_text(errors="replace")):
        raise ConfigError(f"{source} is not this package's script; reinstall the package: pip install -e .")
    try:
        with atomic(target) as temporary:
            shutil.copy2(source, temporary)
            temporary.chmod(temporary.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}; use 'm2h' instead of 'lightning'") from error


# ── packages ────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_torch_pair(torch: str | None, torchvision: str | None) -> Finding:
    """Tell whether torch and torchvision were built for each other, from their metadata alone.

    torchvision names its torch in its own metadata; a CPU build beside a CUDA build cannot be imported although
    installers see no conflict.
    """
    what = "torch, torchvision"
    if torch is None or torchvision is None:
        missing = " and ".join(name for name, found in (("torch", torch), ("torchvision", torchvision)) if not found)
        return Finding(what, "wrong", f"{missing} not installed", "install both from the same index")
    detail = f"torch {torch}, torchvision {torchvision}"
    mend = "install both at once from the same index (uv: --torch-backend=auto)"
    needed = _torch_needed_by_torchvision()
    if needed is not None and not needed.contains(torch.split("+")[0], prereleases=True):
        return Finding(what, "wrong", f"{detail}: this torchvision needs torch {needed}", mend)
    builds = [version.partition("+")[2] for version in (torch, torchvision)]
    if builds[0] != builds[1] and "cpu" in builds:
        names = [build or "default (CUDA on Linux)" for build in builds]
        return Finding(what, "wrong", f"{detail}: builds differ ({names[0]} and {names[1]})", mend)
    return Finding(what, "ok", detail)


def _torch_needed_by_torchvision() -> SpecifierSet | None:
    """Return the torch versions that the installed torchvision asks for, if its metadata tell."""
    try:
        requirements = [Requirement(text) for text in metadata.requires("torchvision") or []]
    except metadata.PackageNotFoundError:
        return None
    return next((requirement.specifier for requirement in requirements if requirement.name == "torch"), None)


def check_jsonargparse(version: str | None) -> Finding:
    """Jsonargparse 5 drops what Lightning 2.6 calls."""
    if version is None or int(version.split(".")[0]) >= 5:
        mend = "pip install 'jsonargparse[signatures]>=4.45,<5'"
        return Finding("jsonargparse", "wrong", f"{version or 'not installed'}: Lightning 2.6 needs version 4", mend)
    return Finding("jsonargparse", "ok", version)


# ── loggers, data, leftovers ────────────────────────────────────────────────────────────────────────────────────────


def check_wandb(version: str | None, env: Mapping[str, str]) -> Finding:
    """Tell in which mode Weights & Biases would run, and why; the key itself is never shown."""
    if version is None:
        return Finding("wandb", "note", "not installed: runs are not logged to Weights & Biases", "pip install wandb")
    mode, reason = resolve_wandb_mode("auto", env)
    key = "an API key is present" if has_wandb_key(env) else "no API key"
    mend = "'wandb login' to log online; offline runs are sent later with 'wandb sync'" if mode == "offline" else ""
    why = reason if key.endswith(reason) else f"{reason}; {key}"
    return Finding("wandb", "note" if mend else "ok", f"{version}, {mode} ({why})", mend)


def check_tensorboard(version: str | None) -> Finding:
    """Tell whether TensorBoard is there; it is optional."""
    if version is None:
        mend = "pip install 'm2h-lightning[tensorboard]'"
        return Finding("tensorboard", "note", "not installed: no TensorBoard files are written", mend)
    return Finding("tensorboard", "ok", version)


def check_data(here: Path, env: Mapping[str, str]) -> list[Finding]:
    """Look at the data root ($M2H_DATA, else ./data): existence, free space and what is cached there."""
    root = Path(env.get("M2H_DATA") or here / "data").expanduser()
    source = "$M2H_DATA" if env.get("M2H_DATA") else "./data"
    existing = next((place for place in (root, *root.parents) if place.is_dir()), Path("/"))
    free = shutil.disk_usage(existing).free / 1e9
    if not root.is_dir():
        state: Literal["note", "wrong"] = "wrong" if env.get("M2H_DATA") else "note"
        mend = (
            f"create it: mkdir -p {root}" if env.get("M2H_DATA") else "it is made when needed; $M2H_DATA names another"
        )
        return [Finding("data root", state, f"{source} = {root} does not exist ({free:.0f} GB free)", mend)]
    findings = []
    if not os.access(root, os.W_OK):
        findings.append(Finding("data root", "note", f"{source} = {root} is read-only ({free:.0f} GB free)"))
    elif free < 2:
        findings.append(Finding("data root", "wrong", f"{source} = {root}: {free:.1f} GB free", "make room"))
    else:
        findings.append(Finding("data root", "ok", f"{source} = {root} ({free:.0f} GB free)"))
    cached = sorted(place.name for place in (root / "rooms").glob("rooms-*") if place.is_dir())
    detail = f"cached: {', '.join(cached)}" if cached else "none cached yet; rendered on first use"
    findings.append(Finding("rooms", "ok" if cached else "note", detail))
    return findings


def check_stray_checkpoints(here: Path) -> list[Finding]:
    """Find Lightning's SLURM checkpoints outside run folders: a new job in that folder would silently resume them."""
    stray = sorted({*here.glob("hpc_ckpt_*.ckpt"), *here.glob("runs/hpc_ckpt_*.ckpt"), *here.glob("runs/*/hpc_ckpt_*")})
    if not stray:
        return []
    detail = f"{len(stray)} stray SLURM checkpoint(s), e.g. {stray[0]}: a new job there would resume it"
    return [Finding("checkpoints", "wrong", detail, "delete them, or move them into the folder of their run")]


if __name__ == "__main__":
    raise SystemExit(main_doctor(sys.argv[1:]))
