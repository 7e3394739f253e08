"""What the tests of prediction files share: random predictions, writing files as others do, reading them."""

import cv2
import numpy as np
import scipy.io

from m2h_lightning.predictions.values import Conventions, PredictionReader

SIZE = (6, 8)


def arrays(seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(*size, 3))
    return {
        "semseg": rng.integers(0, 3, size).astype(np.uint8),
        "depth": rng.uniform(0.1, 20, size).astype(np.float32),
        "normals": (normals / np.linalg.norm(normals, axis=-1, keepdims=True)).astype(np.float32),
        "edges": rng.random(size).astype(np.float32),
    }


def reader(**conventions):
    return PredictionReader(3, Conventions(**conventions))


def read(task, path, size=SIZE, label=None, scored=None, **conventions):
    label = np.full((*size, 3) if task == "normals" else size, 1.0) if label is None else label
    return reader(**conventions).read(task, path, size, label, np.ones(size, bool) if scored is None else scored)


def angle(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    a, b = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b))
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)))


def zeros(dtype=np.uint8):
    return np.zeros(SIZE, dtype)


def put(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, **array)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, array)
    else:
        assert cv2.imwrite(str(path), array)
    return path
