"""Write single files, each whole or not at all, and the same bytes for the same content."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from m2h_lightning.errors import DataError
from m2h_lightning.files import atomic

_MAT_HEADER = b"MATLAB 5.0 MAT-file, written by m2h-lightning".ljust(116)


def put(path: Path, content: bytes) -> None:
    """Write a file and the folders above it.

    Raises:
        DataError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not durable one by one: the tree gets its name last, see `write_layout`.
        with atomic(path, durable=False) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}): free space or choose another folder") from error


def put_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8."""
    put(path, text.encode())


def put_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    put_text(path, text.getvalue())


def put_png(path: Path, array: np.ndarray) -> None:
    """Write uint8 H×W or H×W×3, or uint16 H×W, as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG", compress_level=6)
    put(path, buffer.getvalue())


def put_jpg(path: Path, array: np.ndarray) -> None:
    """Write uint8 H×W×3 as JPEG, as good as the format can."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "JPEG", quality=100, subsampling=0)
    put(path, buffer.getvalue())


def put_npy(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    put(path, buffer.getvalue())


def put_mat(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays as a MATLAB 5 file."""
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, arrays, do_compression=True)
    # The first 116 bytes are free text; scipy puts the time there.
    put(path, _MAT_HEADER + buffer.getvalue()[len(_MAT_HEADER) :])


def put_hdf5(path: Path, array: np.ndarray) -> None:
    """Write one array under the name "dataset", gzip 9, as Hypersim does.

    Raises:
        MissingExtraError: h5py is not installed.
    """
    from m2h_lightning.data.sources.reading import import_h5py

    buffer = io.BytesIO()
    with import_h5py().File(buffer, "w") as file:
        file.create_dataset("dataset", data=array, compression="gzip", compression_opts=9, track_times=False)
    put(path, buffer.getvalue())
