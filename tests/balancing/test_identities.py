"""Identities of the rules: the methods reference, end of section 2, "Identities to property-test", in its order.

Each docstring starts with the reference's words; K is the number of tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from mtlbench.balancing.aligned_mtl import AlignedMTL
from mtlbench.balancing.base import Property, Scalarizer, Weighting
from mtlbench.balancing.cagrad import CAGrad
from mtlbench.balancing.con_fig import ConFIG
from mtlbench.balancing.dualproj import DualProj
from mtlbench.balancing.fairgrad import FairGrad
from mtlbench.balancing.famo import FAMO
from mtlbench.balancing.gls import GLS
from mtlbench.balancing.imtl_g import IMTLG
from mtlbench.balancing.mgda import MGDA
from mtlbench.balancing.nash_mtl import NashMTL
from mtlbench.balancing.pcgrad import PCGrad
from mtlbench.balancing.scale_invariant import ScaleInvariant
from mtlbench.balancing.sdmgrad import SDMGrad
from mtlbench.balancing.upgrad import UPGrad
from tests.balancing import losses as values
from tests.balancing.losses import modest, vectors
from tests.balancing.rows import matrices, tensor, weigh

pairs = matrices(2, 2)


def direction(kind: Callable[..., Weighting], rows: Tensor, **options: Any) -> Tensor:
    return weigh(kind(num_tasks=len(rows), seed=0, **options), rows) @ rows


def cosines(rows: Tensor) -> Tensor:
    units = rows / rows.norm(dim=1, keepdim=True)
    return units @ units.T


def is_regular(rows: Tensor) -> bool:
    """Well apart from a zero row, and from a combination of the gradients that is zero."""
    return bool(rows.norm(dim=1).min() >= 1e-3) and float(torch.linalg.eigvalsh(cosines(rows))[0]) > 1e-4


def noise(rows: Tensor, weights: Tensor) -> Tensor:
    """(T,) what of the products with the direction a Gramian in float64 can't tell from zero."""
    lengths = rows.norm(dim=1)
    return 1e-7 * lengths * (weights.abs() @ lengths)


# ---------------------------------------------------------------- "K=2"


@modest
@given(pairs)
def test_nash_of_two_has_a_closed_form(rows: Tensor) -> None:
    """Nash w_i = 1/(|g_i| sqrt(1 + cos))."""
    assume(is_regular(rows))
    expected = 1 / (rows.norm(dim=1) * torch.sqrt(1 + cosines(rows)[0, 1]))
    assert torch.allclose(weigh(NashMTL(num_tasks=2, seed=0), rows), expected, rtol=1e-9)


@modest
@given(pairs)
def test_four_methods_point_along_the_bisector_of_two(rows: Tensor) -> None:
    """Nash, FairGrad alpha=1, IMTL-G, ConFIG all point along the bisector."""
    assume(is_regular(rows))
    middle = (rows / rows.norm(dim=1, keepdim=True)).sum(0)
    for kind, options in ((NashMTL, {}), (FairGrad, {"alpha": 1.0}), (IMTLG, {}), (ConFIG, {})):
        found = direction(kind, rows, **options)
        assert (found / found.norm() - middle / middle.norm()).norm() <= 1e-9


