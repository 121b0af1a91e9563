"""Gramians as points, and what can be read off them."""

from __future__ import annotations

import math
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dsyevd

Array = NDArray[np.float64]

TOLERANCE = 1e-9
EPS = float(np.finfo(np.float64).eps)
TINY = float(np.finfo(np.float64).tiny)
APART = 1e-10  # between opposite gradients, relative to their squares
INDEFINITE = 0.05  # what is taken for rounding, relative: coarser than what rows in bfloat16 lose


def kkt_residual(gramian: Array, multipliers: Array, weights: Array, *, level: float | None = None) -> float:
    """Largest relative violation of the optimality conditions of the solvers' problems, for tests.

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
    return residual(to_points(gramian), multipliers, weights, level=level)


def is_zero(gramian: Array, weights: Array) -> bool:
    """Whether the combination of the gradients is zero in every group, as far as a float64 Gramian can tell.

    Args:
        gramian: (T, T) or (G, T, T) inner products of the gradients.
        weights: (T,) or (G, T) weights of the combination.
    """
    if gramian.shape[-2:] == (2, 2):
        return _is_zero_of_two(gramian, weights)
    rows = weights[..., None, :]
    scales = np.abs(weights) * np.sqrt(gramian.diagonal(0, -2, -1))
    squares = (rows @ gramian * rows).sum((-2, -1))
    return bool((squares <= 4 * weights.shape[-1] * EPS * scales.sum(-1) ** 2).all())


def _is_zero_of_two(gramian: Array, weights: Array) -> bool:
    problems = zip(gramian.reshape(-1, 2, 2).tolist(), weights.reshape(-1, 2).tolist(), strict=True)
    for ((a, b), (c, d)), (u, v) in problems:
        scale = abs(u) * math.sqrt(a) + abs(v) * math.sqrt(d)
        if u * u * a + u * v * (b + c) + v * v * d > 8 * EPS * scale * scale:
            return False
    return True


def to_points(gramian: Array) -> Array:
    """(T, rank) points whose inner products are the Gramian's over its largest diagonal entry."""
    cosines, lengths = cosines_of(gramian)
    scale = (lengths / (lengths.max() or 1.0))[:, None]
    factor, failed = dpotrf(cosines, lower=1, clean=1)
    if not failed and factor.diagonal().min() > 1e-4:
        points: Array = factor * scale
        return points
    values, vectors = components(cosines, gramian)
    return vectors * np.sqrt(values) * scale


def to_apart(gramian: Array) -> Array:
    """(T, T) points like those of `to_points`, the square of each longer by `APART` of itself.

    Opposite gradients are then a little apart. Else what rounding leaves of their sum can count as a direction, with
    weights of 1e8 and more, under which float32 gradients do not cancel.
    """
    cosines, lengths = cosines_of(gramian)
    scale = (lengths / (lengths.max() or 1.0))[:, None]
    factor, failed = dpotrf(cosines + APART * np.eye(len(cosines)), lower=1, clean=1)
    if not failed and factor.diagonal().min() > 0.5 * math.sqrt(APART):
        points: Array = factor * scale
        return points
    values, vectors = spectrum(cosines, gramian)
    return vectors * np.sqrt(np.maximum(values, 0) + APART) * scale


def cosines_of(gramian: Array) -> tuple[Array, Array]:
    """(T, T) cosines, 0 for a zero gradient, and (T,) lengths."""
    _check(gramian)
    lengths = np.sqrt(gramian.diagonal())
    divisors = np.where(lengths > 0, lengths, 1.0)
    return gramian / divisors[:, None] / divisors, lengths


def principal(gramian: Array) -> tuple[Array, Array]:
    """(rank,) ascending eigenvalues and (T, rank) eigenvectors of a Gramian; smaller eigenvalues are rounding.

    Raises:
        ValueError: `gramian` is not square, finite and positive semidefinite (up to rounding).
    """
    _check(gramian)
    return components(gramian, gramian)


def components(cosines: Array, gramian: Array) -> tuple[Array, Array]:
    """(rank,) eigenvalues and (T, rank) eigenvectors; roots of the others would be directions of rounding alone."""
    values, vectors = spectrum(cosines, gramian)
    kept = values > len(values) * EPS * values[-1]
    return values[kept], vectors[:, kept]


def spectrum(cosines: Array, gramian: Array) -> tuple[Array, Array]:
    """(T,) ascending eigenvalues and (T, T) eigenvectors, of which none is negative but by rounding."""
    values, vectors = eigh(cosines)
    if values[0] < -INDEFINITE * values[-1]:
        raise indefinite(gramian, values.tolist())
    return values, vectors


def eigh(matrix: Array) -> tuple[Array, Array]:
    """(T,) ascending eigenvalues and (T, T) eigenvectors of a symmetric matrix.

    scipy's: numpy's and torch's take 50 ms instead of 0.1 at T = 40 where BLAS has two threads and a core is busy.
    """
    values, vectors, failed = dsyevd(matrix)
    if failed:
        raise RuntimeError(f"No eigenvalues of the matrix\n{matrix}")
    return values, vectors


def lengths_of(points: Array) -> Array:
    """(T,) lengths of the points."""
    lengths: Array = np.sqrt((points * points).sum(1))
    return lengths


def units_of(points: Array) -> tuple[Array, Array]:
    """The points over their lengths, and (T,) those lengths; 1 instead of a length of 0."""
    lengths = lengths_of(points)
    lengths[lengths == 0] = 1.0
    return points / lengths[:, None], lengths


def vanishes(points: Array, weights: Array) -> bool:
    """`is_zero`, of points."""
    combination = weights @ points
    scale = np.abs(weights) @ lengths_of(points)
    return bool(combination @ combination <= 4 * len(points) * EPS * scale * scale)


def residual(points: Array, multipliers: Array, weights: Array, *, level: float | None) -> float:
    """`kkt_residual`, of points; with a level also of several problems, (K, T) multipliers and weights."""
    if not multipliers.min() >= 0:
        return math.inf
    lengths = lengths_of(points)
    gap = (weights @ points) @ points.T
    spread = 0.0
    if level is None:
        share = multipliers / multipliers.sum()
        level, spread = share @ gap, share @ lengths
    gap = gap - level
    bounds = (lengths + spread) * (np.abs(weights) @ lengths)[..., None]
    violation = float((np.maximum(-gap, gap * (multipliers > 0)) / np.maximum(bounds, TINY)).max())
    return violation if math.isfinite(violation) else math.inf


def _check(gramian: Array) -> None:
    if gramian.ndim != 2 or gramian.shape[0] != gramian.shape[1] or gramian.size == 0:
        raise ValueError(f"Expected a Gramian of shape (T, T), got shape {gramian.shape}.")
    if not np.isfinite(gramian).all() or gramian.diagonal().min() < 0:
        raise not_finite(gramian)


def not_finite(gramian: Array) -> ValueError:
    """What to raise."""
    return ValueError(f"Expected a finite Gramian with a non-negative diagonal, got\n{gramian.tolist()}")


def indefinite(gramian: Array, values: list[float]) -> ValueError:
    """What to raise."""
    return ValueError(
        f"Expected a positive semidefinite Gramian, its cosines have eigenvalues\n{values}\n{gramian.tolist()}"
    )


def fail(solver: str, gramian: Array, reason: str) -> NoReturn:
    """Raises RuntimeError with the Gramian in full."""
    matrix = np.array2string(gramian, precision=17, threshold=2000)
    raise RuntimeError(f"{solver}: {reason}, on the Gramian\n{matrix}")
