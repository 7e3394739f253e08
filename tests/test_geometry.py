"""Intrinsics, back-projection and normals agree with closed forms, for arrays and tensors alike."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m2h_lightning import geometry

sizes = st.integers(20, 60)
normals = st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(-1.5, -0.8))


def project(K, X):
    x = K @ X
    return x[:2] / x[2]


@given(
    st.floats(50, 900), st.floats(50, 900), st.floats(0, 300), st.floats(0, 300),
    st.floats(-40, 40), st.floats(-40, 40), st.floats(0.3, 3), st.floats(0.3, 3),
)  # fmt: skip
def test_intrinsics_follow_the_pixel(fx, fy, cx, cy, top, left, sy, sx):
    K = np.array([[fx, 0.7, cx], [0, fy, cy], [0, 0, 1]])
    X = np.array([0.4, -0.3, 2.5])
    u, v = project(K, X)
    assert np.allclose(project(geometry.crop_intrinsics(K, top, left), X), (u - left, v - top))
    # A resize maps pixel areas: the left border −½ stays the left border.
    resized = project(geometry.resize_intrinsics(K, sy, sx), X)
    assert np.allclose(resized, ((u + 0.5) * sx - 0.5, (v + 0.5) * sy - 0.5))
    mirrored = project(geometry.flip_intrinsics(K, 640), X * np.array([-1, 1, 1]))
    assert np.allclose(mirrored, (639 - u, v))


def test_intrinsics_are_not_changed_in_place():
    K = np.eye(3)
    for change in (lambda: geometry.crop_intrinsics(K, 3, 4), lambda: geometry.resize_intrinsics(K, 2, 2)):
        change()
        assert np.array_equal(K, np.eye(3))


@given(sizes, sizes, normals)
def test_normals_of_a_plane(height, width, normal):
    from samples import plane_sample

    sample = plane_sample(height, width, normal)
    derived, valid = geometry.normals_from_depth(sample["depth"].astype(np.float64), sample["K"], max_step=0.5)
    truth = sample["normals"].transpose(2, 0, 1)
    assert valid[1:-1, 1:-1].all()
    assert not valid[0].any()
    cosine = (derived * truth).sum(0)[valid]
    assert cosine.min() > 1 - 1e-6
    rays = geometry.pixel_rays(sample["K"], height, width)
    assert ((derived * rays).sum(0)[valid] < 0).all(), "normals must face the camera"


def test_arrays_and_tensors_agree(raw_sample):
    depth, K = raw_sample["depth"].astype(np.float64), raw_sample["K"]
    depth[5, 5] = 0
    array, valid = geometry.normals_from_depth(depth, K)
    tensor, valid_t = geometry.normals_from_depth(torch.from_numpy(depth), torch.from_numpy(K))
    assert np.allclose(array, tensor.numpy(), atol=1e-12)
    assert np.array_equal(valid, valid_t.numpy())
    assert not valid[5, 4] and not valid[5, 5] and valid[8, 8]


def test_occlusion_edges_are_not_trusted(raw_sample):
    depth = np.full((20, 20), 2.0)
    depth[:, 10:] = 4.0
    _, valid = geometry.normals_from_depth(depth, raw_sample["K"])
    assert not valid[5:15, 9:11].any()
    assert valid[5:15, 3:8].all()


def test_normals_are_differentiable(raw_sample):
    depth = torch.from_numpy(raw_sample["depth"][:6, :7].astype(np.float64)).requires_grad_()
    K = torch.from_numpy(raw_sample["K"])
    assert torch.autograd.gradcheck(lambda d: geometry.normals_from_depth(d, K, 0.9)[0], depth)


def test_depth_is_planar_not_ray_length(raw_sample):
    points = geometry.back_project(raw_sample["depth"].astype(np.float64), raw_sample["K"])
    assert np.allclose(points[2], raw_sample["depth"])
    u, v = project(raw_sample["K"], points[:, 7, 30])
    assert (u, v) == pytest.approx((30, 7))


def test_light_import_without_torch():
    import subprocess
    import sys

    code = (
        "import sys, numpy as np; from m2h_lightning import geometry as g; "
        "g.normals_from_depth(np.ones((5, 5)), np.eye(3)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
