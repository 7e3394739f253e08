"""Hypersim as published: HDF5 files of 461 rendered indoor scenes (Roberts et al., ICCV 2021). Loads no torch.

What this reader has to get right, each from the publishers' README and tools (apple/ml-hypersim):

* ``depth_meters`` is the distance to the camera's centre. Planar depth follows from the exact ray of each pixel, which
  ``M_cam_from_uv`` gives for every scene, also where the image plane is shifted or tilted.
* Normals are in a camera frame with y up and z backward; some point away from the camera, some are NaN or not unit.
* Positions of the camera are in the artist's units, its orientations in the same camera frame as the normals.
* Pictures are linear light; the publishers' own tonemap brings the 90th percentile of brightness to 0.8.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import numpy as np

from m2h_lightning.data.raw import RawSample
from m2h_lightning.data.sources import hypersim_lists as lists
from m2h_lightning.data.sources.axes import parse_axes
from m2h_lightning.data.sources.base import Item, NormalsFrom, Source
from m2h_lightning.data.sources.edges import EDGE_RULE_TEXT, EdgeRule, apply_edge_rule
from m2h_lightning.data.sources.hypersim_frame import (
    AXES,
    facing_normals,
    intrinsics,
    planar_depth,
    tonemap,
    view_rays,
)
from m2h_lightning.data.sources.poses import ORIENTATIONS, POSITIONS, SCENE_LIST, read_trajectory
from m2h_lightning.data.sources.reading import AGAIN, as_map, hdf5_shape, read_hdf5
from m2h_lightning.errors import ConfigError, DataError
from m2h_lightning.geometry import plane_normals
from m2h_lightning.labels import IGNORE, NYU40_CLASSES

_KINDS = {"depth": "depth_meters", "semseg": "semantic", "instance": "semantic_instance"}


class HypersimSource(Source):
    """Hypersim's own files below a folder of scenes.

    Args:
        path: Folder with ``ai_VVV_NNN/`` (or with ``scenes/ai_VVV_NNN/``) and the two lists.
        edges: "semantic" or "instance".
        normals: "provided", "derived" from depth, or "none".
        normal_axes: Convention of the stored normals; None is "x,-y,-z".
        partial: Take the scenes and frames that are here, instead of refusing an incomplete copy.
        bump: Take ``normal_bump_cam``, shading normals with bump maps, instead of the surface's own ``normal_cam``.
        skip: Ids of frames, cameras or scenes to leave out, or a file with one a line (for files that are corrupt).
        bad_scenes: Keep the trajectories known as bad (see ``hypersim_lists.BAD_TRAJECTORIES``), as the official lists
            do; False leaves them out of all splits.

    Raises:
        DataError: The scenes or a list are missing.
        ConfigError: An option that cannot be had here.
    """

    name = "hypersim"
    folders = ("hypersim", "Hypersim", "evermotion_dataset")
    layout_hint = (
        f"the scenes ai_VVV_NNN/images/scene_cam_XX_final_hdf5/frame.IIII.color.hdf5 with {lists.SPLIT_LIST} and "
        f"{lists.CAMERA_LIST}"
    )
    classes = NYU40_CLASSES
    # Depth of the train split has mean 6.2 m and standard deviation 6.9 m (NICR's statistics of all 59,543 frames):
    # 30 m is 3.5 deviations above the mean; the few halls and views outdoors that go farther would stretch the range.
    depth_range = (0.1, 30.0)
    official: ClassVar[dict[str, int]] = {"train": 59543, "val": 7386, "test": 7690}

    def __init__(
        self,
        path: Path | str,
        edges: EdgeRule | None = None,
        normals: NormalsFrom | None = None,
        normal_axes: str | None = None,
        partial: bool = False,
        bump: bool = False,
        skip: tuple[str, ...] | str | Path = (),
        bad_scenes: bool = True,
    ) -> None:
        super().__init__(path, edges, normals, normal_axes)
        self.partial = partial
        self.bump = bump
        self.stored_axes: str = normal_axes or AXES
        parse_axes(self.stored_axes)
        if not self.path.is_dir():
            raise DataError(f"{self.path}: is a file; expected a folder with {self.layout_hint}")
        self.scenes = self.path / "scenes" if (self.path / "scenes").is_dir() else self.path
        self._here = {
            entry.name for entry in os.scandir(self.scenes) if entry.name.startswith("ai_") and entry.is_dir()
        }
        if not self._here:
            raise DataError(f"{self.scenes}: no folder ai_VVV_NNN here; expected {self.layout_hint}")
        frames = lists.read_frames(lists.find_list(self.path, lists.SPLIT_LIST))
        self._camera_list = lists.find_list(self.path, lists.CAMERA_LIST)
        self._cameras = lists.read_cameras(self._camera_list)
        self._trajectories: dict[Path, np.ndarray] = {}  # of about 770 cameras, 13 kB each
        skipped = lists.read_skip(skip)
        lists.check_skip(skipped, frames)
        self._frames = {
            split: [f for f in rows if not f.within(skipped) and (bad_scenes or not f.bad)]
            for split, rows in frames.items()
        }
        listed = {frame.scene for rows in frames.values() for frame in rows}
        if not listed & self._here:
            raise DataError(f"{self.scenes}: none of its scenes is in {lists.SPLIT_LIST}; expected {self.layout_hint}")
        # A partial copy has the splits of its scenes; a full one has all, and `items` says what is missing.
        self.splits = tuple(
            split for split, rows in self._frames.items() if not partial or any(f.scene in self._here for f in rows)
        )
        self._settle(len(listed & self._here), len(listed), bad_scenes, len(skipped))

    def _settle(self, here: int, listed: int, bad_scenes: bool, skipped: int) -> None:
        """Find out which kinds of files were downloaded and what follows from it."""
        kinds = self._kinds()
        first = sorted(self._here)[:8]
        self.poses = any(next((self.scenes / scene).glob(f"_detail/cam_*/{POSITIONS}"), None) for scene in first)
        if "render_entity_id" not in kinds:
            raise DataError(
                f"{self.scenes}: no frame.IIII.render_entity_id.hdf5 here; the pictures' tonemap needs it: get it too"
            )
        stored = "normal_bump_cam" if self.bump else "normal_cam"
        choices = [
            *(["provided"] if stored in kinds else []),
            *(["derived"] if "depth_meters" in kinds else []),
            "none",
        ]
        self._normals_from = self.normals or ("provided" if stored in kinds else "none")
        if self._normals_from not in choices:
            raise ConfigError(
                f"data.normals is '{self.normals}'; {self.path} has {', '.join(choices)} ({stored} files)"
            )
        self._stored = {key: kind for key, kind in _KINDS.items() if kind in kinds}
        if self._normals_from == "provided":
            self._stored["normals"] = stored
        rules: tuple[EdgeRule, ...] = ("semantic", "instance") if "instance" in self._stored else ("semantic",)
        self.edge_rules = rules if "semseg" in self._stored else ()
        has = {
            *self._stored,
            *(["edges"] if self.edge_rules else []),
            *([] if self._normals_from == "none" else ["normals"]),
        }
        self.tasks = tuple(task for task in self.modalities if task in has)
        self.packaging = "Hypersim HDF5 files as published, scene split v1"
        absent = [kind for key, kind in {**_KINDS, "normals": stored}.items() if kind not in kinds]
        for said, when in (
            (f"without {', '.join(absent)} (not downloaded)", absent),
            (f"{here} of {listed} scenes", self.partial),
            (f"without the {len(lists.BAD_TRAJECTORIES)} trajectories known as bad", not bad_scenes),
            (f"without {skipped} ids left out by skip", skipped),
        ):
            self.packaging += f", {said}" if when else ""
        self.provenance = {
            "image": "linear light, tonemapped by the publishers' rule",
            "semseg": "provided, NYU40",
            "depth": "provided distance made planar by the exact ray of each pixel",
            "normals": f"provided ({stored}), turned to the camera, axes {self.stored_axes}"
            if self._normals_from == "provided"
            else "derived from depth by plane fits",
            **({"edges": EDGE_RULE_TEXT[self.edges]} if self.edges else {}),
        }
        self.provenance = {key: text for key, text in self.provenance.items() if key in ("image", *self.tasks)}

    def _kinds(self) -> set[str]:
        """Kinds of files in the first scenes: people download only some of them."""
        kinds = set()
        for scene in sorted(self._here)[:8]:
            for path in (self.scenes / scene).glob("images/scene_cam_*_geometry_hdf5/frame.*.hdf5"):
                kinds.add(path.name.split(".")[2])
        return kinds

    def _files(self, frame: lists.Frame) -> dict[str, Path]:
        images = self.scenes / frame.scene / "images"
        geometry = images / f"scene_{frame.camera}_geometry_hdf5"
        start = f"frame.{frame.number:04d}"
        return {
            "image": images / f"scene_{frame.camera}_final_hdf5" / f"{start}.color.hdf5",
            "entity": geometry / f"{start}.render_entity_id.hdf5",
            **{key: geometry / f"{start}.{kind}.hdf5" for key, kind in self._stored.items()},
        }

    def _pose_files(self, frame: lists.Frame) -> dict[str, Path]:
        detail = self.scenes / frame.scene / "_detail"
        camera = detail / frame.camera
        return {"pose": camera / POSITIONS, "orientation": camera / ORIENTATIONS, "unit": detail / SCENE_LIST}

    def items(self, split: str) -> list[Item]:
        """List the public frames of a split; see :meth:`Source.items`."""
        if split not in self._frames:
            raise ConfigError(f"hypersim has no split '{split}' (splits: {', '.join(self._frames)})")
        scenes = sorted({frame.scene for frame in self._frames[split]})
        gone = [scene for scene in scenes if scene not in self._here]
        mend = "get them, or take what is here with partial=True (--partial)"
        if gone and not self.partial:
            raise DataError(
                f"{self.scenes}: {len(gone)} of {len(scenes)} scenes of split '{split}' are not here: "
                f"{', '.join(gone[:3])}{', …' if len(gone) > 3 else ''}; {mend}"
            )
        # One listing per folder instead of a question per file: those would take minutes on a network disk.
        listings: dict[Path, set[str]] = {}

        def there(path: Path) -> bool:
            if path.parent not in listings:
                listings[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
            return path.name in listings[path.parent]

        found: list[Item] = []
        missing: list[Path] = []
        for frame in self._frames[split]:
            files = self._files(frame) if frame.scene in self._here else {}
            lacks = [path for path in files.values() if not there(path)]
            missing += lacks
            if files and not lacks:
                poses = self._pose_files(frame)
                files |= poses if all(map(there, poses.values())) else {}
                found.append(Item(frame.id, split, frame.scene, files))
        if missing and not self.partial:
            names = ", ".join(str(path.relative_to(self.scenes)) for path in missing[:3])
            raise DataError(
                f"{self.scenes}: {len(missing)} files of split '{split}' are missing: {names}"
                f"{', …' if len(missing) > 3 else ''}; {mend}, or name the frames in skip"
            )
        if not found:
            raise DataError(f"{self.scenes}: no frame of split '{split}' is here; get its scenes, or leave out fewer")
        return found

    def load(self, item: Item) -> RawSample:
        """Read a frame with its object numbers; see :meth:`Source.load`."""
        return self._load(item, instance=True)

    def read(self, item: Item) -> RawSample:
        """Read a frame with its edges; see :meth:`Source.read`."""
        return apply_edge_rule(self._load(item, instance=self.edges == "instance"), self.edges)

    def size(self, item: Item) -> tuple[int, int]:
        """Return height and width from the file's header."""
        height, width = hdf5_shape(item.files["image"])[:2]
        return height, width

    def _load(self, item: Item, instance: bool) -> RawSample:
        try:
            return self._decode(item, instance)
        except DataError as error:
            raise DataError(f"{error} (skip takes the id {item.id})") from None

    def _decode(self, item: Item, instance: bool) -> RawSample:
        files = item.files
        colour = read_hdf5(files["image"])
        if colour.ndim != 3 or colour.shape[-1] != 3:
            raise DataError(f"{files['image']}: has shape {colour.shape}, expected H×W×3; {AGAIN}")
        height, width = shape = colour.shape[:2]

        def stored(key: str, dtype: type, channels: int = 1) -> np.ndarray:
            return as_map(read_hdf5(files[key]), files[key], dtype, shape, channels)

        if item.scene not in self._cameras:
            raise DataError(
                f"{self._camera_list}: has no row for scene {item.scene}; get it of apple/ml-hypersim again"
            )
        matrix = self._cameras[item.scene]
        rays = view_rays(matrix, height, width)
        raw: RawSample = {
            "image": tonemap(colour, stored("entity", np.int32)),
            "K": intrinsics(matrix, height, width),
            "id": item.id,
        }
        if "pose" in files and (pose := self._pose(item)) is not None:
            raw["pose"] = pose
        if "semseg" in files:
            labels = stored("semseg", np.int32)
            wrong = labels[(labels != -1) & ((labels < 1) | (labels > len(self.classes)))]
            if wrong.size:
                raise DataError(
                    f"{files['semseg']}: holds label {wrong[0]}, expected -1 or 1..{len(self.classes)}; {AGAIN}"
                )
            raw["semseg"] = np.where(labels > 0, labels - 1, IGNORE).astype(np.uint8)
        if instance and "instance" in files:
            raw["instance"] = np.maximum(stored("instance", np.int32), 0)  # −1 is none; the publishers use no 0
        if "depth" in files:
            raw["depth"] = planar_depth(stored("depth", np.float32), rays)
        if "normals" in files:
            raw["normals"] = facing_normals(stored("normals", np.float32, 3), rays, self.stored_axes)
        elif self._normals_from == "derived":
            raw["normals"] = plane_normals(raw["depth"], raw["K"])
        return raw

    def _pose(self, item: Item) -> np.ndarray | None:
        path, number = item.files["pose"], int(item.id.rpartition("/")[2])
        if path not in self._trajectories:
            self._trajectories[path] = read_trajectory(path, item.files["orientation"], item.files["unit"])
        poses = self._trajectories[path]
        if number >= len(poses):
            raise DataError(f"{path}: has {len(poses)} rows, none for frame {number}; {AGAIN}")
        return poses[number].copy() if np.isfinite(poses[number]).all() else None
