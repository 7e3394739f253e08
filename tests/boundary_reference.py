"""The boundary benchmark once more, pixel by pixel as its parts are defined: slow, and sharing no code with ours."""

import math

import numpy as np
from scipy.optimize import linear_sum_assignment


def slow_region_boundaries(regions):
    height, width = regions.shape
    result = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0), (1, 1)):
                if y + dy < height and x + dx < width:
                    result[y, x] |= regions[y, x] != regions[y + dy, x + dx]
    return result


def slow_thin(mask):
    """Lam, Lee and Suen 1992, p. 879: x[1] is the east neighbour, then counter-clockwise (rows grow downwards)."""
    mask = mask.copy()
    height, width = mask.shape
    steps = {1: (0, 1), 2: (-1, 1), 3: (-1, 0), 4: (-1, -1), 5: (0, -1), 6: (1, -1), 7: (1, 0), 8: (1, 1)}

    def at(y, x):
        return 0 <= y < height and 0 <= x < width and bool(mask[y, x])

    while True:
        before = mask.copy()
        for first in (True, False):
            gone = []
            for y, x in np.argwhere(mask):
                v = {k: at(y + dy, x + dx) for k, (dy, dx) in steps.items()}
                v[9] = v[1]
                g1 = sum(not v[2 * i - 1] and (v[2 * i] or v[2 * i + 1]) for i in range(1, 5)) == 1
                n1 = sum(v[2 * k - 1] or v[2 * k] for k in range(1, 5))
                n2 = sum(v[2 * k] or v[2 * k + 1] for k in range(1, 5))
                a, b, c, d = (2, 3, 8, 1) if first else (6, 7, 4, 5)
                g3 = not ((v[a] or v[b] or not v[c]) and v[d])
                if g1 and 2 <= min(n1, n2) <= 3 and g3:
                    gone.append((y, x))
            for y, x in gone:
                mask[y, x] = False
        if (mask == before).all():
            return mask


def slow_orientation(edges, radius=4):
    """Second derivatives of the map smoothed by a triangle, in double precision."""
    height, width = edges.shape

    def mirrored(i, n):  # … 1 0 | 0 1 2 … n−1 | n−1 n−2 …
        i %= 2 * n
        return i if i < n else 2 * n - 1 - i

    weight = {d: (radius + 1 - abs(d)) / (radius + 1) ** 2 for d in range(-radius, radius + 1)}
    rows = np.zeros((height, width))
    smooth = np.zeros((height, width))
    for y in range(height):
        for d, w in weight.items():
            rows[y] += w * edges[mirrored(y + d, height)]
    for x in range(width):
        for d, w in weight.items():
            smooth[:, x] += w * rows[:, mirrored(x + d, width)]

    def slope(values, dy, dx):
        result = np.zeros_like(values)
        for y in range(height):
            for x in range(width):
                y0, y1 = max(y - dy, 0), min(y + dy, height - 1)
                x0, x1 = max(x - dx, 0), min(x + dx, width - 1)
                length = (y1 - y0) + (x1 - x0)
                result[y, x] = (values[y1, x1] - values[y0, x0]) / length if length else 0
        return result

    down = slope(smooth, 1, 0)
    xx, xy, yy = slope(slope(smooth, 0, 1), 0, 1), slope(down, 0, 1), slope(down, 1, 0)
    return np.mod(np.arctan(yy * np.sign(-xy) / (xx + 1e-5)), math.pi)


def slow_suppress(edges, angle):
    height, width = edges.shape

    def value(x, y):
        x = min(max(x, 0), width - 1.001)
        y = min(max(y, 0), height - 1.001)
        x0, y0 = int(x), int(y)
        fx, fy = x - x0, y - y0
        return (
            edges[y0, x0] * (1 - fx) * (1 - fy)
            + edges[y0, x0 + 1] * fx * (1 - fy)
            + edges[y0 + 1, x0] * (1 - fx) * fy
            + edges[y0 + 1, x0 + 1] * fx * fy
        )

    result = edges.astype(float)
    for y in range(height):
        for x in range(width):
            for d in (-1, 1):
                if edges[y, x] * 1.01 < value(x + d * math.cos(angle[y, x]), y + d * math.sin(angle[y, x])):
                    result[y, x] = 0
    s = min(5, height // 2, width // 2)
    for y in range(height):
        for x in range(width):
            for distance in (min(x, width - 1 - x), min(y, height - 1 - y)):
                result[y, x] *= min(distance / s, 1)
    return result


def slow_pairs(predicted, truth, radius):
    """The largest number of pairs, and their least total distance, by a dense assignment."""
    a, b = np.argwhere(predicted), np.argwhere(truth)
    if not len(a) or not len(b):
        return 0, 0.0
    distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    alone = 1e4  # a pair too far apart costs more than any number of near ones
    cost = np.where(distance <= radius, distance, alone)
    rows, columns = linear_sum_assignment(cost)
    near = cost[rows, columns] < alone
    return int(near.sum()), float(cost[rows, columns][near].sum())


def slow_counts(levels, labels, max_dist, thresholds):
    """cntR, sumR, cntP, sumP per threshold."""
    edges = levels.astype(float) / 255
    known = labels != 255
    truth = slow_thin(slow_region_boundaries(labels == 1)) & known
    strength = slow_suppress(edges, slow_orientation(edges))
    radius = max_dist * math.hypot(*labels.shape)
    result = []
    for threshold in thresholds:
        line = slow_thin(strength > threshold + 1e-7) & known
        pairs, _ = slow_pairs(line, truth, radius)
        result.append([pairs, truth.sum(), pairs, line.sum()])
    return np.array(result)
