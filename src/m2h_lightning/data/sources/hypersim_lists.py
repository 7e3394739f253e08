"""Hypersim's two lists (frames with their split, cameras) and what to leave out of them. NumPy only."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2h_lightning.errors import ConfigError, DataError, did_you_mean

SPLIT_LIST = "metadata_images_split_scene_v1.csv"
CAMERA_LIST = "metadata_camera_parameters.csv"
_REPOSITORY = {SPLIT_LIST: "evermotion_dataset/analysis", CAMERA_LIST: "contrib/mikeroberts3000"}
_PLACES = ("", "metadata", "{repository}", "analysis", "../analysis", "../{repository}", "ml-hypersim/{repository}")

BAD_TRAJECTORIES: dict[str, tuple[str, str]] = {
    "ai_003_001": ("cam_00", "no picture"),
    "ai_004_009": ("cam_01", "no picture"),
    "ai_013_001": ("*", "outdoors, picture, depth and labels of no use"),
    "ai_015_006": ("*", "textures missing"),
    "ai_023_004": ("cam_01", "labels: only wall"),
    "ai_023_006": ("*", "labels: almost all void"),
    "ai_023_008": ("cam_01", "labels: only ceiling"),
    "ai_023_009": ("*", "labels: only wall, views of no use"),
    "ai_026_013": ("*", "labels: mostly void"),
    "ai_026_018": ("*", "labels: mostly void"),
    "ai_026_020": ("*", "labels: only wall and floor"),
    "ai_038_007": ("*", "textures missing, labels of no use"),
    "ai_046_001": ("*", "textures missing"),
    "ai_048_004": ("*", "picture not realistic"),
    "ai_053_005": ("*", "textures missing"),
}
"""Scene → (camera or "*" for all, why), all of train but the last, which is of val. These are the 15 entries that
NICR's nicr-scene-analysis-datasets leaves out of its lists (datasets/hypersim/hypersim.py, commit 742fab2)."""


@dataclass(frozen=True)
class Frame:
    """A row of the split list: one public frame."""

    scene: str
    camera: str
    number: int

    @property
    def id(self) -> str:
        """Such as ``ai_001_001/cam_00/0000``."""
        return f"{self.scene}/{self.camera}/{self.number:04d}"

    def within(self, ids: set[str]) -> bool:
        """Whether the frame, its camera or its scene is among ``ids``."""
        return self.id in ids or f"{self.scene}/{self.camera}" in ids or self.scene in ids

    @property
    def bad(self) -> bool:
        """Whether the frame is of a trajectory known as bad."""
        camera, _ = BAD_TRAJECTORIES.get(self.scene, ("", ""))
        return camera in ("*", self.camera)


def find_list(root: Path, name: str) -> Path:
    """Return where a list lies: in the data set's folder or in one of the places it has in clones and copies.

    Raises:
        DataError: It is not there; the line says where to get it and where to put it.
    """
    for place in _PLACES:
        path = root / place.format(repository=_REPOSITORY[name]) / name
        if path.is_file():
            return path
    raise DataError(
        f"{root}: {name} is not here; it comes with the code, not with the scenes: get {_REPOSITORY[name]}/{name} of "
        f"the repository apple/ml-hypersim and put it into {root}"
    )


def _rows(path: Path, columns: list[str]) -> Iterator[dict[str, str]]:
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or [])]
        if missing:
            raise DataError(f"{path}: has no column {', '.join(missing)}; get this file of apple/ml-hypersim again")
        for line, row in enumerate(reader, 2):
            if any(row[column] is None for column in columns):
                raise DataError(f"{path}: line {line} is cut off; get this file of apple/ml-hypersim again")
            yield row


def read_frames(path: Path) -> dict[str, list[Frame]]:
    """Return the public frames of each official split, in the list's order.

    Raises:
        DataError: The list is not what its publishers made.
    """
    frames: dict[str, list[Frame]] = {"train": [], "val": [], "test": []}
    columns = ["scene_name", "camera_name", "frame_id", "included_in_public_release", "split_partition_name"]
    for line, row in enumerate(_rows(path, columns), 2):
        if row["included_in_public_release"] != "True":
            continue
        split, number = row["split_partition_name"], row["frame_id"]
        if split not in frames or not number.isdecimal():
            raise DataError(
                f"{path}: line {line} has frame '{number}' of split '{split}'; expected a number and one of "
                f"{', '.join(frames)}; get this file of apple/ml-hypersim again"
            )
        frames[split].append(Frame(row["scene_name"], row["camera_name"], int(number)))
    return frames


def read_cameras(path: Path) -> dict[str, np.ndarray]:
    """Return M_cam_from_uv of each scene, float64 3×3: see :func:`~.hypersim_frame.view_rays`.

    Raises:
        DataError: The list is not what its publishers made.
    """
    columns = [f"M_cam_from_uv_{row}{column}" for row in range(3) for column in range(3)]
    cameras = {}
    for row in _rows(path, ["scene_name", *columns]):
        try:
            matrix = np.array([float(row[column]) for column in columns]).reshape(3, 3)
        except ValueError:
            matrix = np.full((3, 3), np.nan)
        if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
            raise DataError(
                f"{path}: M_cam_from_uv of {row['scene_name']} is not an invertible 3×3 matrix; get this file of "
                "apple/ml-hypersim again"
            )
        cameras[row["scene_name"]] = matrix
    return cameras


def read_skip(skip: tuple[str, ...] | list[str] | str | Path) -> set[str]:
    """Return the frames to leave out.

    Args:
        skip: Ids of frames, cameras or scenes; or a file with one a line, "#" begins a comment.

    Raises:
        DataError: The file cannot be read.
    """
    if not isinstance(skip, (str, Path)):
        return set(skip)
    path = Path(skip).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable ({error}); skip takes ids, or a file with one id a line") from None
    return {line.split("#", 1)[0].strip() for line in lines} - {""}


def check_skip(skip: set[str], frames: dict[str, list[Frame]]) -> None:
    """Refuse ids to leave out that are in no list: they would leave out nothing, without a word.

    Raises:
        ConfigError: Naming the first of them.
    """
    if not skip:
        return
    public = [frame for rows in frames.values() for frame in rows]
    known = {frame.scene for frame in public} | {f"{frame.scene}/{frame.camera}" for frame in public}
    unknown = sorted(skip - known - {frame.id for frame in public})
    if unknown:
        raise ConfigError(
            f"skip names '{unknown[0]}', which is no public frame, camera or scene of Hypersim"
            f"{did_you_mean(unknown[0], known)} (ids look like ai_001_001/cam_00/0000)"
        )
