"""DualProj: the mean gradient, projected so that it harms no task."""

from __future__ import annotations

import numpy as np

from mtlbench.balancing.cone import ConeProjection
from mtlbench.linalg import Array


class DualProj(ConeProjection):
    """Projection on the dual cone: gradient episodic memory's rule for tasks that are trained together.

        d = argmin |d - g0| over the d with g_i.d >= 0 for all tasks i, g0 the mean gradient

    The mean is that of the active tasks. The projection is exact (`linalg.dual_cone`), but where gradients are so
    near opposite that it needs weights 2e5 times as great: these count as 1e-5 apart. The weights sum to nothing in
    particular, to 1 where the mean conflicts with no task. The status is degenerate where d = 0.

    Args:
        regularization: added to the diagonal of the Gramian, relative to its trace; above 0 the
            projection may conflict. TorchJD has 1e-4.

    Raises:
        ValueError: a wrong option.
        RuntimeError: the solution misses its tolerance.

    Paper: Lopez-Paz, Ranzato 2017, arXiv:1706.08840.

    Note:
        The paper projects the new task's gradient off those of the tasks before; with all of them trained
        together that is the mean, as TorchJD has it.
    """

    def projected(self, size: int) -> Array:
        return np.full((1, size), 1 / size)
