"""Balancers that remember Jacobians: DB-MTL, MoCo, ExcessMTL."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchjd.aggregation as reference
from hypothesis import given
from hypothesis import strategies as st

from mtlbench.balancing.db_mtl import DBMTL
from mtlbench.balancing.excess_mtl import ExcessMTL
from mtlbench.balancing.moco import MoCo, moco_weights
from mtlbench.balancing.simplex import project
from tests.balancing.jacobians import SHAPES, call, problems
from tests.balancing.losses import LOSSES
from tests.balancing.rows import A, B, C, six, tensor

# ---------------------------------------------------------------- db_mtl


def log_gradients(rows: list[list[float]]) -> list[list[float]]:
    """The rows as gradients of the log losses, by the balancer's own transform."""
    losses = tensor(LOSSES[: len(rows)]).requires_grad_()
    (slopes,) = torch.autograd.grad(DBMTL(num_tasks=len(rows), seed=0).transform(losses).sum(), losses)
    return (tensor(rows) * slopes[:, None]).tolist()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # methods, section 2, DB-MTL, fixtures A, B, C
        (A, (2.472136, 4)),
        (B, (1.464466, 3.535534)),
        (C, (0.416899, 2.174258, 5.065697)),
    ],
)
def test_db_mtl(rows: list[list[float]], expected: tuple[float, ...]) -> None:
    size, given = len(rows), log_gradients(rows)
    assert call(DBMTL(num_tasks=size, seed=0, beta=0), given) == six(*expected)
    # methods, section 4, db_mtl: with bias correction the first step is the same, without it 0.1 times as long
    assert call(DBMTL(num_tasks=size, seed=0), given) == six(*expected)
    short = call(DBMTL(num_tasks=size, seed=0, bias_correction=False), given)
    assert short == six(*(0.1 * x for x in expected))


def test_db_mtl_smooths() -> None:
    # methods, section 5, db_mtl: u <- beta u + (1 - beta) g, here beta = .5
    balancer = DBMTL(num_tasks=2, seed=0, beta=0.5)
    call(balancer, A)
    found = call(balancer, [[1.0, 0.0], [1.0, 2.0]])
    first, second = tensor([(0.25 * 3 + 0.5) / 0.75, 0]), tensor([(-0.25 + 0.5) / 0.75, 1.5 / 0.75])
    length = max(first.norm(), second.norm())
    assert found == six(*(length * (first / first.norm() + second / second.norm())).tolist())


def test_db_mtl_counts_the_steps_of_each_task() -> None:
    """A task that comes late is corrected by its own number of steps: constant gradients give constant directions."""
    balancer = DBMTL(num_tasks=3, seed=0)
    rows, losses = tensor(C), tensor(LOSSES)
    early = torch.tensor([0, 1])
    for _ in range(5):
        balancer(rows[early], losses[early], active=early)
    whole = DBMTL(num_tasks=3, seed=0, beta=0)(rows, losses)
    assert torch.allclose(balancer(rows, losses), whole)
    assert balancer.steps.tolist() == [6, 6, 1]


def test_db_mtl_without_gradients() -> None:
    balancer = DBMTL(num_tasks=2, seed=0)
    assert call(balancer, [[3.0, 0.0], [0.0, 0.0]]) == six(3, 0)
    assert balancer.status == "solved"
    assert call(DBMTL(num_tasks=2, seed=0), [[3.0, 1.0], [-3.0, -1.0]]) == [0, 0]
    opposite = DBMTL(num_tasks=2, seed=0)
    call(opposite, [[3.0, 1.0], [-3.0, -1.0]])
    assert opposite.status == "degenerate"


def test_db_mtl_refuses() -> None:
    balancer = DBMTL(num_tasks=2, seed=0)
    with pytest.raises(ValueError, match=r"DB-MTL needs losses of at least 0; task .1. has -0\.1"):
        balancer.transform(tensor([1.0, -0.1]))
    assert balancer.transform(tensor([0.0, 1.0])).isfinite().all()  # a task that is learnt
    with pytest.raises(ValueError, match="beta must be a finite number of at least 0 and below 1; got 1"):
        DBMTL(num_tasks=2, seed=0, beta=1)
    with pytest.raises(ValueError, match="epsilon must be a finite number above 0; got 0"):
        DBMTL(num_tasks=2, seed=0, epsilon=0)


# ---------------------------------------------------------------- moco


def test_moco_as_in_libmtl() -> None:
    # methods, section 2, MoCo (LibMTL defaults): step 1, A: lambda, d; step 2: d
    balancer = MoCo(num_tasks=2, seed=0, normalize="loss", simplex="softmax")
    assert call(balancer, A) == six(0.431072, 0.114423)
    assert balancer.weights.weights.tolist() == six(0.488283, 0.511717)
    assert call(balancer, A) == six(0.570200, 0.157549)


def test_moco() -> None:
    # methods, section 5, moco: y <- y - beta (y - g), weights projected, with rho
    balancer = MoCo(num_tasks=2, seed=0, rho=0.5)
    rows = tensor(A)
    # Step 1: y = .5 g, y y' = [[2.25, -.75], [-.75, 1.25]], (y y' + .5 I)(.5, .5) = (1, .5)
    assert call(balancer, A) == six(*((tensor([0.475, 0.525]) @ rows) / 2).tolist())
    assert balancer.weights.weights.tolist() == six(0.475, 0.525)
    # Step 2: beta and gamma fall with the root of the step.
    y = rows / 2 + (rows / 2) / 2**0.5 * 0.5
    weights = tensor([0.475, 0.525])
    moved = weights - 0.1 / 2**0.5 * ((y @ y.T) @ weights + 0.5 * weights)
    assert call(balancer, A) == six(*(tensor(project(moved.numpy())) @ y).tolist())


