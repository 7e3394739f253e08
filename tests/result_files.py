"""Run folders with a ``result.json`` as runs write it, with values of one's own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml

SCORES: dict[str, dict[str, Any]] = {
    "semseg": {
        "miou": 0.4521,
        "miou_per_image": 0.4802,
        "pixel_accuracy": 0.7312,
        "pixel_accuracy_per_image": 0.7405,
        "classes_present": 40,
        "iou": {"wall": 0.71, "floor": 0.82},
        "trivial_miou": 0.0102,
    },
    "depth": {"rmse_m": 0.5432, "rmse_m_per_image": 0.5011, "absrel": 0.1421, "absrel_per_image": 0.1433},
    "normals": {"mean_deg": 19.87, "mean_deg_per_image": 19.91, "median_deg": 12.31, "within_30": 0.7812},
    "edges": {"odsf": 0.7651, "odsf_fast": 0.7644, "oisf": 0.7801, "odsf_threshold": 0.31, "f_pixel": 0.4123},
}
"""Plausible test scores of a four-task run, nested as in ``result.json``."""

HEADLINES: dict[str, dict[str, Any]] = {
    "semseg": {"pooled": "miou", "per_image": "miou_per_image", "higher_is_better": True},
    "depth": {"pooled": "rmse_m", "per_image": "rmse_m_per_image", "higher_is_better": False},
    "normals": {"pooled": "mean_deg", "per_image": "mean_deg_per_image", "higher_is_better": False},
    "edges": {"pooled": "odsf", "higher_is_better": True},
}

EVALUATION: dict[str, Any] = {
    "protocol": "pooled",
    "crop": "none",
    "cap": None,
    "trimap": None,
    "odsf_val": "fast",
    "odsf_test": "exact",
    "max_dist": 0.011,
}


def result(
    tasks: tuple[str, ...] = tuple(SCORES),
    scores: dict[str, dict[str, Any]] | None = None,
    evaluation: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    backbone: dict[str, Any] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Return the content of a ``result.json``; what is given replaces single entries."""
    test = {task: copy.deepcopy(SCORES[task]) | (scores or {}).get(task, {}) for task in tasks}
    return {
        "status": "finished",
        "command": "fit",
        "experiment": "nyud",
        "run": "a",
        "metrics": {
            "test": {"loss": 1.5, "images": 654, **test},
            "val": {"loss": 1.7},
        },
        "tasks": list(tasks),
        "evaluation": {**EVALUATION, **(evaluation or {})},
        "headlines": {task: dict(HEADLINES[task]) for task in tasks},
        "budget": {"max_epochs": 50, "max_steps": -1},
        "fast_dev_run": False,
        "seed": 0,
        "config_hash": "0123456789abcdef",
        "data": {
            "module": "NYUDv2",
            "name": "nyud",
            "fingerprint": "f00d, holdout 0.1",
            "test": "test split",
            "edge_rule": "provided by the data set",
            "depth_unit": "m",
            "eval_size": None,
            "eval_labels": "own",
            "labels": {"normals": "provided"},
            **(data or {}),
        },
        "network": {
            "preset": "m2h",
            "channels": None,
            "wmca": {"enabled": True, "window_size": 7},
            "ggfm": {"enabled": True, "reduction": 4},
            "backbone": {
                "name": "vit_small_patch14_dinov2.lvd142m",
                "freeze": True,
                "weights": "timm",
                **(backbone or {}),
            },
        },
        **others,
    }


def write_run(root: Path, name: str, content: dict[str, Any] | None = None, seed: int = 0, lr: float = 1e-4) -> Path:
    """Write ``root/<experiment>/<run>`` with result and configuration; return the folder."""
    experiment, run = name.split("/")
    folder = root / experiment / run
    folder.mkdir(parents=True)
    config = {"seed_everything": seed, "model": {"optimizer": {"lr": lr}}, "run": {"experiment": experiment}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    content = {**(result() if content is None else content), "experiment": experiment, "run": run, "seed": seed}
    (folder / "result.json").write_text(json.dumps(content))
    return folder
