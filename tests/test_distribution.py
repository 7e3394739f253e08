"""Scores do not depend on how many processes share the images."""

import json
import math
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli_helpers import process_environment

SCRIPT = Path(__file__).parent / "distributed_scores.py"


def scores_of(world, cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), str(world), str(port)],
            env=process_environment(cache),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0] * world, outputs
    return json.loads(outputs[0][0].splitlines()[-1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(cache):
    return scores_of(1, cache)


def test_one_process_scores_every_metric(alone):
    assert alone["images"] == 7
    groups = {key.split("/")[0] for key in alone}
    assert {"semseg", "depth", "normals", "edges", "consistency", "seams"} <= groups
    for key in (
        "semseg/miou", "semseg/miou_per_image", "depth/rmse_m", "depth/rmse_m_per_image", "normals/median_deg",
        "edges/odsf", "edges/odsf_fast", "edges/oisf", "edges/ap", "semseg/ece", "semseg/miou_trimap3",
        "semseg/iou/dark", "consistency/depth_normals_deg", "seams/depth_error",
    ):  # fmt: skip
        assert math.isfinite(alone[key]), key


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_give_the_same_scores(alone, world, cache):
    together = scores_of(world, cache)
    assert set(together) == set(alone)
    for key, value in alone.items():
        assert together[key] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), key
