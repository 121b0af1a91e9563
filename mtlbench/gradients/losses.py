"""Reads one micro-batch's losses: which tasks have labels, their means, their counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """The active tasks of a micro-batch, A of T.

    Attributes:
        active: their indices, ascending.
        losses: their () losses, attached to the graph.
        stacked: (A,) the same in one tensor, for one backward of all; one task's backward must start from its own
            loss, or zeros would run through the networks of the others.
        means: (A,) the losses' values, float64 on the CPU.
        counts: (A,) labelled elements behind each, float64 on the CPU.
    """

    active: list[int]
    losses: list[Tensor]
    stacked: Tensor
    means: Tensor
    counts: Tensor

    @property
    def finite(self) -> bool:
        return bool(self.means.isfinite().all())


def read(
    losses: Mapping[str, Tensor], counts: Mapping[str, Tensor | float] | None, *, tasks: Sequence[str]
) -> MicroBatch:
    """Checks the losses and drops the tasks without labels.

    Raises:
        ValueError: an unknown task, a task without a count, or a loss that is no differentiable scalar.
    """
    unknown = [name for name in losses if name not in tasks]
    if unknown:
        raise ValueError(f"Losses of unknown tasks {unknown}; this engine balances {list(tasks)}.")
    present = [(index, name) for index, name in enumerate(tasks) if name in losses]
    if counts is not None:
        missing = [name for _, name in present if name not in counts]
        if missing:
            raise ValueError(f"counts must name every task with a loss; {missing} are missing.")
        numbers = _numbers([counts[name] for _, name in present])
        present = [task for task, number in zip(present, numbers, strict=True) if number > 0]
        sizes = torch.tensor([number for number in numbers if number > 0], dtype=torch.float64)
    else:
        sizes = torch.ones(len(present), dtype=torch.float64)
    tensors = [losses[name] for _, name in present]
    for (_, name), loss in zip(present, tensors, strict=True):
        if loss.ndim or not loss.requires_grad:
            raise ValueError(f"The loss of task {name!r} must be a scalar that requires grad, got {loss!r}.")
    stacked = torch.stack(tensors) if tensors else torch.empty(0)
    means = stacked.detach().to("cpu", torch.float64)
    return MicroBatch([index for index, _ in present], tensors, stacked, means, sizes)


def _numbers(values: Sequence[Tensor | float]) -> list[float]:
    """Plain numbers, with one transfer from the device where they are tensors."""
    if values and all(isinstance(value, Tensor) for value in values):
        return torch.stack([value.detach() for value in values if isinstance(value, Tensor)]).tolist()
    return [float(value) for value in values]
