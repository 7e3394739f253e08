"""NYUDv2, with its usual 40 classes or with 13."""

from __future__ import annotations

from typing import Any, Literal

from m2h_lightning.data.recorded import RecordedDataModule
from m2h_lightning.data.sources.nyud import NYUDv2Source, NYUDv2Source13


class NYUDv2(RecordedDataModule):
    """NYUDv2: 795 training and 654 test images of indoor scenes, 40 classes (Silberman et al., ECCV 2012).

    Reads the packagings of InvPT (425×560), Multi-Task-Learning-PyTorch and ASTMT, the raw
    ``nyu_depth_v2_labeled.mat``, and prepared stores of any of them; which one it is stands in the log and in
    ``result.json``. There is no official validation split: by default a tenth of the training scenes is held out.

    Args:
        stored_crop: What becomes of the raw file's 480×640: "gupta" cuts to 425×560 as the other packagings do.
        settings: Settings of ``RecordedDataModule``.
    """

    source_name = "nyud"
    name = NYUDv2Source.name
    classes = NYUDv2Source.classes
    depth_range = NYUDv2Source.depth_range
    tasks = ("semseg", "depth", "normals", "edges")

    def __init__(self, stored_crop: Literal["gupta", "none"] = "gupta", **settings: Any) -> None:
        super().__init__(**settings)
        self.options["crop"] = stored_crop


class NYUDv2_13(NYUDv2):
    """NYUDv2 with 13 classes: the packaging of mtan (288×384, no edges), or any other with its 40 classes mapped.

    Args:
        stored_crop: As in ``NYUDv2``.
        settings: Settings of ``RecordedDataModule``.
    """

    source_name = "nyud13"
    name = NYUDv2Source13.name
    classes = NYUDv2Source13.classes
