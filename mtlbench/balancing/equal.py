"""The plain sum of the losses: the reference that every other method is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from mtlbench.balancing.base import Property, Scalarizer, TaskSpec
from mtlbench.balancing.checks import one_of

Reduction = Literal["sum", "mean"]


def equal_objective(losses: Tensor, *, reduction: Reduction = "sum") -> Tensor:
    """(A,) losses -> (), their sum or mean."""
    return losses.sum() if reduction == "sum" else losses.mean()


class Equal(Scalarizer):
    """Equal weights.

        objective = sum_i l_i    (mean: 1/A of it, A the tasks active in the step)

    Args:
        reduction: sum (the reference scale: weights of 1) or mean.

    Raises:
        ValueError: `reduction` is neither.
    """

    needs_all_tasks = False
    weights_sum: Literal["T", "1", "free"] = "T"
    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})
    linear = True

    def __init__(
        self, *, num_tasks: int, seed: int, tasks: Sequence[TaskSpec] | None = None, reduction: Reduction = "sum"
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        one_of(reduction, ("sum", "mean"), option="reduction")
        self.reduction = reduction
        self.weights_sum = "T" if reduction == "sum" else "1"

    def forward(self, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        return equal_objective(losses, reduction=self.reduction)
