"""Your own images and labels, described by a dataset.yaml."""

from __future__ import annotations

from typing import Any

from m2h_lightning.data.recorded import RecordedDataModule


class Folder(RecordedDataModule):
    """A folder with any subset of ``images/ semseg/ depth/ normals/ edges/`` and a ``dataset.yaml``.

    The file tells the facts that other sets have in code: classes, scales, K; its keys are described in
    ``data/sources/folder.py`` and docs/data.md.

    Args:
        settings: Settings of ``RecordedDataModule``.
    """

    source_name = "folder"
    name = "folder"
    depth_range = (0.1, 10.0)
    tasks = ("semseg", "depth", "normals", "edges")

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self._find() is not None:
            source = self.source
            self.classes, self.depth_range = tuple(source.classes), source.depth_range

    @property
    def facts(self) -> dict[str, Any]:
        """Facts as plain values; unlike those of other sets they cannot be known without the files.

        Raises:
            DataError: The folder is not there.
        """
        if self._find() is None:
            self.source  # noqa: B018 - says what is missing and where it was looked for
        return super().facts
