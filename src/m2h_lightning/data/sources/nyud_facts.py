"""Facts of NYUDv2: the official split, its runs of frames, label maps and the camera. NumPy only, no files.

Sources: ``splits.mat`` (testNdxs), ``classMapping40.mat`` (mapClass) and ``class13Mapping.mat`` of the NYUv2 meta data;
the camera is the RGB camera of the NYUv2 toolbox, to which the labelled depth is aligned.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache

import numpy as np

from m2h_lightning.geometry import crop_intrinsics, resize_intrinsics

COUNT = 1449
"""Labelled frames; their ids are 1..1449."""

NYU13_CLASSES = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv", "wall",
    "window",
)  # fmt: skip
"""The 13 classes; the train id of a class is its position here."""

CROP = (45, 470, 40, 600)
"""Gupta's crop of 480×640, which cuts the white frame off: rows 45..469, columns 40..599."""

_TEST = (
    "1-2 9 14-18 21 28-43 46-47 56-57 59-63 76-79 84-91 117-119 125-129 131-134 137 153-155 167-169 171-176 180-202 "
    "207-212 220-222 250 264 271-273 279-285 296-302 310-312 315-317 325-335 351-352 355-364 384-390 395-397 "
    "411-414 430-435 441-448 462-466 469-477 508-513 515-526 531-533 537-539 549-551 555-571 579-583 591-594 "
    "603-607 612-613 617-621 633-638 644-645 650-651 656-658 663-664 668-673 676-681 686-690 693-694 697-699 "
    "706-713 717-718 724-728 731-734 743-744 759-787 800-804 810-814 821-823 833-846 850-852 857-862 869-871 "
    "906-908 917-919 926-928 932-935 945-947 959-962 965-967 970-977 991-995 1001-1004 1010-1012 1021-1023 "
    "1032-1034 1038-1039 1048-1049 1052-1053 1057-1058 1075-1084 1088-1096 1098-1104 1106-1109 1117-1119 1123-1131 "
    "1135-1136 1144-1158 1162-1167 1170-1171 1174-1176 1179-1184 1192-1196 1201-1212 1216-1220 1226-1230 1233-1235 "
    "1247-1250 1254-1265 1275-1280 1285-1295 1297-1299 1302-1308 1314-1315 1329-1332 1335-1340 1347-1349 1353-1356 "
    "1364-1365 1368-1369 1384-1391 1394-1401 1407-1414 1421-1424 1430-1433 1441-1449 "
)
"""The 654 test ids, 1-based; the other 795 are for training."""

_40_TO_13 = "12 5 6 1 4 9 10 12 13 6 8 6 13 10 6 13 6 7 7 5 7 3 2 6 11 7 7 7 7 7 7 6 7 7 7 7 7 7 6 7"
"""Number 1..13 of each of the 40 classes."""

_LABEL_OF_CLASS = (
    "21 11 3 157 5 83 19 28 59 88 64 7 80 36 42 89 169 119 122 143 141 4 85 17 172 15 135 123 26 45 331 158 "
    "124 24 144 136 55 "
)
"""Classes 1..37 are one of the 894 labels each: this one."""

_OTHERSTRUCTURE = (
    "8 25 33 38 51 53 57-58 62 65 79 94 104 112 134 153 215-216 223 225 238 241-242 256 295 301 339 342 354 363 372 "
    "380 392 408 412 453 456 463 477 497 541 550 553 567 573 582 591 609 612 615 642 645 657-659 663 667-668 686 "
    "700 702 777-778 782 850 861 868 874 "
)
_OTHERFURNITURE = (
    "12 43 48 50 87 106 111 161 163 174 183 204 214 219 221 224 236 262 278 291 298 313 343-344 356 359 373 393 401 "
    "414 418-419 430 443-444 447-448 457-458 460 462 475 479 485-486 493-494 498-499 509-510 515 521 524 540 549 "
    "551 554 556 558 576 580 608 625 703 734 770 772 797 800 803-804 813-815 820 829 835 858 863 882 892 "
)
"""Labels that belong to class 38 and 39; all others are class 40 (otherprop), and label 0 is unlabelled."""


def _numbers(text: str) -> list[int]:
    out: list[int] = []
    for part in text.split():
        first, _, last = part.partition("-")
        out.extend(range(int(first), int(last or first) + 1))
    return out


@cache
def official_ids(split: str) -> tuple[int, ...]:
    """Return the ids of the official split "train" (795) or "test" (654), ascending, 1-based."""
    test = set(_numbers(_TEST))
    return tuple(number for number in range(1, COUNT + 1) if (number in test) == (split == "test"))


@cache
def _run_starts() -> tuple[int, ...]:
    test = set(official_ids("test"))
    return tuple(number for number in range(1, COUNT + 1) if number == 1 or (number in test) != (number - 1 in test))


def run_of(number: int) -> str:
    """Return the name of the run of frames that a frame belongs to.

    The official split divides no scene, and the frames of a scene are consecutive: a stretch of consecutive ids on one
    side of the split is therefore a union of whole scenes.

    Args:
        number: Id of the frame, 1..1449.

    Returns:
        "run-" and the first id of its run, four digits.
    """
    starts = _run_starts()
    return f"run-{starts[bisect_right(starts, number) - 1]:04d}"


def map_894_to_40() -> np.ndarray:
    """Return uint8 (895,): class 1..40 of each label of the raw file; label 0 (unlabelled) stays 0."""
    table = np.full(895, 40, np.uint8)
    table[0] = 0
    table[_numbers(_LABEL_OF_CLASS)] = np.arange(1, 38)
    table[_numbers(_OTHERSTRUCTURE)] = 38
    table[_numbers(_OTHERFURNITURE)] = 39
    return table


def map_40_to_13() -> np.ndarray:
    """Return uint8 (256,): train id of the 13 classes for a train id of the 40; 255 stays 255."""
    table = np.full(256, 255, np.uint8)
    table[:40] = np.array(_numbers(_40_TO_13)) - 1
    return table


def size_text(height: int, width: int) -> str:
    """Return the size in words, with what is known of it."""
    known = {(425, 560): " (Gupta crop)", (480, 640): " (full frame)"}
    return f"{height}×{width}{known.get((height, width), '')}"


def camera(height: int, width: int) -> np.ndarray | None:
    """Return the intrinsics of images of this size.

    Args:
        height: Pixels.
        width: Pixels.

    Returns:
        float64 3×3 for the full frame 480×640, anything resized from it (same shape), and Gupta's crop 425×560; None
        for any other size, because nobody can tell what was cut off.
    """
    K = np.array([[518.8579, 0.0, 325.5824], [0.0, 519.4696, 253.7362], [0.0, 0.0, 1.0]])
    if (height, width) == (CROP[1] - CROP[0], CROP[3] - CROP[2]):
        return crop_intrinsics(K, CROP[0], CROP[2])
    if height * 640 == width * 480:
        return resize_intrinsics(K, height / 480, width / 640)
    return None
