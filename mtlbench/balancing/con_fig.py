"""ConFIG: the direction with equal cosines to all task gradients, as long as its projections sum to."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mtlbench.balancing.base import Property, Weighting
from mtlbench.balancing.groups import by_group
from mtlbench.linalg import Array, bisector


def con_fig_weights(gramian: Array) -> tuple[Array, bool]:
    """(A, A) Gramian -> (A,) weights, and whether the cosines are equal (see `ConFIG`)."""
    weights, exact = bisector(gramian)
    products = gramian @ weights
    square = weights @ products
    if not square > 0:
        return np.zeros_like(weights), False
    return weights * (products.sum() / square), exact


class ConFIG(Weighting):
    """Conflict-free inverse gradients.

        u = U^+ 1 / |U^+ 1|, U^+ the pseudo-inverse of the matrix of the unit gradients g_i / |g_i|
        d = (sum_i g_i.u) u

    For linearly independent gradients u has the same, positive cosine with all of them. The weights sum to
    nothing in particular. The status is degenerate where no direction of the span has equal cosines: a
    zero gradient has weight 0 and the rule is that of the others, opposite gradients give zero, linearly
    dependent ones u as above, which may then conflict.

    Raises:
        ValueError: no Gramian.

    Paper: Liu, Chu, Thuerey 2024, arXiv:2408.11104.
    """

    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        weights, self.status = by_group(gramian, con_fig_weights)
        return weights