def test_moco_finds_the_shortest_combination() -> None:
    """With constant gradients the weights go to MGDA's: methods, section 2, fixture C."""
    balancer = MoCo(num_tasks=3, seed=0, beta_decay=0, gamma_decay=0)
    for _ in range(400):
        found = call(balancer, C)
    assert found == pytest.approx([15 / 209, 120 / 209, 180 / 209], abs=1e-9)
    assert balancer.weights.weights.tolist() == pytest.approx([56 / 209, 91 / 209, 62 / 209], abs=1e-9)


def test_moco_of_some_tasks() -> None:
    """Their weights keep the sum they had, and count with a sum of 1."""
    balancer = MoCo(num_tasks=3, seed=0, beta=1.0)
    rows, active = tensor(C), torch.tensor([0, 2])
    found = balancer(rows[active], tensor([1.0, 1.0]), active=active)
    gramian = rows[active] @ rows[active].T
    weights = tensor(moco_weights(np.array([0.5, 0.5]), gramian.numpy(), gamma=0.1))
    assert torch.allclose(found, weights @ rows[active])
    assert balancer.weights.weights.tolist() == pytest.approx(
        [float(weights[0]) * 2 / 3, 1 / 3, float(weights[1]) * 2 / 3]
    )
    balancer.weights.weights.copy_(tensor([0, 1, 0]))  # nothing to divide by
    assert balancer(rows[active], tensor([1.0, 1.0]), active=active).any()
    assert balancer.weights.weights.tolist() == [0, 1, 0]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_simplex_projection_is_the_nearest_point(values: list[float]) -> None:
    """Its optimality: moved by one number, except where it would be negative."""
    point = tensor(values)
    nearest = tensor(project(point.numpy()))
    assert nearest.min() >= 0
    assert float(nearest.sum()) == pytest.approx(1)
    shift = (point - nearest)[nearest > 0]
    scale = 1e-12 * (1 + float(point.abs().max()))
    assert shift.max() - shift.min() <= scale
    assert (point[nearest == 0] <= shift.max() + scale).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1.5}, "beta must be a finite number above 0 and of at most 1; got 1.5"),
        ({"gamma": 0}, "gamma must be a finite number above 0; got 0"),
        ({"simplex": "clip"}, "simplex must be one of project, softmax; got 'clip'"),
        ({"normalize": "l2"}, "normalize must be one of none, loss; got 'l2'"),
    ],
)
def test_moco_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoCo(num_tasks=2, seed=0, **options)


# ---------------------------------------------------------------- excess_mtl


HALVED = [[1.5, 0.0], [-1.0, 2.0]]


def test_excess_mtl() -> None:
    # methods, section 2, ExcessMTL: A, then row 1 halved; eta = 1
    balancer = ExcessMTL(num_tasks=2, seed=0, eta=1.0)
    assert call(balancer, A) == six(1, 1)  # weights stay uniform
    assert balancer.initial.tolist() == six(3, 3)
    weights = tensor([0.381426, 0.618574])
    assert call(balancer, HALVED) == pytest.approx((weights @ tensor(HALVED)).tolist(), abs=3e-6)
    assert torch.softmax(balancer.logits, 0).tolist() == six(*weights.tolist())


def test_excess_mtl_as_in_libmtl() -> None:
    # ... LibMTL: sum K, eta = .01
    balancer = ExcessMTL(num_tasks=2, seed=0, scale="sum")
    assert call(balancer, A) == six(2, 2)
    weights = tensor([0.997583, 1.002417])
    assert call(balancer, HALVED) == pytest.approx((weights @ tensor(HALVED)).tolist(), abs=3e-6)


def test_excess_mtl_as_in_torchjd() -> None:
    # ... TorchJD applies the raw e on call 1: B -> (.999665, .000335)
    balancer = ExcessMTL(num_tasks=2, seed=0, eta=1.0, warmup=0)
    call(balancer, B)
    assert torch.softmax(balancer.logits, 0).tolist() == six(0.999665, 0.000335)


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_excess_mtl_equals_torchjd(warmup: int) -> None:
    for shape in SHAPES:
        for seed in range(8):
            ours = ExcessMTL(num_tasks=shape[0], seed=0, eta=0.3, warmup=warmup)
            theirs = reference.ExcessMTL(robust_step_size=0.3, n_warmup_steps=warmup)
            for rows, losses in problems(*shape, steps=6, seed=seed):
                # TorchJD adds 1e-7 to what it divides by.
                assert torch.allclose(ours(rows, losses), theirs(rows), rtol=1e-6, atol=1e-6)


def test_excess_mtl_waits_for_a_gradient() -> None:
    """A task whose first gradients are zero has its first estimate later, and no weight explodes."""
    balancer = ExcessMTL(num_tasks=2, seed=0, eta=1.0)
    for _ in range(3):
        call(balancer, [[3.0, 0.0], [0.0, 0.0]])
    before = torch.softmax(balancer.logits, 0)
    assert before[0] > before[1]
    call(balancer, A)
    assert balancer.initial.tolist() == six(3, 3)
    after = torch.softmax(balancer.logits, 0)
    assert before[0] < after[0] < 0.95
    nothing = ExcessMTL(num_tasks=2, seed=0)
    assert call(nothing, [[0.0, 0.0], [0.0, 0.0]]) == [0, 0]
    assert nothing.status == "degenerate"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0}, "eta must be a finite number above 0; got 0"),
        ({"warmup": 1.5}, "warmup must be a whole number of at least 0; got 1.5"),
        ({"scale": "max"}, "scale must be one of mean, sum; got 'max'"),
    ],
)
def test_excess_mtl_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExcessMTL(num_tasks=2, seed=0, **options)
