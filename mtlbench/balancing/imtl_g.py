"""IMTL-G: the direction with equal projections on all task gradients."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mtlbench.balancing.base import Property, Weighting
from mtlbench.balancing.groups import by_group
from mtlbench.linalg import TOLERANCE, Array, bisector


def imtl_g_weights(gramian: Array) -> tuple[Array, bool]:
    """(A, A) Gramian -> (A,) weights, and whether the projections are equal (see `IMTLG`)."""
    weights, exact = bisector(gramian)
    lengths = np.sqrt(gramian.diagonal())
    left = 1 - np.divide(gramian @ weights, lengths, out=np.ones_like(lengths), where=lengths > 0)
    if np.abs(left).max() > TOLERANCE * max(1.0, float(np.abs(weights) @ lengths)):
        weights = np.divide(left, lengths, out=np.zeros_like(lengths), where=lengths > 0)  # a combination that is 0
    total = weights.sum()
    if abs(total) <= 1e-14 * np.abs(weights).sum():
        return np.zeros_like(weights), False
    return weights / total, exact


class IMTLG(Weighting):
    """Impartial multi-task learning, the gradients' part.

        d = sum_i w_i g_i with d.g_i / |g_i| the same for all i
        sum_i w_i = 1; a weight may be negative

    Where the sum of the weights is negative before it is made 1, as happens with strong conflict, d opposes
    every gradient, as the paper's rule has it. The status is degenerate where no direction but zero has equal
    projections: where a combination of the unit gradients whose coefficients do not sum to 0 is zero, such as that of
    opposite ones, d is that combination. It is degenerate too where a gradient is zero, which has weight 0 and the
    rule is that of the others, and where the weights sum to zero, which are 0 then.

    Raises:
        ValueError: no Gramian.

    Paper: Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang 2021, ICLR, openreview IMPnRXEWpvr.

    Note:
        The paper inverts a (T - 1) x (T - 1) matrix. Here the pseudo-inverse of the cosines and, where it has no
        solution, what it leaves of ones give the same where that matrix is regular. TorchJD takes the pseudo-inverse
        of the Gramian alone, which differs where there is no solution.
    """

    weights_sum = "1"
    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        weights, self.status = by_group(gramian, imtl_g_weights)
        return weights
