"""Class names and palettes of the label sets in use. Facts with their sources; no torch.

NYU40 names: ``classMapping40.mat`` of the NYUv2 meta data. NYU40 palette: Hypersim's ``semantic_label_descs.csv``.
Cityscapes ids, names and palette: ``helpers/labels.py`` of cityscapesScripts.
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

_CITYSCAPES: tuple[tuple[int, str, tuple[int, int, int]], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)

CITYSCAPES_CLASSES: tuple[str, ...] = tuple(name for _, name, _ in _CITYSCAPES)
"""The 19 Cityscapes classes that are evaluated; the train id of a class is its position here (0..18)."""

CITYSCAPES_PALETTE: tuple[tuple[int, int, int], ...] = tuple(colour for _, _, colour in _CITYSCAPES)
"""One RGB colour per Cityscapes class."""

CITYSCAPES_LABEL_IDS = 34
"""Label ids run from 0 to 33; the licence plate, −1, is never drawn."""

CITYSCAPES_TRAIN_IDS: tuple[int, ...] = tuple(
    {label: train for train, (label, _, _) in enumerate(_CITYSCAPES)}.get(label, IGNORE) for label in range(256)
)
"""Train id per label id; label ids that are not evaluated, such as 10 (rail track), and all above 33 are ignored."""


def class_palette(classes: int) -> np.ndarray:
    """Return a colour table for labels of a set with ``classes`` classes.

    Forty classes get the NYU40 palette and nineteen the Cityscapes palette; any other number gets the VOC bit-spread
    colours of ``index + 1``, which keep neighbouring indices apart.

    Args:
        classes: Number of classes, 1 to 254.

    Returns:
        uint8 array of shape (256, 3): RGB per label; the ignore label and labels out of range are black.
    """
    table = np.zeros((256, 3), np.uint8)
    for palette in (NYU40_PALETTE, CITYSCAPES_PALETTE):
        if classes == len(palette):
            table[:classes] = palette
            return table
    for index in range(classes):
        bits = index + 1
        for level in range(8):
            for channel in range(3):
                table[index, channel] |= ((bits >> channel) & 1) << (7 - level)
            bits >>= 3
    return table
