"""UPGrad: the mean of the gradients, each projected so that it harms no task."""

from __future__ import annotations

import numpy as np

from mtlbench.balancing.cone import ConeProjection
from mtlbench.linalg import Array


class UPGrad(ConeProjection):
    """Unconflicting projection of gradients.

        p_i = argmin |p - g_i| over the p with g_j.p >= 0 for all tasks j, the dual cone of the gradients
        d = 1/T sum_i p_i

    T counts the active tasks. The projections are exact (`linalg.dual_cone`), but where gradients are
    so near opposite that they need weights 2e5 times as great: these count as 1e-5 apart. The weights sum to nothing in
    particular. A zero gradient neither changes nor is changed. The status is degenerate where d = 0: the
    gradients have a convex combination with positive weights that is zero.

    Args:
        regularization: added to the diagonal of the Gramian, relative to its trace; above 0 the
            projections may conflict. TorchJD and LibMTL have 1e-4.

    Raises:
        ValueError: a wrong option.
        RuntimeError: the solution misses its tolerance.

    Paper: Quinton, Rey 2024, arXiv:2406.16232.
    """

    def projected(self, size: int) -> Array:
        return np.eye(size) / size
