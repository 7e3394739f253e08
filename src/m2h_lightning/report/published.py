"""Published results, each with its source and, as far as it is known, its protocol.

Numbers stand as their sources print them: mIoU and odsF in percent. Results that are known only at second hand without
a named source are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Key = tuple[str, str]
"""Task and pooled key of a metric."""

_INVPT_README = "InvPT/README.md of prismformore/Multi-Task-Transformer"
_M2H_README = "README.md of UAV-Centre-ITC/M2H"
_M2H_PAPER = "M2H, arXiv 2510.17363"
_MX_PAPER = "M2H-MX, arXiv 2603.29236"
_SWINMTL_PAPER = "SwinMTL, arXiv 2403.10662"

UNPUBLISHED = "evaluator not published: another protocol until shown"


@dataclass(frozen=True)
class PublishedRow:
    """One method's results.

    Args:
        method: Its name.
        values: Numbers as printed, with their decimals, by task and metric.
        source: Where they are printed.
        mark: What to know about the whole row.
        marks: What to know about single values; these are not ranked.
    """

    method: str
    values: Mapping[Key, str]
    source: str
    mark: str | None = None
    marks: Mapping[Key, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedGroup:
    """Results of one data set under one protocol.

    Args:
        data: Name of the data set.
        title: What they have in common.
        protocol: "pooled", "per_image", or None where it is not known.
        rows: The results.
        ranked: Whether they may be ranked among themselves.
        conditions: What is known of how they were scored, as in ``report.collect.CONDITIONS``.
    """

    data: str
    title: str
    protocol: str | None
    rows: tuple[PublishedRow, ...]
    ranked: bool
    conditions: Mapping[str, Any] = field(default_factory=dict)


def _nyud(*printed: str) -> dict[Key, str]:
    """Return values in the order of NYUDv2 tables: mIoU, RMSE, mErr, odsF; the last may be missing."""
    keys = (("semseg", "miou"), ("depth", "rmse_m"), ("normals", "mean_deg"), ("edges", "odsf"))
    return dict(zip(keys, printed, strict=False))


_M2H_MARKS: dict[Key, str] = {
    ("normals", "mean_deg"): "several degrees below every other method: another protocol or convention until shown",
    ("edges", "odsf"): "differs by 11 points between the two sizes of one network: another protocol until shown",
}

PUBLISHED: tuple[PublishedGroup, ...] = (
    PublishedGroup(
        data="nyud",
        title="published, NYUDv2, 40 classes, 654 images: pooled over the set (protocol of InvPT)",
        protocol="pooled",
        ranked=True,
        # Predictions at 425×560 in frames padded to 448×576; odsF by the MATLAB tool SEISM.
        conditions={
            "eval_size": None,
            "labels": "own",
            "crop": "none",
            "cap": None,
            "odsf": "exact",
            "max_dist": 0.011,
        },
        rows=(
            PublishedRow("ATRC", _nyud("46.33", "0.5363", "20.18", "77.94"), _INVPT_README),
            PublishedRow("InvPT-L (paper)", _nyud("53.56", "0.5183", "19.04", "78.10"), _INVPT_README),
            PublishedRow("InvPT-L (repository)", _nyud("53.65", "0.5083", "18.68", "77.80"), _INVPT_README),
            PublishedRow(
                "TaskPrompter-L",
                _nyud("55.90", "0.5062", "18.58", "77.70"),
                "TaskPrompter/README.md of prismformore/Multi-Task-Transformer",
            ),
            PublishedRow("MLoRE-L", _nyud("55.96", "0.5076", "18.33", "78.43"), "README.md of YuqiYang213/MLoRE"),
            PublishedRow(
                "MTMamba++",
                _nyud("57.01", "0.4818", "18.27", "79.40"),
                _M2H_README,
                mark="as quoted by M2H, not read in its own paper",
            ),
        ),
    ),
    PublishedGroup(
        data="nyud",
        title="published, NYUDv2: per image, then averaged (protocol of SwinMTL)",
        protocol="per_image",
        ranked=False,
        rows=(
            PublishedRow(
                "SwinMTL",
                _nyud("58.14", "0.5179"),
                _M2H_README,
                mark="mIoU over the classes present in an image; depth in the Eigen crop, capped at 10 m",
            ),
        ),
    ),
    PublishedGroup(
        data="nyud",
        title="published, NYUDv2: protocol not published",
        protocol=None,
        ranked=False,
        rows=(
            PublishedRow("M2H-small", _nyud("58.05", "0.4396", "14.04", "74.44"), _M2H_README, UNPUBLISHED, _M2H_MARKS),
            PublishedRow("M2H", _nyud("61.54", "0.4196", "13.81", "85.27"), _M2H_README, UNPUBLISHED, _M2H_MARKS),
            PublishedRow("M2H-MX-L", _nyud("65.60", "0.3800"), _MX_PAPER, UNPUBLISHED),
        ),
    ),
    PublishedGroup(
        data="hypersim",
        title="published, Hypersim: protocol not published",
        protocol=None,
        ranked=False,
        rows=(
            PublishedRow("M2H", {("semseg", "miou"): "52.31", ("depth", "rmse_m"): "3.19"}, _M2H_PAPER, UNPUBLISHED),
        ),
    ),
    PublishedGroup(
        data="cityscapes",
        title="published, Cityscapes: four kinds of depth, not to be merged",
        protocol=None,
        ranked=False,
        rows=(
            PublishedRow(
                "TaskPrompter (Swin-B)",
                {("semseg", "miou"): "79.38", ("depth", "rmse_px"): "4.67"},
                "TaskPrompter/README.md of prismformore/Multi-Task-Transformer",
                mark="Cityscapes-3D, trained together with 3D detection, at 0.75 of the image size; pooled",
                marks={("depth", "rmse_px"): "printed as depth; its evaluation scores disparity in pixels"},
            ),
            PublishedRow(
                "SwinMTL",
                {("semseg", "miou"): "76.41", ("depth", "rmse_m"): "6.352"},
                _SWINMTL_PAPER,
                mark="per image, then averaged",
                marks={("depth", "rmse_m"): "depth labels from CREStereo; 5.481 is printed too"},
            ),
            PublishedRow(
                "M2H",
                {("semseg", "miou"): "77.6"},
                _M2H_PAPER,
                mark=f"{UNPUBLISHED}; prints RMSE 6.10 without naming the unit and the labels",
            ),
            PublishedRow(
                "M2H-MX-L",
                {("semseg", "miou"): "82.28", ("depth", "rmse_px"): "3.89"},
                _MX_PAPER,
                UNPUBLISHED,
                marks={("depth", "rmse_px"): "RMSE of disparity"},
            ),
        ),
    ),
)


def published(data: set[str]) -> list[PublishedGroup]:
    """Return the published results of data sets, by the names of the sets."""
    return [group for group in PUBLISHED if group.data in data]
