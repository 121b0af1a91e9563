"""IMTL: losses brought to one size, and the direction with equal projections on their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlbench.balancing.base import TaskSpec, select
from mtlbench.balancing.imtl_g import IMTLG


class IMTL(IMTLG):
    """Impartial multi-task learning, both parts.

        m_i = e^(s_i) l_i - s_i, the s_i learned with the model, 0 at first
        w = the weights of IMTL-G on the gradients of the m_i: G scaled by e^(s_i) e^(s_j)
        d = sum_i w_i e^(s_i) g_i with d.g_i / |g_i| the same for all i; sum_i w_i = 1

    The gradient of s_i is e^(s_i) l_i - 1: at the optimum every scaled loss is 1. The engine balances the
    gradients of `transform`, so `forward` sees those of the m_i, and a task's own parameters get e^(s_i)
    times their gradient. The main optimizer learns s, without weight decay; a task without labels in a step keeps its
    s. Degenerate inputs as in `IMTLG`.

    Paper: Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang 2021, ICLR, openreview IMPnRXEWpvr.

    Note:
        The paper has a^(s_i) with a > 1 and takes a = e. Its pseudo-inverse as in `IMTLG`.
    """

    def __init__(self, *, num_tasks: int, seed: int, tasks: Sequence[TaskSpec] | None = None) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        self.scales = nn.Parameter(torch.zeros(num_tasks))

    def transform(self, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        scales = select(self.scales, active)
        return torch.exp(scales) * losses - scales
