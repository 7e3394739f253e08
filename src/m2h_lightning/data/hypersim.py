"""Hypersim."""

from __future__ import annotations

from typing import Any

from m2h_lightning.data.recorded import RecordedDataModule
from m2h_lightning.data.sources.hypersim import HypersimSource


class Hypersim(RecordedDataModule):
    """Hypersim: 74,619 photorealistic indoor renderings of 457 scenes, NYU40 classes (Roberts et al., ICCV 2021).

    Reads the official HDF5 files with the official split, or a prepared store. Depth is planar and exact also for
    tilt-shift cameras, whose K is a general matrix; normals face the camera.

    Args:
        partial: Take the scenes and frames that are here, instead of refusing an incomplete copy.
        bump: Take normals with bump maps instead of the surface's own.
        skip: Ids of frames, cameras or scenes to leave out, or a file with one a line.
        bad_scenes: False leaves out camera trajectories known as bad.
        settings: Settings of ``RecordedDataModule``.
    """

    source_name = "hypersim"
    name = HypersimSource.name
    classes = HypersimSource.classes
    depth_range = HypersimSource.depth_range
    tasks = ("semseg", "depth", "normals", "edges")

    def __init__(
        self,
        partial: bool = False,
        bump: bool = False,
        skip: list[str] | str | None = None,
        bad_scenes: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        names = tuple(skip) if isinstance(skip, list) else skip or ()
        self.options.update(partial=partial, bump=bump, skip=names, bad_scenes=bad_scenes)
