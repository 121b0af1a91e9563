"""Optimality of the exact solvers of `linalg`: random, near-singular and badly scaled Gramians."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mtlbench.linalg import fair, hull
from tests.balancing import residuals
from tests.balancing.rows import A, tensor
from tests.balancing.solvers import alpha_fair, bisector, conflict_averse, dual_cone, is_zero, kkt_residual, min_norm
from tests.test_linalg import CASES, jacobians, residual_in_units_of_the_diagonal

SIZES = (1, 2, 3, 5, 10, 20, 40)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_dual_cone_is_optimal(case: str, size: int) -> None:
    for seed in range(2):
        rows = jacobians(seed, size)[case] if size > 1 else jacobians(seed, 2)[case][:1]
        gramian = rows @ rows.T
        preferences = torch.cat([torch.eye(size), torch.full((1, size), 1.0)]).double() / size
        for preference, weights in zip(preferences, dual_cone(gramian, preferences), strict=True):
            multipliers = weights - preference
            assert multipliers.min() >= 0
            # What adding the preference cannot resolve is no multiplier.
            multipliers = torch.where(multipliers <= 1e-13 * weights, 0.0, multipliers)
            assert residual_in_units_of_the_diagonal(gramian, multipliers, weights, simplex=False) <= 1e-8
            assert kkt_residual(gramian, multipliers, weights, level=0.0) <= 1e-9


def test_dual_cone_together_as_one_by_one() -> None:
    for seed in range(10):
        rows = torch.from_numpy(np.random.default_rng(seed).standard_normal((12, 9 + seed)))
        gramian, preferences = rows @ rows.T, torch.eye(12, dtype=torch.float64)
        together = dual_cone(gramian, preferences) @ rows
        alone = torch.cat([dual_cone(gramian, preference[None]) for preference in preferences]) @ rows
        assert torch.allclose(together, alone, atol=1e-10)


def test_dual_cone_guesses_what_is_tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Projections of forty regular gradients: one batch of linear systems, nothing left to be solved by itself."""
    monkeypatch.setattr("mtlbench.linalg.cone.nnls", None)
    for seed in range(5):
        rows = torch.from_numpy(np.random.default_rng(seed).standard_normal((40, 400)))
        given = torch.eye(40, dtype=torch.float64)
        weights = dual_cone(rows @ rows.T, given)
        assert (weights > given).sum() > 400  # tight constraints
        assert (weights @ rows @ rows.T >= -1e-9 * rows.norm()).all()


@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_alpha_fair_is_the_root(case: str, size: int, alpha: float) -> None:
    for seed in range(2):
        rows = jacobians(seed, size)[case] if size > 1 else jacobians(seed, 2)[case][:1]
        gramian = rows @ rows.T
        weights, regular = alpha_fair(gramian, alpha=alpha)
        if not regular:
            assert not weights.any()
            nearest = min_norm(gramian)
            scale = float(nearest @ gramian.diagonal().sqrt())
            assert float(nearest @ gramian @ nearest) <= 1e-11 * scale * scale
            continue
        assert weights.min() > 0
        lengths = gramian.diagonal().sqrt()
        gap = (gramian @ weights - weights ** (-1 / alpha)).abs()
        # At most max(diag G) times |w|_1, taken so that it neither over- nor underflows.
        assert (gap / lengths <= 1e-8 * (weights @ lengths) / math.sqrt(size)).all()


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 3.0, 10.0])
def test_alpha_fair_of_any_alpha(alpha: float) -> None:
    rng = np.random.default_rng(1)
    for size in (1, 2, 7, 40):
        rows = torch.from_numpy(rng.standard_normal((size, 50)))
        gramian = rows @ rows.T
        weights, regular = alpha_fair(gramian, alpha=alpha)
        assert regular
        assert torch.allclose(gramian @ weights, weights ** (-1 / alpha), rtol=1e-10, atol=0)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 10.0])
def test_alpha_fair_of_nearly_opposite_gradients(alpha: float) -> None:
    """The closer they are to opposite, the longer the weights, until there is no root."""
    for exponent in range(1, 13):
        for size in (2, 3, 5):
            rng = np.random.default_rng(exponent)
            line = rng.uniform(0.3, 3, (size, 1)) * (-1.0) ** np.arange(size)[:, None] * rng.standard_normal(20)
            rows = torch.from_numpy(line + 10.0**-exponent * rng.standard_normal((size, 20)))
            gramian, lengths = rows @ rows.T, rows.norm(dim=1)
            weights, regular = alpha_fair(gramian, alpha=alpha)
            assert regular or exponent >= 7
            assert not (regular and exponent >= 10)
            gap = (gramian @ weights - weights ** (-1 / alpha)).abs()
            assert not regular or (gap / lengths <= 1e-8 * (weights @ lengths)).all()


