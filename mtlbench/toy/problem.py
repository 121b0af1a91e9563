"""The two-dimensional problem of CAGrad, Nash-MTL and FAMO: two losses of a point, and where both are best."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

Array = NDArray[np.float64]

TASKS = ("f1", "f2")
FLOOR = 5e-6  # of what the logarithms take
CENTRES = (7.0, -7.0)  # x1 of the two valleys, one for each task
SIGNS = (1.0, -1.0)  # of the ridges


def losses_and_gradients(points: Array, *, scale: float) -> tuple[Array, Array]:
    """Both losses and their gradients, in closed form.

        f1 = scale (c1 h1 + c2 q1), f2 = c1 h2 + c2 q2
        h_i = ln max(|u_i|, 5e-6) + 6, u = (-(x1 + 7) / 2 + tanh x2, (3 - x1) / 2 - tanh x2 + 2)
        q_i = ((x1 -+ 7)^2 + (x2 + 8)^2 / 10) / 10 - 20
        c1 = max(tanh(x2 / 2), 0), c2 = max(-tanh(x2 / 2), 0)

    Args:
        points: (..., 2).
        scale: of the first loss; 1 in CAGrad's paper, 0.1 in Nash-MTL's and FAMO's.

    Returns:
        (..., 2) losses and (..., 2, 2) gradients, one row a task. As in the official code both branches of a maximum
        have a gradient where they are equal.

    Paper: Liu, Liu, Jin, Stone, Liu 2021, arXiv:2110.14048; losses of two scales: Navon, Shamsian, Achituve, Maron,
        Kawaguchi, Chechik, Fetaya 2022, arXiv:2202.01017.
    """
    found = np.array([_at(x1, x2, (scale, 1.0)) for x1, x2 in points.reshape(-1, 2).tolist()])
    found = found.reshape(*points.shape[:-1], 2, 3)
    return found[..., 0], found[..., 1:]


def _at(x1: float, x2: float, scales: tuple[float, float]) -> list[tuple[float, float, float]]:
    """Each loss and its two derivatives. Floats: the few starts of a run take a third of an array's time."""
    bend, side, depth = math.tanh(x2), math.tanh(x2 / 2), x2 + 8
    upper, lower, steep = max(side, 0.0), max(-side, 0.0), (1 - side * side) / 2
    found = []
    for centre, sign, scale in zip(CENTRES, SIGNS, scales, strict=True):
        inside = sign * (bend - 3.5) - x1 / 2
        hill = math.log(max(abs(inside), FLOOR)) + 6
        climb = upper / inside if abs(inside) >= FLOOR else 0.0
        gap = x1 - centre
        valley = (gap * gap + depth * depth / 10) / 10 - 20
        change = steep * ((hill if side >= 0 else 0.0) - (valley if side <= 0 else 0.0))
        down = climb * sign * (1 - bend * bend) + lower * depth / 50
        found.append(
            (scale * (upper * hill + lower * valley), scale * (lower * gap / 5 - climb / 2), scale * (change + down))
        )
    return found


def on_front(points: Array) -> NDArray[np.bool_]:
    """(..., 2) points -> (...) whether each is at the Pareto front: |x1| <= 7.05 and -8.5 < x2 < -7.95."""
    x1, x2 = points[..., 0], points[..., 1]
    return (np.abs(x1) <= 7.05) & (x2 > -8.5) & (x2 < -7.95)


def pareto_front(count: int = 141) -> Array:
    """(count, 2) points of the front from x1 = -7 to 7: where the two gradients are opposite. The scale has no part."""

    def parallel(x2: float, x1: float) -> float:
        _, (first, second) = losses_and_gradients(np.array([x1, x2]), scale=1.0)
        return float(first[0] * second[1] - first[1] * second[0])

    x1 = np.linspace(-7.0, 7.0, count)
    return np.array([(at, brentq(parallel, -8.5, -8.2, args=(at,))) for at in x1])
