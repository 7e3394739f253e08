"""Losses between predictions of one image: each asks two tasks to describe the same scene."""

from __future__ import annotations

from torch import Tensor

from m2h_lightning.objectives.config import DepthNormalsConfig, EdgesSemsegConfig


def depth_normals_loss(
    depth: Tensor, normals: Tensor, intrinsics: Tensor, known: Tensor, config: DepthNormalsConfig
) -> tuple[Tensor, Tensor]:
    raise NotImplementedError


def edges_semseg_loss(
    edge_logits: Tensor, semseg_logits: Tensor, labels: Tensor, known: Tensor, config: EdgesSemsegConfig
) -> tuple[Tensor, Tensor]:
    raise NotImplementedError


def smoothness_loss(depth: Tensor, image: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError
