"""What one balanced step did."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class BalanceRecord(NamedTuple):
    """What one balanced step did.

    Attributes:
        losses: (T,) mean losses over all labelled elements of the step, float64; NaN for a task without any.
        weights: (G, T) the weights of the task gradients, float64, 0 for a task without labels; None for an
            Aggregator and for a skipped step.
        gramian: (G, T, T) float64 inner products of the task gradients, 0 for a task without labels; NaN beside the
            diagonal where norms alone were needed (`Weighting.known_weights`);
            None where the balancer did not need them, or was not asked.
        status: solved; degenerate (the balancer's declared result for an input without a balanced
            direction); skipped (non-finite under a loss scaler, or no task had a label); or kept (the weights
            are those of an earlier step: `refresh`).
    """

    losses: Tensor
    weights: Tensor | None
    gramian: Tensor | None
    status: Literal["solved", "degenerate", "skipped", "kept"]


def expand(record: BalanceRecord, active: list[int], num_tasks: int) -> BalanceRecord:
    """From the active tasks' entries to those of all tasks."""
    if len(active) == num_tasks:
        return record
    index = torch.tensor(active, dtype=torch.long)
    losses = torch.full((num_tasks,), torch.nan, dtype=record.losses.dtype).index_copy(0, index, record.losses)
    weights, gramian = record.weights, record.gramian
    if weights is not None:
        weights = _scatter(weights, index, 1, num_tasks)
    if gramian is not None:
        gramian = _scatter(_scatter(gramian, index, 1, num_tasks), index, 2, num_tasks)
    return record._replace(losses=losses, weights=weights, gramian=gramian)


def _scatter(values: Tensor, index: Tensor, dim: int, size: int) -> Tensor:
    shape = [size if d == dim else n for d, n in enumerate(values.shape)]
    return values.new_zeros(shape).index_copy(dim, index.to(values.device), values)
