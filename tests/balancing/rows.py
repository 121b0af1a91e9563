"""Task gradients, the rows of fixtures, and what Weightings make of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from mtlbench.balancing.base import Weighting

A = [[3.0, 0.0], [-1.0, 2.0]]
B = [[10.0, 0.0], [-1.0, 1.0]]
C = [[3.0, 0.0, 1.0], [-1.0, 2.0, 0.0], [-1.0, -1.0, 2.0]]
OPPOSITE = [[2.0, 0.0], [-2.0, 0.0]]
SEEDS = st.integers(0, 2**31)


@st.composite
def matrices(draw: st.DrawFn, smallest: int = 1, largest: int = 6) -> Tensor:
    """(T, P) gradients, T from `smallest` to `largest`: many zeros, repetitions and conflicts among them."""
    shape = draw(st.tuples(st.integers(smallest, largest), st.integers(1, 6)))
    entries = st.one_of(st.integers(-3, 3).map(float), st.floats(-10, 10).map(lambda x: round(x, 6)))
    return torch.from_numpy(draw(arrays(np.float64, shape, elements=entries)))


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def six(*values: float) -> object:
    return pytest.approx(list(values), abs=6e-7)


def jacobian(seed: int, shape: tuple[int, int] | None = None) -> Tensor:
    """(T, P) gradients; without a shape T from 2 to 11 and P from 2 to 13."""
    generator = torch.Generator().manual_seed(seed)
    size = (2 + seed % 10, 2 + seed % 12) if shape is None else shape
    return torch.randn(size, generator=generator, dtype=torch.float64) + 0.2


def weigh(balancer: Weighting, rows: Tensor, active: Tensor | None = None) -> Tensor:
    """(A,) weights of the task gradients (A, P)."""
    with torch.no_grad():
        weights = balancer((rows @ rows.T)[None], torch.ones(len(rows), dtype=torch.float64), active=active)
    return weights[0]


def direction(balancer: Weighting, rows: Tensor) -> Tensor:
    return weigh(balancer, rows) @ rows
