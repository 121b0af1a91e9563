"""FAMO: weights under which all losses fall at about the same rate, from the losses alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.balancing.base import Property, Scalarizer, TaskSpec, select
from mtlbench.balancing.checks import by_task, no_loss_below, number

Array = NDArray[np.float64]

DECAYS = np.array([[0.9], [0.999]])  # of the moments, Adam's defaults


def famo_objective(losses: Tensor, logits: Tensor) -> Tensor:
    """(A,) positive losses and logits -> () c sum_i z_i ln l_i, z = softmax(logits), c = 1 / sum_i z_i / l_i fixed.

    Its derivative is softmax(logits - ln l), which is c z_i / l_i.
    """
    logs = losses.log()
    weights = torch.softmax(logits - logs.detach(), 0)
    return (weights * losses.detach()) @ logs


def famo_slope(logits: Array, progress: Array) -> Array:
    """(A,) derivative of softmax(logits) . progress by the logits."""
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return shares * (progress - shares @ progress)


class FAMO(Scalarizer):
    """Fast adaptive multitask optimization.

        objective = c sum_i z_i ln(l_i - b_i), z = softmax(xi), c = 1 / sum_i z_i / (l_i - b_i), held constant
        after the step, on its data: delta_i = ln(l_i - b_i) - ln(l'_i - b_i), l' the losses after the update
        xi by one step of Adam along z_i (delta_i - sum_k z_k delta_k) + gamma xi_i: less to those that fell most

    So w = softmax(xi - ln(l - b)), which sums to 1. Softmax and sums run over the active tasks; the others' xi,
    moments and count of steps stay. A loss that is at its bound b_i is left out, of the objective (weight 0; the
    status is degenerate) and of the update.

    Args:
        lr: of xi; 0.025 is the paper's.
        gamma: decay of xi; 1e-3 is the paper's for NYUv2, CelebA and QM9 (Cityscapes 1e-2, its toy 0).
        min_losses: b, below which no loss can fall: one number for all tasks or by task name, 0 where none is given.

    Raises:
        ValueError: a wrong option, or a loss below its `min_losses`.

    Paper: Liu, Feng, Stone, Liu 2023, arXiv:2306.03792.

    Note:
        The official class adds 1e-8 to l - b, has gamma 1e-5, and clips the gradient at norm 1 (here the trainer's
        flag). Its second forward draws dropout anew and moves BatchNorm's statistics; here neither.
    """

    needs_after_step = True
    weights_sum = "1"
    properties = frozenset({Property.LOSS_SCALE_INVARIANT, Property.PERMUTATION_EQUIVARIANT})
    linear = False

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        lr: float = 0.025,
        gamma: float = 1e-3,
        min_losses: float | Mapping[str, float] = 0.0,
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(lr, option="lr", above=0)
        number(gamma, option="gamma", least=0)
        self.lr, self.gamma, self.tasks = lr, gamma, tasks
        self.logits: Tensor
        self.min_losses: Tensor
        self.moments: Tensor  # Adam's, of the first and second order
        self.updates: Tensor  # of each task's logit
        bounds = by_task(min_losses, tasks, num_tasks=num_tasks, option="min_losses", default=0.0)
        self.register_buffer("logits", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("min_losses", bounds)
        self.register_buffer("moments", torch.zeros(2, num_tasks, dtype=torch.float64))
        self.register_buffer("updates", torch.zeros(num_tasks, dtype=torch.int64))
        if bounds.any():
            self.properties = frozenset({Property.PERMUTATION_EQUIVARIANT})

    def forward(self, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        gaps, logits = losses - select(self.min_losses, active).to(losses), select(self.logits, active).to(losses)
        left = gaps > 0
        self.status = "solved" if left.all() else "degenerate"
        if self.status == "solved":
            return famo_objective(gaps, logits)
        self._check(losses, active)
        return famo_objective(gaps[left], logits[left]) if left.any() else 0 * losses.sum()

    def after_step(self, before: Tensor, after: Tensor) -> None:
        self._check(after, None)
        bounds, logits = self.min_losses.cpu().numpy(), self.logits.cpu().numpy()
        gaps = [losses.cpu().double().numpy() - bounds for losses in (before, after)]
        seen = (gaps[0] > 0) & (gaps[1] > 0)  # false where a task had no labels: NaN
        if seen.any():
            index = slice(None) if seen.all() else seen
            progress = np.log(gaps[0][index]) - np.log(gaps[1][index])
            slope = famo_slope(logits[index], progress) + self.gamma * logits[index]
            logits[index] -= self.lr * self._adam(slope, index)
            self.logits.copy_(torch.from_numpy(logits))

    def _adam(self, slope: Array, index: slice | NDArray[np.bool_], *, eps: float = 1e-8) -> Array:
        """The direction of torch's Adam, in buffers: an optimizer of a buffer is lost when the buffer moves."""
        moments, updates = self.moments.cpu().numpy(), self.updates.cpu().numpy()
        updates[index] += 1
        moments[:, index] = DECAYS * moments[:, index] + (1 - DECAYS) * np.stack([slope, slope * slope])
        self.moments.copy_(torch.from_numpy(moments))
        self.updates.copy_(torch.from_numpy(updates))
        first, second = moments[:, index] / (1 - DECAYS ** updates[index])
        direction: Array = first / (np.sqrt(second) + eps)
        return direction

    def _check(self, losses: Tensor, active: Tensor | None) -> None:
        bounds = select(self.min_losses, active).to(losses)
        mend = "Set min_losses to a lower bound of it, or use another balancer."
        no_loss_below(bounds, losses, method="FAMO", tasks=self.tasks, active=active, mend=mend)
