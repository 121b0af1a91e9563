"""SDMGrad: the shortest convex combination of the gradients, pulled towards their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtlbench.balancing.base import Property, TaskSpec, Weighting
from mtlbench.balancing.checks import number, one_of
from mtlbench.balancing.groups import by_group, to_array
from mtlbench.balancing.simplex import SimplexState, project
from mtlbench.linalg import Array, is_zero, min_norm


def sdmgrad_weights(gramian: Array, *, lambda_: float = 0.3) -> tuple[Array, bool]:
    """(A, A) Gramian -> (A,) weights that sum to 1, and whether the direction is not zero (see `SDMGrad`)."""
    # For w on the simplex g_w + lambda g0 is the combination of the g_i + lambda g0: a shortest vector is sought.
    size = len(gramian)
    shift = np.eye(size) + lambda_ / size
    weights = shift @ min_norm(shift @ gramian @ shift)[0] / (1 + lambda_)
    return weights, not is_zero(gramian, weights)


def sdmgrad_steps(
    weights: Array, cross: Array, *, lambda_: float = 0.3, steps: int = 20, lr: float = 10.0, momentum: float = 0.5
) -> Array:
    """Projected gradient steps on the simplex.

    Args:
        weights: (A,) w before them.
        cross: (A, A) cross-Gramian of two batches; divided by the square of the mean length that its diagonal tells.
        lambda_: see `SDMGrad`.
        steps: number of steps.
        lr: their length.
        momentum: of the steps, none at first.

    Returns:
        (A,) the next w; the given one where no diagonal entry is positive, so that there is no length.
    """
    scale = np.sqrt(np.maximum(cross.diagonal(), 0)).mean()
    if scale == 0:
        return weights
    cross = cross / scale / scale
    pull = lambda_ / len(weights) * cross.sum(1)
    velocity = np.zeros_like(weights)
    for _ in range(steps):
        velocity = momentum * velocity + (cross @ weights + pull)
        weights = project(weights - lr * velocity)
    return weights


class SDMGrad(Weighting):
    """Direction-oriented multi-objective gradient descent.

        w = argmin |sum_i w_i g_i + lambda g0|^2 over the simplex, g0 the mean gradient
        d = (sum_i w_i g_i + lambda g0) / (1 + lambda)
        stochastic: w by projected steps v <- momentum v + J1 J2' (w + lambda / T), w <- w - lr v; d from batch 3

    The mean and the simplex are those of the active tasks. The weights of the gradients in d sum to 1. The exact d is
    MGDA's wherever MGDA gives every task at least lambda / ((1 + lambda) T), and the mean in the limit of a large
    lambda; the status is degenerate where it is 0. The stochastic solver takes three independent batches a step and
    keeps w (not v) from step to step; its status is degenerate where no task's gradients on the first two batches have
    a positive product: there is no length to divide by, and w stays.

    Args:
        lambda_: pull towards the mean gradient; 0 is MGDA. 0.3 is the official experiments'.
        solver: exact (`linalg.min_norm`), or stochastic.
        steps: of the stochastic solver, at each training step; 20 is the official code's.
        lr: of these steps, relative to gradients of length 1; 10 is the official code's, LibMTL has 5.
        momentum: of these steps; 0.5 is the official code's.

    Raises:
        ValueError: a wrong option.
        RuntimeError: the exact solution misses its tolerance.

    Paper: Xiao, Ban, Ji 2023, arXiv:2305.18409.

    Note:
        exact is the paper's objective for the gradients of one batch, which the paper's algorithm descends on with
        fresh batches at each of its steps. stochastic follows the official code: one pair of batches for all steps, and
        such long steps that w lands near a vertex of the simplex rather than at the optimum. Heads learn from all
        three batches, and an epoch has as much data as every method's, hence a third of the steps.
    """

    weights_sum = "1"
    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        lambda_: float = 0.3,
        solver: Literal["exact", "stochastic"] = "exact",
        steps: int = 20,
        lr: float = 10.0,
        momentum: float = 0.5,
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(lambda_, option="lambda_", least=0)
        one_of(solver, ("exact", "stochastic"), option="solver")
        number(steps, option="steps", least=1, whole=True)
        number(lr, option="lr", above=0)
        number(momentum, option="momentum", least=0, below=1)
        self.lambda_, self.solver, self.steps, self.lr, self.momentum = lambda_, solver, steps, lr, momentum
        self.num_batches = 3 if solver == "stochastic" else 1
        self.state = SimplexState(num_tasks)  # of the stochastic solver

    def forward(self, gramian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        if self.solver == "exact":
            weights, self.status = by_group(gramian, sdmgrad_weights, lambda_=self.lambda_)
            return weights
        (cross,) = to_array(gramian)
        self.status = "solved" if (cross.diagonal() > 0).any() else "degenerate"
        options = {"lambda_": self.lambda_, "lr": self.lr, "momentum": self.momentum}
        found = sdmgrad_steps(self.state.read(active), cross, steps=self.steps, **options)
        self.state.write(found, active)
        return torch.from_numpy((found + self.lambda_ / len(found)) / (1 + self.lambda_)).to(gramian)[None]
