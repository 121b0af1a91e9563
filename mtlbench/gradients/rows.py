"""Task gradients as rows: those of the shared parameters in one flat Jacobian, the private ones beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mtlbench.gradients.losses import MicroBatch
from mtlbench.gradients.parts import COLUMNS
from mtlbench.gradients.ranks import Ranks
from mtlbench.gradients.training import of_training
from mtlbench.gradients.writing import write


class TaskGradients(NamedTuple):
    """Mean gradients of the active tasks, A of T.

    Attributes:
        active: their indices, ascending.
        means: (A,) mean losses, float64 on the CPU.
        jacobian: (A, P) gradients of the shared parameters, or this rank's columns of them.
        private: for each of them this rank's part of the gradients of the private parameters it reaches, by index.
    """

    active: list[int]
    means: Tensor
    jacobian: Tensor
    private: list[dict[int, Tensor]]

    def scaled(self, slopes: Tensor) -> TaskGradients:
        """The gradients with task i's multiplied by slopes[i]."""
        jacobian = self.jacobian * slopes.to(self.jacobian)[:, None]
        return self._replace(jacobian=jacobian, private=times(self.private, slopes.tolist()))


def symmetric(gramian: Tensor) -> Tensor:
    """(G, A, A) without the last bit that float32 products differ by: to a solver in float64 it is not a Gramian."""
    return (gramian + gramian.mT) / 2


def times(private: Sequence[dict[int, Tensor]], factors: Sequence[float]) -> list[dict[int, Tensor]]:
    """Each task's private gradients times its factor."""
    return [{index: g * f for index, g in row.items()} for row, f in zip(private, factors, strict=True)]


