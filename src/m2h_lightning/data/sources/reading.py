"""Read single files of data sets, strictly: what is cut off or of the wrong kind is one line, never half a picture."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from m2h_lightning.errors import DataError, MissingExtraError

AGAIN = "get this file again, or leave the sample out"


def _open_image(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    # Pillow, not OpenCV: of a PNG that is cut off, OpenCV returns the upper part without a word.
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {AGAIN}") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error}); {AGAIN}") from None


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image file from its header."""
    with _open_image(path) as image:
        return image.height, image.width


def _decoded(path: Path, mode: str | None) -> np.ndarray:
    with _open_image(path) as image:
        try:
            return np.asarray(image if mode is None else image.convert(mode))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path}: corrupt or cut off ({error}); {AGAIN}") from None


def read_image(path: Path) -> np.ndarray:
    """Read a photograph as uint8 RGB H×W×3: grey is repeated, alpha dropped, 16 bits are shortened to 8.

    Raises:
        DataError: Missing, corrupt or cut off.
    """
    array = _decoded(path, None)
    if array.dtype.kind == "f":
        raise DataError(f"{path}: is a picture of {array.dtype}; save photographs with 8 or 16 bits per channel")
    if array.dtype != np.uint8 and array.dtype != bool:
        array = (array.astype(np.uint32) >> 8).astype(np.uint8)  # 16-bit grey is all that Pillow gives us here
    with _open_image(path) as image:
        if image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV", "1", "PA"):
            array = _decoded(path, "RGB")
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, -1)
    if array.shape[-1] == 2:
        return np.repeat(array[..., :1], 3, -1)
    return np.ascontiguousarray(array[..., :3])


def read_coded(path: Path) -> np.ndarray:
    """Read a picture whose three 8-bit channels are numbers (coded normals): uint8 H×W×3, nothing converted.

    Raises:
        DataError: Missing, corrupt, cut off, or not of three channels of 8 bits.
    """
    array = _decoded(path, None)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        channels = 1 if array.ndim == 2 else array.shape[-1]
        raise DataError(f"{path}: has {channels} channel(s) of {array.dtype}; coded normals have three of 8 bits (RGB)")
    return array


def read_map(path: Path) -> np.ndarray:
    """Read a single-channel image H×W (labels, disparity) in its own integer type; palettes give their indices.

    Raises:
        DataError: Missing, corrupt, cut off, or with several channels.
    """
    array = _decoded(path, None)
    if array.ndim != 2:
        raise DataError(f"{path}: has {array.shape[-1]} channels; a label map has one (is it coloured for viewing?)")
    return array.astype(np.uint8) if array.dtype == bool else array


def read_npy(path: Path) -> np.ndarray:
    """Read a .npy file.

    Raises:
        DataError: Missing, cut off, or holding objects.
    """
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {AGAIN}") from None
    except (ValueError, OSError, EOFError, MemoryError) as error:  # a damaged header may ask for any amount of memory
        raise DataError(f"{path}: corrupt or cut off ({str(error).splitlines()[0]}); {AGAIN}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: Missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {AGAIN}") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not readable ({error}); {AGAIN}") from None


def import_h5py() -> Any:
    """Import h5py, which is an extra.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("h5py", "data", "reading HDF5 and MATLAB 7.3 files") from None
    return h5py


@contextmanager
def _hdf5(path: Path, key: str) -> Iterator[Any]:
    """Open one array of an HDF5 file; whatever goes wrong until it is closed is one line."""
    h5py = import_h5py()
    if not path.is_file():
        raise DataError(f"{path}: missing; {AGAIN}")
    try:
        with h5py.File(path, "r") as file:
            if key not in file:
                raise DataError(f"{path}: holds no '{key}' but {', '.join(file) or 'nothing'}; {AGAIN}")
            yield file[key]
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: corrupt or cut off ({str(error).splitlines()[0]}); {AGAIN}") from None


def read_hdf5(path: Path, key: str = "dataset") -> np.ndarray:
    """Read one array of an HDF5 file whole.

    Raises:
        DataError: Missing, cut off, corrupt, or without that array.
        MissingExtraError: h5py is not installed.
    """
    with _hdf5(path, key) as array:
        return array[()]


def hdf5_shape(path: Path, key: str = "dataset") -> tuple[int, ...]:
    """Return the shape of an array of an HDF5 file without reading it.

    Raises:
        DataError: Missing, cut off, or without that array.
        MissingExtraError: h5py is not installed.
    """
    with _hdf5(path, key) as array:
        return tuple(array.shape)


def read_mat(path: Path, key: str) -> np.ndarray:
    """Read one array of a MATLAB file before version 7.3.

    Raises:
        DataError: Missing, corrupt, or without that array.
    """
    from scipy.io import loadmat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = loadmat(path)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {AGAIN}") from None
    except Exception as error:
        # scipy's reader answers damage with many kinds of exception (zlib, struct, index, type …).
        raise DataError(f"{path}: corrupt or cut off ({type(error).__name__}: {error}); {AGAIN}") from None
    if key not in content:
        names = [name for name in content if not name.startswith("__")]
        raise DataError(f"{path}: holds no '{key}' but {', '.join(names) or 'nothing'}; {AGAIN}")
    return content[key]


def as_map(array: np.ndarray, path: Path, dtype: type, shape: tuple[int, int], channels: int = 1) -> np.ndarray:
    """Check the shape of a dense label and convert it; a last dimension of one is dropped.

    Args:
        array: H×W, H×W×1 or H×W×channels.
        path: Where it came from, for the message.
        dtype: Type of the result.
        shape: Height and width of the image it belongs to.
        channels: 1, or 3 for normals.

    Raises:
        DataError: It is of another size than its image.
    """
    if channels == 1 and array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    expected = shape if channels == 1 else (*shape, channels)
    if array.shape != expected:
        found = "×".join(map(str, array.shape))
        needs = "" if channels == 1 else f" and it needs {channels} channels"
        raise DataError(f"{path}: is {found}, its image is {shape[0]}×{shape[1]}{needs}; {AGAIN}")
    return array.astype(dtype, copy=False)
