"""FairGrad: the direction that shares the tasks' improvement by alpha-fairness."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtlbench.balancing.base import Property, TaskSpec, Weighting
from mtlbench.balancing.checks import number
from mtlbench.balancing.groups import by_group
from mtlbench.linalg import alpha_fair


class FairGrad(Weighting):
    """Alpha-fair direction.

        d = argmax sum_i (g_i.d)^(1 - alpha) / (1 - alpha) over |d| <= epsilon   (sum_i log g_i.d for alpha = 1)
        d = sum_i w_i g_i up to its length, with G w = w^(-1/alpha), w > 0

    alpha = 1 is Nash-MTL; towards infinity it serves the worst-off task alone. The root is exact
    (`linalg.alpha_fair`). The weights sum to nothing in particular. The status is degenerate where there is
    no root: some convex combination of the gradients is zero (a zero or opposite gradients among them);
    the direction then is zero.

    Args:
        alpha: above 0; 2 is the official scripts'.

    Raises:
        ValueError: a wrong option.
        RuntimeError: the root misses its tolerance.

    Paper: Ban, Ji 2024, arXiv:2402.15638.

    Note:
        The official code minimises |G w - w^(-1/alpha)|^2 with scipy's least_squares and takes what that
        ends with, also where there is no root.
    """

    properties = frozenset({Property.NON_CONFLICTING, Property.STATIONARY_ZERO, Property.PERMUTATION_EQUIVARIANT})

    def __init__(
        self, *, num_tasks: int, seed: int, tasks: Sequence[TaskSpec] | None = None, alpha: float = 2.0
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(alpha, option="alpha", above=0)
        self.alpha = alpha

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        weights, self.status = by_group(gramian, alpha_fair, alpha=self.alpha)
        return weights
