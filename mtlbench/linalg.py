"""Exact solvers for the T x T problems of balancers: small, dense, float64, on the CPU.

A Gramian G = J J' is first factored into points: rows x with x_i.x_j = G_ij. The factor is taken of
the matrix of cosines, so that gradients of very different lengths keep their digits. Every problem
then is a non-negative least squares problem in the points, which an active-set method (scipy's,
Lawson and Hanson) solves in finitely many steps: no step size, no stopping rule. Each result is
checked against its optimality conditions before it is returned.
"""

from __future__ import annotations

import math
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv
from scipy.optimize import nnls
from torch import Tensor

Array = NDArray[np.float64]

TOLERANCE = 1e-9
_EPS = float(np.finfo(np.float64).eps)


def min_norm(gramian: Tensor) -> Tensor:
    """Weights of the shortest vector in the convex hull of the gradients: min w'Gw over the simplex.

    Gradients of length zero share the weight among them. Where several weights give the shortest
    vector (linearly dependent gradients), one of them is returned.

    Args:
        gramian: (T, T) inner products of the gradients.

    Returns:
        (T,) float64 weights on the simplex, on `gramian`'s device.

    Raises:
        ValueError: `gramian` is not square, finite and positive semidefinite (up to rounding).
        RuntimeError: the relative KKT residual of the result exceeds `TOLERANCE`.
    """
    points = _points(gramian)
    weights = _nearest(points)
    residual = _residual(points, weights, weights, level=None)
    if not residual <= TOLERANCE:
        _fail("min_norm", gramian, f"relative KKT residual {residual:.1e} exceeds {TOLERANCE:.0e}")
    return torch.from_numpy(weights).to(gramian.device)


def conflict_averse(gramian: Tensor, *, c: float) -> tuple[Tensor, bool]:
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
        (T,) float64 weights of the gradients in d, on `gramian`'s device, and whether the problem
        is regular. It is not where g0 = 0 (d = 0), nor where g_w = 0: then no d in the ball improves
        every task, and of those that harm none, the d nearest g0 is returned.

    Raises:
        ValueError: `gramian` is not square, finite and positive semidefinite (up to rounding).
        RuntimeError: the relative KKT residual of the result exceeds `TOLERANCE`.
    """
    points = _points(gramian)
    mean = np.full(len(points), 1 / len(points))
    center = mean @ points
    radius = c * math.sqrt(center @ center)
    regular = not _is_zero(points, mean)
    weights = mean if regular else np.zeros_like(mean)
    if regular and radius > 0:
        solved = _ball(points, center, radius)
        if solved is None:
            _fail("conflict_averse", gramian, f"no root in 100 steps for c={c}")
        multipliers, regular = solved
        weights = mean + multipliers
        residual = _residual(points, multipliers, weights, level=None if regular else 0.0)
        if not residual <= TOLERANCE:
            _fail("conflict_averse", gramian, f"relative KKT residual {residual:.1e} exceeds {TOLERANCE:.0e} for c={c}")
    return torch.from_numpy(weights).to(gramian.device), regular


def kkt_residual(gramian: Tensor, multipliers: Tensor, weights: Tensor, *, level: float | None = None) -> float:
    """Largest relative violation of the optimality conditions of the problems above, for tests.

    With y = G weights, the products of the gradients with the direction: y_i >= level for all i, with
    equality where multipliers_i > 0. The violation of row i is taken relative to what rounding of G
    alone can cause, (|g_i| + the mean |g_j| under the multipliers) * sum_j |weights_j| |g_j|, which is
    at most 2 max(diag G) |weights|_1.

    Args:
        gramian: (T, T) inner products of the gradients.
        multipliers: (T,) non-negative multipliers of the constraints, of any scale.
        weights: (T,) weights of the direction.
        level: the common product; None for the multipliers' mean of y.

    Returns:
        The residual, at least 0; infinite for a negative or non-finite multiplier.
    """
    points = _points(gramian)
    return _residual(points, multipliers.cpu().double().numpy(), weights.cpu().double().numpy(), level=level)


def is_zero(gramian: Tensor, weights: Tensor) -> bool:
    """Whether the combination of the gradients is zero, as far as a float64 Gramian can tell.

    Args:
        gramian: (T, T) inner products of the gradients.
        weights: (T,) weights of the combination.
    """
    scale = weights.abs() @ gramian.diagonal().sqrt()
    return bool(weights @ gramian @ weights <= 4 * len(weights) * _EPS * scale * scale)


def _points(gramian: Tensor) -> Array:
    """(T, rank) points whose inner products are the Gramian's, up to a common factor."""
    matrix = gramian.detach().cpu().double().numpy()
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"Expected a Gramian of shape (T, T), got shape {tuple(gramian.shape)}.")
    if not np.isfinite(matrix).all() or matrix.diagonal().min() < 0:
        raise ValueError(f"Expected a finite Gramian with a non-negative diagonal, got\n{matrix}")
    lengths = np.sqrt(matrix.diagonal())
    divisors = np.where(lengths > 0, lengths, 1.0)
    values, vectors = np.linalg.eigh(matrix / divisors[:, None] / divisors)
    if values[0] < -0.05 * values[-1]:  # coarser than what rows in bfloat16 lose
        raise ValueError(f"Expected a positive semidefinite Gramian, its cosines have eigenvalues\n{values}\n{matrix}")
    # Smaller eigenvalues are rounding; their roots would be spurious directions of length 1e-8.
    kept = values > len(values) * _EPS * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept]) * (lengths / (lengths.max() or 1.0))[:, None]


