"""Procedural textures: one atlas of small periodic pictures with mip levels, made once per process (about 0.3 s).

A texture holds values in 0…255 per channel; a material turns them into an albedo by mixing its two colours
(``c0 + (c1 - c0) * texture``). Pictures, rugs and window views carry colours of their own and mix black with white.
Only + - * / and floor are used, so every machine makes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from m2h_lightning.data.synthesis import patterns, pictures
from m2h_lightning.data.synthesis.draw import Draw
from m2h_lightning.data.synthesis.noise import SIZE

LEVELS = 6  # 256, 128, 64, 32, 16, 8
_LIBRARY_SEED = 20240  # the library is one and the same for every data set seed; rooms vary by what they choose of it


_RECIPES: dict[str, tuple[Callable[[Draw], np.ndarray], int]] = {
    "plain": (patterns.plain, 2),
    "plaster": (patterns.plaster, 3),
    "carpet": (patterns.carpet, 3),
    "grain": (patterns.grain, 5),
    "planks": (patterns.planks, 5),
    "tiles": (patterns.tiles, 5),
    "bricks": (patterns.bricks, 1),
    "stripes": (patterns.stripes, 5),
    "weave": (patterns.weave, 2),
    "checks": (patterns.checks, 3),
    "dots": (patterns.dots, 3),
    "marble": (patterns.marble, 2),
    "art": (pictures.art, 16),
    "rug": (pictures.rug, 8),
    "outdoor": (pictures.outdoor, 5),
    "screen": (pictures.screen, 4),
    "paper": (pictures.sheet_of_text, 2),
    "board": (pictures.board, 2),
}


@dataclass(frozen=True)
class Atlas:
    """All textures in one array.

    Attributes:
        texels: uint32, flat; each holds R, G, B, 0 as its four bytes in memory order.
        level_start: For each mip level the index of its first texel.
        layers: For each kind of texture its layer numbers.
    """

    texels: np.ndarray
    level_start: np.ndarray
    layers: dict[str, tuple[int, ...]]


@lru_cache(maxsize=1)
def atlas() -> Atlas:
    """The texture library of this process."""
    made: list[np.ndarray] = []
    layers: dict[str, tuple[int, ...]] = {}
    for kind, (recipe, variants) in _RECIPES.items():
        first = len(made)
        for variant in range(variants):
            draw = Draw(_LIBRARY_SEED, first, variant)
            made.append(np.clip(np.broadcast_to(recipe(draw), (SIZE, SIZE, 3)), 0.0, 1.0))
        layers[kind] = tuple(range(first, len(made)))
    level = np.stack(made)
    parts, starts, start = [], [], 0
    for _ in range(LEVELS):
        rgbx = np.zeros((*level.shape[:3], 4), np.uint8)
        rgbx[..., :3] = np.floor(level * 255.0 + 0.5).astype(np.uint8)
        parts.append(rgbx.reshape(-1).view(np.uint32))
        starts.append(start)
        start += parts[-1].size
        level = (level[:, ::2, ::2] + level[:, 1::2, ::2] + level[:, ::2, 1::2] + level[:, 1::2, 1::2]) * 0.25
    return Atlas(np.concatenate(parts), np.array(starts, np.int32), layers)
