"""Task gradients as rows: those of the shared parameters in one flat Jacobian, the private ones beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtlbench.gradients.losses import MicroBatch


class TaskGradients(NamedTuple):
    """Mean gradients of the active tasks, A of T.

    Attributes:
        active: their indices, ascending.
        means: (A,) mean losses, float64 on the CPU.
        jacobian: (A, P) gradients of the shared parameters.
        private: for each of them the gradients of all private parameters, None where not reached.
    """

    active: list[int]
    means: Tensor
    jacobian: Tensor
    private: list[list[Tensor | None]]

    def scaled(self, slopes: Tensor) -> TaskGradients:
        """The gradients with task i's multiplied by slopes[i]."""
        private = [
            [g if g is None else g * slope for g in row]
            for row, slope in zip(self.private, slopes.tolist(), strict=True)
        ]
        return self._replace(jacobian=self.jacobian * slopes.to(self.jacobian)[:, None], private=private)


class Rows:
    """The rows of one step, summed over its micro-batches.

    Args:
        shared: the parameters behind the columns; features for rows that are never written.
        private: parameters of single tasks; their gradients are kept per task, None where not reached.
        num_tasks: T.
        weigh: sum count x gradient, to be divided by the total counts at the end; where a step has one
            micro-batch, False spares the rounding of that.

    Attributes:
        sums: (T,) count x loss, float64 on the CPU.
        counts: (T,) labelled elements, float64 on the CPU.
    """

    def __init__(
        self, shared: Sequence[Tensor], private: Sequence[nn.Parameter], *, num_tasks: int, weigh: bool
    ) -> None:
        self._shared, self._inputs, self._weigh = shared, [*shared, *private], weigh
        self._sizes = [p.numel() for p in shared]
        self._filled = [False] * num_tasks
        like = shared[0] if shared else torch.empty(0)
        self.device = like.device
        # Features may come in half precision, too coarse for inner products.
        dtype = torch.promote_types(like.dtype, torch.float32)
        self._jacobian = torch.zeros(num_tasks, sum(self._sizes), dtype=dtype, device=like.device)
        self._private: list[list[Tensor | None]] = [[None] * len(private) for _ in range(num_tasks)]
        self._reached = [False] * len(shared)
        self.sums = torch.zeros(num_tasks, dtype=torch.float64)
        self.counts = torch.zeros(num_tasks, dtype=torch.float64)

    def add(self, batch: MicroBatch, factor: float, *, retain_graph: bool = False) -> None:
        """One backward for each active task, from its loss times `factor`."""
        counts = batch.counts if self._weigh else torch.ones_like(batch.counts)
        self.sums[batch.active] += counts * batch.means
        self.counts[batch.active] += counts
        for position, (task, loss) in enumerate(zip(batch.active, batch.losses, strict=True)):
            last = position + 1 == len(batch.losses)
            cotangent = torch.full_like(loss, factor * counts[position].item())
            grads = torch.autograd.grad(
                loss, self._inputs, cotangent, retain_graph=retain_graph or not last, allow_unused=True
            )
            self._add_row(task, grads)

    def _add_row(self, task: int, grads: Sequence[Tensor | None]) -> None:
        shared, private = grads[: len(self._shared)], grads[len(self._shared) :]
        self._reached = [old or g is not None for old, g in zip(self._reached, shared, strict=True)]
        for column, grad in zip(self._jacobian[task].split(self._sizes), shared, strict=True):
            if grad is not None and self._filled[task]:
                column += grad.reshape(-1)
            elif grad is not None:
                column.copy_(grad.reshape(-1))
        self._private[task] = [
            new if old is None else old if new is None else old + new
            for old, new in zip(self._private[task], private, strict=True)
        ]
        self._filled[task] = True

    @property
    def active(self) -> list[int]:
        """The tasks that have a row."""
        return [task for task, filled in enumerate(self._filled) if filled]

    def jacobian_of(self, active: list[int]) -> Tensor:
        """(A, P) mean gradients of some tasks that have a row."""
        rows = self._jacobian if len(active) == len(self._filled) else self._jacobian[active]
        return rows / self.counts[active].to(rows)[:, None] if self._weigh else rows

    def private_sums(self, task: int) -> list[Tensor | None]:
        """A task's private gradients, summed over its micro-batches."""
        return self._private[task]

    def mean(self) -> TaskGradients:
        """The mean gradients of the tasks that have a row."""
        active = self.active
        private = [self._private[task] for task in active]
        counts = self.counts[active]
        if self._weigh:
            private = [
                [g if g is None else g / n for g in row] for row, n in zip(private, counts.tolist(), strict=True)
            ]
        return TaskGradients(active, self.sums[active] / counts, self.jacobian_of(active), private)

    def columns(self, jacobian: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """The columns of some of the shared parameters, a block (A, p) each."""
        chosen = {id(p) for p in parameters}
        return [block for p, block in zip(self._shared, self.blocks(jacobian), strict=True) if id(p) in chosen]

    def blocks(self, jacobian: Tensor) -> tuple[Tensor, ...]:
        """The columns parameter by parameter."""
        return jacobian.split(self._sizes, dim=1)

    def write(self, direction: Tensor) -> None:
        """Writes the direction (P,) to the shared parameters' `.grad`; None where no task reaches."""
        for p, column, reached in zip(self._shared, direction.split(self._sizes), self._reached, strict=True):
            p.grad = column.view_as(p).to(p.dtype) if reached else None


def gramian(blocks: Sequence[Tensor], groups: Sequence[int], others: Sequence[Tensor] | None = None) -> Tensor:
    """Inner products of the rows, given as blocks (A, p) of columns, with each other or with those of `others`.

    Summed over the blocks in float64: one flat float32 product is up to 190 times less exact.

    Returns:
        (G, A, A) float64; with `others` [:, i, j] is row i of `blocks` times row j of `others`.
    """
    tasks = len(blocks[0])
    result = torch.zeros(max(groups) + 1, tasks, tasks, dtype=torch.float64, device=blocks[0].device)
    for block, other, group in zip(blocks, blocks if others is None else others, groups, strict=True):
        result[group] += block @ other.T
    return result


def combine(weights: Tensor, blocks: Sequence[Tensor], groups: Sequence[int]) -> Tensor:
    """The direction (P,): each block's rows weighted with its group's weights (G, A)."""
    weights = weights.to(blocks[0])
    return torch.cat([weights[group] @ block for block, group in zip(blocks, groups, strict=True)])
