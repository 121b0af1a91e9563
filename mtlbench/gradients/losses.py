"""Reads one micro-batch's losses: which tasks have labels, here and on all ranks, their means, their counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mtlbench.gradients.ranks import Ranks


class Totals(NamedTuple):
    """The active tasks of a micro-batch over all ranks, A of T.

    Attributes:
        active: their indices, ascending.
        means: (A,) mean losses, float64 on the CPU.
        counts: labelled elements behind each.
        bad: (W, T) which losses of which rank are not finite; None where all are.
    """

    active: list[int]
    means: Tensor
    counts: list[float]
    bad: Tensor | None


class MicroBatch(NamedTuple):
    """The tasks of a micro-batch that have labels on this rank.

    Attributes:
        active: their indices, ascending.
        losses: their () losses, attached to the graph.
        stacked: (a,) the same in one tensor, for one backward of all; one task's backward must start from its own
            loss, or zeros would run through the networks of the others.
        exact: (a,) that in float64.
        counts: labelled elements behind each.
        totals: the same micro-batch over all ranks.
        alone: there is no other rank: the totals are of these losses.
    """

    active: list[int]
    losses: list[Tensor]
    stacked: Tensor
    exact: Tensor
    counts: list[float]
    totals: Totals
    alone: bool

    def mine(self, values: Tensor) -> Tensor:
        """From values (A,) for the means over all ranks to those (a,) for this rank's losses.

        Each is multiplied with the part of the task's labelled elements that is here.
        """
        if self.alone:
            return values
        places = [self.totals.active.index(task) for task in self.active]
        here, all_ranks = torch.tensor(
            [self.counts, [self.totals.counts[place] for place in places]], dtype=torch.float64
        )
        return values.cpu()[places] * here / all_ranks


def read(
    losses: Mapping[str, Tensor],
    counts: Mapping[str, Tensor | float] | None,
    *,
    tasks: Sequence[str],
    ranks: Ranks,
) -> MicroBatch:
    """Checks the losses, drops the tasks without labels, and adds up those of all ranks.

    Raises:
        ValueError: an unknown task, a task without a count, or a loss that is no differentiable scalar.
    """
    active = [index for index, name in enumerate(tasks) if name in losses]
    if len(active) < len(losses):
        unknown = [name for name in losses if name not in tasks]
        raise ValueError(f"Losses of unknown tasks {unknown}; this engine balances {list(tasks)}.")
    numbers = [1.0] * len(active)
    if counts is not None:
        missing = [tasks[index] for index in active if tasks[index] not in counts]
        if missing:
            raise ValueError(f"counts must name every task with a loss; {missing} are missing.")
        numbers = _numbers([counts[tasks[index]] for index in active])
        active = [index for index, number in zip(active, numbers, strict=True) if number > 0]
        numbers = [number for number in numbers if number > 0]
    tensors = [losses[tasks[index]] for index in active]
    for index, loss in zip(active, tensors, strict=True):
        if loss.ndim or not loss.requires_grad:
            raise ValueError(f"The loss of task {tasks[index]!r} must be a scalar that requires grad, got {loss!r}.")
    stacked = torch.stack(tensors) if tensors else torch.empty(0)
    exact = stacked.double()
    means = exact.detach().cpu()
    alone = ranks.size == 1
    if alone and math.isfinite(sum(means.tolist())):  # without the cost and the rounding of sums; one NaN makes it NaN
        totals = Totals(active, means, numbers, None)
    else:
        totals = _totals(active, means, numbers, len(tasks), ranks)
    return MicroBatch(active, tensors, stacked, exact, numbers, totals, alone)


def _totals(active: list[int], means: Tensor, numbers: list[float], num_tasks: int, ranks: Ranks) -> Totals:
    counts = torch.tensor(numbers, dtype=torch.float64)
    row = torch.zeros(3, num_tasks, dtype=torch.float64)
    row[:, active] = torch.stack([counts, counts * means, (~means.isfinite()).double()])
    table = ranks.table(row.view(-1)).view(-1, 3, num_tasks)
    totals, sums = table[:, 0].sum(0), table[:, 1].sum(0)
    found, bad = totals.nonzero().flatten(), table[:, 2] > 0
    return Totals(found.tolist(), sums[found] / totals[found], totals[found].tolist(), bad if bad.any() else None)


def _numbers(values: Sequence[Tensor | float]) -> list[float]:
    """Plain numbers, with one transfer from the device where they are tensors."""
    if values and all(isinstance(value, Tensor) for value in values):
        return torch.stack([value.detach() for value in values if isinstance(value, Tensor)]).tolist()
    return [float(value) for value in values]
