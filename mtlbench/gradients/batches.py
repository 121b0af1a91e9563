"""Several independent batches in one step: the rows of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtlbench.gradients.losses import MicroBatch
from mtlbench.gradients.ranks import Ranks
from mtlbench.gradients.rows import Rows, TaskGradients


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
        private = [
            [_mean(parts, count) for parts in zip(*(rows.private_sums(task) for rows in self.each), strict=True)]
            for task, count in zip(active, counts.tolist(), strict=True)
        ]
        return StepGradients((first, second), TaskGradients(active, means, third, private))


def _mean(sums: Sequence[Tensor | None], count: float) -> Tensor | None:
    found = [value for value in sums if value is not None]
    return sum(found[1:], found[0]) / count if found else None
