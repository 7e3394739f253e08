"""Rooms is geometrically right, furnished, and the same bytes everywhere."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from m2h_lightning.data.synthesis import generate, render
from m2h_lightning.data.synthesis.caster import Caster
from m2h_lightning.data.synthesis.draw import Draw
from m2h_lightning.data.synthesis.layout import ROOM_TYPES, make_room
from m2h_lightning.data.synthesis.meshes import Frame, Material, Mesh, compile_mesh
from m2h_lightning.labels import NYU40_CLASSES

SIZE = (60, 80)


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.concatenate([generate.render_room(0, "train", room, 3, *SIZE) for room in range(8)])


@pytest.fixture(scope="module")
def walk() -> np.ndarray:
    return generate.render_room(1, "train", 2, 5, 120, 160, mode="sequence")


def _back_project(depth: np.ndarray, K: np.ndarray) -> np.ndarray:
    v, u = np.mgrid[: depth.shape[0], : depth.shape[1]]
    return np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones(depth.shape)], -1) * depth[..., None]


def test_normals_from_depth_agree_with_the_stored_normals(samples):
    errors, away = [], []
    for record in samples:
        depth = record["depth"].astype(np.float64)
        points = _back_project(depth, record["K"])
        across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
        normal = np.cross(down, across)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        stored = render.decode_octahedral(record["normals"])[1:-1, 1:-1]
        errors.append(np.degrees(np.arccos(np.clip((normal * stored).sum(-1), -1, 1))))
        inner = depth[1:-1, 1:-1]
        around = [depth[i : i + inner.shape[0], j : j + inner.shape[1]] for i in range(3) for j in range(3)]
        jump = np.max(around, axis=0) - np.min(around, axis=0)
        # A smooth surface: the depth is locally linear, so that opposite neighbours average to the middle.
        bend = np.maximum(
            np.abs(depth[1:-1, 2:] + depth[1:-1, :-2] - 2 * inner),
            np.abs(depth[2:, 1:-1] + depth[:-2, 1:-1] - 2 * inner),
        )
        away.append((jump < 0.1 * inner) & (bend < 0.003 * inner))
    error, smooth = np.concatenate(errors), np.concatenate(away)
    assert smooth.mean() > 0.6
    assert np.median(error) < 0.5
    assert error[smooth].mean() < 3.0


def test_normals_are_unit_and_face_the_camera(samples):
    for record in samples:
        normals = render.decode_octahedral(record["normals"])
        assert np.allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
        rays = _back_project(np.ones(SIZE), record["K"])
        assert ((normals * rays).sum(-1) < 0).all()


def test_octahedral_code_is_finer_than_a_twentieth_of_a_degree():
    vectors = Draw(1, 2, 3).units(20000, 3) - 0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.concatenate([vectors, np.eye(3), -np.eye(3)])
    decoded = render.decode_octahedral(render.encode_octahedral(vectors)).astype(np.float64)
    sine = np.linalg.norm(np.cross(vectors, decoded), axis=1)
    assert np.degrees(np.arcsin(sine)).max() < 0.05
    assert ((vectors * decoded).sum(1) > 0).all()


def test_edges_lie_on_class_or_instance_borders_and_nowhere_else(samples):
    for record in samples:
        edges, label, instance = record["edges"], record["semseg"], record["instance"]
        expected = np.zeros(SIZE, np.uint8)
        for i in range(SIZE[0]):
            for j in range(SIZE[1]):
                for di, dj in ((0, 1), (1, 0)):
                    k, m = i + di, j + dj
                    if k < SIZE[0] and m < SIZE[1]:
                        differs = label[i, j] != label[k, m] or instance[i, j] != instance[k, m]
                        expected[i, j] |= differs
        assert np.array_equal(edges, expected)
        assert 0.01 < edges.mean() < 0.4


def test_instances_have_one_class_each(samples):
    for record in samples:
        for instance in np.unique(record["instance"]):
            assert instance > 0
            assert len(np.unique(record["semseg"][record["instance"] == instance])) == 1


def test_depth_is_everywhere_valid_and_in_range(samples):
    depth = samples["depth"]
    assert np.isfinite(depth).all()
    assert depth.min() > 0.1
    assert depth.max() < 10.0
    assert np.median(depth) > 1.2


def test_thirteen_classes_and_more_are_common(samples):
    present = np.array([[(record["semseg"] == c).any() for c in range(40)] for record in samples])
    assert (present.mean(0) >= 0.05).sum() >= 13
    assert present.sum(1).min() >= 4
    assert samples["semseg"].max() < len(NYU40_CLASSES)


def test_pictures_are_exposed_and_coloured(samples):
    means = samples["image"].reshape(len(samples), -1).mean(1)
    assert (means > 60).all()
    assert (means < 190).all()
    assert (samples["image"].reshape(len(samples), -1).std(1) > 15).all()


def test_intrinsics_are_those_of_the_stated_field_of_view(samples):
    for K in samples["K"]:
        angle = np.degrees(2 * np.arctan(SIZE[1] / 2 / K[0, 0]))
        assert 54 < angle < 76
        assert K[0, 0] == K[1, 1]
    assert len({float(K[0, 0]) for K in samples["K"]}) == len(samples)


def test_warping_along_a_walk_agrees(walk):
    for first, second in itertools.pairwise(walk):
        points = _back_project(first["depth"].astype(np.float64), first["K"]).reshape(-1, 3)
        world = points @ first["pose"][:3, :3].T + first["pose"][:3, 3]
        local = (world - second["pose"][:3, 3]) @ second["pose"][:3, :3]
        u = local[:, 0] / local[:, 2] * second["K"][0, 0] + second["K"][0, 2]
        v = local[:, 1] / local[:, 2] * second["K"][1, 1] + second["K"][1, 2]
        j, i = np.rint(u).astype(int), np.rint(v).astype(int)
        height, width = second["depth"].shape
        inside = (i >= 0) & (i < height) & (j >= 0) & (j < width) & (local[:, 2] > 0)
        same = np.zeros_like(inside)
        same[inside] = second["instance"][i[inside], j[inside]] == first["instance"].reshape(-1)[inside]
        assert same.mean() > 0.5
        relative = np.abs(second["depth"][i[same], j[same]] - local[same, 2]) / local[same, 2]
        assert np.median(relative) < 0.01
        step = np.linalg.norm(first["pose"][:3, 3] - second["pose"][:3, 3])
        assert step < 0.12


def test_poses_are_rigid_and_upright(walk, samples):
    for pose in [*walk["pose"], *samples["pose"]]:
        rotation = pose[:3, :3]
        assert np.allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) > 0.999
        assert rotation[2, 1] < -0.8  # the camera's y points down, the room's z up
        assert 1.1 < pose[2, 3] < 1.9


def test_splits_and_seeds_show_different_rooms():
    pictures = [
        generate.render_room(seed, split, room, 1, 30, 40)["image"].tobytes()
        for seed, split, room in ((0, "train", 0), (0, "val", 0), (0, "test", 0), (1, "train", 0), (0, "train", 1))
    ]
    assert len(set(pictures)) == len(pictures)


def test_furniture_does_not_interpenetrate():
    for room in range(12):
        furnished, _ = make_room(Draw(0, 0, room, 0), ROOM_TYPES[room % 5])
        taken = [rect for rect in furnished.taken if rect.height > 0]
        for index, one in enumerate(taken):
            for other in taken[index + 1 :]:
                # Footprints of turned chairs are their bounding rectangles: allow what the turn adds.
                assert not one.overlaps(other, -0.05), (room, one, other)


def test_a_ray_along_an_edge_is_decided_the_same_from_both_faces():
    """Rays exactly through the edges and corners of a box see the box, and each the same face as their equals."""
    mesh = Mesh()
    grey = Material(0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    mesh.begin(0, Frame())
    mesh.add(np.array([[(-9, 5, -9), (9, 5, -9), (9, 5, 9), (-9, 5, 9)]]), grey)
    mesh.begin(1, Frame())
    mesh.box((-1, 2, -1), (1, 3, 1), grey)
    caster = Caster(compile_mesh(mesh))
    origin = np.array([3.0, 0.0, 3.0])  # sees front, right and top
    along = np.linspace(-0.9, 0.9, 37)
    targets = np.stack([np.ones(37), np.full(37, 2.0), along], axis=1)  # the edge between front and right
    face = caster.first_faces(origin, targets - origin)
    assert (caster.faces.label[face] == 1).all()
    assert len(np.unique(face)) == 1
    # Seen edge-on at a silhouette, a ray within the margin goes past, whatever the caster says.
    origin = np.array([0.0, 0.0, 0.0])
    exact, inside, outside = (
        caster.first_faces(origin, np.array([[x, 2.0, 0.1]])) for x in (1.0, 1.0 - 1e-4, 1.0 + 1e-4)
    )
    assert caster.faces.label[inside] == 1
    assert caster.faces.label[outside] == 0
    assert caster.faces.label[exact] == 0


def test_shadow_rays():
    mesh = Mesh()
    grey = Material(0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    mesh.begin(0, Frame())
    mesh.box((-1, 2, -1), (1, 3, 1), grey)
    mesh.begin(1, Frame(), casts_shadow=False)
    mesh.box((-3, 1, -3), (3, 1.2, 3), grey)
    caster = Caster(compile_mesh(mesh))
    origins = np.zeros((4, 3))
    ends = np.array([[0, 5, 0], [0, 1.9, 0], [4, 5, 0], [0.999, 4, 0.2]], np.float64)
    assert caster.occluded(origins, ends).tolist() == [True, False, False, True]


_HASH = """
import hashlib, sys
import numpy as np
from m2h_lightning.data.synthesis import generate
assert "torch" not in sys.modules
for room in (4, 9):
    print(hashlib.sha256(generate.render_room(5, "val", room, 2, 60, 80).tobytes()).hexdigest())
