"""Jacobians, and what Aggregators make of them."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.balancing.base import Aggregator
from tests.balancing.losses import LOSSES
from tests.balancing.rows import tensor

SHAPES = [(1, 3), (2, 5), (3, 4), (10, 40)]


def call(balancer: Aggregator, rows: list[list[float]]) -> list[float]:
    return balancer(tensor(rows), tensor(LOSSES[: len(rows)])).tolist()


def problems(tasks: int, columns: int, *, steps: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(tasks, columns, generator=generator, dtype=torch.float64),
            torch.rand(tasks, generator=generator, dtype=torch.float64) + 0.1,
        )
        for _ in range(steps)
    ]
