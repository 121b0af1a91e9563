"""MoCo: weights of smoothed gradients that descend on the length of their combination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from scipy.special import softmax
from torch import Tensor

from mtlbench.balancing.base import Aggregator, Property, TaskSpec
from mtlbench.balancing.checks import number, one_of
from mtlbench.balancing.simplex import SimplexState, project
from mtlbench.balancing.state import RowState, vanishes
from mtlbench.linalg import Array

Simplex = Literal["project", "softmax"]


def moco_weights(
    weights: Array, gramian: Array, *, gamma: float, rho: float = 0.0, simplex: Simplex = "project"
) -> Array:
    """One step of the weights.

    Args:
        weights: (A,) on the simplex.
        gramian: (A, A) inner products of the smoothed gradients.
        gamma: step length.
        rho: of the regulariser rho/2 |weights|^2.
        simplex: project, or softmax, back onto it.

    Returns:
        (A,) the next weights.
    """
    moved = weights - gamma * (gramian @ weights + rho * weights)
    return project(moved) if simplex == "project" else softmax(moved)


class MoCo(Aggregator):
    """Multi-objective gradient correction.

        y_i <- y_i - beta (y_i - g_i), from y_i = 0
        w <- project on the simplex w - gamma (y y' + rho I) w, from w = 1/T
        d = sum_i w_i y_i; in step n, beta = beta_1 / n^beta_decay, gamma = gamma_1 / n^gamma_decay

    Each step moves the smoothed gradients y and the weights of the active tasks, whose stored weights keep the
    sum they had and count with a sum of 1 in d. One batch a step. The status is degenerate where d = 0. The
    state takes T x P numbers.

    Args:
        beta: beta_1, in (0, 1].
        beta_decay: at least 0; 0: constant.
        gamma: gamma_1, above 0.
        gamma_decay: at least 0; 0: constant.
        rho: at least 0.
        normalize: none (the paper), or loss: g_i is scaled to the length l_i (LibMTL).
        simplex: project (the paper), or softmax of what would be projected (LibMTL).

    Raises:
        ValueError: a wrong option.

    Paper: Fernando, Shen, Liu, Chaudhury, Murugesan, Chen 2023, arXiv:2210.12624.

    Note:
        The step lengths are LibMTL's; the authors' code has 0.1 for beta, gamma and rho. LibMTL as a whole is
        normalize=loss with simplex=softmax.
    """

    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        beta: float = 0.5,
        beta_decay: float = 0.5,
        gamma: float = 0.1,
        gamma_decay: float = 0.5,
        rho: float = 0.0,
        normalize: Literal["none", "loss"] = "none",
        simplex: Simplex = "project",
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(beta, option="beta", above=0, most=1)
        number(beta_decay, option="beta_decay", least=0)
        number(gamma, option="gamma", above=0)
        number(gamma_decay, option="gamma_decay", least=0)
        number(rho, option="rho", least=0)
        one_of(normalize, ("none", "loss"), option="normalize")
        one_of(simplex, ("project", "softmax"), option="simplex")
        self.beta, self.beta_decay, self.gamma, self.gamma_decay = beta, beta_decay, gamma, gamma_decay
        self.rho, self.normalize, self.simplex = rho, normalize, simplex
        self.smoothed = RowState(num_tasks)
        self.weights = SimplexState(num_tasks)
        self.steps: Tensor  # ()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, jacobian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        self.steps += 1
        step = int(self.steps)
        if self.normalize == "loss":
            lengths = jacobian.double().square().sum(1).sqrt()
            scales = torch.where(lengths > 0, losses.to(lengths) / lengths, 0.0)
            jacobian = jacobian * scales.to(jacobian)[:, None]
        rows = torch.lerp(self.smoothed.read(jacobian, active), jacobian, self.beta / step**self.beta_decay)
        self.smoothed.write(rows, active)
        weights = moco_weights(
            self.weights.read(active),
            (rows @ rows.T).double().cpu().numpy(),
            gamma=self.gamma / step**self.gamma_decay,
            rho=self.rho,
            simplex=self.simplex,
        )
        self.weights.write(weights, active)
        direction = torch.from_numpy(weights).to(rows) @ rows
        self.status = "degenerate" if vanishes(direction) else "solved"
        return direction
