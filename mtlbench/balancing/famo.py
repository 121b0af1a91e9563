"""FAMO: weights under which all losses fall at about the same rate, from the losses alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtlbench.balancing.base import Property, Scalarizer, TaskSpec, select
from mtlbench.balancing.checks import by_task, no_loss_below, number

DECAY, SQUARE_DECAY, EPS = 0.9, 0.999, 1e-8  # Adam's defaults


def famo_objective(losses: Tensor, logits: Tensor) -> Tensor:
    """(A,) positive losses and logits -> () c sum_i z_i ln l_i, z = softmax(logits), c = 1 / sum_i z_i / l_i fixed.

    Its derivative is softmax(logits - ln l), which is c z_i / l_i.
    """
    logs = losses.log()
    weights = torch.softmax(logits - logs.detach(), 0)
    return (weights * losses.detach()) @ logs


def famo_slope(logits: Sequence[float], progress: Sequence[float]) -> list[float]:
    """(A,) derivative of softmax(logits) . progress by the logits."""
    top = max(logits)
    powers = [math.exp(logit - top) for logit in logits]
    total = sum(powers)
    shares = [power / total for power in powers]
    mean = sum(share * fall for share, fall in zip(shares, progress, strict=True))
    return [share * (fall - mean) for share, fall in zip(shares, progress, strict=True)]


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
        Give it losses in float64, as `MultiTaskModule` does, also of a float32 network: delta is small, and the
        rounding of a float32 mean moves the weights by some 4e-6 in 30 steps.
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
        self.adam: Tensor  # of each logit: the moving averages of slopes and of their squares, and the updates
        bounds = by_task(min_losses, tasks, num_tasks=num_tasks, option="min_losses", default=0.0)
        self.register_buffer("logits", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("min_losses", bounds)
        self.register_buffer("adam", torch.zeros(3, num_tasks, dtype=torch.float64))
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
        # In plain floats: the tasks are few, and tensor calls would take twice the time.
        losses = zip(before.tolist(), after.tolist(), self.min_losses.tolist(), strict=True)
        gaps = [(first - bound, second - bound) for first, second, bound in losses]
        if any(second < 0 for _, second in gaps):
            self._check(after, None)
        seen = [
            task for task, (first, second) in enumerate(gaps) if first > 0 and 0 < second < math.inf
        ]  # NaN: no labels
        if not seen:
            return
        logits = self.logits.tolist()
        progress = [math.log(first) - math.log(second) for first, second in (gaps[task] for task in seen)]
        slopes = famo_slope([logits[task] for task in seen], progress)
        # Adam in a buffer: an optimizer of a buffer is lost when the buffer moves.
        means, squares, updates = self.adam.tolist()
        for task, slope in zip(seen, slopes, strict=True):
            slope += self.gamma * logits[task]
            updates[task] += 1
            means[task] += (1 - DECAY) * (slope - means[task])
            squares[task] += (1 - SQUARE_DECAY) * (slope * slope - squares[task])
            mean = means[task] / (1 - DECAY ** updates[task])
            square = squares[task] / (1 - SQUARE_DECAY ** updates[task])
            logits[task] -= self.lr * mean / (math.sqrt(square) + EPS)
        self.logits.copy_(torch.tensor(logits, dtype=torch.float64))
        self.adam.copy_(torch.tensor([means, squares, updates], dtype=torch.float64))

    def _check(self, losses: Tensor, active: Tensor | None) -> None:
        bounds = select(self.min_losses, active).to(losses)
        mend = "Set min_losses to a lower bound of it, or use another balancer."
        no_loss_below(bounds, losses, method="FAMO", tasks=self.tasks, active=active, mend=mend)
