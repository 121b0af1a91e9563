"""Losses, and what methods that look at losses alone make of them; "methods" in their tests is the list of rules."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from mtlbench.balancing.base import TaskSpec

modest = settings(deadline=None, max_examples=60, derandomize=True)
LOSSES = [2.0, 0.5, 1.0]
SPECS = [TaskSpec("intent", "classification"), TaskSpec("slots", "tagging"), TaskSpec("domain", "classification")]


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def derivative(function: Callable[[Tensor], Tensor], losses: Tensor) -> tuple[float, list[float]]:
    """The objective's value and its derivative by the losses, which are the weights."""
    leaf = losses.clone().requires_grad_()
    value = function(leaf)
    weights = torch.autograd.grad(value, leaf)[0]
    assert weights.isfinite().all()
    return value.item(), weights.tolist()


def vectors(size: int, low: float, high: float) -> st.SearchStrategy[Tensor]:
    return arrays(np.float64, size, elements=st.floats(low, high)).map(torch.from_numpy)


def problems(number: int = 200) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [1, 2, 3, 10, 40]
    return [
        torch.rand(sizes[index % 5], generator=generator, dtype=torch.float64) * 10 ** (index % 7 - 3) + 1e-3
        for index in range(number)
    ]


def unlike(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], losses: Tensor) -> float:
    """The greatest difference of value and weights, each relative to the greatest of its kind."""
    (value, weights), (other, slopes) = derivative(ours, losses), derivative(theirs, losses)
    scale = max(map(abs, slopes))
    slope = max(abs(a - b) for a, b in zip(weights, slopes, strict=True))
    return max(abs(value - other) / max(abs(other), 1.0), slope / scale)
