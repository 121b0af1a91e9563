"""Trimmed mean: each coordinate's mean without its extremes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtlbench.balancing.base import Aggregator, Property, TaskSpec
from mtlbench.balancing.checks import number
from mtlbench.balancing.state import vanishes


def trimmed_mean_direction(jacobian: Tensor, *, trim: int) -> Tensor:
    """(A, P) gradients -> (P,) mean of each column without its `trim` largest and `trim` smallest values."""
    kept = len(jacobian) - 2 * trim
    return jacobian.sort(dim=0).values.narrow(0, trim, kept).mean(0)


class TrimmedMean(Aggregator):
    """Coordinate-wise trimmed mean.

        in each coordinate: sort the tasks' values, drop the b largest and the b smallest
        d = mean of the other T - 2 b values

    With T = 2 b + 1 this is the median. The scale is that of the mean gradient. A step in which fewer than
    2 b + 1 tasks have labels trims as many as leave one or two values. The status is degenerate where d = 0.

    Args:
        trim: b, at least 0.

    Raises:
        ValueError: `trim` is no whole number of at least 0, or `num_tasks` is below 2 trim + 1.

    Paper: Yin, Chen, Ramchandran, Bartlett 2018, arXiv:1803.01498.

    Note:
        The paper averages over workers of which some lie, and trims a fraction of them; here, as in TorchJD,
        tasks take the workers' place and b is a number.
    """

    min_tasks = 3
    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})

    def __init__(self, *, num_tasks: int, seed: int, tasks: Sequence[TaskSpec] | None = None, trim: int = 1) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(trim, option="trim", least=0, whole=True)
        if num_tasks < 2 * trim + 1:
            raise ValueError(f"trim={trim} drops {2 * trim} values and needs more tasks than that, got {num_tasks}.")
        self.trim = trim

    def forward(self, jacobian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        trim = min(self.trim, (len(jacobian) - 1) // 2)
        direction = trimmed_mean_direction(jacobian, trim=trim)
        self.status = "degenerate" if vanishes(direction) else "solved"
        return direction