print(hashlib.sha256(generate.render_room(5, "val", 1, 2, 60, 80, mode="sequence").tobytes()).hexdigest())
"""


def test_same_bytes_in_fresh_processes_and_without_the_cpus_vector_instructions():
    here = [hashlib.sha256(generate.render_room(5, "val", room, 2, 60, 80).tobytes()).hexdigest() for room in (4, 9)]
    here.append(hashlib.sha256(generate.render_room(5, "val", 1, 2, 60, 80, "sequence").tobytes()).hexdigest())
    # As on a CPU without AVX2 and AVX-512: numpy then takes other code paths for the same operations.
    disabled = " ".join(np._core._multiarray_umath.__cpu_dispatch__)
    for environment in ({}, {"NPY_DISABLE_CPU_FEATURES": disabled}):
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _HASH],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.split() == here


def test_no_two_faces_of_an_object_lie_in_each_other():
    """Coincident faces would leave it to the ray caster's rounding which of them a pixel sees."""
    for room in range(5):
        furnished, _ = make_room(Draw(0, 0, room, 0), ROOM_TYPES[room % 5])
        faces = compile_mesh(furnished.mesh)
        order = np.argsort(faces.offset)
        offset, normal = faces.offset[order], faces.normal[order]
        for step in range(1, 200):  # neighbours in offset; a plane holds fewer faces than this
            near = offset[step:] - offset[:-step] < 2e-5
            near &= np.abs(normal[step:] - normal[:-step]).max(1) < 2e-5
            if not near.any() and (offset[step:] - offset[:-step]).min() > 2e-5:
                break
            for one, other in zip(order[:-step][near], order[step:][near], strict=True):
                assert _apart(faces, one, other) or _apart(faces, other, one), (room, faces.label[[one, other]])


def _apart(faces, one: int, other: int) -> bool:
    """Whether some edge of a face has all corners of another face beyond it, or within a tenth of a millimetre."""
    for m, o in ((side[:3], side[3]) for side in faces.side[one]):
        if np.isfinite(o) and (o - faces.corners[other] @ m).max() < 1e-4:
            return True
    return False
