"""The Weightings with an exact solver beside TorchJD's, on 200 Jacobians; where the two differ, who is nearer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchjd.aggregation as reference
from torch import Tensor

from mtlbench.balancing.aligned_mtl import AlignedMTL
from mtlbench.balancing.base import Weighting
from mtlbench.balancing.con_fig import ConFIG
from mtlbench.balancing.dualproj import DualProj
from mtlbench.balancing.imtl_g import IMTLG
from mtlbench.balancing.nash_mtl import NashMTL
from mtlbench.balancing.upgrad import UPGrad
from tests.balancing.rows import weigh
from tests.balancing.solvers import alpha_fair
from tests.balancing.test_solvers import direction

SHAPES = [(1, 3), (2, 5), (3, 4), (5, 12), (10, 40)]


def drawn() -> list[Tensor]:
    """200 Jacobians."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) + 0.3 for _ in range(40) for shape in SHAPES]


@pytest.mark.parametrize(
    ("kind", "options", "theirs", "factor", "tolerance"),
    [
        (IMTLG, {}, reference.IMTLG, 1, 1e-9),
        (ConFIG, {}, reference.ConFIG, 1, 1e-9),
        # TorchJD has the mean over the tasks
        (AlignedMTL, {}, reference.AlignedMTL, len, 1e-9),
        (AlignedMTL, {"reduction": "mean"}, reference.AlignedMTL, 1, 1e-9),
    ],
)
def test_closed_forms_are_torchjds(
    kind: Callable[..., Weighting],
    options: dict[str, Any],
    theirs: Callable[[], Any],
    factor: Any,
    tolerance: float,
) -> None:
    aggregator = theirs()
    for rows in drawn():
        expected = aggregator(rows) * (factor(rows) if callable(factor) else factor)
        found = direction(kind, rows, **options)
        scale = weigh(kind(num_tasks=len(rows), seed=0, **options), rows).abs() @ rows.norm(dim=1)
        assert (found - expected).norm() <= tolerance * scale


@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
def test_scale_modes_are_torchjds(mode: Any) -> None:
    for rows in drawn():
        expected = reference.AlignedMTL(scale_mode=mode)(rows)
        assert torch.allclose(direction(AlignedMTL, rows, reduction="mean", scale_mode=mode), expected, rtol=1e-8)


@pytest.mark.parametrize(("kind", "theirs"), [(UPGrad, reference.UPGrad), (DualProj, reference.DualProj)])
def test_projections_are_torchjds(kind: Callable[..., Weighting], theirs: Callable[[], Any]) -> None:
    pytest.importorskip("quadprog", reason="TorchJD's UPGrad and DualProj need quadprog and qpsolvers")
    for rows in drawn():
        expected = theirs()(rows)
        assert torch.allclose(direction(kind, rows, regularization=1e-4), expected, rtol=1e-8, atol=1e-9)
        # Exact is as near as the regularisation lets it be, and conflicts less.
        exact = direction(kind, rows)
        assert (exact - expected).norm() <= 2e-2 * rows.norm(dim=1).max()
        assert (rows @ exact).min() >= min(float((rows @ expected).min()), 0.0) - 1e-9


def test_fairgrad_is_torchjds_or_nearer_the_root() -> None:
    compared = 0
    for rows in drawn():
        gramian = rows @ rows.T
        theirs = reference.FairGradWeighting(alpha=2.0)(gramian)
        ours, regular = alpha_fair(gramian, alpha=2.0)
        assert regular
        gap, other = (float((gramian @ w - w**-0.5).norm()) for w in (ours, theirs))
        assert gap <= 1e-9 * float(gramian.diagonal().max() * ours.norm())
        assert gap <= other + 1e-9
        if other <= 1e-6:
            compared += 1
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    assert compared >= 150


def test_nash_where_torchjd_is_off() -> None:
    """TorchJD's 20 convex-concave steps end early from T = 10 on: its own G w is not 1 / w."""
    pytest.importorskip("ecos", reason="TorchJD's Nash-MTL needs cvxpy and ecos")
    generator = torch.Generator().manual_seed(3)
    for size, near in [(2, True), (3, True)] * 100 + [(10, False)]:
        rows = torch.randn(size, 40, generator=generator, dtype=torch.float64) + 0.1
        gramian = rows @ rows.T
        theirs = reference.NashMTL(n_tasks=size, max_norm=0.0)
        theirs(rows)
        weights = torch.from_numpy(theirs.weighting.prvs_alpha).double()
        ours = weigh(NashMTL(num_tasks=size, seed=0), rows)
        spread, other = (
            float(((gramian @ w) * w / ((gramian @ w) @ w) * size - 1).abs().max()) for w in (ours, weights)
        )
        assert spread <= 1e-12
        if near:  # up to a common factor: TorchJD solves for the Gramian over its norm
            assert other <= 2e-2
            assert float(torch.cosine_similarity(ours, weights, dim=0)) >= 1 - 1e-3