@modest
@given(pairs)
def test_upgrad_of_two_is_half_of_pcgrad(rows: Tensor) -> None:
    """UPGrad = PCGrad/2."""
    assert torch.allclose(direction(UPGrad, rows), direction(PCGrad, rows) / 2, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- "any K"


@modest
@given(matrices())
def test_nash_is_as_long_as_the_root_of_the_number_of_tasks(rows: Tensor) -> None:
    """Nash |d|^2 = K; of the same kind FairGrad |d|^2 = sum_i w_i^(1 - 1/alpha)."""
    assume(is_regular(rows))
    found = direction(NashMTL, rows)
    assert float(found @ found) == pytest.approx(len(rows), rel=1e-9)
    weights = weigh(FairGrad(num_tasks=len(rows), seed=0, alpha=3.0), rows)
    assert float((weights @ rows).square().sum()) == pytest.approx(float((weights ** (2 / 3)).sum()), rel=1e-9)


@modest
@given(matrices())
def test_imtl_g_has_equal_projections_on_unit_gradients(rows: Tensor) -> None:
    """IMTL-G equal projections on unit gradients; ConFIG has them too, and their sum is its length."""
    assume(is_regular(rows))
    for kind in (IMTLG, ConFIG):
        found = direction(kind, rows)
        products = (rows @ found) / rows.norm(dim=1)
        assert torch.allclose(products, products[0].expand(len(rows)), rtol=1e-7)
    assert float((rows @ found).sum()) == pytest.approx(float(found @ found), rel=1e-7)


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5, 10])
def test_imtl_g_is_the_papers_where_its_matrix_is_regular(size: int, dependent: bool) -> None:
    """a = g_1 U' (D U')^-1, D and U the differences of g_1, u_1 and the others': d = 0 where all sum to zero."""
    for seed in range(20):
        rows = torch.randn(size, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        rows = rows - rows.mean(0) if dependent else rows
        units = rows / rows.norm(dim=1, keepdim=True)
        apart, turned = rows[0] - rows[1:], units[0] - units[1:]
        others = torch.linalg.solve(turned @ apart.T, turned @ rows[0])
        balancer = IMTLG(num_tasks=size, seed=0)
        weights = weigh(balancer, rows)
        assert torch.allclose(weights, torch.cat([1 - others.sum(0, keepdim=True), others]), rtol=1e-6, atol=1e-6)
        assert balancer.status == ("degenerate" if dependent else "solved")


@modest
@given(matrices())
def test_mgda_improves_every_task_by_at_least_its_own_length(rows: Tensor) -> None:
    """MGDA g_i.d >= |d|^2; d is no longer than any gradient."""
    balancer = MGDA(num_tasks=len(rows), seed=0)
    weights = weigh(balancer, rows)
    found, lengths = weights @ rows, rows.norm(dim=1)
    assert (rows @ found >= found @ found - noise(rows, weights)).all()
    assert found.norm() <= lengths.min() + 1e-12
    assert (balancer.status == "solved") == bool(found.norm() > 1e-6 * (weights @ lengths)) or found.norm() < 1e-6


@modest
@given(matrices())
def test_projections_harm_no_task(rows: Tensor) -> None:
    """UPGrad, DualProj, Nash J d >= 0; the mean that harms none is DualProj's."""
    for kind in (UPGrad, DualProj, NashMTL):
        balancer = kind(num_tasks=len(rows), seed=0)
        weights = weigh(balancer, rows)
        assert Property.NON_CONFLICTING in balancer.properties
        assert (rows @ (weights @ rows) >= -noise(rows, weights)).all()
        if kind is NashMTL and is_regular(rows):
            assert (rows @ (weights @ rows) > 0).all()
    mean = rows.mean(0)
    if (rows @ mean >= 0).all():
        assert torch.allclose(direction(DualProj, rows), mean)


def test_pcgrad_of_three_may_harm_one() -> None:
    """(PCGrad not for K>=3): and so it does not declare it."""
    balancer = PCGrad(num_tasks=3, seed=0, order="fixed")
    rows = tensor([[-1.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
    assert (rows @ (weigh(balancer, rows) @ rows)).tolist() == pytest.approx([-1, 0.5, 0.5])
    assert Property.NON_CONFLICTING not in balancer.properties


@modest
@given(matrices(), st.sampled_from([0.0, 0.1, 0.3, 1.0, 5.0]))
def test_sdmgrad_is_mgda_where_that_gives_every_task_enough(rows: Tensor, strength: float) -> None:
    """SDMGrad exact = MGDA when (1 + lambda) w_MGDA >= lambda/K; elsewhere it is no shorter."""
    size, longest = len(rows), float(rows.norm(dim=1).max())
    shortest = weigh(MGDA(num_tasks=size, seed=0), rows)
    weights = weigh(SDMGrad(num_tasks=size, seed=0, lambda_=strength), rows)
    assert float(weights.sum()) == pytest.approx(1)
    assert float(weights.min()) >= strength / (1 + strength) / size - 1e-12
    if ((1 + strength) * shortest >= strength / size).all():
        assert torch.allclose(weights @ rows, shortest @ rows, rtol=0, atol=1e-6 * longest)
    else:
        assert (weights @ rows).norm() >= (shortest @ rows).norm() - 1e-7 * longest


@modest
@given(matrices())
def test_cagrad_at_zero_is_the_mean(rows: Tensor) -> None:
    """CAGrad c=0 = mean."""
    assert torch.allclose(direction(CAGrad, rows, c=0.0), rows.mean(0), atol=1e-6 * float(rows.norm(dim=1).max()))


@modest
@given(matrices(2), vectors(6, 1e-4, 1e4))
def test_nash_does_not_depend_on_the_losses_scale(rows: Tensor, factors: Tensor) -> None:
    """Nash, GLS, SI invariant to loss scale: gradients times positive numbers give Nash's direction, and length."""
    assume(is_regular(rows))
    scaled = rows * factors[: len(rows), None]
    assert torch.allclose(direction(NashMTL, rows), direction(NashMTL, scaled), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", [GLS, ScaleInvariant, FAMO])
@modest
@given(losses=vectors(4, 1e-3, 1e3), factors=vectors(4, 1e-3, 1e3))
def test_gls_and_si_do_not_turn_with_the_losses_scale(
    kind: Callable[..., Scalarizer], losses: Tensor, factors: Tensor
) -> None:
    """The same: weights times gradients, which scale with the losses, keep their proportions. FAMO's do at any step."""
    plain = tensor(values.derivative(kind(num_tasks=4, seed=0), losses)[1])
    scaled = tensor(values.derivative(kind(num_tasks=4, seed=0), losses * factors)[1]) * factors
    assert torch.allclose(plain / plain.sum(), scaled / scaled.sum(), rtol=1e-9)


@modest
@given(matrices(2))
def test_aligned_gradients_have_condition_number_one(rows: Tensor) -> None:
    """Aligned condition number 1: of the aligned gradients, whose sum is the direction."""
    assume(is_regular(rows))
    left, lengths, right = torch.linalg.svd(rows, full_matrices=False)
    aligned = lengths.min() * left @ right
    assert float(torch.linalg.cond(aligned)) == pytest.approx(1)
    assert torch.allclose(direction(AlignedMTL, rows), aligned.sum(0), rtol=1e-7, atol=1e-7 * math.sqrt(len(rows)))
