"""Dynamic weight average: weights from how fast each loss fell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlbench.balancing.base import Property, Scalarizer, TaskSpec, index_of, select
from mtlbench.balancing.checks import number


def dwa_weights(ratios: Tensor, *, temperature: float = 2.0) -> Tensor:
    """(T,) weights from (T,) loss ratios L(t-1)/L(t-2); they sum to T."""
    return len(ratios) * torch.softmax(ratios / temperature, 0)


class DWA(Scalarizer):
    """Dynamic weight average.

        r_i = L_i(t-1) / L_i(t-2), L_i(t) the mean training loss of epoch t
        w_i = T exp(r_i / temperature) / sum_k exp(r_k / temperature)
        objective = sum_i w_i l_i

    r_i is 1 until two epochs with labels of task i have ended (the paper's rule for its first two), and
    where the earlier mean is 0. The weights sum to T over all tasks; a step with some of them uses theirs.

    Args:
        temperature: softens the weights; 2 is the paper's.
        window: None for means of epochs; a number of iterations for means of the task's latest
            `window` losses over the `window` before, renewed at every step: the Nash-MTL code, which has 25.

    Raises:
        ValueError: a temperature or window that is not positive.

    Paper: Liu, Johns, Davison 2019, arXiv:1803.10704.

    Note:
        With a window the weights stay 1 until it was filled twice. The Nash-MTL code starts after one
        window and takes losses of 1 for the other.
    """

    needs_all_tasks = False
    weights_sum = "T"
    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})
    linear = True

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        temperature: float = 2.0,
        window: int | None = None,
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        number(temperature, option="temperature", above=0)
        if window is not None:
            number(window, option="window", least=1, whole=True)
        self.temperature = temperature
        self.window = window
        self.linear = window is None
        # Rows of losses, oldest first: two epoch means, or the iterations of two windows.
        self.history: Tensor
        self.register_buffer("history", torch.full((2 * (window or 1), num_tasks), torch.nan, dtype=torch.float64))

    def forward(self, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        if self.window is not None:
            self._push(losses.detach(), index_of(active, self.history))
        earlier, latest = self.history.unflatten(0, (2, -1)).mean(1)
        ratios = torch.where(earlier == 0, 1.0, latest / earlier).nan_to_num(nan=1.0)
        weights = dwa_weights(ratios, temperature=self.temperature)
        return (select(weights, active).to(losses) * losses).sum()

    def end_epoch(self, mean_losses: Tensor) -> None:
        if self.window is None:
            seen = ~mean_losses.isnan()
            self._push(mean_losses[seen], seen.to(self.history.device))

    def _push(self, losses: Tensor, index: Tensor | slice) -> None:
        """Adds a row; each task has its own past, which a step without its labels leaves alone."""
        self.history[:-1, index] = self.history[1:, index].clone()
        self.history[-1, index] = losses.to(self.history)
