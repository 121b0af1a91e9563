"""Nearest points of the convex hull of the gradients: MGDA and CAGrad."""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg.lapack import dposv
from scipy.optimize import nnls

from mtlbench.linalg import pairs
from mtlbench.linalg.cone import dual_cone
from mtlbench.linalg.points import (
    EPS,
    TOLERANCE,
    Array,
    fail,
    lengths_of,
    residual,
    to_points,
    vanishes,
)


def min_norm(gramian: Array) -> tuple[Array, bool]:
    """Weights of the shortest vector in the convex hull of the gradients: min w'Gw over the simplex.

    Gradients of length zero share the weight among them. Where several weights give the shortest
    vector (linearly dependent gradients), one of them is returned.

    Args:
        gramian: (T, T) inner products of the gradients.

    Returns:
        (T,) weights on the simplex, and whether the vector is not zero, as far as a float64 Gramian can tell.

    Raises:
        ValueError: `gramian` is not square, finite and positive semidefinite (up to rounding).
        RuntimeError: the relative KKT residual of the result exceeds `TOLERANCE`.
    """
    if gramian.shape == (2, 2):
        pair, regular = pairs.min_norm(pairs.read(gramian))
        return np.array(pair), regular
    points = to_points(gramian)
    weights = nearest(points)
    violation = residual(points, weights, weights, level=None)
    if not violation <= TOLERANCE:
        fail("min_norm", gramian, f"relative KKT residual {violation:.1e} exceeds {TOLERANCE:.0e}")
    return weights, not vanishes(points, weights)


def conflict_averse(gramian: Array, *, c: float) -> tuple[Array, bool]:
    """Weights of CAGrad's direction: the d in a ball round the mean gradient whose worst product is best.

        max over d of min_i g_i.d with |d - g0| <= c |g0|, g0 the mean of the g_i
        dual: min over w in the simplex of g0.g_w + c |g0| |g_w|, g_w = J'w; d = g0 + c |g0| g_w / |g_w|

    For a given t = |g_w| / (c |g0|) the dual's solution is the point nearest the origin in the hull
    of the g_i + t g0. |g_w| / t falls as t grows, and on a given support |g_w|^2 is linear in t^2: a
    Newton iteration on t, kept in a bracket, ends with the exact root on the right support.

    Args:
        gramian: (T, T) inner products of the gradients.
        c: radius of the ball relative to |g0|, at least 0.

    Returns:
        (T,) weights of the gradients in d, and whether the problem is regular. It is not where g0 = 0 (d = 0), nor
        where g_w = 0: then no d in the ball improves every task, and of those that harm none, the d nearest g0 is
        returned. Where |g_w| is below 1e-6 of the gradients' lengths, a float64 Gramian gives d's distance from g0 to
        some 1e-5 only, and the weights exceed 1e5.

    Raises:
        ValueError: `gramian` is not square, finite and positive semidefinite (up to rounding).
        RuntimeError: the relative KKT residual of the result exceeds `TOLERANCE`.
    """
    if gramian.shape == (2, 2):
        pair, regular = pairs.conflict_averse(pairs.read(gramian), c=c)
        return np.array(pair), regular
    points = to_points(gramian)
    mean = np.full(len(points), 1 / len(points))
    center = mean @ points
    radius = c * math.sqrt(center @ center)
    regular = not vanishes(points, mean)
    weights = mean if regular else np.zeros_like(mean)
    if not regular or radius == 0:
        return weights, regular
    if vanishes(points, nearest(points)):
        harmless = dual_cone(gramian, mean[None])[0]
        step = (harmless - mean) @ points
        if step @ step <= radius * radius:
            return harmless, False
    multipliers = _ball(points, center, radius)
    if multipliers is None:
        fail("conflict_averse", gramian, f"no root in 100 steps for c={c}")
    weights = mean + multipliers
    violation = residual(points, multipliers, weights, level=None)
    if not violation <= TOLERANCE:
        fail("conflict_averse", gramian, f"relative KKT residual {violation:.1e} exceeds {TOLERANCE:.0e} for c={c}")
    return weights, True


def nearest(points: Array) -> Array:
    """(T,) simplex weights of the point of the hull that is nearest the origin."""
    lengths = lengths_of(points)
    shortest = lengths.min()
    if shortest == 0:
        return (lengths == 0) / np.count_nonzero(lengths == 0)
    # min |x'points|^2 + shortest^2 (sum x - 1)^2 over x >= 0 has its minimum on the same ray. Unit
    # columns, and a last row of the result's own size, keep it well conditioned.
    columns = np.empty((points.shape[1] + 1, len(points)))
    np.divide(points.T, lengths, out=columns[:-1])
    np.divide(shortest, lengths, out=columns[-1])
    target = np.zeros(len(columns))
    target[-1] = 1
    solution = nnls(columns, target)[0] / lengths
    return solution / solution.sum()


def _ball(points: Array, center: Array, radius: float) -> Array | None:
    """`conflict_averse`: (T,) multipliers v >= 0 with d = center + v'points and |d - center| = radius.

    None where the search for t does not end.
    """
    # No g_w is longer than the longest gradient; the slack keeps a root at that end inside the bracket.
    low, high = 0.0, (1 + 1e-9) * float(lengths_of(points).max()) / radius
    t = min(math.sqrt(center @ center) / radius, high)
    for step in range(100):
        weights = nearest(points + t * center)
        combination = weights @ points
        square = float(combination @ combination)
        excess = math.sqrt(square) - radius * t
        if abs(excess) <= 1e-13 * radius * t + 4 * EPS * float(weights @ lengths_of(points)):
            return weights / t
        low, high = (t, high) if excess > 0 else (low, t)
        # On this support |g_w|^2 = a + b t^2, where b is the squared length of the center's projection
        # on the differences of the support's points, taken from its shortest point, each of length 1.
        support = points[weights > 0]
        shortest = int(lengths_of(support).argmin())
        slope = 0.0
        if len(support) > 1:
            differences = np.delete(support, shortest, 0) - support[shortest]
            differences /= lengths_of(differences)[:, None]
            products = differences @ center
            slope = float(products @ dposv(differences @ differences.T, products)[1])
        root = (square - slope * t * t) / (radius * radius - slope) if radius * radius != slope else 0.0
        t = math.sqrt(low * high) if low > 0 else high / 100
        if low * low < root < high * high and step % 4 != 3:  # between two supports it can go to and fro
            t = math.sqrt(root)
    return None
