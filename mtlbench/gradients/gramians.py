"""Gramians as balancers are given them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


def scaled(gramian: Tensor, slopes: Tensor | None, factor: float) -> Tensor:
    """From that of `factor` times the losses' gradients to that of the transformed losses', of slopes (A,)."""
    gramian = gramian / factor**2
    return gramian if slopes is None else gramian * torch.outer(slopes, slopes).to(gramian)


def of_norms(squares: Sequence[float], factor: float) -> Tensor:
    """(1, A, A) float64 of which norms alone are known, squared and times `factor` squared."""
    return torch.tensor([[[square / factor**2 for square in squares]]], dtype=torch.float64) + _beside(len(squares))


@cache
def _beside(tasks: int) -> Tensor:
    """(A, A) NaN beside a diagonal of zeros."""
    return torch.full((tasks, tasks), torch.nan, dtype=torch.float64).fill_diagonal_(0)
