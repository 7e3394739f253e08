"""How often each class occurs."""

from __future__ import annotations

import numpy as np

from m2h_lightning.data.verify.problems import Finding, some
from m2h_lightning.labels import IGNORE


def tally_labels(semseg: np.ndarray) -> np.ndarray:
    """Return the pixel count of each label, int64 (256,); labels beyond are for ``check_raw`` to refuse."""
    return np.bincount(np.clip(semseg.reshape(-1), 0, 255), minlength=256).astype(np.int64)


def judge_labels(counts: np.ndarray, classes: tuple[str, ...], complete: bool) -> list[Finding]:
    """Judge the label histogram.

    Args:
        counts: Pixels of each label over all samples, (256,).
        classes: Names of the classes.
        complete: Every sample of the set was looked at; only then does a class that was not seen mean something.
    """
    found: list[Finding] = []
    total, known = int(counts.sum()), int(counts[: len(classes)].sum())
    if not total:
        return found
    never = [f"{index} {name}" for index, name in enumerate(classes) if not counts[index]]
    if known and never:
        severity, where = ("warning", "anywhere") if complete else ("note", "in the samples looked at")
        found.append(
            Finding(
                severity,  # type: ignore[arg-type]
                "labels",
                f"{len(never)} of {len(classes)} classes never occur {where}: {some(never, 8)}",
                "an offset of one or another class list?" if complete else "",
            )
        )
    if known and len(classes) > 2 and counts.max() >= 0.98 * known and counts[IGNORE] < known:
        index = int(counts[: len(classes)].argmax())
        found.append(
            Finding(
                "warning", "labels", f"98 % of the labelled pixels are class {index} {classes[index]}", "wrong files?"
            )
        )
    if known < 0.5 * total:
        found.append(Finding("warning", "labels", f"{1 - known / total:.0%} of the pixels are unlabelled ({IGNORE})"))
    return found
