"""Krum: the gradients that lie closest to the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mtlbench.balancing.base import TaskSpec, Weighting
from mtlbench.balancing.checks import number, one_of

Distance = Literal["squared", "plain"]


def krum_scores(gramian: Tensor, *, byzantine: int = 0, distance: Distance = "squared") -> Tensor:
    """(A, A) Gramian -> (A,) sums of the distances to the A - byzantine - 2 closest other gradients."""
    squares = gramian.diagonal()
    # Symmetric to the bit: the two closest gradients have each other's distance, a tie that rounding must not settle.
    distances = (squares[:, None] + squares - (gramian + gramian.T)).clamp_min(0)
    if distance == "plain":
        distances = distances.sqrt()
    distances = distances.fill_diagonal_(torch.inf)
    return distances.sort(1).values[:, : len(gramian) - byzantine - 2].sum(1)


class Krum(Weighting):
    """Krum and Multi-Krum.

        s_i = sum of |g_i - g_j|^2 over the T - byzantine - 2 gradients j that are closest to g_i
        w_i = 1 / selected for the tasks with the `selected` least scores, 0 for the others
        d = sum_i w_i g_i

    Made for gradients of one loss from many workers, some of which lie; for tasks it drops outliers. Of equal
    scores the first task's counts as the least. T is the number of active tasks; where they are fewer than
    byzantine + 3 no score exists, and the status is degenerate, with their mean as d.

    Args:
        byzantine: number of gradients that may be arbitrary; 0, since there is no published default for tasks.
        selected: number of gradients that are averaged; 1 is Krum.
        distance: squared (the paper), or plain: scores sum |g_i - g_j| (TorchJD).

    Raises:
        ValueError: a wrong option, or fewer than byzantine + 3 tasks.

    Paper: Blanchard, El Mhamdi, Guerraoui, Stainer 2017, arXiv:1703.02757.
    """

    min_tasks = 3
    weights_sum = "1"

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        byzantine: int = 0,
        selected: int = 1,
        distance: Distance = "squared",
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(byzantine, option="byzantine", least=0, whole=True)
        number(selected, option="selected", least=1, whole=True)
        one_of(distance, ("squared", "plain"), option="distance")
        if num_tasks < byzantine + 3:
            raise ValueError(f"Krum with byzantine={byzantine} needs at least {byzantine + 3} tasks, got {num_tasks}.")
        if selected > num_tasks:
            raise ValueError(f"Krum can't select {selected} of {num_tasks} tasks.")
        self.byzantine, self.selected, self.distance = byzantine, selected, distance

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        size = gramian.shape[1]
        self.status = "solved" if size >= self.byzantine + 3 else "degenerate"
        if self.status == "degenerate":
            return torch.full_like(gramian[..., 0], 1 / size)
        weights, count = torch.zeros_like(gramian[..., 0]), min(self.selected, size)
        for group, row in zip(gramian, weights, strict=True):
            scores = krum_scores(group, byzantine=self.byzantine, distance=self.distance)
            row[scores.argsort(stable=True)[:count]] = 1 / count
        return weights
