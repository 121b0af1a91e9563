"""Means over an epoch, kept in a few small tensors: logging forty tasks must not slow a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlbench.gradients import BalanceRecord


class EpochMeans:
    """Mean loss and mean weight of each task over the steps of an epoch."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = list(tasks)
        self.reset()

    def reset(self) -> None:
        # Rows: sums of losses, steps with a loss, sums of weights.
        self._sums = torch.zeros(3, len(self.tasks), dtype=torch.float64)
        self._weighted = 0
        self._records: list[BalanceRecord] = []  # of the last steps, summed together now and then: 0.1 ms a step less

    def add(self, record: BalanceRecord) -> None:
        """One balanced step."""
        self._records.append(record._replace(gramian=None))
        if len(self._records) == 100:
            self._sum()

    def _sum(self) -> None:
        if not self._records:
            return
        losses = torch.stack([record.losses for record in self._records])
        weights = [record.weights.mean(0) for record in self._records if record.weights is not None]
        self._sums[0] += losses.nan_to_num().sum(0)
        self._sums[1] += (~losses.isnan()).sum(0)
        if weights:
            self._sums[2] += torch.stack(weights).sum(0).cpu()
            self._weighted += len(weights)
        self._records = []

    def losses(self) -> Tensor:
        """(T,) mean loss over the steps in which the task had labels; NaN without any."""
        self._sum()
        return self._sums[0] / self._sums[1]

    def row(self) -> dict[str, float]:
        """`train/loss/{task}` and, where the balancer has weights, `weight/{task}`."""
        losses = zip(self.tasks, self.losses().tolist(), strict=True)
        row = {f"train/loss/{name}": value for name, value in losses if value == value}
        if self._weighted:
            weights = (self._sums[2] / self._weighted).tolist()
            row |= {f"weight/{name}": value for name, value in zip(self.tasks, weights, strict=True)}
        return row

    def state_dict(self) -> dict[str, Tensor | int]:
        self._sum()
        return {"sums": self._sums.clone(), "weighted": self._weighted}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        self.reset()
        sums, weighted = state["sums"], state["weighted"]
        assert isinstance(sums, Tensor)
        assert isinstance(weighted, int)
        self._sums, self._weighted = sums.clone(), weighted
