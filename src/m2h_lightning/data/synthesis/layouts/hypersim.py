"""Write Hypersim's layout: HDF5 files of float16, distances along the ray, a camera matrix per scene, a split table.

Formats: apple/ml-hypersim, README and code/python/tools (facts only).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from m2h_lightning.data.synthesis.layouts.sample import LayoutSample
from m2h_lightning.data.synthesis.layouts.writing import put_csv, put_hdf5
from m2h_lightning.errors import DataError
from m2h_lightning.labels import IGNORE

ID = re.compile(r"(ai_\d{3}_\d{3})/(cam_\d{2})/frame\.(\d{4})")
SPLIT_TABLE = "metadata_images_split_scene_v1.csv"
CAMERA_TABLE = "metadata_camera_parameters.csv"
SPLIT_COLUMNS = (
    "scene_name",
    "camera_name",
    "frame_id",
    "included_in_public_release",
    "exclude_reason",
    "split_partition_name",
)
CAMERA_COLUMNS = (
    "scene_name",
    "settings_output_img_width",
    "settings_output_img_height",
    *(f"M_cam_from_uv_{row}{column}" for row in range(3) for column in range(3)),
)
RADIANCE = 4.0
"""Linear colour of white; any number would do, as the official tone mapping measures the exposure itself."""
METERS_PER_ASSET_UNIT = 0.0254
"""The artist's unit, in which positions of the camera are written; depth is in metres."""


