"""Class names and palettes of the label sets in use. Facts with their sources; no torch.

NYU40 names: ``classMapping40.mat`` of the NYUv2 meta data. NYU40 palette: Hypersim's ``semantic_label_descs.csv``.
"""

from __future__ import annotations

import numpy as np

IGNORE = 255
"""Label of a pixel that takes no part in losses and metrics (semseg and edges)."""

_NYU40: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("wall", (174, 199, 232)),
    ("floor", (152, 223, 138)),
    ("cabinet", (31, 119, 180)),
    ("bed", (255, 187, 120)),
    ("chair", (188, 189, 34)),
    ("sofa", (140, 86, 75)),
    ("table", (255, 152, 150)),
    ("door", (214, 39, 40)),
    ("window", (197, 176, 213)),
    ("bookshelf", (148, 103, 189)),
    ("picture", (196, 156, 148)),
    ("counter", (23, 190, 207)),
    ("blinds", (178, 76, 76)),
    ("desk", (247, 182, 210)),
    ("shelves", (66, 188, 102)),
    ("curtain", (219, 219, 141)),
    ("dresser", (140, 57, 197)),
    ("pillow", (202, 185, 52)),
    ("mirror", (51, 176, 203)),
    ("floormat", (200, 54, 131)),
    ("clothes", (92, 193, 61)),
    ("ceiling", (78, 71, 183)),
    ("books", (172, 114, 82)),
    ("refrigerator", (255, 127, 14)),
    ("television", (91, 163, 138)),
    ("paper", (153, 98, 156)),
    ("towel", (140, 153, 101)),
    ("showercurtain", (158, 218, 229)),
    ("box", (100, 125, 154)),
    ("whiteboard", (178, 127, 135)),
    ("person", (120, 185, 128)),
    ("nightstand", (146, 111, 194)),
    ("toilet", (44, 160, 44)),
    ("sink", (112, 128, 144)),
    ("lamp", (96, 207, 209)),
    ("bathtub", (227, 119, 194)),
    ("bag", (213, 92, 176)),
    ("otherstructure", (94, 106, 211)),
    ("otherfurniture", (82, 84, 163)),
    ("otherprop", (100, 85, 144)),
)

NYU40_CLASSES: tuple[str, ...] = tuple(name for name, _ in _NYU40)
"""The 40 NYU classes; the train id of a class is its position here (0..39)."""

NYU40_PALETTE: tuple[tuple[int, int, int], ...] = tuple(colour for _, colour in _NYU40)
"""One RGB colour per NYU40 class."""


def class_palette(classes: int) -> np.ndarray:
    """Return a colour table for labels of a set with ``classes`` classes.

    Forty classes get the NYU40 palette; any other number gets the VOC bit-spread colours of ``index + 1``, which keep
    neighbouring indices apart.

    Args:
        classes: Number of classes, 1 to 254.

    Returns:
        uint8 array of shape (256, 3): RGB per label; the ignore label and labels out of range are black.
    """
    table = np.zeros((256, 3), np.uint8)
    if classes == len(NYU40_PALETTE):
        table[:classes] = NYU40_PALETTE
        return table
    for index in range(classes):
        bits = index + 1
        for level in range(8):
            for channel in range(3):
                table[index, channel] |= ((bits >> channel) & 1) << (7 - level)
            bits >>= 3
    return table