def _lengths(points: Array) -> Array:
    return np.sqrt((points * points).sum(1))


def _is_zero(points: Array, weights: Array) -> bool:
    combination = weights @ points
    scale = np.abs(weights) @ _lengths(points)
    return bool(combination @ combination <= 4 * len(points) * _EPS * scale * scale)


def _nearest(points: Array) -> Array:
    """(T,) simplex weights of the point of the hull that is nearest the origin."""
    lengths = _lengths(points)
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


def _ball(points: Array, center: Array, radius: float) -> tuple[Array, bool] | None:
    """`conflict_averse`: (T,) multipliers v >= 0 with d = center + v'points, and whether |d - center| = radius.

    None where the search for t does not end.
    """
    if _is_zero(points, _nearest(points)):
        divisors = _lengths(points)
        divisors[divisors == 0] = 1.0
        multipliers = nnls((points / divisors[:, None]).T, -center)[0] / divisors
        step = multipliers @ points
        if step @ step <= radius * radius:
            return multipliers, False
    # No g_w is longer than the longest gradient; the slack keeps a root at that end inside the bracket.
    low, high = 0.0, (1 + 1e-9) * float(_lengths(points).max()) / radius
    t = min(math.sqrt(center @ center) / radius, high)
    for _ in range(100):
        weights = _nearest(points + t * center)
        combination = weights @ points
        square = float(combination @ combination)
        excess = math.sqrt(square) - radius * t
        if abs(excess) <= 1e-13 * radius * t + 4 * _EPS * float(weights @ _lengths(points)):
            return weights / t, True
        low, high = (t, high) if excess > 0 else (low, t)
        # On this support |g_w|^2 = a + b t^2, where b is the squared length of the center's projection
        # on the differences of the support's points, taken from its shortest point, each of length 1.
        support = points[weights > 0]
        shortest = int(_lengths(support).argmin())
        slope = 0.0
        if len(support) > 1:
            differences = np.delete(support, shortest, 0) - support[shortest]
            differences /= _lengths(differences)[:, None]
            products = differences @ center
            slope = float(products @ dposv(differences @ differences.T, products)[1])
        root = (square - slope * t * t) / (radius * radius - slope) if radius * radius != slope else 0.0
        t = math.sqrt(low * high) if low > 0 else high / 100
        if low * low < root < high * high:
            t = math.sqrt(root)
    return None


def _residual(points: Array, multipliers: Array, weights: Array, *, level: float | None) -> float:
    if not (np.isfinite(multipliers).all() and np.isfinite(weights).all() and multipliers.min() >= 0):
        return math.inf
    lengths = _lengths(points)
    products = points @ (weights @ points)
    spread = 0.0
    if level is None:
        share = multipliers / multipliers.sum()
        level, spread = share @ products, share @ lengths
    violation = np.where(multipliers > 0, np.abs(products - level), np.maximum(level - products, 0))
    bounds = (lengths + spread) * (np.abs(weights) @ lengths)
    return float(np.max(violation / np.where(bounds > 0, bounds, 1.0)))


def _fail(solver: str, gramian: Tensor, reason: str) -> NoReturn:
    matrix = np.array2string(gramian.detach().cpu().double().numpy(), precision=17, threshold=2000)
    raise RuntimeError(f"{solver}: {reason}, on the Gramian\n{matrix}")
