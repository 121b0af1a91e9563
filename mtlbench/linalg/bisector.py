"""The direction of equal progress along all unit gradients: IMTL-G and ConFIG."""

from __future__ import annotations

import math

import numpy as np

from mtlbench.linalg import pairs
from mtlbench.linalg.points import EPS, TOLERANCE, Array, components, cosines_of


def bisector(gramian: Array) -> tuple[Array, bool]:
    """Weights of the direction whose products with the unit gradients are all 1: J d = |g|.

    Gradients of length zero have weight 0 and are not looked at. Where no direction of the span has equal
    products, it is that of least squares, the shortest one: the pseudo-inverse of the unit gradients
    times ones. Opposite gradients give zero.

    Args:
        gramian: (T, T) inner products of the gradients.

    Returns:
        (T,) weights, and whether the products of all tasks are 1.

    Raises:
        ValueError: `gramian` is not square, finite and positive semidefinite (up to rounding).
    """
    if gramian.shape == (2, 2):
        pair, exact = pairs.bisector(pairs.read(gramian))
        return np.array(pair), exact
    cosines, lengths = cosines_of(gramian)
    values, vectors = components(cosines, gramian)
    sums = vectors.sum(0)
    sums[np.abs(sums) <= len(lengths) * EPS * math.sqrt(len(lengths))] = 0.0
    solution = vectors @ (sums / values)
    products = cosines @ solution
    exact = bool(np.abs(products - 1).max() <= TOLERANCE * max(1.0, np.abs(solution).sum()))
    weights = np.divide(solution, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return weights, exact
