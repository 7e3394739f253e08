"""One-to-one assignment of predicted to true boundary pixels within a distance."""

from __future__ import annotations

import numpy as np


def _expand(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Concatenate the ranges ``starts[i] … starts[i] + counts[i] − 1``."""
    ends = np.cumsum(counts)
    return np.repeat(starts - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)


class Matching:
    """A one-to-one assignment of predicted to true boundary pixels, as large as possible, as predictions come and go.

    The benchmark's assignment (``correspondPixels``) minimises the total distance with a penalty for unassigned pixels
    that exceeds every distance, so it has the largest possible number of pairs; the counts of precision and recall
    depend on that number alone, not on which of the largest assignments it is. It is found by growing disjoint
    alternating trees from all unassigned predictions at once (breadth first, after Azad, Buluç and Pothen, "Computing
    Maximum Cardinality Matchings in Parallel on Bipartite Graphs via Tree-Grafting", TPDS 2017) until no tree finds a
    free true pixel: then the assignment is maximum (Berge). Deterministic.

    Args:
        predicted: Sorted flat indices (row · width + column) of every pixel that may ever be predicted.
        truth: bool H×W, the true boundary.
        radius: Largest distance of a pair in pixels, inclusive.
    """

    def __init__(self, predicted: np.ndarray, truth: np.ndarray, radius: float) -> None:
        self._first, self._degree, self._targets = _pairs(predicted, truth, radius)
        self._true_of = np.full(len(predicted), -1, dtype=np.int64)
        self._predicted_of = np.full(int(truth.sum()), -1, dtype=np.int64)
        self._root = np.full(len(predicted), -1, dtype=np.int64)
        self._parent = np.full(len(self._predicted_of), -1, dtype=np.int64)
        self._end = np.full(len(predicted), -1, dtype=np.int64)
        self._closed = np.zeros(len(self._predicted_of), dtype=bool)

    def assigned(self) -> np.ndarray:
        """Return which of the possible predictions have a partner, bool."""
        return self._true_of >= 0

    def partners(self) -> np.ndarray:
        """Return the index of each possible prediction's partner among the true pixels in row order; −1 without."""
        return self._true_of.copy()

    def keep(self, active: np.ndarray) -> None:
        """Withdraw the predictions outside the boolean mask ``active``."""
        gone = (self._true_of >= 0) & ~active
        self._predicted_of[self._true_of[gone]] = -1
        self._true_of[gone] = -1
        self._closed[:] = False

    def add(self, predictions: np.ndarray) -> int:
        """Assign more predictions, reassigning others where that helps; none loses its partner altogether.

        A prediction that finds no partner will find none as long as predictions are only added, and neither will one
        through any true pixel that it could reach: these are left out of later searches until :meth:`keep`.

        Args:
            predictions: Indices of unassigned predictions.

        Returns:
            How many of them, at most, have been assigned.
        """
        roots = predictions[self._degree[predictions] > 0]
        total = 0
        while len(roots):
            visited = self._closed.copy()
            found = self._search(roots, visited)
            if not found:
                self._closed = visited
                break
            total += found
            roots = roots[self._true_of[roots] < 0]
        return total

    def _search(self, roots: np.ndarray, visited: np.ndarray) -> int:
        """Grow a tree from every root and flip the paths that reach a free true pixel; returns their number."""
        root, parent, end = self._root, self._parent, self._end
        root[roots] = roots
        end[roots] = -1
        frontier = roots
        while len(frontier):
            degree = self._degree[frontier]
            targets = self._targets[_expand(self._first[frontier], degree)]
            sources = np.repeat(frontier, degree)
            new = ~visited[targets]
            targets, sources = targets[new], sources[new]
            parent[targets] = sources  # where trees meet, one of them gets the pixel
            won = parent[targets] == sources
            targets, sources = targets[won], sources[won]
            visited[targets] = True
            mates, trees = self._predicted_of[targets], root[sources]
            free = mates < 0
            end[trees[free]] = targets[free]
            mates, trees = mates[~free], trees[~free]
            root[mates] = trees
            frontier = mates[end[trees] < 0]
        ends = end[roots]
        ends = ends[ends >= 0]
        found = len(ends)
        while len(ends):
            sources = parent[ends]
            following = self._true_of[sources]
            self._true_of[sources] = ends
            self._predicted_of[ends] = sources
            ends = following[following >= 0]
        return found


def _pairs(predicted: np.ndarray, truth: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List the true pixels within reach of every predicted one.

    True pixels are numbered row by row, so those of one row within reach follow each other: a running count tells them.

    Returns:
        Per predicted pixel the position of its first true pixel in the list and their number, and the list.
    """
    height, width = truth.shape
    before = np.zeros(truth.size + 1, dtype=np.int64)
    np.cumsum(truth.reshape(-1), out=before[1:])
    rows, columns = np.divmod(predicted, width)
    reach = int(radius)
    starts, counts = [], []
    for dy in range(-reach, reach + 1):
        half = int(np.sqrt(radius**2 - dy**2))
        row = rows + dy
        inside = (row >= 0) & (row < height)
        base = np.where(inside, row, 0) * width
        start = before[base + np.maximum(columns - half, 0)]
        stop = before[base + np.minimum(columns + half, width - 1) + 1]
        starts.append(start)
        counts.append(np.where(inside, stop - start, 0))
    start, count = np.stack(starts, 1), np.stack(counts, 1)
    degree = count.sum(1)
    targets = _expand(start.reshape(-1), count.reshape(-1))
    return np.cumsum(degree) - degree, degree, targets
