"""MoDo: weights that descend on the length of their combination, by products of gradients of independent batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mtlbench.balancing.base import Property, TaskSpec, Weighting
from mtlbench.balancing.checks import number
from mtlbench.balancing.groups import to_array
from mtlbench.balancing.simplex import SimplexState, project
from mtlbench.linalg import Array


def modo_weights(weights: Array, cross: Array, *, gamma: float = 0.1, rho: float = 0.1) -> Array:
    """One step of the weights (A,) by the cross-Gramian (A, A) of two batches, back onto the simplex."""
    return project(weights - gamma * (cross @ weights + rho * weights))


class MoDo(Weighting):
    """Multi-objective gradient with double sampling.

        w <- projection on the simplex of w - gamma (J1 J2' w + rho w)
        d = J3' w, with J1, J2, J3 the Jacobians of three independent batches

    J1 J2' w is an unbiased estimate of the gradient of |J' w|^2 / 2, which one batch can't give. w starts equal and
    sums to 1; a step with some of the tasks moves theirs on a simplex of their own, and keeps the sum that they have
    among all. The status is never degenerate: where d is zero the stochastic w goes on.

    Args:
        gamma: step length of the weights; 0.1 is the official code's, LibMTL has 0.001. What is small depends on the
            gradients' lengths: with gamma |g|^2 far above 1 the weights jump between tasks.
        rho: weight decay of w, towards equal weights; 0.1 is the official code's.

    Raises:
        ValueError: a wrong option.

    Paper: Chen, Fernando, Ying, Chen 2023, arXiv:2305.20057.

    Note:
        The paper's algorithm takes d from the two batches of the weights' step, or from a third (`three_grads` in the
        official code, and LibMTL): here a third, on which the new w does not depend. Heads learn from all three.
        An epoch has as much data as every method's, hence a third of the steps.
    """

    num_batches: Literal[1, 3] = 3
    weights_sum = "1"
    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        gamma: float = 0.1,
        rho: float = 0.1,
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(gamma, option="gamma", above=0)
        number(rho, option="rho", least=0)
        self.gamma, self.rho = gamma, rho
        self.state = SimplexState(num_tasks)

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        (cross,) = to_array(gramian)
        weights = modo_weights(self.state.read(active), cross, gamma=self.gamma, rho=self.rho)
        self.state.write(weights, active)
        return torch.from_numpy(weights).to(gramian)[None]
