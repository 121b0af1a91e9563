"""The Weightings with an exact solver: papers' numbers, options, state.

Fixtures A, B and C and their directions: the methods reference, section 2, table "Gradient methods".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlbench.balancing.aligned_mtl import AlignedMTL
from mtlbench.balancing.base import Property, Weighting
from mtlbench.balancing.con_fig import ConFIG
from mtlbench.balancing.dualproj import DualProj
from mtlbench.balancing.fairgrad import FairGrad
from mtlbench.balancing.imtl import IMTL
from mtlbench.balancing.imtl_g import IMTLG
from mtlbench.balancing.mgda import MGDA
from mtlbench.balancing.nash_mtl import NashMTL
from mtlbench.balancing.upgrad import UPGrad
from mtlbench.gradients.engine import GradientEngine
from tests.balancing.rows import A, B, C, six, tensor, weigh

OPPOSITE = [[1.0, -2.0], [-0.5, 1.0]]


def direction(kind: Callable[..., Weighting], rows: Tensor, **options: Any) -> Tensor:
    return weigh(kind(num_tasks=len(rows), seed=0, **options), rows) @ rows


# ---------------------------------------------------------------- the papers' numbers


@pytest.mark.parametrize(
    ("kind", "options", "a", "b", "c"),
    [
        # methods, section 2, IMTL-G
        (IMTLG, {}, (0.708204, 1.145898), (0.362893, 0.876101), (0.155344, 0.550136, 0.870298)),
        # ... Nash = FairGrad alpha 1
        (NashMTL, {}, (0.743496, 1.203002), (0.541196, 1.306563), (0.211971, 0.842621, 1.498352)),
        (FairGrad, {"alpha": 1}, (0.743496, 1.203002), (0.541196, 1.306563), (0.211971, 0.842621, 1.498352)),
        # ... FairGrad alpha 2
        (FairGrad, {}, (0.561547, 0.991062), (0.263013, 1.182582), (0.139901, 0.730246, 1.209762)),
        # ... Aligned (min), d with w = 1/T
        (
            AlignedMTL,
            {"reduction": "mean"},
            (0.722650, 1.083975),
            (0.450410, 0.540492),
            (0.153234, 0.457346, 0.875988),
        ),
        # ... UPGrad
        (UPGrad, {}, (1.2, 1.6), (2.5, 3), (0.361007, 0.816097, 1.503186)),
        # ... DualProj: the mean where it conflicts with none
        (DualProj, {}, (1, 1), (2.5, 2.5), (1 / 3, 1 / 3, 1)),
        # ... ConFIG
        (ConFIG, {}, (1.447214, 2.341641), (1.671573, 4.035534), (0.475169, 1.682767, 2.662087)),
        # section 2: UPGrad and DualProj in TorchJD have 1e-4 of the trace: B gives (2.512634, 2.987315)
        (UPGrad, {"regularization": 1e-4}, None, (2.512634, 2.987315), None),
    ],
)
def test_fixtures(kind: Callable[..., Weighting], options: dict[str, Any], a: Any, b: Any, c: Any) -> None:
    for rows, expected in ((A, a), (B, b), (C, c)):
        if expected is not None:
            assert direction(kind, tensor(rows), **options).tolist() == six(*expected)


def test_aligned_sum_is_the_default() -> None:
    # methods, section 4, aligned_mtl: sum over tasks (official)
    assert direction(AlignedMTL, tensor(A)).tolist() == pytest.approx([2 * 0.722650, 2 * 1.083975], abs=2e-6)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 30.0])
def test_aligned_refuses_what_is_no_gramian(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"Expected a (finite|positive semidefinite) Gramian"):
        AlignedMTL(num_tasks=2, seed=0)(tensor([[[1.0, wrong], [wrong, 1.0]]]), tensor([1.0, 1.0]))


def test_aligned_scale_modes() -> None:
    # methods, section 2, Aligned: "median" is the lower one; section 4: rmse. All are multiples of the same.
    rows = tensor(C)
    values = torch.linalg.svdvals(rows).sort().values
    least = direction(AlignedMTL, rows)
    median, mean = (direction(AlignedMTL, rows, scale_mode=mode) for mode in ("median", "rmse"))
    assert torch.allclose(median, least * values[1] / values[0])
    assert torch.allclose(mean, least * values.square().mean().sqrt() / values[0])
    assert torch.allclose(direction(AlignedMTL, tensor(A), scale_mode="median"), direction(AlignedMTL, tensor(A)))


def test_nash_max_norm() -> None:
    # methods, section 2: max_norm=1 rescales A to (.525731, .850651)
    assert direction(NashMTL, tensor(A), max_norm=1.0).tolist() == six(0.525731, 0.850651)
    assert direction(NashMTL, tensor(A), max_norm=2.0).tolist() == six(0.743496, 1.203002)  # shorter than that


def test_imtl_both_parts() -> None:
    # methods, section 5, imtl: l' = e^s l - s; weights of imtl_g on D G D; the gradient of s is e^s l - 1
    balancer = IMTL(num_tasks=2, seed=0).double()
    balancer.scales.data = tensor([0.5, -0.5])
    losses = tensor([2.0, 0.5]).requires_grad_()
    transformed = balancer.transform(losses)
    # section 2, IMTL-L: s = (.5, -.5) gives 3.600708, d/ds = (2.297443, -.696735)
    assert float(transformed.sum().detach()) == pytest.approx(3.600708, abs=6e-7)
    slopes, own = torch.autograd.grad(transformed.sum(), [losses, balancer.scales])
    assert own.tolist() == six(2.297443, -0.696735)
    scaled = slopes[:, None] * tensor(A)
    assert (weigh(balancer, scaled) @ scaled).tolist() == pytest.approx(direction(IMTLG, scaled).tolist())
    second = balancer.transform(losses[1:], active=torch.tensor([1]))  # the first has no labels in this step
    assert second.tolist() == transformed[1:].tolist()


def test_imtl_in_the_engine() -> None:
    shared = nn.Parameter(tensor([1.0, 1.0]))
    balancer = IMTL(num_tasks=2, seed=0).double()
    balancer.scales.data = tensor([0.5, -0.5])
    engine = GradientEngine([shared], balancer, tasks=["a", "b"])
    rows = tensor(A)
    losses = rows @ shared + tensor([-1.0, -0.5])  # (2, .5)
    engine.backward({"a": losses[0], "b": losses[1]})
    scaled = tensor([0.5, -0.5]).exp()[:, None] * rows
    assert shared.grad is not None
    assert shared.grad.tolist() == pytest.approx(direction(IMTLG, scaled).tolist())
    assert balancer.scales.grad is not None
    assert balancer.scales.grad.tolist() == six(2.297443, -0.696735)


# ---------------------------------------------------------------- options, status, state


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (AlignedMTL, {"scale_mode": "max"}),
        (AlignedMTL, {"reduction": "max"}),
        (FairGrad, {"alpha": 0}),
        (FairGrad, {"alpha": math.inf}),
        (NashMTL, {"max_norm": 0}),
        (NashMTL, {"every": 0}),
        (NashMTL, {"every": 1.5}),
        (UPGrad, {"regularization": -1}),
        (DualProj, {"regularization": "much"}),
    ],
)
def test_wrong_options(kind: Callable[..., Weighting], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(num_tasks=2, seed=0, **options)


def test_claims_that_options_take_away() -> None:
    for kind, options in (
        (UPGrad, {"regularization": 1e-4}),
        (DualProj, {"regularization": 1e-4}),
        (NashMTL, {"every": 2}),
    ):
        assert Property.NON_CONFLICTING in kind(num_tasks=2, seed=0).properties
        assert Property.NON_CONFLICTING not in kind(num_tasks=2, seed=0, **options).properties


@pytest.mark.parametrize("kind", [NashMTL, FairGrad, IMTLG, ConFIG, UPGrad])
def test_opposite_gradients_give_zero(kind: Callable[..., Weighting]) -> None:
    balancer = kind(num_tasks=2, seed=0)
    assert (weigh(balancer, tensor(OPPOSITE)) @ tensor(OPPOSITE)).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert balancer.status == "degenerate"
    weigh(balancer, tensor(A))
    assert balancer.status == "solved"


@pytest.mark.parametrize("kind", [DualProj, AlignedMTL])
def test_opposite_gradients_of_one_length_give_zero(kind: Callable[..., Weighting]) -> None:
    balancer = kind(num_tasks=2, seed=0)
    assert (weigh(balancer, tensor([[1.0], [-1.0]])) @ tensor([[1.0], [-1.0]])).tolist() == pytest.approx(
        [0], abs=1e-15
    )
    assert balancer.status == "degenerate"


@pytest.mark.parametrize("kind", [NashMTL, FairGrad])
def test_a_zero_gradient_has_no_root(kind: Callable[..., Weighting]) -> None:
    balancer = kind(num_tasks=3, seed=0)
    assert weigh(balancer, tensor([*A, [0.0, 0.0]])).tolist() == [0, 0, 0]
    assert balancer.status == "degenerate"


@pytest.mark.parametrize("kind", [IMTLG, ConFIG])
def test_a_zero_gradient_is_left_out(kind: Callable[..., Weighting]) -> None:
    balancer = kind(num_tasks=3, seed=0)
    weights = weigh(balancer, tensor([*A, [0.0, 0.0]]))
    assert balancer.status == "degenerate"
    assert weights[2] == 0
    assert weights[:2].tolist() == pytest.approx(weigh(kind(num_tasks=2, seed=0), tensor(A)).tolist())


def test_nash_keeps_weights_between_solutions() -> None:
    balancer = NashMTL(num_tasks=3, seed=0, every=3)
    first = weigh(balancer, tensor(C))
    assert weigh(balancer, tensor(C)[[2, 0, 1]]).tolist() == first.tolist()
    some = torch.tensor([2, 0])
    assert weigh(balancer, tensor(A), active=some).tolist() == first[some].tolist()
    # The fourth step solves again, for its own tasks alone.
    solved = weigh(balancer, tensor(A), active=some)
    assert (solved @ tensor(A)).tolist() == six(0.743496, 1.203002)
    assert balancer.weights[some].tolist() == solved.tolist()
    assert balancer.weights[1] == first[1]


def test_nash_without_a_root_solves_at_the_next_step() -> None:
    balancer = NashMTL(num_tasks=2, seed=0, every=3)
    assert weigh(balancer, tensor(OPPOSITE)).tolist() == [0, 0]
    assert balancer.weights.tolist() == [1, 1]
    assert (weigh(balancer, tensor(A)) @ tensor(A)).tolist() == six(0.743496, 1.203002)
    assert balancer.status == "solved"


def test_fairgrad_of_a_great_alpha_has_equal_products() -> None:
    rows = tensor(C)
    found = rows @ direction(FairGrad, rows, alpha=1e6)
    assert torch.allclose(found, found[0].expand(3), rtol=1e-4)
    shortest = direction(MGDA, rows)  # all three on the nearest face: the max-min direction
    assert float(torch.cosine_similarity(direction(FairGrad, rows, alpha=1e6), shortest, dim=0)) >= 1 - 1e-9
