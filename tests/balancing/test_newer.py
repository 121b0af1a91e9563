"""Newer methods: PCD."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchjd.aggregation as reference
from torch import Tensor

from mtlbench.balancing.base import TaskSpec
from mtlbench.balancing.pcd import PCD
from tests.balancing.solvers import least_change

A = [[3.0, 0.0], [-1.0, 2.0]]
SPECS = [TaskSpec(name, "regression") for name in ("left", "right", "sum")]


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def direction(balancer: PCD, rows: Tensor) -> Tensor:
    return balancer((rows @ rows.T)[None], torch.ones(len(rows), dtype=torch.float64))[0] @ rows


def six(*values: float) -> object:
    return pytest.approx(list(values), abs=6e-7)


@pytest.mark.parametrize("tau", [0.0, 0.02, 1.0])
def test_pcd_of_two_tasks(tau: float) -> None:
    """Closed form on fixture A: unit gradients, the second with a weight that makes its product tau."""
    second = tensor([-1, 2]) / math.sqrt(5)
    expected = tensor([1, 0]) + (tau + 1 / math.sqrt(5)) * second
    expected = 3 * expected / expected.norm()
    assert direction(PCD(num_tasks=2, seed=0, tau=tau), tensor(A)).tolist() == six(*expected.tolist())


def test_pcd_without_conflict_is_the_primary_gradient() -> None:
    rows = tensor([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
    for primary, row in zip(("left", "right", "sum"), rows, strict=True):
        balancer = PCD(num_tasks=3, seed=0, tasks=SPECS, primary=primary)
        assert direction(balancer, rows).tolist() == six(*row.tolist())


def test_pcd_shares_by_task() -> None:
    rows = tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    balancer = PCD(num_tasks=3, seed=0, tasks=SPECS, tau={"sum": 0.5}, epsilon=1e-30)
    found = direction(balancer, rows)
    assert (found / found[0]).tolist() == six(1, 0.02, 0.5)
    assert float(found.norm()) == pytest.approx(1)


def test_pcd_scales_by_the_moving_average() -> None:
    """In the second step v = (beta (1 - beta) a + (1 - beta) b) / (1 - beta^2), a and b the squared lengths."""
    balancer = PCD(num_tasks=2, seed=0, beta=0.5, tau=0.5)
    direction(balancer, tensor(A))
    rows = tensor([[1.0, 0.0], [0.0, 4.0]])
    squares = (0.25 * tensor([9, 5]) + 0.5 * tensor([1, 16])) / 0.75
    expected = tensor([1 / squares[0].sqrt(), 0.5 * 4 / squares[1].sqrt()])
    assert direction(balancer, rows).tolist() == six(*(expected / expected.norm()).tolist())


@pytest.mark.parametrize("shape", [(1, 3), (2, 5), (3, 4), (5, 12), (10, 40)])
def test_pcd_equals_torchjd(shape: tuple[int, int]) -> None:
    """Forty Jacobians each; TorchJD's constraints hold to 1e-9 of the longest gradient."""
    generator = torch.Generator().manual_seed(shape[0])
    for tau in (0.02, 0.5, 1.0, 0.0):
        ours, theirs = PCD(num_tasks=shape[0], seed=0, tau=tau, beta=0.9), reference.PCD(tau=tau, beta=0.9)
        for _ in range(10):
            rows = torch.randn(shape, generator=generator, dtype=torch.float64)
            expected = theirs(rows)
            assert (direction(ours, rows) - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize(("size", "columns"), [(2, 3), (10, 20), (40, 60), (40, 30)])
def test_least_change_is_optimal(size: int, columns: int) -> None:
    """Random, badly scaled, and with nearly dependent gradients; the violation is of what rounding can cause."""
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(size, columns, generator=generator, dtype=torch.float64)
        rows[1] = rows[-1] + 10.0 ** -(seed % 10) * rows[1]
        rows *= torch.logspace(-3, 3, size, dtype=torch.float64)[:, None]
        shares = torch.rand(size, generator=generator, dtype=torch.float64)
        weights = least_change(rows @ rows.T, shares, center=0)
        if weights is None:
            assert size > columns
            continue
        lengths = rows.norm(dim=1)
        gaps = (rows @ (weights @ rows) - shares * lengths**2)[1:] / (lengths[1:] * (weights @ lengths))
        assert weights[0] == 1
        assert weights.min() >= 0
        assert gaps.min() >= -1e-9
        assert gaps[weights[1:] > 0].abs().max() <= 1e-9


def test_pcd_degenerate() -> None:
    balancer = PCD(num_tasks=3, seed=0)
    # The two others are opposite: the primary gradient alone.
    assert direction(balancer, tensor([[1.0, 2.0], [1.0, 0.0], [-1.0, 0.0]])).tolist() == six(1, 2)
    assert balancer.status == "degenerate"
    assert direction(balancer, tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).tolist() == [0, 0]
    assert balancer.status == "degenerate"
    opposite = PCD(num_tasks=2, seed=0, tau=0.0)
    assert direction(opposite, tensor([[1.0, 2.0], [-1.0, -2.0]])).tolist() == [0, 0]
    assert opposite.status == "degenerate"
    assert direction(balancer, tensor([[1.0, 2.0], [1.0, 0.0], [0.0, 0.0]])).tolist() == six(1, 2)
    assert balancer.status == "solved"


def test_pcd_of_some_tasks() -> None:
    balancer = PCD(num_tasks=3, seed=0, tasks=SPECS, primary="right")
    rows, active = tensor([*A, [1.0, 1.0]]), torch.tensor([1, 2])
    weights = balancer((rows[active] @ rows[active].T)[None], torch.ones(2), active=active)
    assert (weights[0] @ rows[active]).tolist() == six(-1, 2)
    assert balancer.steps.tolist() == [0, 1, 1]
    without = torch.tensor([0, 2])
    weights = balancer((rows[without] @ rows[without].T)[None], torch.ones(2), active=without)
    assert weights.tolist() == [[0, 0]]
    assert balancer.status == "degenerate"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"primary": "up"}, "primary must be one of left, right, sum; got 'up'"),
        ({"tau": 1.5}, r"tau must be a finite number of at least 0 and of at most 1; got 1\.5"),
        ({"tau": {"up": 0.5}}, "tau names the unknown task 'up'"),
        ({"beta": 1}, "beta must be a finite number of at least 0 and below 1; got 1"),
        ({"epsilon": 0}, "epsilon must be a finite number above 0; got 0"),
    ],
)
def test_pcd_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PCD(num_tasks=3, seed=0, tasks=SPECS, **options)
