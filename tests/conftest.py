"""Shared settings: few threads, no network, no W&B account, and a synthetic raw sample."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import HealthCheck, settings

from samples import plane_sample

if "PYTEST_XDIST_WORKER" in os.environ:
    # Its workers ignore Ctrl-C, and so would everything that the tests start: some of them press it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("suite", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture
def raw_sample() -> dict:
    return plane_sample(48, 64)
