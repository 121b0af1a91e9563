"""Several independent batches in one step: the rows of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtlbench.gradients.losses import MicroBatch
from mtlbench.gradients.ranks import Ranks
from mtlbench.gradients.rows import Rows, TaskGradients, times


class StepGradients(NamedTuple):
    """Mean gradients of the tasks that have labels in every batch of the step, A of T.

    Attributes:
        pair: (A, P) Jacobians of the two batches that decide the weights.
        step: those of the last batch, on which the weights act. Its losses and private gradients are means over all
            labelled elements of all batches: a head meets no conflict, and so learns from all of them.
    """

    pair: tuple[Tensor, Tensor]
    step: TaskGradients


class BatchRows:
    """The rows of a step's three batches, each summed over its micro-batches."""

    def __init__(
        self, shared: Sequence[nn.Parameter], private: Sequence[nn.Parameter], *, num_tasks: int, ranks: Ranks
    ) -> None:
        self.each = [Rows(shared, private, num_tasks=num_tasks, weigh=True, ranks=ranks) for _ in range(3)]

    @property
    def last(self) -> Rows:
        return self.each[-1]

    def add(self, batches: Sequence[MicroBatch], factor: float) -> None:
        """One backward for each active task of each batch, from its loss times `factor`."""
        for rows, batch in zip(self.each, batches, strict=True):
            rows.add(batch, factor)

    def mean(self) -> StepGradients:
        active = sorted(set.intersection(*(set(rows.active) for rows in self.each)))
        first, second, third = (rows.jacobian_of(active) for rows in self.each)
        counts = torch.stack([rows.counts[active] for rows in self.each]).sum(0)
        means = torch.stack([rows.sums[active] for rows in self.each]).sum(0) / counts
        private = times([_sum(rows.private_sums(task) for rows in self.each) for task in active], (1 / counts).tolist())
        return StepGradients((first, second), TaskGradients(active, means, third, private))


def _sum(parts: Iterable[dict[int, Tensor]]) -> dict[int, Tensor]:
    total: dict[int, Tensor] = {}
    for part in parts:
        for index, grad in part.items():
            total[index] = total[index] + grad if index in total else grad
    return total
