"""Task losses over all ranks, their scaling by the first ones, and those after an update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mtlbench.data.mixing import batches_of
from mtlbench.gradients.ranks import Ranks

if TYPE_CHECKING:
    from mtlbench.lit.module import MultiTaskModule

Losses = Mapping[str, Tensor]
Counts = Mapping[str, Tensor | float]


def sums(losses: Losses, counts: Counts, *, tasks: Sequence[str], ranks: Ranks) -> Tensor:
    """(2, T) float64: count x loss of each task, and its count of labelled elements, over all ranks."""
    found = torch.zeros(2, len(tasks), dtype=torch.float64)
    for index, name in enumerate(tasks):
        if name in losses and counts[name] > 0:
            count = float(counts[name])
            found[0, index], found[1, index] = float(losses[name].detach()) * count, count
    return ranks.sum(found)


def in_float64(tensor: Tensor) -> Tensor:
    """Numbers in float64; class indices stay."""
    return tensor.double() if tensor.is_floating_point() else tensor


class InitialLosses(nn.Module):
    """Divides each task's loss by the first one that it had, over all ranks."""

    initial: Tensor

    def __init__(self, tasks: Sequence[str], ranks: Ranks) -> None:
        super().__init__()
        self._tasks, self._ranks = list(tasks), ranks
        self.register_buffer("initial", torch.full((len(tasks),), torch.nan, dtype=torch.float64))

    def forward(self, losses: Losses, counts: Counts) -> dict[str, Tensor]:
        """The losses of one batch, scaled."""
        unknown = self.initial.isnan().cpu()
        if unknown.any():
            total, count = sums(losses, counts, tasks=self._tasks, ranks=self._ranks)
            found = unknown & (count > 0)
            self.initial[found] = (total / count)[found].to(self.initial)
        initial = dict(zip(self._tasks, self.initial.tolist(), strict=True))
        return {name: loss / initial[name] for name, loss in losses.items()}


@torch.no_grad()
def losses_again(module: MultiTaskModule, micro_batches: Sequence[tuple[Any, int]], *, ranks: Ranks) -> Tensor:
    """(T,) losses of the step's data after the update: same dropout masks and precision, buffers left alone."""
    buffers = [buffer.clone() for buffer in module.model.buffers()]
    total = torch.zeros(2, len(module.tasks), dtype=torch.float64)
    with module.trainer.precision_plugin.train_step_context():
        for item, batch_idx in micro_batches:
            for part, batch in enumerate(batches_of(item)):
                losses, counts = module.task_losses(batch, batch_idx, part)
                total += sums(losses, counts, tasks=list(module.tasks), ranks=ranks)
    for buffer, before in zip(module.model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return total[0] / total[1]
