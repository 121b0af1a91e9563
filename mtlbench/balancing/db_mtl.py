"""DB-MTL: gradients of log losses, smoothed over the steps and scaled to the length of the longest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlbench.balancing.base import Aggregator, Property, TaskSpec, index_of
from mtlbench.balancing.checks import no_loss_below, number
from mtlbench.balancing.state import RowState, vanishes


def db_mtl_direction(rows: Tensor, lengths: Tensor) -> Tensor:
    """(A, P) gradients and their (A,) lengths -> (P,) sum of them, each scaled to the greatest length."""
    scales = torch.where(lengths > 0, lengths.max() / lengths, 0.0)
    return scales.to(rows) @ rows


class DBMTL(Aggregator):
    """Dual-balancing multi-task learning.

        g_i the gradient of log(l_i + epsilon)
        u_i <- beta u_i + (1 - beta) g_i, from u_i = 0; v_i = u_i / (1 - beta^n) after n steps of task i
        d = sum_i (max_k |v_k| / |v_i|) v_i

    Each step moves the smoothed gradients u of the active tasks, and d is theirs. A zero v_i adds nothing. The
    status is degenerate where d = 0. The state takes T x P numbers. Heads train on the log losses.

    Args:
        beta: of the smoothing, in [0, 1); 0.9 is LibMTL's.
        bias_correction: false: v = u, so that the first step is 1 - beta times as long (LibMTL).
        epsilon: added to the losses before the logarithm, above 0.

    Raises:
        ValueError: a wrong option, or a negative loss.

    Paper: Lin, Jiang, Ye, Zhang, Chen, Chen, Liu, Kwok 2023, arXiv:2308.12029.

    Note:
        The correction is not LibMTL's, whose beta may also fall over the steps; here it is constant.
    """

    properties = frozenset({Property.LOSS_SCALE_INVARIANT, Property.PERMUTATION_EQUIVARIANT})

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        beta: float = 0.9,
        bias_correction: bool = True,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(beta, option="beta", least=0, below=1)
        number(epsilon, option="epsilon", above=0)
        self.beta, self.bias_correction, self.epsilon, self.tasks = beta, bias_correction, epsilon, tasks
        self.smoothed = RowState(num_tasks)
        self.steps: Tensor  # of each task
        self.register_buffer("steps", torch.zeros(num_tasks, dtype=torch.int64))

    def transform(self, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        no_loss_below(0.0, losses, method="DB-MTL", tasks=self.tasks, active=active)
        return (losses + self.epsilon).log()

    def forward(self, jacobian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        index = index_of(active, self.steps)
        self.steps[index] += 1
        rows = torch.lerp(jacobian, self.smoothed.read(jacobian, active), self.beta)
        self.smoothed.write(rows, active)
        if self.bias_correction:
            rows = rows / (1 - self.beta ** self.steps[index].double()).to(rows)[:, None]
        lengths = rows.double().square().sum(1).sqrt()
        direction = db_mtl_direction(rows, lengths)
        self.status = "degenerate" if vanishes(direction) else "solved"
        return direction
