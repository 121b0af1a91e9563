"""SDMGrad and MoDo: fixtures, optimality, agreement with TorchJD, degenerate input."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
import torchjd.aggregation as reference
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtlbench.balancing.base import Weighting
from mtlbench.balancing.mgda import MGDA
from mtlbench.balancing.modo import MoDo
from mtlbench.balancing.sdmgrad import SDMGrad, sdmgrad_weights
from mtlbench.balancing.simplex import project
from tests.balancing.rows import OPPOSITE, SEEDS, A, B, C, direction, jacobian, six, tensor, weigh
from tests.balancing.solvers import on_tensors

# ---------------------------------------------------------------- sdmgrad, exact


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # methods, section 2, SDMGrad exact, lambda 0.3: A, B, and C, where it is MGDA
        (A, (0.6, 1.2)),
        (B, (0.269231, 0.884615)),
        (C, (15 / 209, 120 / 209, 180 / 209)),
    ],
)
def test_sdmgrad(rows: list[list[float]], expected: tuple[float, ...]) -> None:
    assert direction(SDMGrad(num_tasks=len(rows), seed=0), tensor(rows)).tolist() == six(*expected)


def test_sdmgrad_nears_the_mean_as_lambda_grows() -> None:
    assert weigh(SDMGrad(num_tasks=3, seed=0, lambda_=1e6), tensor(C)).tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)


@pytest.mark.parametrize("size", [2, 3, 10, 40])
@pytest.mark.parametrize("kind", ["regular", "near-singular", "rank 3", "scaled"])
def test_sdmgrad_is_optimal(size: int, kind: str) -> None:
    """KKT: with y = G(w + lambda / T), y_i is least, and alike, where w_i > 0. Relative to max diag G times |w|."""
    for seed in range(10):
        rows = jacobian(seed, (size, 60 if kind != "rank 3" else 3))
        if kind == "near-singular":
            rows = rows[:1] + 1e-6 * rows
        if kind == "scaled":
            rows = rows * torch.logspace(-3, 3, size, dtype=torch.float64)[:, None]
        gramian = rows @ rows.T
        weights, _ = on_tensors(sdmgrad_weights)(gramian, lambda_=0.3)
        multipliers = (1.3 * weights - 0.3 / size).clamp_min(0)
        multipliers[multipliers < 1e-12] = 0
        products = gramian @ (1.3 * weights)
        level = multipliers @ products / multipliers.sum()
        violation = torch.where(multipliers > 0, (products - level).abs(), (level - products).clamp_min(0))
        assert violation.max() <= 1e-8 * gramian.diagonal().max() * weights.norm()


def test_sdmgrad_of_zero_and_opposite_gradients() -> None:
    balancer = SDMGrad(num_tasks=2, seed=0)
    assert direction(balancer, tensor(OPPOSITE)).norm() == pytest.approx(0, abs=1e-12)
    assert balancer.status == "degenerate"
    assert weigh(balancer, torch.zeros(2, 3).double()).sum() == pytest.approx(1)
    assert balancer.status == "degenerate"
    weigh(balancer, tensor(A))
    assert balancer.status == "solved"


# ---------------------------------------------------------------- with several batches


def crossed(balancer: Weighting, cross: Tensor, active: Tensor | None = None) -> Tensor:
    return balancer(cross[None], torch.ones(len(cross), dtype=torch.float64), active=active)[0]


def cross_gramians(seed: int) -> list[Tensor]:
    """Five of one size: of gradients about as long as 1, and of others like them, hence not symmetric."""
    size = 2 + seed % 9
    rows = [jacobian(7 * seed + k, (size, 6)) / 3 for k in range(10)]
    return [rows[2 * k] @ (rows[2 * k] + rows[2 * k + 1] / 2).T for k in range(5)]


def test_stochastic_sdmgrad_lands_at_a_vertex() -> None:
    # methods, section 2, "against torchjd": on A twenty steps of length 10 land at w = (1, 0)
    balancer = SDMGrad(num_tasks=2, seed=0, solver="stochastic")
    assert balancer.num_batches == 3
    assert direction(balancer, tensor(A)).tolist() == six(2.538462, 0.230769)
    assert balancer.state.weights.tolist() == [1, 0]


def test_stochastic_sdmgrad_equals_torchjd() -> None:
    """200 matrices in sequences of five. TorchJD adds 1e-8 to the squared mean length, which is nothing for long
    gradients; steps of length 10 are unstable and blow any rounding up, so there are few of them."""
    for seed in range(40):
        given = cross_gramians(seed)
        strength, lr, steps = 0.1 * (seed % 5), (0.1, 10.0)[seed % 2], (20, 2)[seed % 2]
        ours = SDMGrad(num_tasks=len(given[0]), seed=0, solver="stochastic", lambda_=strength, lr=lr, steps=steps)
        theirs = reference.SDMGradWeighting(lambda_=strength, lr=lr, n_iter=steps)
        for cross in given:
            assert torch.allclose(crossed(ours, 1e6 * cross), theirs(1e6 * cross), atol=1e-7)


def test_sdmgrad_by_short_steps_reaches_the_exact_weights() -> None:
    """On one Gramian, which two equal batches give, the two solvers have one optimum."""
    for seed in range(5):
        rows = jacobian(seed, (3, 12))
        steps = SDMGrad(num_tasks=3, seed=0, solver="stochastic", lr=0.1, steps=20_000)
        assert torch.allclose(weigh(steps, rows), weigh(SDMGrad(num_tasks=3, seed=0), rows), atol=1e-7)


def test_modo_takes_one_projected_step() -> None:
    # methods, section 5, modo: J1 J2' w + rho w at w = (.5, .5) is (.55, 1.05) with rho .1
    balancer = MoDo(num_tasks=2, seed=0, gamma=0.2)
    cross = tensor([[2.0, -1.0], [3.0, -1.0]])
    # (.5, .5) - .2 (.55, 1.05) = (.39, .29), and the nearest point of the simplex adds .16 to each.
    assert crossed(balancer, cross).tolist() == six(0.55, 0.45)
    assert crossed(MoDo(num_tasks=2, seed=0, gamma=100), cross).tolist() == [1, 0]
    assert crossed(MoDo(num_tasks=2, seed=0, gamma=0.2), cross.T).tolist() != six(0.55, 0.45)  # not symmetric


def test_modo_equals_torchjd() -> None:
    for seed in range(40):
        given = cross_gramians(seed)
        ours = MoDo(num_tasks=len(given[0]), seed=0, gamma=0.05, rho=0.2)
        theirs = reference.MoDoWeighting(gamma=0.05, rho=0.2)
        for cross in given:
            assert torch.allclose(crossed(ours, cross), theirs(cross), rtol=1e-12, atol=1e-14)


def test_modo_descends_to_the_shortest_combination() -> None:
    rows = jacobian(5, (3, 12)) / 3
    balancer = MoDo(num_tasks=3, seed=0, gamma=0.1, rho=0.0)
    for _ in range(5000):
        weights = weigh(balancer, rows)
    assert torch.allclose(weights, weigh(MGDA(num_tasks=3, seed=0), rows), atol=1e-9)


@pytest.mark.parametrize("make", [MoDo, functools.partial(SDMGrad, solver="stochastic")])
def test_weights_of_some_tasks_keep_their_part_of_the_simplex(make: Any) -> None:
    balancer = make(num_tasks=3, seed=0)
    balancer.state.weights.copy_(tensor([0.5, 0.3, 0.2]))
    found = crossed(balancer, tensor([[1.0, 0.3], [-0.2, 0.1]]), torch.tensor([0, 2]))
    assert float(found.sum()) == pytest.approx(1)
    assert float(balancer.state.weights[[0, 2]].sum()) == pytest.approx(0.7)
    assert float(balancer.state.weights[1]) == 0.3
    balancer.state.weights.copy_(tensor([0, 1, 0]))
    assert crossed(balancer, torch.zeros(2, 2).double(), torch.tensor([0, 2])).tolist() == [0.5, 0.5]


def test_stochastic_sdmgrad_without_a_length_stays_where_it_is() -> None:
    balancer = SDMGrad(num_tasks=2, seed=0, solver="stochastic")
    assert crossed(balancer, tensor([[-1.0, 2.0], [2.0, 0.0]])).tolist() == [0.5, 0.5]
    assert balancer.status == "degenerate"


@given(SEEDS, st.floats(1e-3, 1e12))
def test_projection_is_the_nearest_point_of_the_simplex(seed: int, scale: float) -> None:
    """KKT: all positive coordinates are moved alike, and none of the others by less."""
    point = jacobian(seed, (1 + seed % 40, 1))[:, 0].numpy() * scale
    found = project(point)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    moved = point - found
    level = moved[found > 0]
    assert np.ptp(level) <= 1e-12 * scale + 1e-12
    assert (moved[found == 0] <= level.max() + 1e-12 * scale + 1e-12).all()
