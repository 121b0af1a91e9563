"""PCGrad: gradients projected off the gradients they conflict with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from mtlbench.balancing.base import TaskSpec, Weighting
from mtlbench.balancing.checks import one_of
from mtlbench.balancing.groups import to_array
from mtlbench.linalg import Array, is_zero


def pcgrad_weights(gramian: Array, *, generator: Generator | None) -> Array:
    """Weights of the sum of the projected gradients.

    Args:
        gramian: (G, A, A) inner products; each group is projected by itself.
        generator: draws the order of the projections, one for each task, shared by the groups; None: ascending.

    Returns:
        (G, A) weights.
    """
    size = gramian.shape[-1]
    if size == 2:  # there is one order
        pairs = [(min(b, 0.0), a or 1.0, c or 1.0) for (a, b), (_, c) in gramian.tolist()]
        return np.array([(1 - conflict / first, 1 - conflict / second) for conflict, first, second in pairs])
    if generator is None:
        order = np.tile(np.arange(size), (size, 1))
    else:
        order = torch.stack([torch.randperm(size, generator=generator) for _ in range(size)]).numpy()
    squares = np.diagonal(gramian, axis1=-2, axis2=-1)
    rows = np.arange(size)
    # combined[:, i] are the weights of task i's projected gradient; all tasks take their next step at once.
    combined = np.tile(np.eye(size), (len(gramian), 1, 1))
    for others in order.T:
        inner = np.einsum("gik,gik->gi", gramian[:, others], combined)
        square = squares[:, others]
        conflict = (inner < 0) & (others != rows) & (square > 0)
        combined[:, rows, others] -= np.divide(inner, square, out=np.zeros_like(inner), where=conflict)
    weights: Array = combined.sum(1)
    return weights


class PCGrad(Weighting):
    """Projecting conflicting gradients.

        for each task i: p <- g_i; for the other tasks j in random order: if p.g_j < 0: p <- p - (p.g_j / |g_j|^2) g_j
        d = sum_i p_i

    Projections are on the original g_j, and on those of the active tasks alone. A zero gradient neither
    changes nor is changed. The status is degenerate where d = 0 (two opposite gradients). The weights
    sum to T or more. For three or more tasks d may still conflict with some.

    Args:
        order: random (the paper; from the balancer's own generator), or fixed: ascending.
        groups: all, the whole gradient (the paper), or layer: each layer's part by itself, in one order.

    Raises:
        ValueError: a wrong option.

    Paper: Yu, Kumar, Gupta, Levine, Hausman, Finn 2020, arXiv:2001.06782.
    """

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        order: Literal["random", "fixed"] = "random",
        groups: Literal["all", "layer"] = "all",
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        one_of(order, ("random", "fixed"), option="order")
        one_of(groups, ("all", "layer"), option="groups")
        self.order, self.groups = order, groups

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        products = to_array(gramian)
        weights = pcgrad_weights(products, generator=self.generator if self.order == "random" else None)
        self.status = "degenerate" if is_zero(products, weights) else "solved"
        return torch.from_numpy(weights).to(gramian)
