"""Edge labels: provided by the data set, or derived from label maps by a rule with a name. NumPy only."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from m2h_lightning.data.raw import RawSample
from m2h_lightning.labels import IGNORE

EdgeRule = Literal["provided", "semantic", "instance"]
EDGE_RULES: tuple[EdgeRule, ...] = get_args(EdgeRule)

EDGE_RULE_TEXT: dict[str, str] = {
    "provided": "provided by the data set",
    "semantic": "semantic: label changes to the right or lower neighbour, 1 px, unlabelled ignored",
    "instance": "instance: label or object changes to the right or lower neighbour, 1 px, unlabelled ignored",
}


def label_borders(semseg: np.ndarray, instance: np.ndarray | None = None) -> np.ndarray:
    """Return where labels (or objects) meet: a pixel is an edge if its right or lower neighbour is something else.

    Lines are one pixel wide. A change from or to unlabelled pixels is no edge, and unlabelled pixels are ignored:
    nobody knows what is there.

    Args:
        semseg: uint8 H×W train ids, 255 = unlabelled.
        instance: Object numbers H×W; None uses the labels alone.

    Returns:
        uint8 H×W {0, 1}, 255 where unlabelled.
    """
    known = semseg != IGNORE
    edges = np.zeros(semseg.shape, bool)
    for here, there in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
    ):
        differ = semseg[here] != semseg[there]
        if instance is not None:
            differ |= instance[here] != instance[there]
        edges[here] |= differ & known[here] & known[there]
    return np.where(known, edges, IGNORE).astype(np.uint8)


def apply_edge_rule(raw: RawSample, rule: EdgeRule | None) -> RawSample:
    """Return the sample with the edges of ``rule`` and without object numbers.

    A sample that lacks what the rule needs has no edges: a partial label.

    Args:
        raw: As :meth:`Source.load` returns it.
        rule: None removes edges.
    """
    out: RawSample = {**raw}
    instance = out.pop("instance", None)
    provided = out.pop("edges", None)
    if rule == "provided" and provided is not None:
        out["edges"] = provided
    elif rule == "semantic" and "semseg" in out:
        out["edges"] = label_borders(out["semseg"])
    elif rule == "instance" and "semseg" in out and instance is not None:
        out["edges"] = label_borders(out["semseg"], instance)
    return out
