"""IMTL-G: the direction with equal projections on all task gradients."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mtlbench.balancing.base import Property, Weighting
from mtlbench.balancing.groups import by_group
from mtlbench.linalg import Array, bisector


def imtl_g_weights(gramian: Array) -> tuple[Array, bool]:
    """(A, A) Gramian -> (A,) weights, and whether the projections are equal (see `IMTLG`)."""
    weights, exact = bisector(gramian)
    total = weights.sum()
    if abs(total) <= 1e-14 * np.abs(weights).sum():
        return np.zeros_like(weights), False
    return weights / total, exact


class IMTLG(Weighting):
    """Impartial multi-task learning, the gradients' part.

        d = sum_i w_i g_i with d.g_i / |g_i| the same for all i
        sum_i w_i = 1; a weight may be negative

    Where the sum of the weights is negative before it is made 1, as happens with strong conflict, d opposes
    every gradient, as the paper's rule has it. The status is degenerate where no direction of the span has
    equal projections: a zero gradient has weight 0 and the rule is that of the others; opposite gradients,
    and weights that sum to zero, give zero; linearly dependent ones give the projections nearest to equal.

    Raises:
        ValueError: no Gramian.

    Paper: Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang 2021, ICLR, openreview IMPnRXEWpvr.

    Note:
        The paper inverts a (T - 1) x (T - 1) matrix. Here the pseudo-inverse of the cosines gives the same
        where that is regular. TorchJD takes that of the Gramian, which differs where there is no solution.
    """

    weights_sum = "1"
    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        weights, self.status = by_group(gramian, imtl_g_weights)
        return weights
