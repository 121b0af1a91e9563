"""The solvers against their optimality conditions, exact arithmetic, and bad input."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from mtlbench.linalg import hull
from tests.balancing.solvers import conflict_averse, is_zero, kkt_residual, min_norm

SIZES = (1, 2, 3, 5, 10, 20, 40)
RADII = (0.1, 0.5, 1.0, 2.0)


def jacobians(seed: int, size: int) -> dict[str, Tensor]:
    """Jacobians (T, P) of every kind that makes a T x T problem hard."""
    rng = np.random.default_rng(seed)
    columns = int(rng.integers(1, 2 * size + 3))
    base = rng.standard_normal((size, columns))
    scales = 10 ** rng.uniform(-10, 10, (size, 1))
    repeated = base[rng.integers(0, size, size)]
    stationary = base.copy()
    stationary[-1] = -(rng.uniform(size=(size - 1, 1)) * base[:-1]).sum(0)
    zero_row = base.copy()
    zero_row[0] = 0
    left, _, right = np.linalg.svd(base, full_matrices=False)
    cases = {
        "random": base,
        "non-negative": np.abs(base),
        "badly scaled": base * scales,
        "badly scaled, conflict-free": np.abs(base) * scales,
        "near-singular": (left * 10 ** rng.uniform(-10, 0, left.shape[1])) @ right,
        "repeated": repeated,
        "nearly repeated": repeated + 1e-7 * rng.standard_normal(base.shape),
        "opposite": repeated * rng.choice([-1, 1], (size, 1)),
        "nearly opposite": repeated * rng.choice([-1, 1], (size, 1)) + 1e-6 * rng.standard_normal(base.shape),
        "collinear": np.outer(rng.standard_normal(size), base[0]),
        "integers": np.round(2 * base),
        "stationary": stationary,
        "stationary, badly scaled": stationary * scales,
        "zero row": zero_row,
        "huge": base * 1e140,
        "tiny": base * 1e-140,
        "all zero": np.zeros_like(base),
    }
    return {name: torch.from_numpy(np.ascontiguousarray(case)) for name, case in cases.items()}


CASES = list(jacobians(0, 2))


def residual_in_units_of_the_diagonal(gramian: Tensor, multipliers: Tensor, weights: Tensor, *, simplex: bool) -> float:
    """Violation of y_i >= level, with equality where multipliers are positive, over max diag G times |weights|."""
    products = gramian @ weights
    level = multipliers @ products / multipliers.sum() if simplex else 0.0
    gap = products - level
    violation = torch.where(multipliers > 0, gap.abs(), (-gap).clamp_min(0)).max()
    return float(violation / (gramian.diagonal().max() * weights.norm()).clamp_min(torch.finfo(torch.float64).tiny))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_min_norm_is_optimal(case: str, size: int) -> None:
    for seed in range(5):
        jacobian = jacobians(seed, size)[case]
        gramian = jacobian @ jacobian.T
        weights = min_norm(gramian)
        assert weights.min() >= 0
        assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
        assert residual_in_units_of_the_diagonal(gramian, weights, weights, simplex=True) <= 1e-8
        assert kkt_residual(gramian, weights, weights) <= 1e-9


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_conflict_averse_is_optimal(case: str, size: int) -> None:
    for seed in range(2):
        jacobian = jacobians(seed, size)[case]
        gramian = jacobian @ jacobian.T
        for c in RADII:
            weights, regular = conflict_averse(gramian, c=c)
            multipliers = weights - 1 / size
            scale = gramian.diagonal().sqrt()
            if is_zero(gramian, torch.full_like(weights, 1 / size)):
                assert not regular
                assert not weights.any()
                continue
            assert multipliers.min() >= -1e-15
            multipliers = multipliers.clamp_min(0)
            # What subtracting 1/T cannot resolve is no multiplier.
            multipliers = torch.where(multipliers * size <= 1e-14, 0.0, multipliers)
            center, step = jacobian.mean(0), multipliers @ jacobian
            # Squared lengths that cancel in a float64 Gramian are known to this.
            noise = 1e-13 * float((multipliers @ scale).square() + scale.mean().square())
            squares = float(step @ step), c * c * float(center @ center)
            if regular:
                assert squares[0] == pytest.approx(squares[1], rel=1e-8, abs=noise)
            else:
                assert squares[0] <= squares[1] + noise
            assert residual_in_units_of_the_diagonal(gramian, multipliers, weights, simplex=regular) <= 1e-8


@pytest.mark.parametrize("size", [2, 3, 10, 40])
def test_conflict_averse_closes_the_duality_gap(size: int) -> None:
    """min_i g_i.d of the result equals the dual value at its w: no d in the ball does better."""
    rng = np.random.default_rng(size)
    for _ in range(5):
        jacobian = torch.from_numpy(rng.standard_normal((size, size + 3)) + 0.5)
        center = jacobian.mean(0)
        weights, regular = conflict_averse(jacobian @ jacobian.T, c=0.5)
        assert regular
        w = (weights - 1 / size) / (weights - 1 / size).sum()
        primal = float((jacobian @ (weights @ jacobian)).min())
        dual = float(center @ (w @ jacobian) + 0.5 * center.norm() * (w @ jacobian).norm())
        assert primal == pytest.approx(dual, rel=1e-8)


@pytest.mark.parametrize("exponents", [(0, 0), (10, -10), (-10, 10), (3, -5), (8, 7)])
def test_min_norm_of_two_is_exact_at_any_scale(exponents: tuple[int, int]) -> None:
    """Against the closed form in rational arithmetic, relative in each weight: tiny weights have digits too."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        rows = rng.integers(-9, 10, (2, 3)) * np.array([[10.0 ** exponents[0]], [10.0 ** exponents[1]]])
        a, b = ([Fraction(float(x)) for x in row] for row in rows)
        aa, ab, bb = (sum(x * y for x, y in zip(p, q, strict=True)) for p, q in ((a, a), (a, b), (b, b)))
        if aa * bb == ab * ab:
            continue
        first = min(max((bb - ab) / (aa + bb - 2 * ab), Fraction(0)), Fraction(1))
        weights = min_norm(torch.from_numpy(rows @ rows.T))
        assert weights.tolist() == pytest.approx([float(first), float(1 - first)], rel=1e-11)


