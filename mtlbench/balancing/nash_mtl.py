"""Nash-MTL: the Nash bargaining solution of the tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtlbench.balancing.base import Property, TaskSpec, Weighting, index_of
from mtlbench.balancing.checks import number
from mtlbench.balancing.groups import to_array
from mtlbench.linalg import alpha_fair


class NashMTL(Weighting):
    """Nash bargaining between the tasks.

        d = argmax sum_i log g_i.d over |d| <= epsilon
        d = sum_i w_i g_i up to its length, with G w = 1 / w, w > 0

    |d|^2 is the number of active tasks, and d does not change where a loss is multiplied by a constant. The
    root is exact (`linalg.alpha_fair` with alpha 1). The weights sum to nothing in particular. The status is
    degenerate where there is no root: some convex combination of the gradients is zero (a zero or opposite
    gradients among them); the direction then is zero, and the next step solves again.

    Args:
        max_norm: d is shortened to this length; null leaves it. 1 is the official code's.
        every: steps for which weights are kept, at first and after a step without a root the next one
            solves. A task that was not active when they were found keeps its older weight, 1 at first.

    Raises:
        ValueError: a wrong option.
        RuntimeError: the root misses its tolerance.

    Paper: Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik, Fetaya 2022, arXiv:2202.01017.

    Note:
        The official code takes up to 20 steps of a concave-convex procedure, and keeps the last weights where
        its solver fails. It clips the gradient of the shared parameters to `max_norm`.
    """

    properties = frozenset({Property.NON_CONFLICTING, Property.STATIONARY_ZERO, Property.PERMUTATION_EQUIVARIANT})

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        max_norm: float | None = None,
        every: int = 1,
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        if max_norm is not None:
            number(max_norm, option="max_norm", above=0)
        number(every, option="every", least=1, whole=True)
        self.max_norm, self.every = max_norm, every
        if every > 1:  # old weights promise nothing of new gradients
            self.properties = frozenset({Property.PERMUTATION_EQUIVARIANT})
        self.weights: Tensor
        self.age: Tensor  # steps since the weights were found, modulo `every`
        self.register_buffer("weights", torch.ones(num_tasks, dtype=torch.float64))
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        (products,) = to_array(gramian)
        index = index_of(active, self.weights)
        self.status = "solved"
        if self.every == 1 or self.age == 0:
            weights, regular = alpha_fair(products, alpha=1.0)
            if not regular:
                self.status = "degenerate"
                return torch.zeros_like(gramian[:, 0])
            self.weights[index] = torch.from_numpy(weights).to(self.weights)
        else:
            weights = to_array(self.weights[index])
        if self.every > 1:
            self.age.copy_((self.age + 1) % self.every)
        if self.max_norm is not None:
            square = float(weights @ products @ weights)
            if square > self.max_norm**2:
                weights = weights * (self.max_norm / math.sqrt(square))
        return torch.from_numpy(weights)[None].to(gramian)
