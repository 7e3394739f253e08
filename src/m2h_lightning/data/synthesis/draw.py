"""Random draws that are the same on every machine, in every process and with every numpy.

Only the *bit stream* of PCG64 and ``SeedSequence`` is used: numpy guarantees both for ever, while the methods of
``Generator`` may change between versions, and may round differently where a compiler fuses multiply and add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Draw:
    """A stream of random numbers named by a tuple of integers.

    Args:
        entropy: Non-negative integers. Give every stream the same number of them: ``(1, 2)`` and ``(1, 2, 0)`` name
            the same stream.
    """

    def __init__(self, *entropy: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(entropy))

    def unit(self) -> float:
        """A float in [0, 1) with 53 random bits."""
        return (int(self._bits.random_raw()) >> 11) * (1.0 / 9007199254740992.0)

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high)."""
        return low + (high - low) * self.unit()

    def integer(self, n: int) -> int:
        """An integer in 0 … n-1."""
        return int(self.unit() * n)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.unit() < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of ``options``."""
        return options[self.integer(len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """A copy of ``options`` in random order (Fisher-Yates)."""
        items = list(options)
        for last in range(len(items) - 1, 0, -1):
            other = self.integer(last + 1)
            items[last], items[other] = items[other], items[last]
        return items

    def bytes(self, count: int) -> np.ndarray:
        """``count`` random bytes, uint8, the same on little- and big-endian machines."""
        return self._bits.random_raw((count + 7) // 8).astype("<u8").view(np.uint8)[:count]

    def units(self, *shape: int) -> np.ndarray:
        """Floats in [0, 1), float64, of the given shape."""
        count = int(np.prod(shape))
        return ((self._bits.random_raw(count) >> np.uint64(11)) * (1.0 / 9007199254740992.0)).reshape(shape)
