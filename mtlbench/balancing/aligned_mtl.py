"""Aligned-MTL: the sum of the gradients after their principal components are made equally long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from mtlbench.balancing.base import Property, TaskSpec, Weighting
from mtlbench.balancing.checks import one_of
from mtlbench.balancing.groups import by_group
from mtlbench.linalg import Array, is_zero, principal

ScaleMode = Literal["min", "median", "rmse"]


def aligned_mtl_weights(
    gramian: Array, *, scale_mode: ScaleMode = "min", reduction: Literal["sum", "mean"] = "sum"
) -> tuple[Array, bool]:
    """(A, A) Gramian -> (A,) weights, and whether d is not zero (see `AlignedMTL`)."""
    values, vectors = principal(gramian)
    weights = np.zeros(len(gramian))
    if len(values):
        square = {"min": values[0], "median": values[(len(values) - 1) // 2], "rmse": values.mean()}[scale_mode]
        weights = np.sqrt(square) * (vectors @ (vectors.sum(0) / np.sqrt(values)))
    return weights if reduction == "sum" else weights / len(weights), not is_zero(gramian, weights)


class AlignedMTL(Weighting):
    """Independent component alignment.

        J J' = V diag(s_1^2, ..., s_R^2) V', over the R eigenvalues that are not zero
        B = s V diag(1 / s_1, ..., 1 / s_R) V', s = min_r s_r
        d = J' B 1: the aligned gradients B J all have singular value s

    The weights sum to nothing in particular. The status is degenerate where d = 0: no gradient, or two
    opposite ones of one length.

    Args:
        scale_mode: s^2 is the min, the median (the lower one of two) or the mean (rmse) of the s_r^2.
        reduction: sum over the tasks, or mean.

    Raises:
        ValueError: a wrong option.

    Paper: Senushkin, Patakin, Kuznetsov, Konushin 2023, arXiv:2305.19000.

    Note:
        The paper's d is a weighted sum whose weights it leaves to the user; the official code has ones
        (sum), TorchJD 1/T (mean). An eigenvalue counts as zero up to T eps times the largest, as in both.
    """

    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        scale_mode: ScaleMode = "min",
        reduction: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        one_of(scale_mode, ("min", "median", "rmse"), option="scale_mode")
        one_of(reduction, ("sum", "mean"), option="reduction")
        self.scale_mode, self.reduction = scale_mode, reduction

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        options = {"scale_mode": self.scale_mode, "reduction": self.reduction}
        weights, self.status = by_group(gramian, aligned_mtl_weights, **options)
        return weights
