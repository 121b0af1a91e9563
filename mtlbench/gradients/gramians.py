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
    number = len(squares)
    values = [math.nan] * number**2
    values[:: number + 1] = [square / factor**2 for square in squares]
    return torch.tensor(values, dtype=torch.float64).view(1, number, number)  # few: tensor operations take longer