class Rows:
    """The rows of one step, summed over its micro-batches and over the ranks.

    Args:
        shared: the parameters behind the columns; features for rows that are never written.
        private: parameters of single tasks; their gradients are kept per task.
        num_tasks: T.
        weigh: sum count x gradient, to be divided by the total counts at the end; where a step has one
            micro-batch, False spares the rounding of that.
        ranks: those that train together.
        columns: each rank has a part of the columns of the sum (`part`), all of them (`all`), or its own rows, which
            are not summed, for features of different examples (`own`).

    Attributes:
        sums: (T,) count x loss over all ranks, float64 on the CPU.
        counts: (T,) labelled elements over all ranks, float64 on the CPU.
    """

    def __init__(
        self,
        shared: Sequence[Tensor],
        private: Sequence[nn.Parameter],
        *,
        num_tasks: int,
        weigh: bool,
        ranks: Ranks,
        columns: Literal["part", "all", "own"] = "part",
    ) -> None:
        self._shared, self._inputs, self._weigh = shared, [*shared, *private], weigh
        self._ranks, self._columns = ranks, columns
        self._sizes = [p.numel() for p in shared]
        like = shared[0] if shared else torch.empty(0)
        self.device = like.device
        # Features may come in half precision, too coarse for inner products.
        dtype = torch.promote_types(like.dtype, torch.float32)
        self._jacobian = torch.zeros(num_tasks, sum(self._sizes), dtype=dtype, device=like.device)
        self._private: list[dict[int, Tensor]] = [{} for _ in range(num_tasks)]
        self._reached = torch.zeros(num_tasks, len(shared), dtype=torch.bool)
        self.sums = torch.zeros(num_tasks, dtype=torch.float64)
        self.counts = torch.zeros(num_tasks, dtype=torch.float64)

    def add(self, batch: MicroBatch, factor: float, *, retain_graph: bool = False) -> None:
        """One backward for each active task, from its loss times `factor`."""
        totals = batch.totals
        counts = torch.ones(len(totals.active), dtype=torch.float64)
        sizes, parts = [1.0] * len(batch.active), batch.mine(counts)
        if self._weigh:  # of the gradients, not on a loss: in half precision that would be rounded, or infinite
            parts = torch.tensor(sizes, dtype=torch.float64)
            counts, sizes = torch.tensor(totals.counts, dtype=torch.float64), batch.counts
        self.sums[totals.active] += counts * totals.means
        self.counts[totals.active] += counts
        # In the losses' type, where a scaler's scale may be infinite: the step is skipped.
        scales = (factor * parts).to(batch.stacked.dtype).tolist()
        for position, (task, loss) in enumerate(zip(batch.active, batch.losses, strict=True)):
            retain = retain_graph or position + 1 < len(batch.losses)
            cotangent = torch.full_like(loss, scales[position])
            take = partial(torch.autograd.grad, loss, grad_outputs=cotangent, retain_graph=retain, allow_unused=True)
            self._add_row(task, of_training(self._inputs, take), sizes[position])

    def _add_row(self, task: int, grads: Sequence[Tensor | None], size: float) -> None:
        shared, private = grads[: len(self._shared)], grads[len(self._shared) :]
        self._reached[task] |= torch.tensor([grad is not None for grad in shared], dtype=torch.bool)
        for column, grad in zip(self._jacobian[task].split(self._sizes), shared, strict=True):
            if grad is not None and self._weigh:
                column.add_(grad.reshape(-1), alpha=size)
            elif grad is not None:
                column.copy_(grad.reshape(-1))
        sums = self._private[task]
        for index, grad in enumerate(private):
            if grad is not None and self._weigh:
                grad = grad.to(torch.promote_types(grad.dtype, torch.float32)) * size
            if grad is not None:
                sums[index] = sums[index] + grad if index in sums else grad

    @property
    def active(self) -> list[int]:
        """The tasks that have a row on some rank."""
        return self.counts.nonzero().flatten().tolist()

    def jacobian_of(self, active: list[int]) -> Tensor:
        """(A, P) mean gradients of some tasks that have a row, or this rank's columns of them."""
        rows = self._jacobian if len(active) == len(self._jacobian) else self._jacobian[active]
        if self._columns == "part":
            rows = self._ranks.scatter(rows)
        elif self._columns == "all":
            rows = self._ranks.sum(rows)
        return rows / self.counts[active].to(rows)[:, None] if self._weigh else rows

    def private_sums(self, task: int) -> dict[int, Tensor]:
        """A task's private gradients, summed over this rank's micro-batches."""
        return self._private[task]

    def mean(self) -> TaskGradients:
        """The mean gradients of the tasks that have a row."""
        active = self.active
        private = [self._private[task] for task in active]
        counts = self.counts[active]
        if self._weigh:
            private = times(private, (1 / counts).tolist())
        return TaskGradients(active, self.sums[active] / counts, self.jacobian_of(active), private)

    def gramian(
        self, jacobian: Tensor, groups: Sequence[int | None], others: Tensor | None = None, *, num_groups: int = 1
    ) -> Tensor:
        """Inner products of rows (A, P) with each other, or with those of `others`.

        Products of no more than `COLUMNS` columns are summed in float64: one flat float32 product is up to 190 times
        less exact.

        Args:
            jacobian: (A, P), or this rank's columns.
            groups: for each of the shared parameters the index of its group; None leaves it out.
            others: rows of the same columns.
            num_groups: G.

        Returns:
            (G, A, A) float64, of all columns; with `others` [:, i, j] is row i of `jacobian` times row j of `others`.
        """
        tasks = len(jacobian)
        result = torch.zeros(num_groups, tasks, tasks, dtype=torch.float64, device=jacobian.device)
        blocks = jacobian.split(self._pieces()[1], dim=1)
        for block, other, group in zip(
            blocks,
            blocks if others is None else others.split(self._pieces()[1], dim=1),
            self._of_pieces(groups),
            strict=True,
        ):
            if group is not None:
                for one, two in zip(block.split(COLUMNS, dim=1), other.split(COLUMNS, dim=1), strict=True):
                    result[group] += one @ two.T
        if others is None:
            result = symmetric(result)
        return result if self._columns == "all" else self._ranks.sum(result)

    def combine(self, weights: Tensor, jacobian: Tensor, groups: Sequence[int]) -> Tensor:
        """The direction (P,), or this rank's columns of it: each parameter's rows with its group's weights (G, A)."""
        weights = weights.to(jacobian)
        blocks = jacobian.split(self._pieces()[1], dim=1)
        parts = [weights[group or 0] @ b for group, b in zip(self._of_pieces(groups), blocks, strict=True)]
        return torch.cat(parts or [jacobian.new_empty(0)])  # nothing is shared: independent networks

    def norm(self, direction: Tensor) -> float:
        """Of a direction's columns on all ranks."""
        square = direction.double().square().sum()
        return float(square if self._columns == "all" else self._ranks.sum(square)) ** 0.5

    def finite(self, jacobian: Tensor) -> Tensor:
        """(A,) whether the rows are finite in all columns, on the CPU."""
        infinite = ~jacobian.isfinite().all(dim=1)
        return self._ranks.sum(infinite.to("cpu", torch.int32)) == 0

    def write(self, direction: Tensor, active: list[int]) -> None:
        """Writes the direction (P,) to the shared parameters' `.grad`; None where none of its tasks reaches."""
        if self._columns == "part":
            direction = self._ranks.gather(direction, sum(self._sizes))
        reached = (self._ranks.sum(self._reached[active].sum(0)) > 0).tolist()
        columns = zip(self._shared, direction.split(self._sizes), reached, strict=True)
        write(self._shared, [column.view_as(p).to(p.dtype) if found else None for p, column, found in columns])

    def _pieces(self) -> tuple[list[int | None], list[int]]:
        """The columns here: which parameter each piece is of (None: padding), and how long it is."""
        if self._columns != "part" or self._ranks.size == 1:
            return list(range(len(self._sizes))), self._sizes
        share = self._ranks.share(sum(self._sizes))
        start = share * self._ranks.rank
        owners: list[int | None] = []
        lengths, offset = [], 0
        for index, size in enumerate(self._sizes):
            length = min(offset + size, start + share) - max(offset, start)
            if length > 0:
                owners.append(index)
                lengths.append(length)
            offset += size
        padding = share - sum(lengths)
        return ([*owners, None], [*lengths, padding]) if padding else (owners, lengths)

    def _of_pieces(self, groups: Sequence[int | None]) -> list[int | None]:
        return [None if owner is None else groups[owner] for owner in self._pieces()[0]]
