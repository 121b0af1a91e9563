"""The same directions as TorchJD's, an independent implementation, where the two have the same rule: 200 of each."""

from __future__ import annotations

import pytest
import torch
import torchjd.aggregation as reference
import torchjd.scalarization as scalars
from torch import Tensor

from mtlbench.balancing.base import Balancer
from mtlbench.balancing.cagrad import CAGrad
from mtlbench.balancing.dwa import DWA
from mtlbench.balancing.mgda import MGDA
from mtlbench.balancing.pcgrad import PCGrad
from mtlbench.balancing.uncertainty import Uncertainty

SHAPES = [(1, 3), (2, 5), (3, 4), (5, 12), (10, 40)]


def jacobian(shape: tuple[int, int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * shape[0] + seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) + 0.3


def direction(balancer: Balancer, rows: Tensor) -> Tensor:
    return balancer((rows @ rows.T)[None], torch.ones(len(rows), dtype=torch.float64))[0] @ rows


@pytest.mark.parametrize("shape", SHAPES)
def test_pcgrad(shape: tuple[int, int]) -> None:
    """Ours draws the same orders from its own generator as TorchJD does from the global one."""
    for seed in range(40):
        rows = jacobian(shape, seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expected = reference.PCGrad()(rows)
        assert torch.allclose(direction(PCGrad(num_tasks=len(rows), seed=seed), rows), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_mgda(shape: tuple[int, int]) -> None:
    """Frank-Wolfe converges slowly; its own duality gap says how far it is, and ours is never longer."""
    for seed in range(40):
        rows = jacobian(shape, seed)
        expected = reference.MGDA(epsilon=1e-9, max_iters=300)(rows)
        found = direction(MGDA(num_tasks=len(rows), seed=0), rows)
        gap = expected @ expected - (rows @ expected).min()
        assert gap <= 0.1 * expected.square().sum()
        assert (found - expected).square().sum() <= gap + 1e-12
        assert found.norm() <= expected.norm() * (1 + 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_cagrad(shape: tuple[int, int]) -> None:
    pytest.importorskip("cvxpy", reason="TorchJD's CAGrad needs cvxpy and clarabel: pip install 'torchjd[cagrad]'")
    for seed in range(40):
        rows, c = jacobian(shape, seed), (0.2, 0.5, 1.0)[seed % 3]
        expected = reference.CAGrad(c=c)(rows)
        found = direction(CAGrad(num_tasks=len(rows), seed=0, c=c), rows)
        assert (found - expected).norm() <= 2e-4 * rows.norm(dim=1).max()
        # Its conic solver is the less exact of the two.
        assert (rows @ found).min() >= (rows @ expected).min() - 1e-9


def test_dwa() -> None:
    ours, theirs = DWA(num_tasks=3, seed=0), scalars.DWA()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        batches = torch.rand(4, 3, generator=generator, dtype=torch.float64) + 0.1
        for losses in batches:
            assert torch.allclose(ours(losses), theirs(losses), rtol=1e-12)
        theirs.step()
        ours.end_epoch(batches.mean(0))


def test_uncertainty() -> None:
    ours, theirs = Uncertainty(num_tasks=3, seed=0).double(), scalars.UW(3).double()
    for balancer in (ours, theirs):
        (parameter,) = balancer.parameters()
        parameter.data = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    losses = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)
    values = ours(losses), theirs(losses)
    assert torch.allclose(values[0], values[1], rtol=1e-12)
    for value in values:
        value.backward()
    (left,), (right,) = ours.parameters(), theirs.parameters()
    assert left.grad is not None
    assert right.grad is not None
    assert torch.allclose(left.grad, right.grad, rtol=1e-12)
