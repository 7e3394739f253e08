"""Camera poses as files hold them: text or arrays of 4×4 numbers, and Hypersim's trajectories. Loads no torch."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from m2h_lightning.data.sources.reading import AGAIN, read_hdf5, read_npy
from m2h_lightning.errors import DataError

POSITIONS = "camera_keyframe_positions.hdf5"
ORIENTATIONS = "camera_keyframe_orientations.hdf5"
SCENE_LIST = "metadata_scene.csv"
"""Files of a Hypersim scene: ``_detail/cam_XX/`` holds the first two, ``_detail/`` the third."""

_UNIT = "meters_per_asset_unit"
_SLACK = 1e-3  # poses are often printed with six digits


def rigid(pose: np.ndarray) -> bool:
    """Whether a 4×4 matrix is a rotation and a shift: no scale, no mirror."""
    turn = pose[:3, :3]
    right = np.abs(turn @ turn.T - np.eye(3)).max() <= _SLACK and np.linalg.det(turn) > 0
    return bool(right and np.abs(pose[3] - [0, 0, 0, 1]).max() <= _SLACK)


def read_pose(path: Path) -> np.ndarray | None:
    """Read a camera-to-world matrix, camera frame OpenCV, metres: 16 numbers of text, or a .npy file.

    Args:
        path: Of one image. ScanNet writes infinite numbers where tracking was lost.

    Returns:
        float64 4×4; None if a number is infinite or NaN: not known.

    Raises:
        DataError: Missing, corrupt, of another shape, or no rigid motion.
    """
    if path.suffix.lower() == ".npy":
        pose = read_npy(path)
        if pose.dtype.kind not in "fiu":
            raise DataError(f"{path}: holds {pose.dtype}, expected 4×4 floating point numbers; {AGAIN}")
    else:
        try:
            parts = path.read_text(errors="replace").replace(",", " ").split()
            pose = np.array([float(part) for part in parts])
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from None
        except ValueError:
            raise DataError(f"{path}: holds something else than numbers; expected 4×4 of them") from None
        pose = pose.reshape(4, 4) if pose.size == 16 else pose
    if pose.shape != (4, 4):
        shape = "×".join(map(str, pose.shape))
        raise DataError(f"{path}: is {shape}, expected a camera-to-world matrix of 4×4 numbers")
    pose = pose.astype(np.float64)
    if not np.isfinite(pose).all():
        return None
    if not rigid(pose):
        raise DataError(
            f"{path}: is no rotation with a shift; expected a camera-to-world matrix: columns x, y, z axis and "
            "position in metres, last row 0 0 0 1"
        )
    return pose


def read_trajectory(positions: Path, orientations: Path, scene_list: Path) -> np.ndarray:
    """Return the poses of a Hypersim camera by frame number: camera-to-world, camera frame OpenCV, metres.

    Positions are stored in the artist's units, orientations for a camera with y up that looks along −z (apple/
    ml-hypersim, README, "Camera trajectories"); the number of a frame is its row, also where the release leaves out
    frames (ml-hypersim, issue 58).

    Args:
        positions: N×3.
        orientations: N×3×3.
        scene_list: Table of the scene, which has the unit.

    Returns:
        float64 N×4×4; NaN where the files say so.

    Raises:
        DataError: A file is missing, corrupt, or not what its publishers made.
    """
    unit = _unit(scene_list)
    where, turn = read_hdf5(positions).astype(np.float64), read_hdf5(orientations).astype(np.float64)
    if where.ndim != 2 or where.shape[1:] != (3,):
        raise DataError(f"{positions}: has shape {where.shape}, expected N×3; {AGAIN}")
    if turn.shape != (len(where), 3, 3):
        raise DataError(f"{orientations}: has shape {turn.shape}, expected {len(where)}×3×3; {AGAIN}")
    poses = np.tile(np.eye(4), (len(where), 1, 1))
    poses[:, :3, :3] = turn * [1.0, -1.0, -1.0]  # y up, z backward: the camera's own y and z axes turn round
    poses[:, :3, 3] = where * unit
    for number, pose in enumerate(poses):
        if np.isfinite(pose).all() and not rigid(pose):
            raise DataError(f"{orientations}: row {number} is no rotation; {AGAIN}")
    return poses


def _unit(path: Path) -> float:
    """Return metres per unit of the scene."""
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            rows = {row[0].strip(): row[1].strip() for row in csv.reader(file) if len(row) > 1}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from None
    try:
        unit = float(rows[_UNIT])
    except (KeyError, ValueError):
        unit = math.nan
    if not 0 < unit < math.inf:
        raise DataError(f"{path}: has no {_UNIT} above 0; {AGAIN}")
    return unit
