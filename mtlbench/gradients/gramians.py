"""Gramians as balancers are given them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def scaled(gramian: Tensor, slopes: Tensor | None, factor: float) -> Tensor:
    """From that of `factor` times the losses' gradients to that of the transformed losses', of slopes (A,)."""
    gramian = gramian / factor**2
    return gramian if slopes is None else gramian * torch.outer(slopes, slopes).to(gramian)


def of_norms(squares: Sequence[float], factor: float) -> Tensor:
    """(1, A, A) float64 of which norms alone are known, squared and times `factor` squared; NaN beside them."""
    rows = [[math.nan] * len(squares) for _ in squares]
    for place, square in enumerate(squares):
        rows[place][place] = square / factor**2
    return torch.tensor([rows], dtype=torch.float64)  # tensor operations take longer, few as the numbers are
