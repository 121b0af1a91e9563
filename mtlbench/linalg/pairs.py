"""The same problems for two gradients: closed forms in the plane of the two, in plain floats.

They are the solutions of the general solvers at a tenth of the time, most of which is the calls' own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.optimize import brentq

from mtlbench.linalg.points import EPS, INDEFINITE, Array, indefinite, not_finite

Two = tuple[float, float]


class Pair(NamedTuple):
    """Two gradients.

    Attributes:
        p, q: their lengths over that of the longer one.
        k: cosine of their angle, 0 where one of them is zero.
        scale: length of the longer one, 1 where both are zero.
    """

    p: float
    q: float
    k: float
    scale: float

    def square(self, a: float, b: float) -> float:
        """|a g / |g| + b h / |h||^2, from sums of what does not cancel."""
        if self.k < 0:
            return (a - b) ** 2 + 2 * (1 + self.k) * a * b
        return (a + b) ** 2 - 2 * (1 - self.k) * a * b

    def vanishes(self, a: float, b: float) -> bool:
        """Whether that combination is zero, as far as a float64 Gramian can tell."""
        return self.square(a, b) <= 8 * EPS * (abs(a) + abs(b)) ** 2


def read(gramian: Array) -> Pair:
    """The pair of a Gramian (2, 2).

    Raises:
        ValueError: it is not finite and positive semidefinite (up to rounding).
    """
    (a, _), (b, c) = gramian.tolist()
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c) and a >= 0 and c >= 0):
        raise not_finite(gramian)
    p, q = math.sqrt(a), math.sqrt(c)
    k = b / p / q if p > 0 and q > 0 else 0.0
    if abs(k) - 1 > INDEFINITE * (1 + abs(k)):
        raise indefinite(gramian, [1 - abs(k), 1 + abs(k)])
    if 1 - abs(k) <= 2 * EPS * (1 + abs(k)):  # the rest is rounding
        k = math.copysign(1.0, k)
    scale = max(p, q) or 1.0
    return Pair(p / scale, q / scale, k, scale)


def min_norm(pair: Pair) -> tuple[Two, bool]:
    """See `hull.min_norm`."""
    p, q, k, _ = pair
    first, second = max(q * (q - p * k), 0.0), max(p * (p - q * k), 0.0)
    total = first + second
    a, b = (first / total, second / total) if total > 0 else (0.5, 0.5)
    return (a, b), not pair.vanishes(a * p, b * q)


def conflict_averse(pair: Pair, *, c: float) -> tuple[Two, bool]:
    """See `hull.conflict_averse`.

    Along the line through both gradients |g_w| is the distance of a hyperbola, and the dual value is least where its
    slope is that of a line: u = -b h / sqrt(r^2 - b^2), in lengths from the foot of the perpendicular h, with b the
    component of g0 along the line and r = c |g0|.
    """
    p, q, k, scale = pair
    if p < q:  # small weights of the longer one have digits
        (second, first), regular = conflict_averse(Pair(q, p, k, scale), c=c)
        return (first, second), regular
    if pair.vanishes(p, q):
        return (0.0, 0.0), False
    length = math.sqrt(pair.square(p, q)) / 2
    radius = c * length
    if radius == 0:
        return (0.5, 0.5), True
    if not min_norm(pair)[1]:  # opposite, or one is zero
        changes = [max(-(own + k * other) / 2, 0.0) for own, other in ((p, q), (q, p))]
        if max(changes) <= radius * (1 + 4 * EPS):
            return (0.5 + changes[0] / p, 0.5 + (changes[1] / q if q > 0 else 0.0)), False
    apart = math.sqrt(pair.square(p, -q))
    t = 0.5
    if apart > 0:
        foot, height = q * (q - p * k) / apart**2, p * q * math.sqrt((1 - k) * (1 + k)) / apart
        along = (p - q) * (p + q) / (2 * apart)
        under = (radius - along) * (radius + along)
        turn = -along * height / math.sqrt(under) if under > 0 else -math.copysign(math.inf, along)
        t = min(max(foot + turn / apart, 0.0), 1.0)
    factor = radius / math.sqrt(pair.square(t * p, (1 - t) * q))
    return (0.5 + factor * t, 0.5 + factor * (1 - t)), True


def alpha_fair(pair: Pair, *, alpha: float) -> tuple[Two, bool]:
    """See `fair.alpha_fair`.

    With power = 1 / alpha, e^y the ratio of the weighted lengths and e^x that of the gains (their cosines with the
    direction): y = soft(x, -k), x = soft(y, k) and x + power y = (power - 1) log(q / p). Of the two the one is sought
    in which the other is smooth.
    """
    p, q, k, scale = pair
    if p == 0 or q == 0 or k == -1:
        return (0.0, 0.0), False
    power = 1 / alpha
    target, closeness = (power - 1) * (math.log(q) - math.log(p)), abs(k)
    slopes = (1.0, power) if k < 0 else (power, 1.0)  # of the unknown, and of its function

    def gap(unknown: float) -> float:
        return slopes[0] * unknown + slopes[1] * _log_ratio(unknown, closeness) - target

    found = 0.0
    if target != 0:
        found = end = target / slopes[0]
        if gap(end) * target > 0:  # else that is the root, up to rounding: parallel gradients
            found = brentq(gap, min(end, 0.0), max(end, 0.0), xtol=1e-300, rtol=4 * EPS)
    gains = [_log1p_exp(found, closeness), _log1p_exp(-found, closeness)]
    if k < 0:
        gains = [math.log1p(-k) + math.log1p(k) - gain for gain in gains]
        ratio = math.exp(-abs(_log_ratio(found, closeness)))
        if pair.vanishes(1.0, ratio):
            return (0.0, 0.0), False
    squares = [2 * (math.log(length) + math.log(scale)) for length in (p, q)]
    first, second = (math.exp(-(s + g) / (1 + power)) for s, g in zip(squares, gains, strict=True))
    return (first, second), True


def dual_cone(pair: Pair, preferences: Sequence[Sequence[float]]) -> list[Two]:
    """See `cone.dual_cone`: with one constraint tight, the other one's product has the sign of its own coefficient."""
    p, q, k, _ = pair
    weights = []
    for u, v in preferences:
        a, b = u * p, v * q
        first, second = a + k * b, k * a + b
        if first >= 0 and second >= 0:
            weights.append((u, v))
        elif first < 0 and b >= 0:
            weights.append((-v * q / p * k, v))
        elif second < 0 and a >= 0:
            weights.append((u, -u * p / q * k))
        else:
            weights.append((0.0, 0.0))
    return weights


