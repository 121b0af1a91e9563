"""Roots of G w = w^(-1/alpha): Nash-MTL and FairGrad."""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dgels, dposv

from mtlbench.linalg import pairs
from mtlbench.linalg.hull import nearest
from mtlbench.linalg.points import EPS, TINY, TOLERANCE, Array, fail, lengths_of, to_points, vanishes

STEPS = 200


def alpha_fair(gramian: Array, *, alpha: float) -> tuple[Array, bool]:
    """Weights of the alpha-fair direction: the positive w with G w = w^(-1/alpha).

    It is the minimum of a strictly convex function, w'Gw / 2 - sum_i u(w_i) with u' = w^(-1/alpha), found
    by Newton's method. There is none where some convex combination of the gradients is zero.

    Args:
        gramian: (T, T) inner products of the gradients.
        alpha: above 0; 1 is the Nash bargaining solution.

    Returns:
        (T,) weights, and whether there is a root; the weights are 0 where
        there is none, as far as a float64 Gramian can tell. A weight too small for float64 (a great alpha and
        gradients of very different lengths) is 0 or next to it, and its task gains no less than the root gives.

    Raises:
        ValueError: `gramian` is not square, finite and positive semidefinite (up to rounding).
        RuntimeError: the relative residual of the result exceeds `TOLERANCE`; known of a few alphas of 10 and
            more with gradients that are opposite up to 1e-6 of their lengths, and of alphas of 0.05 and less with many
            parallel ones.
    """
    if gramian.shape == (2, 2):
        pair, solved = pairs.alpha_fair(pairs.read(gramian), alpha=alpha)
        return np.array(pair), solved
    points = to_points(gramian)
    power = 1 / alpha
    none = np.zeros(len(points))
    lengths = lengths_of(points)
    if lengths.min() == 0:
        return none, False
    # The root of a task alone; in these units all rows are of length 1 for the power 1.
    units = lengths ** (-2 / (1 + power))
    rows, lengths = points * units[:, None], lengths * units
    for straight in (False, True):  # the second is for nearly opposite gradients
        weights = _newton(rows, lengths, power=power, straight=straight)
        combination, scale = weights @ rows, weights @ lengths
        if combination @ combination <= 4 * len(rows) * EPS * scale * scale:
            return none, False
        gap = rows @ combination - lengths * lengths * weights**-power
        gap = np.where(weights > TINY, np.abs(gap), np.maximum(-gap, 0))
        violation = float((gap / (lengths * scale)).max())
        if violation <= TOLERANCE:
            break
        if vanishes(points, nearest(points)):
            return none, False
    else:
        fail("alpha_fair", gramian, f"relative residual {violation:.1e} exceeds {TOLERANCE:.0e} for alpha={alpha}")
    factor = float(gramian.diagonal().max()) ** (-1 / (1 + power))  # the points are of the Gramian over its largest
    return factor * units * weights, True


def _newton(rows: Array, lengths: Array, *, power: float, straight: bool) -> Array:
    """The positive t with (rows rows') t = |rows|^2 t^-power, or where the steps for it ended.

    Steps are relative to t. What is to grow grows linearly in the step, t (1 + s), and what is to shrink
    shrinks as its pull, the right side, grows linearly, t (1 - power s)^(-1 / power): t stays positive, and far
    from the root both are near what the other terms ask for. Close to it all is t (1 + s), and with `straight`
    also where the rows' combination is short by cancellation and a bent step would lengthen it, with s > -1.
    """
    products = rows @ rows.T
    squares = lengths * lengths
    size, total = len(squares), squares.sum()
    # The best multiple of ones.
    t = np.full(size, (total / max(products.sum(), 1e-12 * total)) ** (1 / (1 + power)))
    pull = squares * t**-power
    gap = products @ t - pull
    near = True
    # Where the pull outweighs all else a step is t (1 + 1 / power): a great power needs more of them.
    for _ in range(STEPS + int(4 * power)):
        scale, square = t @ lengths, t @ (gap + pull)  # |t'rows|^2
        if square <= 2 * size * EPS * scale * scale:
            return t
        if near and (np.abs(gap) <= 4 * size * EPS * lengths * scale).all():
            return t
        hessian = products * t * t[:, None]
        hessian.flat[:: size + 1] += power * pull * t
        _, step, failed = dposv(hessian, -gap * t)
        careful = bool(failed) or (straight and square <= 1e-8 * scale * scale)
        if careful:
            step = _careful_step(rows, t, pull, power=power)
            step *= min(1.0, 0.9 / max(-step.min(), 0.9))
        np.maximum(step, 0, out=step, where=t <= TINY)
        largest = np.abs(step).max()
        if not largest < np.inf:
            return t
        decrease = -(step * t) @ gap
        for _ in range(40):
            factor = 1 + step
            if not (careful or largest <= 1e-2):
                factor = (1 + np.maximum(step, 0)) * (1 - power * np.minimum(step, 0)) ** (-1 / power)
            trial = np.maximum(t * factor, TINY)
            pull = squares * trial**-power
            gap = (rows @ (trial @ rows) if careful else products @ trial) - pull
            # Convexity: short of the minimum along the step the slope is negative.
            if largest <= 1e-2 or (step * trial) @ gap <= 0.5 * decrease:
                break
            step = step / 2
        else:
            return t
        t = trial
        if largest <= 1e-7:
            return t
        near = careful or largest <= 1e-2
    return t


def _careful_step(rows: Array, t: Array, pull: Array, *, power: float) -> Array:
    """The same step by least squares in the factor, whose condition is the root of the Hessian's."""
    diagonal = np.sqrt(power * pull * t)
    system = np.concatenate([(t[:, None] * rows).T, np.diag(diagonal)])
    scales = np.sqrt((system * system).sum(0))
    _, solution, _ = dgels(system / scales, np.concatenate([-(t @ rows), diagonal / power]))
    step: Array = solution[: len(t)] / scales
    return step
