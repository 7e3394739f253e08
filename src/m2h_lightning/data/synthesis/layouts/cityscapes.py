"""Write Cityscapes' layout: 8-bit label ids, 16-bit object ids, 16-bit disparities and a camera file per image.

Formats: mcordts/cityscapesScripts, README and helpers/labels.py (facts only). Rooms are no streets: each NYU40 class
stands in for a street class, so that every reader, loss and metric of the set has something to work on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from m2h_lightning.data.synthesis.layouts.sample import LayoutSample
from m2h_lightning.data.synthesis.layouts.writing import put_png, put_text
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.geometry import resize_intrinsics
from m2h_lightning.labels import NYU40_CLASSES

ID = re.compile(r"([a-z]+)_(\d{6})_(\d{6})")
FULL = (1024, 2048)
"""Height and width of the published images: disparities and camera files are in these pixels."""
BASELINE = 0.222384
"""Metres between the two cameras."""
MOST_PIXELS = 126.0
"""Largest disparity that the published maps hold, pixels."""

UNLABELED = 0
_LABEL_IDS: dict[str, int] = {
    "floor": 7,  # road
    "floormat": 8,  # sidewalk
    "wall": 12,  # wall
    "cabinet": 11,  # building
    "bookshelf": 11,
    "shelves": 11,
    "door": 13,  # fence
    "blinds": 13,
    "lamp": 17,  # pole
    "television": 19,  # traffic light
    "picture": 20,  # traffic sign
    "whiteboard": 20,
    "curtain": 21,  # vegetation
    "clothes": 21,
    "towel": 21,
    "showercurtain": 21,
    "counter": 22,  # terrain
    "ceiling": 23,  # sky
    "window": 23,
    "person": 24,  # person
    "pillow": 25,  # rider
    "bed": 26,  # car
    "sofa": 26,
    "dresser": 27,  # truck
    "refrigerator": 28,  # bus
    "table": 31,  # train
    "desk": 31,
    "bathtub": 31,
    "nightstand": 32,  # motorcycle
    "toilet": 32,
    "chair": 33,  # bicycle
    "otherstructure": 4,  # static: void
    "otherfurniture": 4,
    "otherprop": 5,  # dynamic: void
    "mirror": 5,
}
LABEL_ID = np.full(256, UNLABELED, np.uint8)
"""uint8 (256,): label id of each NYU40 train id; classes without a counterpart and 255 are 0, unlabeled."""
LABEL_ID[: len(NYU40_CLASSES)] = [_LABEL_IDS.get(name, UNLABELED) for name in NYU40_CLASSES]

THINGS = tuple(range(24, 34))
"""Label ids whose objects are counted."""


def object_ids(labels: np.ndarray, instance: np.ndarray) -> np.ndarray:
    """Return uint16 H×W: the label id, or for things label id · 1000 + number of the object within its class.

    Args:
        labels: uint8 H×W label ids.
        instance: int H×W object numbers, 0 = none: such pixels keep the label id, as groups do.

    Raises:
        DataError: More than a thousand objects of one class.
    """
    ids = labels.astype(np.uint16)
    for label in THINGS:
        of_class = (labels == label) & (instance > 0)
        numbers, index = np.unique(instance[of_class], return_inverse=True)
        if len(numbers) > 1000:
            raise DataError(f"{len(numbers)} objects of label {label}; Cityscapes numbers at most 1000 a class")
        ids[of_class] = label * 1000 + index.reshape(-1)
    return ids


def disparity(depth: np.ndarray, baseline_fx: float) -> np.ndarray:
    """Return uint16 H×W disparities p = round(256·d) + 1 with d = baseline·fx / depth pixels; p = 0 is unknown.

    What lies so near that d exceeds :data:`MOST_PIXELS` is unknown too: the published matcher searched no further.

    Args:
        depth: float H×W metres, 0 = unknown.
        baseline_fx: Metre·pixels at full resolution.
    """
    known = depth > 0
    pixels = baseline_fx / np.where(known, depth, 1.0)
    return np.where(known & (pixels <= MOST_PIXELS), np.rint(pixels * 256) + 1, 0).astype(np.uint16)


def camera_json(K: np.ndarray) -> str:
    """Return the text of a camera file.

    Args:
        K: 3×3 pinhole matrix at full resolution.
    """
    extrinsic = {"baseline": BASELINE, "pitch": 0.03, "roll": 0.0, "x": 1.7, "y": 0.1, "yaw": -0.02, "z": 1.22}
    intrinsic = {"fx": K[0, 0], "fy": K[1, 1], "u0": K[0, 2], "v0": K[1, 2]}
    camera = {"extrinsic": extrinsic, "intrinsic": {key: float(value) for key, value in intrinsic.items()}}
    return json.dumps(camera, indent=4) + "\n"


def check_scale(metres_scale: float) -> None:
    """Refuse a scale that no world has.

    Raises:
        ConfigError: It is not above 0.
    """
    if not 0 < metres_scale < float("inf"):
        raise ConfigError(f"metres_scale is {metres_scale}; it must be above 0")


def write(root: Path, samples: Iterable[LayoutSample], metres_scale: float = 8.0) -> int:
    """Write samples; ``id`` is "city_SSSSSS_FFFFFF" and ``scene`` is the city or the city with the sequence.

    Images keep their size. The camera file and the disparities are those of the full 1024×2048 sensor whatever the
    size of the images, as in copies of the set that were made smaller. Labels of the split "test" are dummies, as
    published.

    Args:
        root: The folder.
        samples: What to write.
        metres_scale: By how much the world is enlarged: rooms are a few metres deep, streets are not. Images, normals
            and K stay what they are.

    Returns:
        Number of samples written.

    Raises:
        ConfigError: ``metres_scale`` is not above 0.
        DataError: A name is not Cityscapes', or K is no plain pinhole matrix.
    """
    check_scale(metres_scale)
    count = 0
    for sample in samples:
        match = ID.fullmatch(sample.id)
        if match is None or not sample.id.startswith(sample.scene):
            raise DataError(f"sample '{sample.id}' of scene '{sample.scene}': expected city_SSSSSS_FFFFFF")
        height, width = sample.size
        K = resize_intrinsics(np.asarray(sample.K, np.float64), FULL[0] / height, FULL[1] / width)
        if not np.allclose(K, [[K[0, 0], 0, K[0, 2]], [0, K[1, 1], K[1, 2]], [0, 0, 1]], rtol=0, atol=1e-12):
            raise DataError(f"sample '{sample.id}': Cityscapes' camera file holds only fx, fy, u0 and v0; K has more")
        labels = LABEL_ID[sample.semseg]
        if sample.split == "test":
            labels = np.full_like(labels, UNLABELED)

        def path(folder: str, ending: str, sample: LayoutSample = sample, city: str = match[1]) -> Path:
            return root / folder / sample.split / city / f"{sample.id}_{ending}"

        put_png(path("leftImg8bit", "leftImg8bit.png"), sample.image)
        put_png(path("gtFine", "gtFine_labelIds.png"), labels)
        put_png(path("gtFine", "gtFine_instanceIds.png"), object_ids(labels, sample.instance))
        depth = np.asarray(sample.depth, np.float64) * metres_scale
        put_png(path("disparity", "disparity.png"), disparity(depth, BASELINE * float(K[0, 0])))
        put_text(path("camera", "camera.json"), camera_json(K))
        count += 1
    return count
