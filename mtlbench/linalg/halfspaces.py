"""The point nearest to one gradient that makes enough progress on the others: PCD."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from mtlbench.linalg import pairs
from mtlbench.linalg.points import TOLERANCE, Array, fail, lengths_of, to_points


def least_change(gramian: Array, shares: Array, *, center: int) -> Array | None:
    """Weights of the direction nearest to one gradient that gives each other one a share of its own progress.

        min |d - g_c| over d with g_j.d >= shares_j |g_j|^2 for all j but c
        d = w'J with w_c = 1, w_j >= 0, and w_j = 0 where g_j.d > shares_j |g_j|^2

    The change is a point of least length in an intersection of half-spaces, which a non-negative least squares
    problem gives (Lawson and Hanson's LDP). Gradients of length zero have weight 0 and are not looked at.

    Args:
        gramian: (T, T) inner products of the gradients.
        shares: (T,) non-negative; entry c is not looked at.
        center: c.

    Returns:
        (T,) weights; None where no direction, or only one with a change over 1e4
        times the largest shortfall of g_c, gives all shares.

    Raises:
        ValueError: `gramian` is not square, finite and positive semidefinite (up to rounding).
        RuntimeError: the relative KKT residual of the result exceeds `TOLERANCE`.
    """
    if gramian.shape == (2, 2):
        return np.array(pairs.least_change(pairs.read(gramian), shares.tolist(), center=center))
    points = to_points(gramian)
    lengths = lengths_of(points)
    others = lengths > 0
    others[center] = False
    units = points[others] / lengths[others, None]
    levels = shares[others] * lengths[others]
    shortfalls = levels - units @ points[center]
    weights = np.zeros_like(lengths)
    weights[center] = 1.0
    largest = shortfalls.max(initial=0.0)
    if largest > 0:
        columns = np.vstack([units.T, shortfalls / largest])
        target = np.zeros(len(columns))
        target[-1] = 1.0
        solution = nnls(columns, target)[0]
        rest = 1 - columns[-1] @ solution  # 1 / (1 + the change's squared length, over that of `largest`)
        if rest <= 1e-8:
            return None
        weights[others] = solution * (largest / rest) / lengths[others]
    violation = _violation(units, levels, lengths, weights[others], weights, weights @ points)
    if not violation <= TOLERANCE:
        fail("least_change", gramian, f"relative KKT residual {violation:.1e} exceeds {TOLERANCE:.0e}")
    return weights


def _violation(
    units: Array, levels: Array, lengths: Array, multipliers: Array, weights: Array, direction: Array
) -> float:
    """Largest violation of the constraints and of complementarity, over what rounding of the Gramian can cause."""
    gaps = units @ direction - levels
    wrong = np.where(multipliers > 0, np.abs(gaps), np.maximum(-gaps, 0))
    return float(wrong.max(initial=0.0) / ((np.abs(weights) @ lengths) or 1.0))
