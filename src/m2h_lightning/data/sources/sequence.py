"""Which samples follow each other: pairs of consecutive frames of one camera on its way through one scene. No torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from m2h_lightning.data.sources.base import Item

_NUMBER = re.compile(r"(.*?)(\d+)")


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key under which frame-2 comes before frame-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def consecutive(items: Sequence[Item], posed: bool = True) -> list[tuple[int, int]]:
    """List pairs of consecutive frames.

    Frames belong together if they are of one scene and their names differ in the last number only. They follow each
    other if no frame lies between them, and if their numbers differ by the step that is usual in the whole list (the
    commonest one, if at least half of the neighbours have it): where frames were left out, there is a gap. Names
    without a number, and numbers without a usual step, follow each other in the order of names.

    Args:
        items: Of one split, in any order.
        posed: Only frames that have a file of "pose".

    Returns:
        Positions in ``items`` of each frame and of the one after it, walk by walk.

    Example:
        >>> frames = [Item(f"kitchen/{number:03d}", "test", "kitchen") for number in (0, 1, 2, 5, 6)]
        >>> consecutive(frames, posed=False)
        [(0, 1), (1, 2), (3, 4)]
    """
    walks: dict[tuple[str, str], list[int]] = {}
    numbers: dict[int, int] = {}
    for place, item in enumerate(items):
        if posed and "pose" not in item.files:
            continue
        prefix = ""
        if match := _NUMBER.fullmatch(item.id):
            prefix, numbers[place] = match[1], int(match[2])
        walks.setdefault((item.scene, prefix), []).append(place)
    pairs = []
    for walk in walks.values():
        walk.sort(key=lambda place: _natural(items[place].id))
        pairs += list(pairwise(walk))
    steps = {(a, b): numbers[b] - numbers[a] for a, b in pairs if a in numbers and b in numbers}
    step, count = Counter(steps.values()).most_common(1)[0] if steps else (0, 0)
    if 2 * count < len(steps):
        return pairs
    return [pair for pair in pairs if steps.get(pair, step) == step]
