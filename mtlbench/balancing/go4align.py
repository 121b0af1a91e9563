"""GO4Align: tasks in groups of like risk, one weight for each group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtlbench.balancing.base import Property, Scalarizer, TaskSpec, index_of
from mtlbench.balancing.checks import no_loss_below, number


def group_means(values: Tensor, *, groups: int) -> Tensor:
    """Each value's group mean under the best k-means clustering of numbers.

    The groups of an optimum are runs of the sorted values, so that dynamic programming finds it exactly.

    Args:
        values: (A,) finite numbers.
        groups: at least 1; no more than A are made.

    Returns:
        (A,) float64, on the CPU.

    Paper: Wang, Song 2011, The R Journal 3(2), Ckmeans.1d.dp.
    """
    given = values.detach().to("cpu", torch.float64).numpy()
    if groups >= len(given):
        return torch.from_numpy(given.copy())  # each by itself
    order = np.argsort(given, kind="stable")
    ordered, size = given[order], len(given)
    # spread[i, j]: the squared distances from their mean of the values i to j, by Welford's update.
    spread = np.zeros((size, size))
    means, squares = np.zeros(size), np.zeros(size)
    for last, value in enumerate(ordered):
        counts = np.arange(last + 1, 0, -1)
        gap = value - means[: last + 1]
        means[: last + 1] += gap / counts
        squares[: last + 1] += gap * (value - means[: last + 1])
        spread[: last + 1, last] = squares[: last + 1]
    spread[np.tril_indices(size, -1)] = np.inf
    cost, starts = spread[0], []  # of the first j + 1 values in so many groups; where the last one starts
    for _ in range(groups - 1):
        # The last group starts at i, after the best for the values before it.
        options = np.concatenate([[np.inf], cost[:-1]])[:, None] + spread
        start = options.argmin(0)
        cost = options[start, np.arange(size)]
        starts.append(start)
    end, result = size, np.empty(size)
    for start in reversed(starts):
        first = int(start[end - 1])
        result[order[first:end]] = ordered[first:end].mean()
        end = first
    result[order[:end]] = ordered[:end].mean()
    return torch.from_numpy(result)


class GO4Align(Scalarizer):
    """Group optimization for multi-task alignment.

        p_i <- p_i e^(-eta l_i), divided by the sum; 1/T at first
        v_i = p_i sum_k l_k / l_i, clustered by k-means into `groups` groups
        w_i = the mean of v over task i's group; objective = sum_i w_i l_i

    Sums and groups are of the active tasks, whose p keep the sum they had; v takes p over that sum. Without
    grouping sum_i w_i l_i would be sum_i l_i. The weights sum to nothing in particular. A loss that is 0 gets
    weight 0 and is in no group; the status is then degenerate.

    Args:
        groups: number of groups, at most T; no more than the step's tasks are made.
        eta: step size of p; 1e-4 is the official code's.

    Raises:
        ValueError: a wrong option, or a negative loss.

    Paper: Shen, Wang, Xiao, Van Noord, Worring 2024, arXiv:2404.06486.

    Note:
        The official code runs Lloyd's iterations from a random start; here the clustering is the exact optimum
        of the same criterion, and nothing is drawn. Its flag for the number of groups defaults to 1, which is one
        weight for all: 2 is this file's choice.
    """

    min_tasks = 2
    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})
    linear = False

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        groups: int = 2,
        eta: float = 1e-4,
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(groups, option="groups", least=1, whole=True)
        number(eta, option="eta", above=0)
        if groups > num_tasks:
            raise ValueError(f"groups must be at most the number of tasks, {num_tasks}; got {groups}.")
        self.groups, self.eta, self.tasks = groups, eta, tasks
        self.logs: Tensor  # of p
        self.register_buffer("logs", torch.full((num_tasks,), -float(np.log(num_tasks)), dtype=torch.float64))

    def forward(self, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        no_loss_below(0, losses, method="GO4Align", tasks=self.tasks, active=active)
        index = index_of(active, self.logs)
        current, before = losses.detach().to(self.logs), self.logs[index]
        shares = torch.log_softmax(before - self.eta * current, 0)
        self.logs[index] = shares + torch.logsumexp(before, 0)
        left = current > 0
        self.status = "solved" if left.all() else "degenerate"
        kept = slice(None) if self.status == "solved" else left
        weights = torch.zeros_like(current)
        if left.any():
            values = shares[kept].exp() * (current.sum() / current[kept])
            weights[kept] = group_means(values, groups=self.groups).to(weights)
        return (weights.to(losses) * losses).sum()
