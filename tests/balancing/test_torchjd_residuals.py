"""Where TorchJD's weights differ from ours because its iteration ends before the optimum: KKT residuals of both.

Gradients have normal entries, and lengths over two decades as those of different tasks do.
"""

from __future__ import annotations

import pytest
import torch
import torchjd.aggregation as reference
from torch import Tensor

from tests.balancing import residuals
from tests.balancing.solvers import alpha_fair, conflict_averse, dual_cone, min_norm

SEEDS = range(3)


def gradients(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(size, 2 * size + 8, generator=generator, dtype=torch.float64)
    return rows * 10 ** (2 * torch.rand(size, 1, generator=generator, dtype=torch.float64) - 1)


@pytest.mark.parametrize("size", [2, 10, 20, 40])
def test_mgda(size: int) -> None:
    """100 steps of Frank-Wolfe are exact for two tasks and end early for more."""
    for seed in SEEDS:
        rows = gradients(size, seed)
        gramian = rows @ rows.T
        ours, theirs = min_norm(gramian), reference.MGDAWeighting()(gramian)
        assert residuals.mgda(gramian, ours) <= 1e-8
        assert ours @ gramian @ ours <= theirs @ gramian @ theirs * (1 + 1e-12)
        if size == 2:
            assert torch.allclose(theirs, ours, atol=1e-12)
        else:
            assert residuals.mgda(gramian, theirs) >= 1e-4


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
@pytest.mark.parametrize("size", [2, 10, 20])
def test_nash(size: int) -> None:
    """Its 20 convex-concave steps, each solved by ECOS, reach the root for two tasks, and seldom for more."""
    pytest.importorskip("ecos", reason="TorchJD's Nash-MTL needs ecos: pip install 'torchjd[nash_mtl]'")
    worst = 0.0
    for seed in SEEDS:
        rows = gradients(size, seed)
        gramian = rows @ rows.T
        ours, regular = alpha_fair(gramian, alpha=1.0)
        assert regular
        assert residuals.alpha_fair(gramian, ours, alpha=1.0) <= 1e-8
        theirs = reference.NashMTL(n_tasks=size, max_norm=0.0).weighting(rows)
        worst = max(worst, residuals.alpha_fair(gramian, theirs, alpha=1.0))
        if size == 2:  # up to a common factor: TorchJD solves for the Gramian over its norm
            assert float(torch.cosine_similarity(ours, theirs, dim=0)) >= 1 - 1e-9
    assert worst <= 1e-6 if size == 2 else worst >= 1e-3


@pytest.mark.parametrize("size", [2, 10, 40])
def test_cagrad_and_projections(size: int) -> None:
    """Its conic solver stops at 1e-8 of the objective, its projections are regularised by 1e-4 of the trace."""
    pytest.importorskip("cvxpy", reason="TorchJD's CAGrad needs cvxpy: pip install 'torchjd[cagrad]'")
    pytest.importorskip("quadprog", reason="TorchJD's DualProj needs it: pip install 'torchjd[quadprog_projector]'")
    for seed in SEEDS:
        rows = gradients(size, seed)
        gramian = rows @ rows.T
        mean = torch.full((1, size), 1 / size, dtype=torch.float64)
        pairs = (
            (residuals.cagrad, conflict_averse(gramian, c=0.5)[0], reference.CAGradWeighting(c=0.5)(gramian)),
            (residuals.dualproj, dual_cone(gramian, mean)[0], reference.DualProjWeighting()(gramian)),
        )
        for residual, ours, theirs in pairs:
            assert residual(gramian, ours) <= 1e-8
            assert residual(gramian, ours) <= residual(gramian, theirs) + 1e-12
            assert residual(gramian, theirs) <= 1e-2


def test_a_residual_sees_what_is_wrong() -> None:
    gramian = torch.tensor([[9.0, -3.0], [-3.0, 5.0]], dtype=torch.float64)  # fixture A of the methods reference
    right = torch.tensor([0.4, 0.6], dtype=torch.float64)
    root = gramian.diagonal().rsqrt() / (1 - 1 / 5**0.5) ** 0.5  # 1 / (|g| sqrt(1 + cos))
    wrong = torch.tensor([0.1, -0.1], dtype=torch.float64)
    for residual, weights in (
        (residuals.mgda, right),
        (lambda g, w: residuals.alpha_fair(g, w, alpha=1.0), root),
        (residuals.dualproj, torch.tensor([0.5, 0.5], dtype=torch.float64)),
    ):
        assert residual(gramian, weights) <= 1e-7
        assert residual(gramian, weights + wrong) >= 1e-2
        assert residual(gramian, torch.zeros(2, dtype=torch.float64)) == torch.inf
    assert residuals.cagrad(gramian, conflict_averse(gramian, c=0.5)[0]) <= 1e-12
    assert residuals.cagrad(gramian, conflict_averse(gramian, c=0.6)[0]) >= 1e-2
