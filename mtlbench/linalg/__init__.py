"""Exact solvers for the T x T problems of balancers: small, dense, float64 numpy arrays.

A Gramian G = J J' is first factored into points: rows x with x_i.x_j = G_ij. The factor is taken of
the matrix of cosines, so that gradients of very different lengths keep their digits. The problems
then are non-negative least squares in the points (`hull`, `cone`), solved by active-set methods in
finitely many steps, or the minimum of a smooth convex function (`fair`), by Newton's method. Each
result is checked against its optimality conditions before it is returned. Two gradients have closed
forms (`pairs`), which need no check.
"""

from mtlbench.linalg.bisector import bisector
from mtlbench.linalg.cone import dual_cone
from mtlbench.linalg.fair import alpha_fair
from mtlbench.linalg.hull import conflict_averse, min_norm
from mtlbench.linalg.points import TOLERANCE, Array, is_zero, kkt_residual, principal

__all__ = [
    "TOLERANCE",
    "Array",
    "alpha_fair",
    "bisector",
    "conflict_averse",
    "dual_cone",
    "is_zero",
    "kkt_residual",
    "min_norm",
    "principal",
]
