"""What a reader of a data set's own files is. One per set; each detects the layout it is given and names it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from m2h_lightning.data.raw import RawSample
from m2h_lightning.data.sources.edges import EdgeRule, apply_edge_rule
from m2h_lightning.errors import ConfigError, DataError, did_you_mean

NormalsFrom = Literal["provided", "derived", "none"]

DERIVED_NORMALS = "derived: planes fitted to the depth labels"
"""Provenance of derived normals; a manifest tells them by the first word."""


@dataclass(frozen=True)
class Item:
    """One sample of a source, cheap to list: nothing has been opened yet.

    Args:
        id: Unique within the data set; stable over machines; may hold slashes.
        split: "train", "val" or "test".
        scene: Frames of one scene look alike; a hold-out never divides a scene.
        files: File of each modality ("image", "semseg", "depth", "pose", …); one that the sample lacks is absent.
            Several modalities may name the same file.
    """

    id: str
    split: str
    scene: str
    files: dict[str, Path] = field(default_factory=dict, hash=False)


class Source(ABC):
    """Samples of one data set, read from the files its publishers made.

    Facts are class attributes. A subclass detects what lies at ``path`` in its ``__init__`` (after calling this one),
    sets ``packaging`` and raises one clear line when the path is not what it reads. Objects can be pickled: no open
    file is kept across processes.

    Args:
        path: Folder (or file) of the data set.
        edges: Rule by which edges are made; None takes the first of ``edge_rules``.
        normals: "provided" by the set, "derived" from depth and K, or "none"; None takes provided ones where there are
            any.
        normal_axes: Which stored channel, with which sign, is x, y and z of the camera frame OpenCV, such as
            "x,-y,-z"; None takes the set's usual one.

    Raises:
        DataError: The files are missing or are not this data set.
        ConfigError: An option that this set does not have.
    """

    name: ClassVar[str]
    """Short name: of the set on the command line, and of its folders."""
    folders: ClassVar[tuple[str, ...]]
    """Names under which people keep the set below their data root, in the order in which they are looked for."""
    layout_hint: ClassVar[str]
    """One line: what lies in the folder (for the error when nothing is found)."""
    classes: tuple[str, ...] = ()
    depth_range: tuple[float, float] = (0.1, 10.0)
    official: ClassVar[dict[str, int]] = {}
    """Number of samples of each official split; empty where the set has none."""
    modalities: ClassVar[tuple[str, ...]] = ("image", "semseg", "depth", "normals", "edges")

    packaging: str
    """What was found at ``path``, in words."""
    tasks: tuple[str, ...]
    """Labels that ``read`` returns (some samples may lack some)."""
    edge_rules: tuple[EdgeRule, ...]
    """Rules that can be had here, the default first; empty when there are no edges."""
    provenance: dict[str, str]
    """How each label came about, in words: goes into the manifest and into results."""
    stored_axes: str | None
    """Convention of the stored normals in use: the option, else the set's usual one; None where it stores none."""
    splits: tuple[str, ...]
    """Official splits that are here, of "train", "val", "test"."""
    poses: bool = False
    """Whether samples may have a camera pose; those that may name a file of "pose"."""

    def __init__(
        self,
        path: Path | str,
        edges: EdgeRule | None = None,
        normals: NormalsFrom | None = None,
        normal_axes: str | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        self.normals = normals
        self.normal_axes = normal_axes
        self.stored_axes = normal_axes
        self._edges = edges
        if not self.path.exists():
            raise DataError(f"{self.path}: does not exist; expected {self.layout_hint}")

    @property
    def edges(self) -> EdgeRule | None:
        """The edge rule in use.

        Raises:
            ConfigError: The rule asked for cannot be had here.
        """
        if self._edges is None:
            return self.edge_rules[0] if self.edge_rules else None
        if self._edges not in self.edge_rules:
            raise ConfigError(
                f"data.edges is '{self._edges}'; {self.packaging} has {', '.join(self.edge_rules) or 'no edges'}"
                f"{did_you_mean(self._edges, self.edge_rules)}"
            )
        return self._edges

    @abstractmethod
    def items(self, split: str) -> list[Item]:
        """List the samples of an official split in a fixed order, without opening them.

        Raises:
            DataError: The list or files named in it are missing; at most three names and a count.
        """

    @abstractmethod
    def load(self, item: Item) -> RawSample:
        """Read all that is stored of one sample, in the contract's conventions, before any edge rule.

        ``edges`` is the provided map where there is one, ``instance`` the object numbers where there are any; depth is
        either float32 or stored numbers with ``depth_code``; normals follow the option ``normals``.

        Raises:
            DataError: A file is missing, corrupt or of the wrong kind; the line names the file and the mend.
        """

    def read(self, item: Item) -> RawSample:
        """Read one sample with edges made by the rule in use.

        Raises:
            DataError: A file is missing, corrupt or of the wrong kind; the line names the file and the mend.
        """
        return apply_edge_rule(self.load(item), self.edges)

    def size(self, item: Item) -> tuple[int, int]:
        """Return height and width of a sample without decoding it.

        Raises:
            DataError: The image cannot be opened.
        """
        from m2h_lightning.data.sources.reading import image_size

        return image_size(item.files["image"])

    @property
    def fingerprint(self) -> str:
        """Short text that changes when the packaging, the options or the lists of samples change."""
        digest = hashlib.sha256(self.packaging.encode())
        for split in self.splits:
            digest.update("\n".join([split, *(item.id for item in self.items(split))]).encode())
        digest.update(repr((self.edges, self.normals, self.normal_axes, sorted(self.provenance.items()))).encode())
        return f"{self.name}-{digest.hexdigest()[:12]}"
