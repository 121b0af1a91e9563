"""ExcessMTL: tasks far from their optimum gain weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mtlbench.balancing.base import Aggregator, Property, TaskSpec, index_of
from mtlbench.balancing.checks import number, one_of
from mtlbench.balancing.state import RowState, vanishes


def excess_risks(jacobian: Tensor, squares: Tensor) -> Tensor:
    """Estimates of how far the losses are above their minima.

    Args:
        jacobian: (A, P) gradients.
        squares: (A, P) sums of their squares over the steps, this one included.

    Returns:
        (A,) float64: sum over the columns of g^2 / sqrt(squares).
    """
    return (jacobian.square() / (squares + 1e-7).sqrt()).double().sum(1)


class ExcessMTL(Aggregator):
    """Robust multi-task learning with excess risks.

        h_i += g_i^2 elementwise; e_i = sum over coordinates of g_i^2 / sqrt(h_i + 1e-7)
        w_i <- w_i exp(eta e_i / e0_i), divided by the sum; w = 1/T and e0_i = mean e_i in the first `warmup` steps
        d = sum_i w_i g_i

    The first steps are each task's own first ones with a gradient other than zero. In a step with some of the
    tasks their weights alone move, and are divided by their own sum in d. The status is degenerate where d = 0.
    The state takes T x P numbers.

    Args:
        eta: step length of the weights; 1e-2 is LibMTL's.
        warmup: steps whose mean e_i is e0_i, while the task's weight rests; 0: e0 is the first e, and this first
            e moves the weights undivided (TorchJD).
        scale: weights sum to 1 (mean, the paper), or to the number of tasks (sum: LibMTL).

    Raises:
        ValueError: a wrong option.

    Paper: He, Zhou, Zhang, Yun, Xu, Zeng, Chilimbi, Zhao 2024, arXiv:2402.02009.

    Note:
        The paper takes e0 over the first three epochs: set `warmup` to their steps.
    """

    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        eta: float = 1e-2,
        warmup: int = 1,
        scale: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(eta, option="eta", above=0)
        number(warmup, option="warmup", least=0, whole=True)
        one_of(scale, ("mean", "sum"), option="scale")
        self.eta, self.warmup, self.scale = eta, warmup, scale
        self.squares = RowState(num_tasks)
        self.logits: Tensor  # logarithms of the weights
        self.initial: Tensor  # sum of the first excess risks
        self.steps: Tensor  # of each task, those with a zero gradient left out
        self.register_buffer("logits", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("initial", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros(num_tasks, dtype=torch.int64))

    def forward(self, jacobian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        squares = self.squares.read(jacobian, active) + jacobian.square()
        self.squares.write(squares, active)
        weights = self._move(excess_risks(jacobian, squares), active)
        if self.scale == "sum":
            weights = weights * len(weights)
        direction = weights.to(jacobian) @ jacobian
        self.status = "degenerate" if vanishes(direction) else "solved"
        return direction

    def _move(self, risks: Tensor, active: Tensor | None) -> Tensor:
        """(A,) the active tasks' next weights, with a sum of 1."""
        index = index_of(active, self.logits)
        risks = risks.to(self.logits)
        steps = self.steps[index].clone()
        early = (steps < max(self.warmup, 1)) & (risks > 0)
        self.initial[index] += torch.where(early, risks, 0.0)
        self.steps[index] += (risks > 0).long()
        first = self.initial[index] / max(self.warmup, 1)
        moves = torch.where(steps < self.warmup, 0.0, risks / torch.where(first > 0, first, 1.0))
        if self.warmup == 0:
            moves = torch.where(early, risks, moves)
        logits = self.logits[index]
        moved = logits + self.eta * moves
        # The active tasks keep the weight they had together, against the others.
        self.logits[index] = moved - moved.logsumexp(0) + logits.logsumexp(0)
        return torch.softmax(moved, 0)
