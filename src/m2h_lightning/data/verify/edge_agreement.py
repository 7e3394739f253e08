"""Do edge labels lie where something changes, and how many are there?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from m2h_lightning.data.verify.problems import Finding
from m2h_lightning.labels import IGNORE

_REACH = 2
"""Pixels an edge may be away from what it marks."""


@dataclass
class EdgeTally:
    """Pixel counts."""

    on: int = 0
    known: int = 0
    near: int = 0
    """Edge pixels near a change of another map, of ``compared_on``."""
    compared_on: int = 0
    band: int = 0
    """All known pixels near a change, of ``compared``: what chance would give."""
    compared: int = 0
    odd_values: int = 0
    """Pixels that are neither 0, 1 nor unknown."""

    def add(self, other: EdgeTally) -> None:
        """Add the tally of other samples."""
        for name, value in other.__dict__.items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def density(self) -> float:
        """Share of edge pixels among the known ones."""
        return self.on / self.known if self.known else float("nan")

    @property
    def agreement(self) -> float:
        """Share of edge pixels near a change of labels, depth or normals."""
        return self.near / self.compared_on if self.compared_on else float("nan")

    @property
    def chance(self) -> float:
        """Agreement of edges strewn at random."""
        return self.band / self.compared if self.compared else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the report."""
        return {
            "density": self.density,
            "agreement": self.agreement,
            "agreement_by_chance": self.chance,
            "odd_values": self.odd_values,
        }


def changes(maps: dict[str, np.ndarray], depth: np.ndarray | None) -> np.ndarray | None:
    """Return where labels, objects, depth or normals change to the right or lower neighbour, uint8 {0, 1}.

    Args:
        maps: "semseg", "instance" and float "normals" where the sample has them.
        depth: Metres, 0 = unknown, or None.

    Returns:
        None when the sample has none of these.
    """
    shape = next((array.shape[:2] for key, array in maps.items() if key in ("semseg", "instance", "normals")), None)
    if shape is None and depth is None:
        return None
    found = np.zeros(shape or depth.shape, bool)  # type: ignore[union-attr]
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        for key in ("semseg", "instance"):
            if key in maps:
                found[here] |= maps[key][here] != maps[key][there]
        if depth is not None:
            found[here] |= np.abs(depth[there] - depth[here]) > 0.05 * np.minimum(depth[here], depth[there])
        if "normals" in maps:
            # 20 degrees; what is unknown on one side has a product of 0 and counts as a change.
            found[here] |= np.einsum("hwc,hwc->hw", maps["normals"][here], maps["normals"][there]) < 0.94
    return found.astype(np.uint8)


def tally_edges(edges: np.ndarray, change: np.ndarray | None) -> EdgeTally:
    """Count the edges of one sample.

    Args:
        edges: uint8 (H, W) {0, 1}, 255 = unknown.
        change: From :func:`changes`; None when there is nothing to compare with.
    """
    import cv2

    known = edges != IGNORE
    on = edges == 1
    tally = EdgeTally(on=int(on.sum()), known=int(known.sum()), odd_values=int((known & (edges > 1)).sum()))
    if change is not None:
        band = cv2.dilate(change, np.ones((2 * _REACH + 1, 2 * _REACH + 1), np.uint8)) > 0
        tally.compared_on, tally.compared = tally.on, tally.known
        tally.near, tally.band = int((on & band).sum()), int((known & band).sum())
    return tally


def judge_edges(tally: EdgeTally, samples: int) -> list[Finding]:
    """Judge density and agreement.

    Args:
        tally: Over all samples.
        samples: Number of samples that have edges.
    """
    found = []

    def say(severity: str, text: str, mend: str) -> None:
        found.append(Finding(severity, "edges", text, mend))  # type: ignore[arg-type]

    if tally.odd_values:
        say("problem", f"{tally.odd_values} edge pixels are neither 0, 1 nor {IGNORE}", "store a mask of two values")
    if not tally.known:
        return found
    if tally.density > 0.5:
        say("problem", f"{tally.density:.0%} of the pixels are edges: they look inverted", "store 1 on the edge")
    elif not tally.on:
        say("problem", f"not one edge pixel in {samples} sample(s)", "wrong files, or a mask read with another scale?")
    elif tally.density > 0.25 or tally.density < 0.0005:
        say("warning", f"{tally.density:.2%} of the pixels are edges; one to ten percent is usual", "look at the sheet")
    if tally.on and tally.density <= 0.5 and tally.chance < 0.8 and tally.agreement < 1.2 * tally.chance:
        say(
            "warning",
            f"{tally.agreement:.0%} of the edges are within {_REACH} pixels of a change of label, depth or normal, "
            f"{tally.chance:.0%} would be by chance",
            "do edges and images belong together?",
        )
    return found
