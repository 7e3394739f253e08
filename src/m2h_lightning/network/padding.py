"""Padding to the backbone's grid, the way back, and on to labels of another size. All are plain functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from m2h_lightning.errors import DataError


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Extend an image at its right and bottom to a multiple of the backbone's stride.

    The border pixels are repeated rather than set to zero: a black bar would be an edge, and edges are a task.

    Shapes: image B×C×H×W → B×C×⌈H/m⌉m×⌈W/m⌉m.

    Raises:
        DataError: The image is smaller than one patch.
    """
    height, width = image.shape[-2:]
    if height < multiple or width < multiple:
        raise DataError(
            f"image of {height}×{width} pixels is smaller than one {multiple}×{multiple} patch of the backbone: "
            "use larger images or crops"
        )
    bottom, right = -height % multiple, -width % multiple
    if bottom == 0 and right == 0:
        return image
    return F.pad(image, (0, right, 0, bottom), mode="replicate")


def resize_and_crop(maps: Tensor, padded: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Bring low-resolution maps of the *padded* image to pixels, then cut the padding off.

    Resizing straight to the unpadded size would stretch the padding into the picture: up to 5 px of misregistration.

    Shapes: maps B×C×h×w, padded (H', W'), size (H, W) → B×C×H×W.
    """
    maps = F.interpolate(maps, size=padded, mode="bilinear", align_corners=False)
    return maps[..., : size[0], : size[1]]


def at_label_size(maps: dict[str, Tensor], images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Resize maps from the images' size to their labels'; where these are alike nothing is done.

    What is padded stays padded: each image is cut out, resized and put back.

    Args:
        maps: Per task B×C×H×W.
        images: Height and width of each image before the batch was padded, B×2.
        labels: The same of its labels.

    Returns:
        Per task B×C×H'×W', H' and W' the largest of the labels.
    """
    if torch.equal(images, labels):
        return maps
    sizes = list(zip(images.tolist(), labels.tolist(), strict=True))
    height, width = labels.amax(0).tolist()
    resized = {}
    for name, padded in maps.items():
        full = padded.new_zeros(*padded.shape[:2], height, width)
        for index, ((h, w), (lh, lw)) in enumerate(sizes):
            own = padded[index : index + 1, :, :h, :w]
            full[index, :, :lh, :lw] = F.interpolate(own, size=(lh, lw), mode="bilinear", align_corners=False)[0]
        resized[name] = full
    return resized
