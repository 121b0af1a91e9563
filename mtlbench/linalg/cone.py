"""Projections on the dual cone of the gradients: UPGrad and DualProj."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from mtlbench.linalg import pairs
from mtlbench.linalg.points import TINY, TOLERANCE, Array, fail, residual, to_apart, to_points, units_of

MOST = 2e5  # beyond, the rounding of float32 gradients, 6e-8, is more than a percent of the result
FEW = 10  # problems that are solved sooner one by one


def dual_cone(gramian: Array, preferences: Array) -> Array:
    """Weights of the directions nearest to given combinations of the gradients that harm no task.

        min |d - u'J| over d with J d >= 0
        d = w'J with w = u + v, v >= 0, J d >= 0 and v_i = 0 where g_i.d > 0

    v is a non-negative least squares solution. Of many problems the tight constraints are guessed, and all
    linear systems that follow are solved at once; few problems, and those guessed wrong, are solved one by one.
    Where gradients are so near opposite that this takes more than `MOST` times the weights, they count as a little
    further apart (`points.to_apart`), and products may fall short of 0 by 1e-10 of what they are sums of.

    Args:
        gramian: (T, T) inner products of the gradients.
        preferences: (K, T) combinations u.

    Returns:
        (K, T) weights w.

    Raises:
        ValueError: `gramian` is not square, finite and positive semidefinite (up to rounding).
        RuntimeError: the relative KKT residual of the result exceeds `TOLERANCE`.
    """
    if gramian.shape == (2, 2):
        return np.array(pairs.dual_cone(pairs.read(gramian), preferences.tolist()))
    multipliers, violation, share = _project(to_points(gramian), preferences)
    if not (violation <= TOLERANCE and share <= MOST):
        multipliers, violation, _ = _project(to_apart(gramian), preferences)
    if not violation <= TOLERANCE:
        fail("dual_cone", gramian, f"relative KKT residual {violation:.1e} exceeds {TOLERANCE:.0e}")
    return preferences + multipliers


def _project(points: Array, preferences: Array) -> tuple[Array, float, float]:
    """(K, T) multipliers, the largest KKT residual, and how much more the multipliers move than the preferences."""
    units, lengths = units_of(points)
    targets = preferences @ points
    multipliers = np.zeros_like(preferences)
    left = np.flatnonzero(targets.any(1))
    if len(preferences) > FEW:
        multipliers, left = _together(units, targets)
    for problem in left:
        multipliers[problem] = nnls(units.T, -targets[problem])[0]
    multipliers /= lengths
    violation = residual(points, multipliers, preferences + multipliers, level=0.0)
    moved, given = multipliers @ lengths, np.abs(preferences) @ lengths
    return multipliers, violation, float((moved / np.maximum(given, TINY)).max())


def _together(units: Array, targets: Array) -> tuple[Array, NDArray[np.int64]]:
    """Min |q'units + target| over q >= 0 for all targets, by guessing where q is positive.

    Args:
        units: (T, rank) points of length 1, or 0.
        targets: (K, rank).

    Returns:
        (K, T) solutions, and indices of the problems that are not solved to rounding: a wrong guess, or nearly
        dependent gradients, for which an orthogonal factorization is needed.
    """
    size = len(units)
    cosines = units @ units.T
    wanted = -(targets @ units.T)  # at the solution: cosines q >= wanted, with equality where q > 0
    noise = 1e-12 * np.sqrt((targets * targets).sum(1))[:, None]
    solutions = np.zeros_like(wanted)
    left = np.flatnonzero((wanted > noise).any(1))
    if not len(left):
        return solutions, left
    wanted, noise = wanted[left], noise[left]
    tight = _guess(cosines, wanted) > 0
    # Problem k's system has the rows and columns of its tight constraints, which come first in index[k],
    # and rows of the identity up to the width of the largest one.
    counts = tight.sum(1, keepdims=True)
    places = np.arange(counts.max())
    index = np.argsort(~tight, axis=1, kind="stable")[:, : len(places)]
    inside = places < counts
    systems = cosines.ravel().take(index[:, :, None] * size + index[:, None, :]) * inside[:, :, None]
    systems[:, places, places] += ~inside
    values = np.take_along_axis(wanted, index, 1) * inside
    try:
        solved = np.linalg.solve(systems, values[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:  # equal gradients
        return solutions, left
    trial = np.zeros_like(wanted)
    np.put_along_axis(trial, index, solved, 1)
    gaps = trial @ cosines - wanted
    done = np.where(tight, (trial >= -noise) & (np.abs(gaps) <= 10 * noise), gaps >= -noise).all(1)
    solutions[left[done]] = np.maximum(trial[done], 0)
    return solutions, left[~done]


def _guess(cosines: Array, wanted: Array) -> Array:
    """(K, T) numbers that are positive where the solutions q are, nearly always.

    q = |x| + x and cosines q - wanted = (|x| - x) / 2 are never negative, and one of the two is 0: all that is
    asked of q. The x for which both hold is the fixed point of a contraction (van Bokhoven's modulus iteration).
    """
    half = np.eye(len(cosines)) / 2
    inverse = np.linalg.inv(cosines + half)
    base, turn = wanted @ inverse, inverse - 2 * half
    current = base
    for _ in range(20):
        current = base + np.abs(current) @ turn
    return current