def test_a_weight_that_float64_cannot_hold_is_next_to_nothing() -> None:
    """w_1 = (g_1.d)^-100, which is 1e-2000; the other task's gradient gives the direction."""
    rows = tensor([[1e10, 0.0], [1e-10, 1e-10]])
    gramian = rows @ rows.T
    weights, regular = alpha_fair(gramian, alpha=100.0)
    assert regular
    assert weights[0] <= 1e-300
    assert float((gramian @ weights)[1]) == pytest.approx(float(weights[1] ** (-1 / 100)))


@pytest.mark.parametrize("apart", [1e-3, 1e-4, 1e-5])
def test_dual_cone_of_nearly_opposite_gradients_is_exact(apart: float) -> None:
    """As long as float32 can sum what it takes: of the third gradient only what neither of the others sees is left."""
    rows = tensor([[1.0, 0.0, 0.0], [-1.0, apart, 0.0], [-0.1, -1.0, 0.01]])
    weights = dual_cone(rows @ rows.T, tensor([[0.0, 0.0, 1.0]]))[0]
    assert (weights @ rows).tolist() == pytest.approx([0.0, 0.0, 0.01], abs=1e-5)


def test_conflict_averse_does_not_go_to_and_fro() -> None:
    """Ten gradients between two of whose supports Newton's steps lead back and forth."""
    for seed in (7799, 8598, 16030):
        draw = np.random.default_rng(seed)
        left, right = (np.linalg.qr(draw.standard_normal((10, 10)))[0] for _ in range(2))
        rows = left * np.logspace(0, -5, 10) @ right * 10 ** draw.uniform(-1, 1, (10, 1))
        gramian = torch.from_numpy(rows @ rows.T)
        weights, regular = conflict_averse(gramian, c=1.0)
        assert regular
        assert residuals.cagrad(gramian, weights, c=1.0) <= 1e-8


@pytest.mark.parametrize("noise", [0.0, 1e-10, 1e-9, 1e-8])
def test_conflict_averse_of_gradients_opposite_up_to_rounding(noise: float) -> None:
    """In the ball, and where float64 can tell no direction that improves all, none is made up."""
    for seed in range(40):
        rows = torch.from_numpy(np.random.default_rng(seed).standard_normal((3, 24)))
        rows[1] = -0.7 * rows[0] + noise * rows[1]
        weights, _ = conflict_averse(rows @ rows.T, c=0.5)
        mean = rows.mean(0)
        assert (weights @ rows - mean).norm() <= 0.5 * mean.norm() * (1 + 1e-6)
        assert weights.abs().max() <= 100


def test_bisector_of_dependent_gradients_is_the_pseudo_inverse() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    units = rows / rows.norm(dim=1, keepdim=True)
    weights, exact = bisector(rows @ rows.T)
    assert not exact
    assert torch.allclose(weights @ rows, torch.linalg.pinv(units) @ torch.ones(7, dtype=torch.float64))
    twins = tensor([*A, A[0]])  # equal gradients have equal products
    weights, exact = bisector(twins @ twins.T)
    assert exact
    assert torch.allclose(weights @ twins, bisector(tensor(A) @ tensor(A).T)[0] @ tensor(A))


def test_is_zero_of_a_degenerate_root() -> None:
    weights, regular = alpha_fair(tensor([[1.0, -1.0 + 1e-16], [-1.0 + 1e-16, 1.0]]), alpha=1.0)
    assert not regular
    assert is_zero(torch.eye(2, dtype=torch.float64), weights)


def test_unsolved_problems_raise_with_the_gramian(monkeypatch: pytest.MonkeyPatch) -> None:
    gramian = tensor([[9.0, -3.125, 0.5], [-3.125, 5.0, 0.25], [0.5, 0.25, 1.0]])
    monkeypatch.setattr(fair, "STEPS", 1)
    with pytest.raises(RuntimeError, match=r"alpha_fair: relative residual(.|\n)*alpha=2\.0(.|\n)*-3\.125"):
        alpha_fair(gramian, alpha=2.0)
    exact = hull.nnls
    monkeypatch.setattr("mtlbench.linalg.cone.nnls", lambda *args: (exact(*args)[0] + 1e-6, 0.0))
    with pytest.raises(RuntimeError, match=r"dual_cone: relative KKT residual(.|\n)*-3\.125"):
        dual_cone(gramian, torch.eye(3, dtype=torch.float64))
