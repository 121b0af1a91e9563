"""MGDA: the shortest convex combination of the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from mtlbench.balancing.base import Property, TaskSpec, Weighting
from mtlbench.balancing.checks import no_loss_below, one_of
from mtlbench.balancing.groups import by_group, to_array
from mtlbench.linalg import Array, min_norm

Normalize = Literal["none", "l2", "loss", "loss+"]


def mgda_scales(gramian: Array, losses: Array, *, normalize: Normalize) -> Array:
    """(A,) what the gradients are divided by before the weights are sought; 1 where it would be 0."""
    scales = np.ones_like(losses)
    if normalize in ("l2", "loss+"):
        scales = scales * np.sqrt(gramian.diagonal())
    if normalize in ("loss", "loss+"):
        scales = scales * losses
    return np.where(scales == 0, 1.0, scales)


def mgda_weights(gramian: Array, losses: Array, *, normalize: Normalize = "none") -> tuple[Array, bool]:
    """(A, A) Gramian and (A,) losses -> (A,) weights on the simplex, and whether the shortest vector is not zero."""
    if normalize != "none":
        scales = mgda_scales(gramian, losses, normalize=normalize)
        gramian = gramian / scales[:, None] / scales
    return min_norm(gramian)


class MGDA(Weighting):
    """Multiple-gradient descent algorithm.

        w = argmin |sum_i w_i g_i / c_i|^2 over the simplex, c_i = 1
        d = sum_i w_i g_i
        normalize l2: c_i = |g_i|; loss: c_i = l_i; loss+: c_i = l_i |g_i|

    With normalize none, g_i.d >= |d|^2 for every task, and d = 0 exactly where the gradients are
    Pareto-stationary, a zero gradient among them included; the status then is degenerate. The simplex is
    that of the active tasks. The minimum is exact (`linalg.min_norm`).

    Args:
        normalize: none, l2, loss or loss+.

    Raises:
        ValueError: a wrong option, or a negative loss with loss or loss+.
        RuntimeError: the solution misses its tolerance.

    Paper: Sener, Koltun 2018, arXiv:1810.04650, after Desideri 2012.

    Note:
        As in the official code the weights are found on normalised gradients and applied to the
        gradients as they are; LibMTL applies them to the normalised ones. A c_i of 0 counts as 1. The
        paper's Frank-Wolfe iteration stops short of the minimum; this does not.
    """

    weights_sum = "1"
    properties = frozenset({Property.NON_CONFLICTING, Property.STATIONARY_ZERO, Property.PERMUTATION_EQUIVARIANT})

    def __init__(
        self, *, num_tasks: int, seed: int, tasks: Sequence[TaskSpec] | None = None, normalize: Normalize = "none"
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        one_of(normalize, ("none", "l2", "loss", "loss+"), option="normalize")
        self.normalize, self.tasks = normalize, tasks
        if normalize != "none":
            self.properties = frozenset({Property.PERMUTATION_EQUIVARIANT})

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        if self.normalize in ("loss", "loss+"):
            method = f"MGDA with normalize={self.normalize}"
            no_loss_below(0.0, losses, method=method, tasks=self.tasks, active=active, mend="Say normalize=none or l2.")
        weights, self.status = by_group(gramian, mgda_weights, losses=to_array(losses), normalize=self.normalize)
        return weights