def least_change(pair: Pair, shares: Sequence[float], *, center: int) -> list[float]:
    """See `halfspaces.least_change`."""
    lengths, other = (pair.p, pair.q), 1 - center
    weights = [1.0, 1.0]
    wanted = shares[other] * lengths[other] - pair.k * lengths[center]
    weights[other] = max(wanted, 0.0) / lengths[other] if lengths[other] > 0 else 0.0
    return weights


def bisector(pair: Pair) -> tuple[Two, bool]:
    """See `points.bisector`."""
    p, q, k, scale = pair
    weight = 1 / (1 + k) if k > -1 else 0.0
    return (weight / p / scale if p > 0 else 0.0, weight / q / scale if q > 0 else 0.0), p > 0 and q > 0 and k > -1


def _log_ratio(z: float, k: float) -> float:
    """log((e^z + k) / (1 + k e^z)) for k in [0, 1]: odd in z, and between 0 and z."""
    size = abs(z)
    falling = math.exp(-size)
    return math.copysign(math.log1p(-(1 - k) * math.expm1(-size) / (falling + k)) if k > 0 else size, z)


def _log1p_exp(z: float, k: float) -> float:
    """log(1 + k e^z) for k >= 0, whatever z."""
    if z <= 0:
        return math.log1p(k * math.exp(z))
    return z + math.log(k + math.exp(-z))