def matrix_from_uv(K: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return Hypersim's M_cam_from_uv: the ray of (u, v, 1) with u right and v up, both −1..1 at the image's borders.

    Args:
        K: 3×3; may be a general matrix (tilt-shift cameras).
        height: Pixels.
        width: Pixels.

    Returns:
        float64 3×3, in the frame x right, y up, z backward, scaled to M[2, 2] = −1.

    Raises:
        DataError: Some pixel would look backward.
    """
    # Column j has u = (j + ½)/W · 2 − 1, row i has v = 1 − (i + ½)/H · 2.
    pixel_from_uv = np.array([[width / 2, 0, width / 2 - 0.5], [0, -height / 2, height / 2 - 0.5], [0, 0, 1]])
    M = np.diag([1.0, -1.0, -1.0]) @ np.linalg.inv(np.asarray(K, np.float64)) @ pixel_from_uv
    M = M / -M[2, 2]
    if (M[2] @ np.array([[-1, -1, 1, 1], [-1, 1, -1, 1], [1, 1, 1, 1]]) >= 0).any():
        raise DataError("the camera matrix K has pixels that look backward")
    return M


def distance_from_depth(depth: np.ndarray, M: np.ndarray) -> np.ndarray:
    """Return float64 distance to the camera centre, metres, of planar depth H×W (0 stays 0)."""
    height, width = depth.shape
    u = (np.arange(width) + 0.5) / width * 2 - 1
    v = 1 - (np.arange(height) + 0.5) / height * 2
    grid = np.stack([*np.meshgrid(u, v), np.ones((height, width))])
    ray = np.einsum("ij,jhw->ihw", M, grid)
    return depth * np.sqrt((ray * ray).sum(0)) / -ray[2]


def linear_colour(image: np.ndarray) -> np.ndarray:
    """Return float16 linear radiance whose gamma-2.2 picture is ``image``, up to the exposure."""
    return (RADIANCE * (image / 255.0) ** 2.2).astype(np.float16)


def _half(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.where(known, values, np.nan).astype(np.float16)


def _write_frame(root: Path, sample: LayoutSample, scene: str, camera: str, frame: str, M: np.ndarray) -> None:
    images = root / scene / "images"
    final = images / f"scene_{camera}_final_hdf5" / f"frame.{frame}"
    geometry = images / f"scene_{camera}_geometry_hdf5" / f"frame.{frame}"
    known = sample.depth > 0
    facing = (np.abs(sample.normals).sum(-1) > 0)[..., None]
    unlabelled = sample.semseg == IGNORE
    maps = {
        "depth_meters": _half(distance_from_depth(np.asarray(sample.depth, np.float64), M), known),
        "normal_cam": _half(np.asarray(sample.normals, np.float64) * [1, -1, -1], facing),  # y up, z backward
        # An entity is never 0; a pixel without one is a ray that hit nothing.
        "render_entity_id": np.where(known, np.maximum(sample.instance, 0) + 1, -1).astype(np.int16),
        "semantic": np.where(unlabelled, -1, sample.semseg.astype(np.int16) + 1).astype(np.int16),
        "semantic_instance": np.where(unlabelled | (sample.instance <= 0), -1, sample.instance).astype(np.int16),
    }
    put_hdf5(final.with_name(f"{final.name}.color.hdf5"), linear_colour(sample.image))
    for key, array in maps.items():
        put_hdf5(geometry.with_name(f"{geometry.name}.{key}.hdf5"), array)


def _write_trajectory(folder: Path, poses: dict[int, np.ndarray]) -> None:
    """Write poses by frame number: two arrays with a row for each number, NaN for frames that are not here."""
    turns = np.full((max(poses) + 1, 3, 3), np.nan)
    places = np.full((max(poses) + 1, 3), np.nan)
    for number, pose in poses.items():
        turns[number] = pose[:3, :3] @ np.diag([1.0, -1.0, -1.0])  # y up, z backward
        places[number] = pose[:3, 3] / METERS_PER_ASSET_UNIT
    put_hdf5(folder / "camera_keyframe_orientations.hdf5", turns)
    put_hdf5(folder / "camera_keyframe_positions.hdf5", places)


def write(root: Path, samples: Iterable[LayoutSample]) -> int:
    """Write samples; ``id`` is "ai_VVV_NNN/cam_CC/frame.FFFF" and ``scene`` is "ai_VVV_NNN", of one K and one split.

    Depth is float16 (at most 0.05 % are lost). The picture comes back up to its exposure, which the official tone
    mapping chooses anew.

    Returns:
        Number of samples written.

    Raises:
        DataError: A name is not Hypersim's, or a scene has two cameras or two splits.
    """
    cameras: dict[str, tuple[np.ndarray, tuple[int, int], str]] = {}
    rows = []
    trajectories: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for sample in samples:
        match = ID.fullmatch(sample.id)
        if match is None or match[1] != sample.scene:
            raise DataError(f"sample '{sample.id}' of scene '{sample.scene}': expected ai_VVV_NNN/cam_CC/frame.FFFF")
        scene, camera, frame = match.groups()
        K = np.asarray(sample.K, np.float64)
        first_K, first_size, first_split = cameras.setdefault(scene, (K, sample.size, sample.split))
        if not np.array_equal(K, first_K) or sample.size != first_size:
            raise DataError(f"sample '{sample.id}': Hypersim has one camera and size a scene; this is another one")
        if sample.split != first_split:
            raise DataError(f"sample '{sample.id}': its scene is in the split {first_split}, not {sample.split}")
        _write_frame(root, sample, scene, camera, frame, matrix_from_uv(K, *sample.size))
        rows.append((scene, camera, int(frame), "True", "", sample.split))
        if sample.pose is not None:
            trajectories.setdefault((scene, camera), {})[int(frame)] = np.asarray(sample.pose, np.float64)
    for (scene, camera), poses in trajectories.items():
        _write_trajectory(root / scene / "_detail" / camera, poses)
    for scene in cameras:
        detail = root / scene / "_detail"
        put_csv(
            detail / "metadata_scene.csv",
            ("parameter_name", "parameter_value"),
            [("meters_per_asset_unit", METERS_PER_ASSET_UNIT)],
        )
        used = sorted({row[1] for row in rows if row[0] == scene})
        put_csv(detail / "metadata_cameras.csv", ("camera_name",), [(camera,) for camera in used])
    put_csv(root / SPLIT_TABLE, SPLIT_COLUMNS, sorted(rows))
    put_csv(
        root / CAMERA_TABLE,
        CAMERA_COLUMNS,
        (
            (scene, float(width), float(height), *(repr(float(x)) for x in matrix_from_uv(K, height, width).ravel()))
            for scene, (K, (height, width), _) in sorted(cameras.items())
        ),
    )
    return len(rows)