def test_min_norm_of_dependent_gradients() -> None:
    assert min_norm(torch.zeros(4, 4, dtype=torch.float64)).tolist() == [0.25] * 4
    assert min_norm(torch.diag(torch.tensor([1.0, 0.0, 0.0]).double())).tolist() == [0, 0.5, 0.5]
    assert min_norm(torch.tensor([[4.0, -2.0], [-2.0, 1.0]]).double()).tolist() == pytest.approx([1 / 3, 2 / 3])


def test_conflict_averse_without_a_direction_that_improves_all() -> None:
    # Two opposite gradients and one across: going along the third harms none, g0 lies there already.
    jacobian = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    weights, regular = conflict_averse(jacobian @ jacobian.T, c=0.5)
    assert not regular
    assert (weights @ jacobian).tolist() == pytest.approx([0, 1])
    # A zero gradient can not be improved; of the others g1 would be harmed by g0 and is not.
    jacobian = torch.tensor([[-1.0, 1.0], [2.5, 0.0], [0.0, 0.0]], dtype=torch.float64)
    weights, regular = conflict_averse(jacobian @ jacobian.T, c=0.9)
    assert not regular
    direction = weights @ jacobian
    assert (jacobian @ direction).min() >= -1e-10 * (weights.abs() @ jacobian.norm(dim=1)) * 2.5
    assert (direction - jacobian.mean(0)).norm() <= 0.9 * jacobian.mean(0).norm()


def test_opposite_gradients_of_different_length_are_regular() -> None:
    # g0 = 0.5; the ball of radius 0.25 holds no direction that helps -1, but 0.25 harms it least.
    jacobian = torch.tensor([[-1.0], [2.0]], dtype=torch.float64)
    weights, regular = conflict_averse(jacobian @ jacobian.T, c=0.5)
    assert regular
    assert (weights @ jacobian).tolist() == pytest.approx([0.25])


def test_gramians_of_float32_rows_are_solved() -> None:
    """Rounding makes them indefinite; that is no failure of the solver."""
    generator = torch.Generator().manual_seed(0)
    for size in (2, 10, 40):
        rows = torch.randn(size // 2, 30, generator=generator).repeat(2, 1) * 0.37
        gramian = (rows @ rows.T).double()
        gramian[0, size // 2] *= 1 + 2e-7
        gramian[size // 2, 0] = gramian[0, size // 2]
        assert float(min_norm(gramian).sum()) == pytest.approx(1)
        assert conflict_averse(gramian, c=0.5)[0].isfinite().all()


def test_residual_sees_a_wrong_solution() -> None:
    gramian = torch.tensor([[9.0, -3.0], [-3.0, 5.0]], dtype=torch.float64)
    right = torch.tensor([0.4, 0.6], dtype=torch.float64)
    assert kkt_residual(gramian, right, right) <= 1e-15
    for wrong in ([0.41, 0.59], [1.0, 0.0], [-0.1, 1.1], [float("nan"), 1.0]):
        weights = torch.tensor(wrong, dtype=torch.float64)
        assert not kkt_residual(gramian, weights, weights) <= 1e-3


def test_a_missed_tolerance_raises_with_the_gramian(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = hull.nnls

    def spoilt(matrix: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
        solution, distance = exact(matrix, target)
        return solution + 1e-6, distance

    gramian = torch.tensor([[9.0, -3.125, 0.5], [-3.125, 5.0, 0.25], [0.5, 0.25, 1.0]], dtype=torch.float64)
    monkeypatch.setattr(hull, "nnls", spoilt)
    with pytest.raises(RuntimeError, match=r"min_norm: relative KKT residual(.|\n)*-3\.125"):
        min_norm(gramian)
    with pytest.raises(RuntimeError, match=r"conflict_averse: (.|\n)*c=0\.5(.|\n)*-3\.125"):
        conflict_averse(gramian, c=0.5)


@pytest.mark.parametrize(
    ("gramian", "message"),
    [
        (torch.ones(2, 3), r"shape \(T, T\)"),
        (torch.ones(0, 0), r"shape \(T, T\)"),
        (torch.tensor([[1.0, float("nan")], [float("nan"), 1.0]]), "finite Gramian"),
        (torch.tensor([[-1.0, 0.0], [0.0, 1.0]]), "non-negative diagonal"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "positive semidefinite"),
    ],
)
def test_what_is_no_gramian_is_refused(gramian: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        min_norm(gramian)
    with pytest.raises(ValueError, match=message):
        conflict_averse(gramian, c=0.5)
