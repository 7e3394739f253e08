"""What the lists of samples say before any picture is opened, and what equal pictures say: counts, repeats, leaks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from m2h_lightning.data.sources.base import Item, Source
from m2h_lightning.data.verify.problems import Finding, some
from m2h_lightning.errors import DataError


def list_items(source: Source, asked: tuple[str, ...]) -> tuple[dict[str, list[Item]], list[Finding]]:
    """List the samples of all splits; a split that cannot be listed is a finding and is left out.

    Args:
        source: The set.
        asked: Splits to be verified; the others are only compared with them.
    """
    listed, found = {}, []
    for split in source.splits:
        try:
            listed[split] = source.items(split)
        except DataError as error:
            severity = "problem" if split in asked else "note"
            found.append(Finding(severity, "list", f"split '{split}' cannot be listed: {error}"))  # type: ignore[arg-type]
    return listed, found


def judge_counts(
    counts: dict[str, int], official: dict[str, int], asked: tuple[str, ...], partial: bool
) -> list[Finding]:
    """Compare the number of samples with the official one.

    Args:
        counts: Samples of each split that could be listed.
        official: Official numbers; empty where the set has none.
        asked: Splits to be verified.
        partial: The user said that the set is not here as a whole.
    """
    found = []
    for split, count in counts.items():
        expected = official.get(split)
        if not count:
            found.append(Finding("problem", "counts", f"split '{split}' is empty", "is its list or folder complete?"))
        elif expected is not None and count != expected:
            found.append(
                Finding(
                    "note" if partial else "problem",
                    "counts",
                    f"split '{split}' has {count} samples, officially {expected}",
                    "" if partial else "files or lines of the list are missing, or this is another packaging",
                )
            )
    for split, expected in official.items():
        if split in asked and split not in counts:
            found.append(Finding("warning", "counts", f"split '{split}' ({expected} samples) is not here"))
    return found


def judge_lists(listed: dict[str, list[Item]]) -> list[Finding]:
    """Look for ids that occur twice and scenes that are in two splits."""
    found = []
    times = Counter(item.id for items in listed.values() for item in items)
    repeated = [id for id, count in times.items() if count > 1]
    if repeated:
        found.append(
            Finding("problem", "ids", f"{len(repeated)} id(s) occur more than once: {some(repeated)}", "list each once")
        )
    homes: dict[str, dict[str, None]] = defaultdict(dict)
    for split, items in listed.items():
        for item in items:
            homes[item.scene][split] = None
    shared = [f"{scene} ({', '.join(splits)})" for scene, splits in homes.items() if len(splits) > 1]
    if shared:
        found.append(
            Finding(
                "warning",
                "leak",
                f"{len(shared)} scene(s) in more than one split: {some(shared)}",
                "what is learned there is tested there: split by scene",
            )
        )
    return found


def judge_pictures(pictures: Iterable[tuple[str, str, str]]) -> list[Finding]:
    """Look for equal pictures.

    Args:
        pictures: Id, split and digest of each picture; an empty digest (a picture of one colour) tells nothing.
    """
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for id, split, digest in pictures:
        if digest:
            groups[digest].append((id, split))
    across: list[str] = []
    within: list[str] = []
    for group in groups.values():
        if len(group) > 1:
            text = " = ".join(f"{id} ({split})" for id, split in group[:3])
            (across if len({split for _, split in group}) > 1 else within).append(text)
    found = []
    if across:
        found.append(
            Finding(
                "problem",
                "leak",
                f"{len(across)} picture(s) in more than one split: {some(across)}",
                "remove them from training, or results on them mean nothing",
            )
        )
    if within:
        found.append(Finding("warning", "repeats", f"{len(within)} picture(s) twice in one split: {some(within)}"))
    return found
