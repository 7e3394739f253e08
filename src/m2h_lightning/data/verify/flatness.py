"""Is depth planar? Where no independent normals can tell, walls and floors can: they are flat only if it is.

On a plane the inverse of z is linear over the picture; of a Euclidean distance, or of an inverse depth taken for a
depth, another quantity is. Each large block without a jump votes for the idea under which it is flattest, if one is
flatter than the others by far.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from m2h_lightning.data.verify.planes import IDEAS, blocks_of, fit_planes, smooth_blocks
from m2h_lightning.data.verify.problems import Finding

_FEWEST, _MOST = 40, 0.7
"""So many votes are needed to say anything, and this share of them to say that depth is something else."""
_TEXT = {
    "distance": "the Euclidean distance along the ray",
    "inverse": "inverse depth or disparity",
    "divided": "planar depth that was converted from distance once too often",
}


@dataclass
class FlatnessTally:
    """Votes for each of ``IDEAS``."""

    votes: np.ndarray = field(default_factory=lambda: np.zeros(len(IDEAS), np.int64))

    def add(self, other: FlatnessTally) -> None:
        """Add the votes of other samples."""
        self.votes = self.votes + other.votes


def tally_flatness(depth: np.ndarray, K: np.ndarray) -> FlatnessTally:
    """Let the blocks of one sample vote.

    Args:
        depth: (H, W), 0 = unknown.
        K: Intrinsics (3, 3), known.
    """
    size = max(min(depth.shape) // 10, 4)
    blocks = blocks_of(K, depth.shape, size)
    smooth = smooth_blocks(depth, size)
    rests = np.stack([fit_planes(depth, blocks, idea)[1][smooth] for idea in IDEAS])
    ranked = np.sort(rests, axis=0)
    clear = (ranked[0] < 0.5 * ranked[1]) & (ranked[1] > 1e-9)  # below that all are flat: a wall seen head-on
    return FlatnessTally(np.bincount(rests.argmin(0)[clear], minlength=len(IDEAS)))


def judge_flatness(tally: FlatnessTally) -> list[Finding]:
    """Warn when most surfaces are flat only under another idea of depth."""
    total, best = int(tally.votes.sum()), int(tally.votes.argmax())
    if total < _FEWEST or not best or tally.votes[best] < _MOST * total:
        return []
    return [
        Finding(
            "warning",
            "depth",
            f"depth looks like {_TEXT[IDEAS[best]]}, not planar depth: {tally.votes[best]} of {total} surfaces are "
            "flat only then",
            "see how the set defines its depth",
        )
    ]
